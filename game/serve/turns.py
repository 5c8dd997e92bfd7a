"""The one thread that uses the model, for all sessions: whoever is closest to running dry goes first."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from game.threads import Cancelled, WaitingThread


@dataclass(order=True)
class _Job:
    due: float
    number: int  # among equals the first come
    work: Callable[[], Any] = field(compare=False)
    asked_at: float = field(compare=False)
    done: threading.Event = field(compare=False, default_factory=threading.Event)
    result: Any = field(compare=False, default=None)
    error: BaseException | None = field(compare=False, default=None)


class ModelThread(WaitingThread):
    """Runs what the sessions' threads hand to `take`, one at a time, the earliest deadline first.

    One thread and not a lock: torch keeps a pool of workers for every thread that computes, and their number is part of the bits.
    What is waiting is bounded by the number of sessions, for each waits for its own work.
    """

    def __init__(self) -> None:
        super().__init__("reverie-model")
        self.turns = 0
        self.busy = 0.0  # seconds at work
        self.waited = 0.0  # seconds that work waited for its turn
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()

    def take(self, work: Callable[[], Any], due: float) -> Any:
        """Run ``work`` in its turn and give back what it gives, or raise what it raises. ``due`` as of `time.perf_counter`.

        Raises Cancelled when the server ends.
        """
        job = _Job(due, next(self._numbers), work, time.perf_counter())
        with self._changed:
            if self._stopping:
                raise Cancelled
            heapq.heappush(self._jobs, job)
            self._changed.notify()
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.result

    def run(self) -> None:
        while (job := self._next()) is not None:
            begun = time.perf_counter()
            self.waited += begun - job.asked_at
            try:
                job.result = job.work()
            except BaseException as error:  # it is told to the session whose work it was; the others know nothing of it
                job.error = error
            self.turns += 1
            self.busy += time.perf_counter() - begun
            job.done.set()

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._jobs and not self._stopping:
                self._changed.wait()
            if not self._stopping:
                return heapq.heappop(self._jobs)
            for job in self._jobs:
                job.error = Cancelled()
                job.done.set()
            self._jobs.clear()
            return None
