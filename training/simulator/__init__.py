"""The garden as truth: a batched first-person world in pure torch, from which the bundled world model learns.

Units: cells, radians, frames (16 a second). Deterministic: the same pose and actions make the same pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.simulator.motion import Pose, is_free, random_actions, random_poses, step
from training.simulator.render import render
from training.simulator.world import FPS, FULL_MOUSE, HEIGHT, WIDTH

__all__ = [
    "FPS", "FULL_MOUSE", "HEIGHT", "WIDTH", "Pose", "is_free", "random_actions", "random_poses", "render", "rollout", "step",
]  # fmt: skip


def rollout(pose: Pose, keyboard: Tensor, mouse: Tensor) -> tuple[Tensor, Pose]:
    """Walks keyboard [B,F,4], mouse [B,F,2] from `pose`: (frames uint8 [B,F+1,3,H,W], poses with fields [B,F+1]).

    Frame 0 shows the start; row i takes frame i to frame i+1.
    """
    poses = [pose]
    for i in range(keyboard.shape[1]):
        poses.append(step(poses[-1], keyboard[:, i], mouse[:, i]))
    x, y, yaw, pitch = (torch.stack([getattr(p, name) for p in poses], dim=1) for name in ("x", "y", "yaw", "pitch"))
    frames = render(Pose(x.flatten(), y.flatten(), yaw.flatten(), pitch.flatten()))
    return frames.unflatten(0, x.shape), Pose(x, y, yaw, pitch)
