"""A world without a model: the interface of `engine.Session`, pictures that count, as fast or slow as a test wants."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine import Action, ActionSpace, Ready, WorldError
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

    def __init__(
        self, config: FakeConfig | None = None, seconds: float = 0.0, fails_at: int | None = None, kept: int = 1000, block: int = 0
    ) -> None:
        self.config = config or FakeConfig()
        self.clock = BlockClock(block=block)
        self.kept = kept  # blocks that can be taken back
        self.begun = block  # history begins here
        self.restored_from = "f" * 64 if block else None
        self.last_frame: np.ndarray | None = self._picture(self.clock.frames.start - 1) if block else None
        self.seconds = seconds
        self.fails_at = fails_at
        self.actions: list[Action] = []
        self.resets = 0

    def step(self, action: Action, ready: Ready | None = None) -> np.ndarray:
        if self.clock.block == self.fails_at:
            raise RuntimeError("the model fell over")
        time.sleep(self.seconds)
        self.actions.append(action)
        values = np.array(self.clock.frames, dtype=np.int64) % 251
        self.last_frame = self._picture(self.clock.frames.stop - 1)
        self.clock = self.clock.next()
        self.begun = max(self.begun, self.clock.block - self.kept)
        shape = (len(values), self.config.height, self.config.width, 3)
        frames = np.broadcast_to(values[:, None, None, None], shape).astype(np.uint8)
        if ready is not None:
            ready(frames)
        return frames

    def reset(self) -> None:
        self.resets += 1
        self.clock = self.clock.restarted()
        self.begun, self.last_frame, self.restored_from = 0, None, None

    def snapshot(self) -> FakeSnapshot:
        return FakeSnapshot(self.clock.block)

    def read_snapshot(self, path: Path) -> FakeSnapshot:
        text = path.read_text()
        if not text.isdigit():
            raise WorldError(f"{path} is no snapshot")
        return FakeSnapshot(int(text), "ab" * 32)

    def restore(self, snapshot: FakeSnapshot) -> None:
        self._go_to(snapshot.block)
        self.begun, self.restored_from = snapshot.block, snapshot.sha256

    def rewind(self, blocks: int) -> None:
        kept = self.clock.block - self.begun
        if not 1 <= blocks <= kept:
            raise WorldError(f"cannot rewind {blocks} blocks: {kept} are kept")
        self._go_to(self.clock.block - blocks)

    def _go_to(self, block: int) -> None:
        self.clock = replace(self.clock, epoch=self.clock.epoch + 1, block=block)
        self.last_frame = self._picture(self.clock.frames.start - 1) if block else None

    def _picture(self, frame: int) -> np.ndarray:
        return np.full((self.config.height, self.config.width, 3), frame % 251, np.uint8)


@dataclass(frozen=True)
class FakeSnapshot:
    """A file with nothing but the block's number."""

    block: int
    sha256: str | None = None

    def save(self, path: Path) -> None:
        if path.is_dir():
            raise WorldError(f"cannot write {path}: Is a directory")
        path.write_text(str(self.block))
