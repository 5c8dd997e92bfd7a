"""Playing a session file again: the same blocks in the same order, through the same player, and whether they are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from engine import Action, Ready, Session, WorldConfig
from game.film import read_film
from game.sessionfile import Played, SessionError, SessionFile
from game.sessionsink import frames_hash
from game.sinks import Block


class Plan:
    """A session's blocks in the order they were played, numbered from 0 without regard to restarts and rewinds.

    To the player it is a script; to the session file of a replay it tells what its blocks were called.
    """

    def __init__(self, file: SessionFile) -> None:
        if not file.blocks:
            raise SessionError(f"{file.path}: not one block was played in it")
        self.file = file
        self.blocks = file.blocks
        self.starts = [0, *accumulate(block.frames for block in file.blocks)]  # number of each block's first frame

    def __len__(self) -> int:
        return len(self.blocks)

    def at(self, number: int) -> Action | None:
        """What was done during block ``number``, None after the end."""
        return self.blocks[number].action if number < len(self.blocks) else None

    def original(self, block: Block) -> Block:
        """The block with the epoch, index and origin it had when it was played first."""
        played = self.blocks[block.index]
        return replace(block, epoch=played.epoch, index=played.index, origin=played.origin)


@dataclass(frozen=True)
class Place:
    """As much of a `BlockClock` as a player looks at."""

    block: int
    frames: range


class ReplaySession:
    """An `engine.Session` that plays a plan: it restarts, rewinds and loads where that was done, and counts straight on.

    ``snapshots`` are those the plan loads, by their sha256; ``start`` is the start picture, None for the world's own, or the clip
    it went on from, in which ``past`` was done.
    """

    last_frame = restored_from = None  # what a player shows before the first block, and where that goes on from: the plan knows

    def __init__(
        self, session: Session, plan: Plan, start: np.ndarray | None = None, snapshots: Mapping[str, Any] | None = None,
        past: Sequence[Action] = (),
    ) -> None:  # fmt: skip
        self.inner, self.plan = session, plan
        self.world = session.world
        self._start, self._past = start, past
        self._snapshots = snapshots or {}
        self._next = 0
        self._epochs = list(dict.fromkeys(block.epoch for block in plan.blocks))
        self._origins = {block.epoch: block.origin for block in plan.blocks if block.origin is not None}
        missing = [origin.snapshot for origin in self._origins.values() if origin.kind == "load" and origin.snapshot not in self._snapshots]
        if missing:
            raise SessionError(f"{plan.file.path}: goes on from a snapshot (sha256 {missing[0][:12]}…); give its file with --snapshot FILE")

    @property
    def clock(self) -> Place:
        starts, number = self.plan.starts, self._next
        return Place(number, range(starts[number], starts[min(number + 1, len(starts) - 1)]))

    @property
    def timings(self) -> dict[str, float]:
        return self.inner.timings

    def step(self, action: Action, ready: Ready | None = None) -> np.ndarray:
        """The plan's next block. Raises SessionError when the plan does not fit the world."""
        played = self.plan.blocks[self._next]
        if played.origin is not None:
            self._go(played)
        frames = self._play(played, ready)
        self._next += 1
        return frames

    def reset(self) -> None:
        """Begin the plan again."""
        self._begin()
        self._next = 0

    def _play(self, played: Played, ready: Ready | None = None) -> np.ndarray:
        clock = self.inner.clock
        if (clock.block, len(clock.frames)) != (played.index, played.frames):
            words = f"block {played.index} with {played.frames} frames cannot come where block {clock.block} with {len(clock.frames)} comes"
            raise SessionError(f"{self.plan.file.path}: {words}")
        keyboard, mouse = self.world.config.actions.to_model(played.action)
        if tuple(keyboard) != played.keyboard or (None if mouse is None else tuple(mouse)) != played.mouse:
            raise SessionError(f"{self.plan.file.path}: block {played.index}: its keys mean something else to this world's model")
        return self.inner.step(played.action, ready)

    def _go(self, played: Played) -> None:
        """To where the first block of an epoch goes on from."""
        origin = played.origin
        if origin.kind == "load":
            self.inner.restore(self._snapshots[origin.snapshot])
        elif origin.kind == "rewind":
            self._rewind(origin.parent, origin.block)
        elif self._next:
            self.inner.reset()

    def _rewind(self, parent: int, block: int) -> None:
        """To before ``block`` of ``parent``'s line: by taking back what was just played if that is enough, else by playing again."""
        back = self.inner.clock.block - block
        if self.plan.blocks[self._next - 1].epoch == parent and 0 <= back <= getattr(self.inner, "rewindable", 0):
            if back:
                self.inner.rewind(back)
            return
        line = [played for played in self.plan.file.lineage(parent) if played.index < block]
        self._root(line[0].epoch if line else self._root_of(parent))
        for played in line:
            self._play(played)

    def _root_of(self, epoch: int) -> int:
        while self._origins[epoch].kind == "rewind":
            epoch = self._origins[epoch].parent
        return epoch

    def _root(self, epoch: int) -> None:
        """The state in which ``epoch``, which is no rewind, began. A restart keeps seed and picture of the load before it."""
        earlier = [other for other in self._epochs if other <= epoch and self._origins[other].kind == "load"]
        if earlier:
            self.inner.restore(self._snapshots[self._origins[earlier[-1]].snapshot])
            if earlier[-1] != epoch:
                self.inner.reset()
        else:
            self._begin()

    def _begin(self) -> None:
        """The first block of the session. Seed and picture are given anew: a load may have changed them."""
        if not any(origin.kind == "load" for origin in self._origins.values()):
            return self.inner.reset()
        start = self.world.start_pixels() if self._start is None else self._start
        self.inner.reset(self.plan.file.header["seed"], start[0] if start.ndim == 4 else start)
        if start.ndim == 4:
            self.inner.prefill(start, self._past)


