"""The thread that owns the model: it alone touches the session, and begins each block as late as it can."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import Session
from game.controls import Sample
from game.pacing import Estimate, Timeline
from game.sinks import Block, Origin
from game.threads import Cancelled, WaitingThread

QUEUE_BLOCKS = 2  # more than are ever ready: the next block is begun only when it will soon be needed

Turns = Callable[[Callable[[], Any], float], Any]  # runs what it is given where the model may be used, the earliest deadline first


@dataclass(frozen=True)
class Errand:
    """Something to do with the session between two blocks. ``run`` gives back where the session now goes on from, if that is
    somewhere else; when it raises, ``failed`` is told and the game goes on. Both are called on the world's thread."""

    run: Callable[[Session], Origin | None]
    failed: Callable[[Exception], None]


@dataclass(frozen=True, eq=False)
class Arrival:
    """A new epoch has begun, not at the start picture but after ``picture``."""

    epoch: int
    origin: Origin
    picture: np.ndarray | None  # [H, W, 3] uint8


def at_once(work: Callable[[], Any], due: float) -> Any:
    """The turns of a thread that has the model for itself."""
    return work()


class WorldThread(WaitingThread):
    """Makes blocks for one window, or one page in a browser.

    It meets the window's thread in two places: ``take`` hands it the latest action, ``blocks`` takes what it made, and
    ``arrivals`` tells of epochs that an errand began. The methods `restart`, `pause`, `resume`, `step`, `hold`, `between_blocks`
    and `stop` only set wishes; they return at once and are called by other threads. Whatever goes wrong in here ends up in ``error``.
    """

    def __init__(
        self,
        load: Callable[[Callable[[str, float], None]], Session],
        take: Callable[[int], Sample],
        timeline: Timeline,
        limit: int | None = None,
        turns: Turns = at_once,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        """``load(progress)`` opens the session, ``take(n)`` gives the action of its n-th block, ``limit`` is the number of blocks.

        Blocks are counted from where the session was begun, loaded or restarted. Whatever touches the session after it was opened
        goes through ``turns(work, due)``: several sessions may share one model. ``notify`` is called, by this thread, whenever there
        is something new in ``blocks``, ``arrivals``, ``progress`` or ``error``.
        """
        super().__init__("reverie-world")
        self.blocks: queue.Queue[Block] = queue.Queue(QUEUE_BLOCKS)
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self.session: Session | None = None  # once it is there; other threads may ask it only for what never changes
        self.estimate = Estimate()
        self.error: BaseException | None = None
        self.progress: tuple[str, float] | None = ("starting", 0.0)  # None once the world is there
        self.epoch = 0
        self._load = load
        self._take = take
        self._timeline = timeline
        timeline.on_move = self._look_again
        self._limit = limit
        self._turns, self._notify = turns, notify
        self.paused = False  # written by the window's thread alone
        self._held = False
        self._steps = 0  # blocks to make in spite of the pause
        self._begun = 0  # blocks of this epoch, the one in the making included
        self._wishes: deque[Errand | None] = deque()  # None: restart
        self._session_epoch = 0  # the epoch the session is in; behind ``epoch`` while a restart is still a wish
        self._base = 0  # block that the counting begins with
        self._first = 0  # block that this epoch begins with
        self._origin: Origin | None = None  # of the next block, where it begins an epoch

    # ---- wishes of the window's thread

    def restart(self) -> int:
        """Begin a new epoch, running; returns its number. Blocks of older epochs may still be in ``blocks``."""
        with self._changed:
            self.epoch += 1
            self.paused, self._steps, self._begun = False, 0, 0
            self._wishes.append(None)
            self._changed.notify()
            return self.epoch

    def between_blocks(self, errand: Errand) -> None:
        """Run ``errand`` before the next block, after all earlier wishes; paused or not."""
        with self._changed:
            self._wishes.append(errand)
            self._changed.notify()

    def hold(self, held: bool) -> None:
        """Begin no blocks as long as this is set, not even single ones; errands go on."""
        with self._changed:
            self._held = held
            self._changed.notify()

    @property
    def end(self) -> int | None:
        """Index after the last block to be made; None without a limit."""
        return None if self._limit is None else self._base + self._limit

    @property
    def base(self) -> int:
        """Block that the counting begins with: 0, or the one that was loaded."""
        return self._base

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

    def _look_again(self) -> None:
        with self._changed:
            self._changed.notify()

    # ---- the thread itself

    def run(self) -> None:
        try:
            self.session = session = self._load(self._report)
            self.progress = None
            self._play(session)
        except Cancelled:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._notify()

    def _report(self, what: str, fraction: float) -> None:
        if self._stopping:
            raise Cancelled
        self.progress = (what, fraction)
        self._notify()

    def _play(self, session: Session) -> None:
        origin = first_origin(session)
        with self._changed:
            self._settle(session, origin)
        if session.last_frame is not None:
            self.arrivals.put(Arrival(0, origin, session.last_frame))
            self._notify()
        while self._wait(session):
            if self._wishes:
                self._fulfil(session)
                continue
            due = self._timeline.due(session.clock.frames.start)
            block, handed_over = self._turns(lambda: self._make(session), time.perf_counter() if due is None else due)
            self._origin = None
            if not handed_over:
                self._hand_over(block, session)

    def _make(self, session: Session) -> tuple[Block, bool]:
        """The next block, and whether it is handed over already. The action is taken only now, when nothing else is in the way."""
        clock, epoch = session.clock, self._session_epoch
        sample = self._take(clock.block - self._base)
        started_at = time.perf_counter()
        made: list[tuple[Block, bool]] = []

        def ready(frames: np.ndarray) -> None:  # the session is not done with the block: nothing that touches it, and no waiting
            finished_at = time.perf_counter()
            due = None if clock.block == self._first or self.paused else self._timeline.due(clock.frames.start)
            self.estimate.add(finished_at - sample.sampled_at, None if due is None else due - finished_at)
            block = Block(epoch, clock.block, clock.frames.start, sample, frames, finished_at, self._origin, started_at=started_at)
            made.append((block, self._handed_over(block)))

        session.step(sample.action, ready)
        return made[0]

    def _handed_over(self, block: Block) -> bool:
        """Hand the block over if there is room for it, or nobody wants it any more."""
        if self._stopping or block.epoch != self.epoch:
            return True
        try:
            self.blocks.put_nowait(block)
        except queue.Full:
            return False
        self._notify()
        return True

    def _settle(self, session: Session, origin: Origin) -> None:
        """The session stands at the beginning of an epoch. Called with the lock held."""
        self._origin = origin
        self._first = self._begun = session.clock.block
        if origin.kind != "rewind":
            self._base = self._first

    def _fulfil(self, session: Session) -> None:
        """Do what was wished for first."""
        wish = self._wishes.popleft()  # only this thread takes any out
        if wish is None:
            with self._changed:
                if None in self._wishes:
                    return  # the player pressed twice
            self._turns(session.reset, time.perf_counter())
            with self._changed:
                if None not in self._wishes:
                    self._session_epoch = self.epoch
                    self._settle(session, Origin("start", block=session.clock.block))
            return
        try:
            origin = self._turns(lambda: wish.run(session), time.perf_counter())
        except Exception as error:
            wish.failed(error)
            return
        if origin is None:
            return
        with self._changed:
            if None in self._wishes:
                return  # what it began is over already
            self.epoch += 1
            self._session_epoch = self.epoch
            self._settle(session, origin)
        self.arrivals.put(Arrival(self._session_epoch, origin, session.last_frame))
        self._notify()

    def _wait(self, session: Session) -> bool:
        """Sleep until there is a wish, or the next block must be begun; False to end."""
        block, frame = session.clock.block, session.clock.frames.start
        with self._changed:
            while True:
                if self._wishes:  # also when it ends: a game that is saved and left at once is saved
                    return True
                if self._stopping:
                    return False
                wait = self._seconds_to_wait(block, frame)
                if wait is not None and wait <= 0:
                    self._begun = block + 1
                    self._steps = max(0, self._steps - 1)
                    return True
                self._changed.wait(wait)

    def _seconds_to_wait(self, block: int, frame: int) -> float | None:
        """Until ``block`` must be begun; None if that is not known yet."""
        if self._held or (self.end is not None and block >= self.end):
            return None
        if self.paused:
            return 0.0 if self._steps else None
        if block == self._first:
            return 0.0
        due = self._timeline.due(frame)
        return None if due is None else due - self.estimate.lead - time.perf_counter()

    def _hand_over(self, block: Block, session: Session) -> None:
        while not self._stopping and block.epoch == self.epoch:
            try:
                self.blocks.put(block, timeout=0.1)
                self._notify()
                return
            except queue.Full:
                if self._wishes:
                    self._fulfil(session)


def first_origin(session: Session) -> Origin:
    """Where a session that was just opened goes on from."""
    if session.restored_from is None:
        return Origin("start", block=session.clock.block)
    return Origin("load", block=session.clock.block, snapshot=session.restored_from)
