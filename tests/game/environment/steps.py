"""Actions of the tiny world, and the frames they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from game.environment import WorldEnv

WALK = {"look": np.zeros(2, np.float32), "keys": np.array([1, 0, 0, 0], np.int8)}
TURN = {"look": np.array([0, 1], np.float32), "keys": np.zeros(4, np.int8)}
BACK = {"look": np.array([-0.5, 0.25], np.float32), "keys": np.array([0, 1, 1, 0], np.int8)}
LEFT, RIGHT = np.full((16, 32, 3), 40, np.uint8), np.full((16, 32, 3), 200, np.uint8)


def frames_of(env: WorldEnv, *actions: Any) -> list[np.ndarray]:
    """The frames of each block."""
    return [np.stack(env.step(action)[4]["frames"]) for action in actions]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def frames_of_new(make: Callable[..., WorldEnv], **settings: Any) -> list[np.ndarray]:
    env = make(**settings)
    env.reset(seed=1)
    return frames_of(env, WALK)
