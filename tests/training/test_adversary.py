"""The critic of pictures: what it is shown, what it asks of the decoder, what it keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training import adversary
from training.adversary import Adversary, in_rows, together


def films(seed: int, frames: int = 10) -> torch.Tensor:
    return torch.rand(1, 3, frames, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_frames_in_rows_of_three() -> None:
    video = films(0)
    rows = in_rows(video, 1)
    assert rows.shape == (3, 9, 16, 24)
    assert torch.equal(rows[1].unflatten(0, (3, 3)), video[0, :, 4:7].transpose(0, 1))  # frames 4, 5, 6: three channels each


def test_the_pull_is_the_losss_gradient() -> None:
    torch.manual_seed(0)
    ours, truth, judge = films(1), films(2), Adversary(torch.device("cpu"), lr=0.0)
    pull, apart = judge.pull(ours, truth, 2)
    assert not pull[:, :, :2].any() and not pull[:, :, 8:].any()  # frames that nobody looked at
    wanted = ours.clone().requires_grad_(True)
    told, known = judge.score(in_rows(wanted, 2)), judge.score(in_rows(truth, 2))
    F.softplus(known.detach() - told).mean().backward()
    torch.testing.assert_close(pull, wanted.grad)
    assert apart == pytest.approx(float((known - told).detach().mean()), abs=1e-6)


def test_it_learns_to_tell_blurred_from_sharp_and_asks_for_detail() -> None:
    """Of noise and the same noise blurred: after some steps truth is scored higher, and following the pull raises the score."""
    torch.manual_seed(0)
    judge, apart = Adversary(torch.device("cpu"), lr=2e-3), []

    def blurred(video: torch.Tensor) -> torch.Tensor:
        return F.avg_pool3d(video, (1, 3, 3), 1, (0, 1, 1))

    for step in range(40):
        truth = films(100 + step)
        apart.append(judge.pull(blurred(truth), truth, 0)[1])
    assert sum(apart[-5:]) / 5 > 1 > apart[0]
    truth = films(7)
    soft = blurred(truth)
    pull, _ = judge.pull(soft, truth, 0)
    with torch.no_grad():
        before, after = (judge.score(in_rows(x, 0)).mean() for x in (soft, soft - 0.1 * pull / pull.abs().max()))
    assert after > before


def test_a_share_whatever_the_sizes() -> None:
    nearness, pull = films(3), films(4)
    torch.testing.assert_close(together(nearness, 1e-6 * pull, 0.5), together(nearness, pull, 0.5))
    torch.testing.assert_close(together(nearness, pull, 0.0), nearness)
    assert torch.equal(together(nearness, torch.zeros_like(pull), 0.5), nearness)


def test_it_is_kept(tmp_path) -> None:
    torch.manual_seed(0)
    judge = Adversary(torch.device("cpu"))
    judge.pull(films(1), films(2), 0)
    judge.save(tmp_path / "critic.pt")
    again = Adversary(torch.device("cpu"))
    again.load(tmp_path / "critic.pt")
    for one in (judge, again):
        torch.manual_seed(1)
        one.pull(films(5), films(6), 0)
    assert all(torch.equal(a, b) for a, b in zip(judge.critic.parameters(), again.critic.parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["critic.pt"]
    assert adversary.FRAMES == 3
