"""How one walks: poses, steps, collisions, and random actions. Units: cells, radians, frames.

`keyboard` columns are W, S, A, D (1 = held); `mouse` columns are pitch (+ up) and yaw (+ right), 0.1 = full speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from training.simulator import world

_CIRCLES = [(t.x, t.y, t.radius + world.BODY) for t in world.THINGS]
_CIRCLES.append((world.POND.x, world.POND.y, world.POND.radius + world.BODY * 0.75))
NEAR = 0.8  # cells: what is so near that a step moves it far across the picture
_LOW, _HIGH = world.WALL_MARGIN, world.SIZE - world.WALL_MARGIN


@dataclass(frozen=True)
class Pose:
    """Where the eyes are: float32 tensors [B]; x, y in cells, yaw in [-pi, pi), pitch in radians (+ up)."""

    x: Tensor
    y: Tensor
    yaw: Tensor
    pitch: Tensor


def is_free(x: Tensor, y: Tensor, slack: float = 0.0) -> Tensor:
    """Whether one can stand at (x, y): bool [B]; `slack` forgives that many cells."""
    free = (x >= _LOW - slack) & (x <= _HIGH + slack) & (y >= _LOW - slack) & (y <= _HIGH + slack)
    for cx, cy, radius in _CIRCLES:
        free &= torch.hypot(x - cx, y - cy) >= radius - slack
    return free


def random_poses(batch: int, generator: torch.Generator, near: float = 0.0) -> Pose:
    """Free places with any heading; the pitch is level in half of them and small in most others.

    In a share ``near`` of them one stands at most `NEAR` cells farther from a trunk or pillar than one can come, and has it in view.
    """
    device = generator.device
    x, y = torch.empty(0, device=device), torch.empty(0, device=device)
    while len(x) < batch:
        spot = torch.rand(2, batch * 2 + 16, generator=generator, device=device) * (_HIGH - _LOW) + _LOW
        free = is_free(spot[0], spot[1])
        x, y = torch.cat([x, spot[0][free]]), torch.cat([y, spot[1][free]])
    yaw = (torch.rand(batch, generator=generator, device=device) * 2 - 1) * pi
    tilted = torch.rand(batch, generator=generator, device=device) < 0.5
    pitch = torch.randn(batch, generator=generator, device=device) * (world.PITCH_LIMIT / 3) * tilted
    x, y = x[:batch], y[:batch]
    if near:  # drawn last, and only if asked for: the places of a seed stay what they were
        spots = _spots_near_things(batch, generator)
        chosen = torch.rand(batch, generator=generator, device=device) < near
        x, y, yaw = (torch.where(chosen, beside, anywhere) for beside, anywhere in zip(spots, (x, y, yaw), strict=True))
    return Pose(x, y, yaw, pitch.clamp(-world.PITCH_LIMIT, world.PITCH_LIMIT))


def _spots_near_things(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Free x, y beside a trunk or pillar and a yaw that has it in view: [batch] each."""
    device, count = generator.device, batch * 2 + 16
    circles = torch.tensor(_CIRCLES[: len(world.THINGS)], device=device)
    found = torch.empty(3, 0, device=device)
    while found.shape[1] < batch:
        cx, cy, closest = circles[torch.randint(len(circles), (count,), generator=generator, device=device)].unbind(1)
        farther, around, aside = torch.rand(3, count, generator=generator, device=device)
        towards = (around * 2 - 1) * pi  # from the spot to the thing
        distance = closest + farther * NEAR
        x, y = cx - distance * towards.cos(), cy - distance * towards.sin()
        yaw = torch.remainder(towards + (aside - 0.5) * world.FIELD_OF_VIEW + pi, 2 * pi) - pi
        found = torch.cat([found, torch.stack([x, y, yaw])[:, is_free(x, y)]], dim=1)
    return tuple(found[:, :batch].unbind(0))


def step(pose: Pose, keyboard: Tensor, mouse: Tensor) -> Pose:
    """One frame: turn, then walk; whoever meets an obstacle slides along it. keyboard [B,4], mouse [B,2]."""
    keyboard, mouse = keyboard.to(pose.x), mouse.to(pose.x) / world.FULL_MOUSE
    pitch = (pose.pitch + mouse[:, 0] * world.PITCH_SPEED).clamp(-world.PITCH_LIMIT, world.PITCH_LIMIT)
    yaw = torch.remainder(pose.yaw + mouse[:, 1] * world.TURN_SPEED + pi, 2 * pi) - pi
    ahead, right = keyboard[:, 0] - keyboard[:, 1], keyboard[:, 3] - keyboard[:, 2]
    share = torch.hypot(ahead, right).clamp(min=1)  # diagonals are no faster
    ahead, right = ahead / share * world.WALK_SPEED, right / share * world.STRAFE_SPEED
    cos, sin = yaw.cos(), yaw.sin()
    x, y = _slide(pose.x + ahead * cos - right * sin, pose.y + ahead * sin + right * cos)
    return Pose(x, y, yaw, pitch)


