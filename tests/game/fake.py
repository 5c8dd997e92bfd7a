"""A world without a model: the interface of `engine.Session`, pictures that count, as fast or slow as a test wants."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from engine import Action, ActionSpace
from engine.actions import Key, LookKey
from engine.clock import BlockClock

WALK = ActionSpace(
    keyboard=(Key("forward", "w"), Key("back", "s"), Key("left", "a"), Key("right", "d")),
    look=(
        LookKey("i", "look up", "up"),
        LookKey("k", "look down", "down"),
        LookKey("j", "turn left", "left"),
        LookKey("l", "turn right", "right"),
    ),
    look_scale=(0.1, 0.1),
)
RUN = ActionSpace(keyboard=(Key("nothing"), Key("jump", "w"), Key("slide", "s"), Key("turn left", "z")), one_hot=True)


@dataclass(frozen=True)
class FakeConfig:
    """As much of a `WorldConfig` as the game looks at."""

    name: str = "fake"
    title: str = "A fake world"
    about: str = "Numbers in the dark."
    fps: int = 100
    width: int = 32
    height: int = 16
    actions: ActionSpace = WALK
    block_frames: tuple[int, int] = (9, 12)


class FakeSession:
    """Frame i is filled with i modulo 251; each block takes ``seconds``; block ``fails_at`` raises."""

    def __init__(self, config: FakeConfig | None = None, seconds: float = 0.0, fails_at: int | None = None) -> None:
        self.config = config or FakeConfig()
        self.clock = BlockClock()
        self.seconds = seconds
        self.fails_at = fails_at
        self.actions: list[Action] = []
        self.resets = 0

    def step(self, action: Action) -> np.ndarray:
        if self.clock.block == self.fails_at:
            raise RuntimeError("the model fell over")
        time.sleep(self.seconds)
        self.actions.append(action)
        values = np.array(self.clock.frames, dtype=np.int64) % 251
        self.clock = self.clock.next()
        shape = (len(values), self.config.height, self.config.width, 3)
        return np.broadcast_to(values[:, None, None, None], shape).astype(np.uint8)

    def reset(self) -> None:
        self.resets += 1
        self.clock = self.clock.restarted()