@dataclass(frozen=True)
class Difference:
    """A block that came out otherwise than it was recorded."""

    epoch: int
    index: int
    psnr: float | None  # dB against the film, None where there is none

    def __str__(self) -> str:
        where = f"block {self.index}" + (f" of epoch {self.epoch}" if self.epoch else "")
        return where + (f" ({self.psnr:.1f} dB from the film)" if self.psnr is not None else "")


class Check:
    """A sink that compares every block with what was recorded. ``film`` may hold the recorded pictures, to say by how much."""

    def __init__(self, plan: Plan, film: Path | None = None) -> None:
        self.plan, self.film = plan, film
        self.stop = False  # whether the first difference is enough
        self.frames = 0
        self.compared = self.unhashed = 0
        self.first: Difference | None = None
        self.different = 0
        self.psnr: list[tuple[int, float]] = []  # (number of the block, dB) of every different one
        self._reader: Iterator[np.ndarray] | None = None

    def open(self, config: WorldConfig) -> None:
        self._reader = None if self.film is None else read_film(self.film, config.height, config.width)

    @property
    def done(self) -> bool:
        """Nothing more is to be found out."""
        return self.stop and self.first is not None

    def write(self, block: Block) -> None:
        """Compare one block; ``block.index`` is its number in the plan."""
        if self.done:
            return
        played = self.plan.blocks[block.index]
        filmed = self._filmed(played)
        self.frames += len(block.frames)
        if played.sha256 is None or block.bare:
            self.unhashed += 1
            return
        self.compared += 1
        if frames_hash(block.frames) == played.sha256:
            return
        self.different += 1
        decibels = None if filmed is None else psnr(block.frames, filmed)
        if decibels is not None:
            self.psnr.append((block.index, decibels))
        self.first = self.first or Difference(played.epoch, played.index, decibels)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _filmed(self, played: Played) -> np.ndarray | None:
        """The block's frames in the film `[F, H, W, 3]`; None if it is not there, or the film is over."""
        if self._reader is None or (played.epoch, played.index) in self.plan.file.gaps:
            return None
        frames = [frame for _, frame in zip(range(played.frames), self._reader, strict=False)]
        return np.stack(frames) if len(frames) == played.frames else None


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 arrays in dB; infinite for equal ones."""
    error = float(np.mean((ours.astype(np.float32) - theirs.astype(np.float32)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
