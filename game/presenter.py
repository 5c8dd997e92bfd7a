"""Which frame is to be seen now. Runs on the window's thread; knows neither pygame nor the model."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from game.pacing import Rate, Spread, Timeline
from game.sinks import Block


@dataclass
class Shown:
    """What the player has seen so far."""

    frames: int = 0
    skipped: int = 0  # frames whose time was over before the window's thread came to show them
    underruns: int = 0  # blocks that were not there when they were due
    action_latency: Spread = field(default_factory=Spread)  # from taking a block's action to its first frame on screen
    input_latency: Spread = field(default_factory=Spread)  # from the key press or mouse movement behind it to the same


class Presenter:
    """Takes blocks off the queue and says, whenever asked, which frame is due.

    A block that is late holds the last frame, counts as one underrun, and moves the timeline by as much as it was late.
    After `freeze` nothing moves; `thaw` goes on, `thaw(until=k)` only to the end of block k.
    """

    def __init__(
        self,
        blocks: queue.Queue[Block],
        timeline: Timeline,
        lead: Callable[[], float] = lambda: 0.0,
        on_block: Callable[[Block], None] = lambda block: None,
    ) -> None:
        """``lead`` is the time the next block will need, ``on_block`` is called when the first frame of a block has been `seen`."""
        self._blocks = blocks
        self._timeline = timeline
        self._lead = lead
        self._on_block = on_block
        self.epoch = 0
        self._ahead: Block | None = None  # of an epoch that nobody has announced yet
        self._position = 0  # of the next frame in the block
        self._until: int | None = None
        self.first = 0  # index of the first block of this epoch
        self.frozen = False
        self.block: Block | None = None  # the one being shown
        self.frame: np.ndarray | None = None  # [H, W, 3] uint8, on screen
        self.shown = Shown()
        self._begun: list[tuple[Block, bool]] = []  # since the last `seen`: blocks, and whether they had to wait for the player
        self._thawed = -math.inf
        self.rate = Rate()

    def restart(self, epoch: int, picture: np.ndarray | None = None) -> None:
        """From now on only blocks of ``epoch`` count; until the first of them is there, ``picture`` (or the last one) is seen."""
        self.epoch = epoch
        self.block = None
        self._begun.clear()
        if picture is not None:
            self.frame = picture
        self.frozen = False
        self._until = None
        self._timeline.stop()
        self.rate.clear()

    def freeze(self) -> None:
        self.frozen = True
        self._until = None
        self._timeline.stop()
        self.rate.clear()

    def thaw(self, now: float, until: int | None = None) -> None:
        """Go on from the frozen frame; with ``until`` freeze again when that block has been shown."""
        self.frozen, self._thawed = False, now
        self._until = until
        if self.block is not None:
            rest = len(self.block.frames) - self._position
            self._timeline.start(self._next_frame, now + (0.0 if until is not None else self._slack(rest)))

    def _slack(self, frames: int) -> float:
        """How long to hold the picture before ``frames`` more are played, so that the block after them can be in time."""
        return max(0.0, self._lead() - frames / self._timeline.fps) if self._blocks.empty() else 0.0

    def ended(self, now: float, limit: int) -> bool:
        """Whether all blocks before block ``limit`` have been shown, the last frame for its full time."""
        if self.block is None or self.block.index + 1 < limit or self._position < len(self.block.frames):
            return False
        due = self._timeline.due(self._next_frame)
        return due is None or now >= due

    @property
    def next_due(self) -> float | None:
        """When something will be to do, if that is known."""
        return None if self.frozen or self.block is None else self._timeline.due(self._next_frame)

    @property
    def frame_number(self) -> int:
        """Of the frame on screen, from 0 in each epoch."""
        return max(0, self._next_frame - 1)

    @property
    def _next_frame(self) -> int:
        return self.block.first_frame + self._position

    def poll(self, now: float) -> bool:
        """Advance to the frame due at ``now``; True if there is a new one in ``frame``."""
        changed = False
        while not self.frozen and self._available(now):
            due = self._timeline.due(self._next_frame)
            if now < due and (self._position or self.block.index != self.first):  # the very first is shown at once, whatever the clock
                break
            if changed:
                self.shown.skipped += 1
            self.frame = self.block.frames[self._position]
            if self._position == 0:
                self._begun.append((self.block, self._until is not None or self.block.sample.sampled_at < self._thawed))
            self._position += 1
            changed = True
        if changed:
            self.shown.frames += 1
            self.rate.tick(now)
        return changed

    def seen(self, now: float) -> None:
        """What `poll` changed has come on screen at ``now``."""
        for block, waited in self._begun:
            if not waited:
                self.shown.action_latency.add(now - block.sample.sampled_at)
                if block.sample.input_at is not None:
                    self.shown.input_latency.add(now - block.sample.input_at)
            self._on_block(block)
        self._begun.clear()

    def _available(self, now: float) -> bool:
        """Whether there is a next frame at all; takes the next block where needed."""
        if self.block is not None and self._position < len(self.block.frames):
            return True
        if self.block is not None and self._until is not None and self.block.index >= self._until:
            self.freeze()
            return False
        block = self._take()
        if block is None:
            return False
        due = self._timeline.due(block.first_frame)
        if self.block is None:
            self.first = block.index
            slack = 0.0 if self._until is not None else self._slack(len(block.frames))  # the second block is begun now
            self._timeline.start(block.first_frame, now + slack)
        elif due is None or block.finished_at > due:
            self._timeline.start(block.first_frame, now)
            if self._until is None:
                self.shown.underruns += 1
        self.block, self._position = block, 0
        return True

    def _take(self) -> Block | None:
        """The next block of this epoch if it is there; older ones are dropped, a newer one waits for its `restart`."""
        while True:
            try:
                block = self._ahead or self._blocks.get_nowait()
            except queue.Empty:
                return None
            self._ahead = block if block.epoch > self.epoch else None
            if block.epoch >= self.epoch:
                return block if self._ahead is None else None
