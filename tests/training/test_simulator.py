"""The simulator: deterministic, moves the right way, and nobody walks through anything."""

from __future__ import annotations

import pytest
import torch

from training.simulator import HEIGHT, WIDTH, Pose, is_free, random_actions, random_poses, render, rollout, step, world
from training.simulator.motion import NEAR

KEYS = {"w": 0, "s": 1, "a": 2, "d": 3}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def still(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(batch, 4), torch.zeros(batch, 2)


def shift(before: torch.Tensor, after: torch.Tensor, dim: int, reach: int = 8) -> int:
    """By how many pixels the content moved along `dim` (-1 right, -2 down): the roll that fits best."""
    inner = [slice(None)] * before.ndim
    inner[dim] = slice(reach, before.shape[dim] - reach)
    cut = tuple(inner)
    errors = {s: (after.float()[cut] - before.float().roll(s, dim)[cut]).abs().mean().item() for s in range(-reach, reach + 1)}
    return min(errors, key=errors.__getitem__)


def test_render_is_deterministic_and_has_the_promised_shape() -> None:
    poses = random_poses(9, seeded())
    frames = render(poses)
    assert frames.shape == (9, 3, HEIGHT, WIDTH) and frames.dtype == torch.uint8
    assert torch.equal(frames, render(poses))
    assert render(poses, height=32, width=56).shape == (9, 3, 32, 56)


def test_a_picture_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    poses = random_poses(40, seeded(1))
    together = render(poses).int()
    for i in range(0, 40, 7):
        alone = render(Pose(*(getattr(poses, k)[i : i + 1] for k in ("x", "y", "yaw", "pitch")))).int()
        assert (alone[0] - together[i]).abs().max() <= 1


def test_rollout_is_repeated_step_and_render() -> None:
    start = random_poses(3, seeded(2))
    keyboard, mouse = random_actions(3, 7, seeded(3))
    frames, poses = rollout(start, keyboard, mouse)
    assert frames.shape == (3, 8, 3, HEIGHT, WIDTH) and poses.x.shape == (3, 8)
    pose = start
    for i in range(8):
        assert torch.equal(poses.x[:, i], pose.x) and torch.equal(poses.yaw[:, i], pose.yaw)
        assert (frames[:, i].int() - render(pose).int()).abs().max() <= 1
        if i < 7:
            pose = step(pose, keyboard[:, i], mouse[:, i])


def test_random_actions_repeat_and_stay_in_range() -> None:
    keyboard, mouse = random_actions(200, 57, seeded(4))
    again = random_actions(200, 57, seeded(4))
    assert torch.equal(keyboard, again[0]) and torch.equal(mouse, again[1])
    assert keyboard.shape == (200, 57, 4) and mouse.shape == (200, 57, 2)
    assert set(keyboard.unique().tolist()) == {0.0, 1.0} and mouse.abs().max() <= 0.1 + 1e-6
    rows = torch.cat([keyboard, mouse], dim=2)
    changes = (rows[:, 1:] != rows[:, :-1]).any(2)  # changes[:, i]: between rows i and i+1
    edges = torch.zeros(56, dtype=torch.bool)
    edges[8::12] = True
    aligned = ~changes[:, ~edges].any(1)
    assert 0.4 < aligned.float().mean() < 0.75
    assert 0.15 < (rows == 0).all(2).float().mean() < 0.5


def test_a_share_of_the_walks_turns_all_the_time_and_the_others_stay_what_they_were() -> None:
    keyboard, mouse = random_actions(400, 93, seeded(4), turning=0.4)
    plain_keyboard, plain_mouse = random_actions(400, 93, seeded(4))
    turned = (mouse[..., 1].abs() == mouse.abs().max()).all(1) & (mouse[..., 1] == mouse[:, :1, 1]).all(1)
    assert 0.3 < turned.float().mean() < 0.5
    assert 0.3 < (mouse[turned, 0, 1] < 0).float().mean() < 0.7  # to either side
    assert torch.equal(keyboard[~turned], plain_keyboard[~turned]) and torch.equal(mouse[~turned], plain_mouse[~turned])
    on_the_spot = (keyboard[turned] == 0).all(2).all(1) & (mouse[turned, :, 0] == 0).all(1)
    assert 0.4 < on_the_spot.float().mean() < 0.7


def test_in_a_share_of_the_walks_one_backs_where_others_walk_ahead() -> None:
    keyboard, mouse = random_actions(400, 93, seeded(4), backing=0.4)
    plain, plain_mouse = random_actions(400, 93, seeded(4))
    assert torch.equal(mouse, plain_mouse) and torch.equal(keyboard[..., 2:], plain[..., 2:])
    walks = (plain[..., 0] != plain[..., 1]).any(1)  # the others tell nothing
    backs = (keyboard != plain).any(2).any(1)
    assert torch.equal(keyboard[backs], plain[backs][..., [1, 0, 2, 3]]) and 0.3 < backs[walks].float().mean() < 0.5
    assert keyboard[backs, :, 1].mean() > 1.5 * keyboard[backs, :, 0].mean()


def test_a_share_of_the_starts_has_a_thing_before_its_eyes_and_the_others_stay_what_they_were() -> None:
    poses, plain = random_poses(600, seeded(4), near=0.4), random_poses(600, seeded(4))
    assert is_free(poses.x, poses.y).all() and torch.equal(poses.pitch, plain.pitch)
    moved = (poses.x != plain.x) | (poses.y != plain.y) | (poses.yaw != plain.yaw)
    assert 0.33 < moved.float().mean() < 0.47
    close = torch.zeros(600, dtype=torch.bool)
    seen = []
    for thing in world.THINGS:
        dx, dy = thing.x - poses.x, thing.y - poses.y
        aside = torch.remainder(torch.atan2(dy, dx) - poses.yaw + torch.pi, 2 * torch.pi) - torch.pi
        here = (torch.hypot(dx, dy) <= thing.radius + world.BODY + NEAR + 1e-4) & (aside.abs() <= world.FIELD_OF_VIEW / 2 + 1e-4)
        seen.append(int((here & moved).sum()))
        close |= here
    assert close[moved].all() and min(seen) > 10  # beside every one of them
    assert not close[~moved].all()


@pytest.mark.parametrize(("mouse", "dim", "sign"), [((0, 1), -1, -1), ((0, -1), -1, 1), ((1, 0), -2, 1), ((-1, 0), -2, -1)])
def test_looking_moves_the_picture_the_other_way(mouse: tuple[int, int], dim: int, sign: int) -> None:
    poses = random_poses(24, seeded(5))
    start = Pose(poses.x, poses.y, poses.yaw, torch.zeros_like(poses.pitch))
    before, after = start, start
    for _ in range(2):
        after = step(after, still(24)[0], torch.tensor([mouse]).expand(24, 2) * 0.1)
    moved = [shift(a, b, dim) for a, b in zip(render(before), render(after), strict=True)]
    assert sum(m * sign > 0 for m in moved) >= 23


@pytest.mark.parametrize(("key", "grows"), [("w", True), ("s", False)])
def test_walking_ahead_makes_things_grow(key: str, grows: bool) -> None:
    # Looking north-west from the middle at the red pillar.
    start = Pose(torch.tensor([3.2]), torch.tensor([3.2]), torch.tensor([-2.3562]), torch.tensor([0.0]))
    keyboard, mouse = still(1)
    keyboard[0, KEYS[key]] = 1
    after = start
    for _ in range(8):
        after = step(after, keyboard, mouse)

    def reds(pose: Pose) -> int:
        r, g, b = render(pose)[0].int()
        return int(((r - g > 60) & (r - b > 60))[:, WIDTH // 3 : -WIDTH // 3].sum())

    assert (reds(after) > reds(start) * 1.1) if grows else (reds(after) < reds(start) * 0.9)


@pytest.mark.parametrize(("key", "sign"), [("d", -1), ("a", 1)])
def test_stepping_aside_moves_the_picture_the_other_way(key: str, sign: int) -> None:
    start = Pose(torch.tensor([3.2]), torch.tensor([3.2]), torch.tensor([-2.3562]), torch.tensor([0.0]))
    keyboard, mouse = still(1)
    keyboard[0, KEYS[key]] = 1
    after = start
    for _ in range(3):
        after = step(after, keyboard, mouse)
    assert shift(render(start)[0], render(after)[0], -1) * sign > 0


def test_pitch_is_limited_and_idling_changes_nothing() -> None:
    pose = random_poses(4, seeded(6))
    idle = step(pose, *still(4))
    assert torch.allclose(idle.x, pose.x) and torch.allclose(idle.yaw, pose.yaw, atol=1e-6)
    for _ in range(60):
        pose = step(pose, still(4)[0], torch.tensor([[0.1, 0.0]]).expand(4, 2))
    assert torch.allclose(pose.pitch, torch.full((4,), 0.261799))


def test_nobody_leaves_the_garden_or_enters_a_thing() -> None:
    pose = random_poses(64, seeded(7))
    keyboard, mouse = random_actions(64, 2000, seeded(8))
    for i in range(2000):
        pose = step(pose, keyboard[:, i], mouse[:, i])
        assert is_free(pose.x, pose.y, slack=1e-4).all()
