"""The guide: what it compares with, and that fitting it is least squares and changes nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.training.test_trainers import small_dit
from training.guide import FEATURES, PoseGuide, pose_features


def test_the_guide_compares_with_what_is_seen_from_the_pose() -> None:
    pose = torch.tensor([[1.7, 4.0, 0.0, 0.0], [5.0, 6.9, -torch.pi / 2, 0.1]])
    green_tree = 15 + 3 * 5
    assert pose_features(pose).shape == (2, FEATURES)
    torch.testing.assert_close(pose_features(pose)[0, green_tree : green_tree + 2], torch.tensor([1.0, 0.0]))  # straight ahead
    pond = pose_features(pose)[1, -3:]
    torch.testing.assert_close(pond, torch.tensor([1.0, 0.0, 0.8 / 3.0]), atol=1e-5, rtol=1e-5)
    guide = PoseGuide(small_dit(), 1)
    with pytest.raises(RuntimeError, match="heard nothing"):
        guide.loss(pose[None])


def test_a_fitted_guide_answers_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """By least squares over all it was asked, and it is only the head that has changed."""
    monkeypatch.setattr("training.guide.RIDGE", 1e-9)
    torch.manual_seed(0)
    dit = small_dit()
    guide, before = PoseGuide(dit, 1), {name: weight.clone() for name, weight in dit.state_dict().items()}
    asked = [(torch.randn(2, 5, 6, dit.config.dim, requires_grad=True), torch.rand(2, 3, 4)) for _ in range(4)]
    with guide.fitting():
        for tokens, pose in asked:
            guide._tokens = tokens
            guide.loss(pose, slice(1, 4))
    x = torch.cat([guide.norm(tokens[:, 1:4]).flatten(0, 2) for tokens, _ in asked]).detach()
    y = torch.cat([pose_features(pose)[:, :, None].expand(-1, -1, 6, -1).flatten(0, 2) for _, pose in asked])
    x = torch.cat([x, torch.ones(len(x), 1)], 1).double()  # a normed token's numbers add up to nothing, so weights are not unique
    best, answers = x @ torch.linalg.pinv(x, rtol=1e-5) @ y.double(), guide.read(x[:, :-1].float()).detach()
    torch.testing.assert_close(answers.double(), best, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(before[name], weight) for name, weight in dit.state_dict().items()) and guide.read.weight.requires_grad
    with pytest.raises(RuntimeError, match="nothing to be fitted to"), guide.fitting():
        pass
    assert torch.equal(guide.read(x[:, :-1].float()), answers)
    guide._tokens = asked[0][0]
    guide.loss(asked[0][1], slice(1, 4))  # and no longer noted
    assert guide._heard is None
