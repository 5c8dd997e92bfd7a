"""The thread that owns the model: it alone touches the session, and begins each block as late as it can."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from engine import Session
from game.controls import Sample
from game.pacing import Estimate, Timeline
from game.sinks import Block

QUEUE_BLOCKS = 2  # more than are ever ready: the next block is begun only when it will soon be needed


class Cancelled(Exception):
    """Raised inside the world's thread, out of the loading progress, when the player has left meanwhile."""


class WorldThread(threading.Thread):
    """Makes blocks for one window.

    It meets the window's thread in two places: ``take`` hands it the latest action, ``blocks`` takes what it made. The
    methods `restart`, `pause`, `resume`, `step` and `stop` only set wishes; they return at once and are called by the window's
    thread. Whatever goes wrong in here ends up in ``error``.
    """

    def __init__(
        self,
        load: Callable[[Callable[[str, float], None]], Session],
        take: Callable[[int], Sample],
        timeline: Timeline,
        limit: int | None = None,
    ) -> None:
        """``load(progress)`` opens the session, ``take(block index)`` gives the action, ``limit`` is the number of blocks."""
        super().__init__(name="reverie-world", daemon=True)
        self.blocks: queue.Queue[Block] = queue.Queue(QUEUE_BLOCKS)
        self.estimate = Estimate()
        self.error: BaseException | None = None
        self.progress: tuple[str, float] | None = ("starting", 0.0)  # None once the world is there
        self.epoch = 0
        self._load = load
        self._take = take
        self._timeline = timeline
        timeline.on_move = self._look_again
        self._limit = limit
        self._changed = threading.Condition()
        self._stopping = False
        self.paused = False  # written by the window's thread alone
        self._steps = 0  # blocks to make in spite of the pause
        self._begun = 0  # blocks of this epoch, the one in the making included

    # ---- wishes of the window's thread

    def restart(self) -> int:
        """Begin a new epoch, running; returns its number. Blocks of older epochs may still be in ``blocks``."""
        with self._changed:
            self.epoch += 1
            self.paused, self._steps, self._begun = False, 0, 0
            self._changed.notify()
            return self.epoch

    def pause(self) -> None:
        """Begin no more blocks; the one in the making is finished."""
        with self._changed:
            self.paused, self._steps = True, 0

    def resume(self) -> None:
        with self._changed:
            self.paused, self._steps = False, 0
            self._changed.notify()

    def step(self) -> int:
        """One block more, at once, in spite of the pause; returns its index."""
        with self._changed:
            self._steps += 1
            self._changed.notify()
            return self._begun + self._steps - 1

    def stop(self, timeout: float = 10.0) -> bool:
        """End the thread; True if it ended within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self.is_alive():
            self.join(timeout)
        return not self.is_alive()

    def _look_again(self) -> None:
        with self._changed:
            self._changed.notify()

    # ---- the thread itself

    def run(self) -> None:
        try:
            session = self._load(self._report)
            self.progress = None
            self._play(session)
        except Cancelled:
            pass
        except BaseException as error:
            self.error = error

    def _report(self, what: str, fraction: float) -> None:
        if self._stopping:
            raise Cancelled
        self.progress = (what, fraction)

    def _play(self, session: Session) -> None:
        epoch = 0
        while (wanted := self._wait(epoch, session.clock.block, session.clock.frames.start)) is not None:
            if wanted != epoch:
                session.reset()
                epoch = wanted
                continue
            clock = session.clock
            sample = self._take(clock.block)
            started_at = time.perf_counter()
            frames = session.step(sample.action)
            finished_at = time.perf_counter()
            self.estimate.add(finished_at - sample.sampled_at)
            self._hand_over(Block(epoch, clock.block, clock.frames.start, sample, frames, finished_at, started_at=started_at))

    def _wait(self, epoch: int, block: int, frame: int) -> int | None:
        """Sleep until ``block``, which starts with ``frame``, must be begun; the epoch wanted by then, None to end."""
        with self._changed:
            while not self._stopping:
                if self.epoch != epoch:
                    return self.epoch
                wait = self._seconds_to_wait(block, frame)
                if wait is not None and wait <= 0:
                    self._begun = block + 1
                    self._steps = max(0, self._steps - 1)
                    return epoch
                self._changed.wait(wait)
        return None

    def _seconds_to_wait(self, block: int, frame: int) -> float | None:
        """Until ``block`` must be begun; None if that is not known yet."""
        if self._limit is not None and block >= self._limit:
            return None
        if self.paused:
            return 0.0 if self._steps else None
        if block == 0:
            return 0.0
        due = self._timeline.due(frame)
        return None if due is None else due - self.estimate.lead - time.perf_counter()

    def _hand_over(self, block: Block) -> None:
        while not self._stopping and block.epoch == self.epoch:
            try:
                self.blocks.put(block, timeout=0.1)
                return
            except queue.Full:
                continue