def _slide(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    for cx, cy, radius in _CIRCLES:
        dx, dy = x - cx, y - cy
        push = (radius / torch.hypot(dx, dy).clamp(min=1e-6)).clamp(min=1)
        x, y = cx + dx * push, cy + dy * push
    return x.clamp(_LOW, _HIGH), y.clamp(_LOW, _HIGH)


# W S A D, and how often: walking ahead most, opposite keys never.
_KEYS = (
    ((0, 0, 0, 0), 0.30), ((1, 0, 0, 0), 0.26), ((0, 1, 0, 0), 0.14), ((0, 0, 1, 0), 0.09), ((0, 0, 0, 1), 0.09),
    ((1, 0, 1, 0), 0.04), ((1, 0, 0, 1), 0.04), ((0, 1, 1, 0), 0.02), ((0, 1, 0, 1), 0.02),
)  # fmt: skip


def random_actions(
    batch: int, frames: int, generator: torch.Generator, idle: float = 1 / 16, turning: float = 0.0, backing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(keyboard [B,F,4], mouse [B,F,2]): keys, yaw and pitch held independently, for a moment or for seconds.

    Half of the clips change only where a block begins (rows 0..8, then 12 each), half at any frame; one in six
    moments and ``idle`` of the clips is pure idling. In a share ``turning`` of the clips one turns at full speed from
    the first row to the last, in half of these on the spot: turns that long are hardly ever drawn otherwise. In a share ``backing``
    W and S are exchanged, so that one walks backward about twice as often as ahead, into what one does not see.
    """
    device = generator.device

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    rows = torch.arange(frames, device=device)
    blocks = (rows + 3) // 12  # rows 0..8 are block 0
    aligned = rand(batch, 1) < 0.5

    def held(shortest: float, longest: float) -> Tensor:
        """Which draw each row uses: long [B,F]; draws last log-uniformly long."""
        lengths = shortest * (longest / shortest) ** rand(batch, frames)
        ends = lengths.cumsum(1) - lengths[:, :1] * rand(batch, 1)  # the first one has begun before
        free = torch.searchsorted(ends, rows.float().expand(batch, -1).contiguous(), right=True)
        ends = (lengths / 12).clamp(min=0.75).cumsum(1)
        by_block = torch.searchsorted(ends, blocks.float().expand(batch, -1).contiguous(), right=True)
        return torch.where(aligned, by_block, free).clamp(max=frames - 1)

    table = torch.tensor([k for k, _ in _KEYS], dtype=torch.float32, device=device)
    odds = torch.tensor([p for _, p in _KEYS], device=device)
    drawn = torch.multinomial(odds, batch * frames, replacement=True, generator=generator).view(batch, frames)
    keyboard = table[drawn.gather(1, held(4, 72))]

    def look(active: float) -> Tensor:
        kind, size = rand(batch, frames), rand(batch, frames)
        sign = (rand(batch, frames) < 0.5).float() * 2 - 1
        value = torch.where(kind < 0.65 * active, torch.ones_like(size), size) * sign  # full, or graded
        return value * (kind < active) * world.FULL_MOUSE

    yaw = look(0.55).gather(1, held(4, 60))
    pitch = look(0.33).gather(1, held(4, 36))
    moving = (rand(batch, frames).gather(1, held(8, 96)) > 1 / 6) & (rand(batch, 1) > idle)
    keyboard, mouse = keyboard * moving[..., None], torch.stack([pitch, yaw], dim=-1) * moving[..., None]
    if turning:  # drawn last, and only if asked for: the walks of a seed stay what they were
        turned, on_the_spot, left = (rand(batch, 1) < share for share in (turning, 0.5, 0.5))
        keyboard = keyboard.masked_fill((turned & on_the_spot)[..., None], 0.0)
        mouse[..., 0].masked_fill_(turned & on_the_spot, 0.0)
        mouse[..., 1] = torch.where(turned, torch.where(left, -world.FULL_MOUSE, world.FULL_MOUSE), mouse[..., 1])
    if backing:  # likewise
        backs = (rand(batch, 1) < backing)[..., None]
        keyboard = torch.where(backs, keyboard[..., [1, 0, 2, 3]], keyboard)
    return keyboard, mouse
