"""The gain of turns: in the weights it is what it would be in the mouse, and the search finds the one that was planted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.training.test_trainers import random_clips, small_dit
from training import calibrate, heldout
from training.latents import sample_windows


def test_in_the_weights_it_is_what_it_would_be_in_the_mouse() -> None:
    dit, twin = small_dit().eval(), small_dit().eval()
    twin.load_state_dict(calibrate.with_gain(dit.state_dict(), 1.5, dit.config.dim))
    windows = sample_windows(random_clips(), 2, 1, torch.Generator().manual_seed(2))
    mouse = torch.rand_like(windows.mouse[:, :3])
    x = torch.cat([windows.latents, windows.condition], dim=1)[:, :, :3]
    seen = []
    for model, told in ((dit, mouse * torch.tensor([1.0, 1.5])), (twin, mouse), (dit, mouse)):
        with torch.no_grad():
            seen.append(model(x, torch.full((2, 3), 500.0), windows.keyboard[:, :3], told, model.new_cache(2, 2, 3), 0))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen[1], seen[2], atol=1e-4), "the mouse is heard"


def test_the_planted_gain_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    dit = small_dit()
    weights = {name: tensor.detach().clone() for name, tensor in dit.state_dict().items()}
    name = next(name for name in weights if name.endswith(calibrate.READS_MOUSE))
    torch.save({"step": 7, "seconds": 60.0, "model": weights, "averaged": weights, "optimizer": {}}, tmp_path / "last.pt")
    truth = weights[name] * 1
    truth[:, dit.config.dim + 1 :: 2] *= 1.06

    def errors(play: SimpleNamespace, *_: object) -> torch.Tensor:
        return (play.dit.state_dict()[name] - truth).square().sum().expand(2, 8)

    monkeypatch.setattr(calibrate, "garden_dit", lambda: dit)
    monkeypatch.setattr(calibrate, "unseen", lambda *_, **__: None)
    monkeypatch.setattr(calibrate, "windows", lambda *_: None)
    monkeypatch.setattr(calibrate, "block_errors", errors)
    monkeypatch.setattr(calibrate, "Resampler", lambda dit, *_: SimpleNamespace(dit=dit))
    arguments = ["x", str(tmp_path), "--vae", str(tmp_path / "last.pt"), "--out", str(tmp_path / "b" / "c.pt")]
    monkeypatch.setattr("sys.argv", arguments)
    calibrate.main()
    assert "gain 1.06\n" in capsys.readouterr().out
    state = torch.load(tmp_path / "b" / "c.pt", weights_only=True)
    assert (state["step"], state["seconds"], "optimizer" in state) == (7, 60.0, False)
    for part in ("model", "averaged"):
        torch.testing.assert_close(state[part][name], truth)
        assert all(torch.equal(tensor, weights[other]) for other, tensor in state[part].items() if other != name)
    with pytest.raises(SystemExit):
        calibrate.main()
    assert "name a .pt file that is not there yet" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path / "none"), "--out", str(tmp_path / "d.pt")])
    with pytest.raises(SystemExit):
        calibrate.main()
    assert "last.pt" in capsys.readouterr().err


def test_errors_of_blocks() -> None:
    """Of a player that strays by a block's number: its square, for every walk and block."""
    windows = sample_windows(random_clips(), 2, heldout.BLOCKS, torch.Generator().manual_seed(1))
    number = torch.arange(heldout.BLOCKS).repeat_interleave(heldout.BLOCK).view(1, 1, -1, 1, 1)
    found = heldout.block_errors(lambda batch, begins, noise: batch.latents + number, windows, [0] * heldout.BLOCKS)
    torch.testing.assert_close(found, (torch.arange(heldout.BLOCKS).float() ** 2).expand(2, -1), rtol=1e-3, atol=1e-4)
