"""A fake session with a memory: its pictures depend on seed and all actions so far, so that a wrong turn in a replay shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from engine import NOISE, Action, Ready
from engine.clock import BlockClock
from game.controls import Sample
from game.sessionheader import pixels_hash
from game.sessionsink import SessionSink
from game.sinks import Block, Origin
from tests.game.fake import FakeConfig

PICTURE = np.arange(16 * 32 * 3, dtype=np.uint8).reshape(16, 32, 3)


@dataclass(frozen=True)
class Saved:
    """What `Dream.restore` takes."""

    seed: int
    past: tuple[Action, ...]
    sha256: str = "5" * 64


class Dream:
    """`engine.Session` as far as replaying needs it. ``rewindable`` says how many blocks it claims to be able to take back."""

    def __init__(self, seed: int = 0, rewindable: int = 0) -> None:
        self.config = FakeConfig()
        self.world = SimpleNamespace(config=self.config, start_pixels=lambda start=None: PICTURE)
        self.seed, self.past, self.rewindable = seed, (), rewindable
        self.clock = BlockClock()
        self.steps = 0
        self.timings: dict[str, float] = {}

    def step(self, action: Action, ready: Ready | None = None) -> np.ndarray:
        self.past = (*self.past, action)
        text = repr((self.seed, [(sorted(one.keys), one.look) for one in self.past])).encode()
        count = len(self.clock.frames)
        self.clock = self.clock.next()
        self.steps += 1
        shape = (count, self.config.height, self.config.width, 3)
        frames = np.resize(np.frombuffer(hashlib.sha256(text).digest(), np.uint8), shape)
        if ready is not None:
            ready(frames)
        return frames

    def reset(self, seed: int | None = None, start: np.ndarray | None = None) -> None:
        self.seed = self.seed if seed is None else seed
        self._go(())

    def rewind(self, blocks: int) -> None:
        assert 1 <= blocks <= self.rewindable
        self._go(self.past[:-blocks])

    def restore(self, saved: Saved) -> None:
        self.seed = saved.seed
        self._go(saved.past)

    def _go(self, past: tuple[Action, ...]) -> None:
        self.past = past
        self.clock = replace(self.clock, epoch=self.clock.epoch + 1, block=len(past))


def header(**changes: Any) -> dict[str, Any]:
    """The first line of a session of `Dream`."""
    start = {"sha256": None, "pixels": pixels_hash(PICTURE), "png": None}
    fields = {"reverie": "session", "version": 1, "app": "0", "begun": "", "world": "fake", "weights": {}, "start": start, "seed": 0}
    return fields | {"noise": NOISE, "dtype": "float32", "settings": {}, "fingerprint": {}} | changes


class Table:
    """Plays a `Dream` by hand into a session file."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.dream = Dream(seed, rewindable=1000)
        self.sink = SessionSink(path, lambda: header(seed=seed))
        self.sink.open(self.dream.config)
        self.epoch, self.now = 0, 100.0
        self.origin: Origin | None = Origin("start")

    def play(self, *actions: Action) -> None:
        for action in actions:
            clock, self.now = self.dream.clock, self.now + 0.12
            sample = Sample(action, self.now, None, ((self.now - 0.01, "press", "w", "keyboard"),))
            frames = self.dream.step(action)
            times = dict(started_at=self.now + 0.001, shown_at=self.now + 0.05)
            self.sink.write(Block(self.epoch, clock.block, clock.frames.start, sample, frames, self.now + 0.04, self.origin, **times))
            self.origin = None

    def restart(self) -> None:
        self.dream.reset()
        self.epoch, self.origin = self.epoch + 1, Origin("start")

    def rewind(self, blocks: int) -> None:
        self.dream.rewind(blocks)
        self.epoch, self.origin = self.epoch + 1, Origin("rewind", self.dream.clock.block, self.epoch)

    def load(self, saved: Saved) -> None:
        self.dream.restore(saved)
        self.epoch, self.origin = self.epoch + 1, Origin("load", self.dream.clock.block, None, saved.sha256)


def walk(path: Path) -> Path:
    """A session with a restart, rewinds and all kinds of actions, closed properly."""
    table = Table(path, seed=7)
    table.play(Action("w"), Action({"w", "l"}), Action(look=(0.25, -1 / 3)))
    table.restart()
    table.play(Action("s"), Action("a"), Action("d"), Action())
    table.rewind(2)
    table.play(Action("j"), Action("w"))
    table.rewind(1)
    table.play(Action("k"))
    table.sink.reason = "played to the end"
    table.sink.close()
    return path
