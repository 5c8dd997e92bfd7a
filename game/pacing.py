"""When frames are due and when a block must be begun: pure arithmetic on a clock, no threads and no window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Timeline:
    """The absolute schedule of one stretch of play: frame i is due at origin + i / fps.

    Being absolute it cannot drift. Only a start, a pause, a restart or a late block moves the origin. One thread
    (the window's) writes it and another (the world's) reads it; the origin is a single attribute, so no lock is needed.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.on_move: Callable[[], None] = lambda: None  # called after every move: whoever sleeps by it must look again
        self._origin: float | None = None

    @property
    def running(self) -> bool:
        return self._origin is not None

    def start(self, frame: int, at: float) -> None:
        """Make ``frame`` due at time ``at`` (seconds), and all others accordingly."""
        self._origin = at - frame / self.fps
        self.on_move()

    def stop(self) -> None:
        self._origin = None
        self.on_move()

    def due(self, frame: int) -> float | None:
        """Time in seconds at which ``frame`` is to be seen, or None while the schedule stands still."""
        origin = self._origin
        return None if origin is None else origin + frame / self.fps


class Spread:
    """The latest of some durations, in seconds, as a distribution. One thread adds; what `last` says another may read."""

    def __init__(self, window: int = 256) -> None:
        self._latest: deque[float] = deque(maxlen=window)
        self.last: float | None = None  # None before the first
        self.count = 0  # of all there were

    def add(self, seconds: float) -> None:
        self._latest.append(seconds)
        self.last = seconds
        self.count += 1

    def below(self, part: float) -> float | None:
        """What ``part`` (0 to 1) of the latest do not exceed: 0.5 is their median. None before the first."""
        ordered = sorted(self._latest)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None


class Estimate:
    """How long the next block may take: the 99th percentile of the latest ones, and a margin that learns.

    The margin is what is kept free beyond that. A block that was late widens it at once, blocks in time let it shrink slowly, so it
    ends as small as the machine is steady. One thread adds, another may read: what is read are plain attributes, set anew by each `add`.
    """

    FIRST_MARGIN, LEAST_MARGIN, MOST_MARGIN = 0.03, 0.008, 0.25  # seconds
    SHRINK = 0.97  # a block

    def __init__(self, window: int = 128, quantile: float = 0.99) -> None:
        """Of a hundred blocks or fewer the 99th percentile is the slowest: so long one hiccup is waited for in every block."""
        self._quantile, self._window = quantile, window
        self.forget()
        self.last = 0.0  # seconds; all are 0 before the first measurement
        self.seconds = 0.0
        self.margin = self.FIRST_MARGIN

    def forget(self) -> None:
        """Blocks take another time from now on: the next one alone tells how long."""
        self._spread = Spread(self._window)

    def add(self, seconds: float, spare: float | None = None) -> None:
        """A block took ``seconds`` and was there ``spare`` seconds before it was due (negative: late; None: nothing was due)."""
        self._spread.add(seconds)
        self.last, self.seconds = seconds, self._spread.below(self._quantile)
        if spare is not None and spare < 0:
            self.margin = min(self.MOST_MARGIN, 2 * self.margin - spare)
        elif spare is not None:
            self.margin = max(self.LEAST_MARGIN, self.margin * self.SHRINK)

    @property
    def lead(self) -> float:
        """How long before its deadline, in seconds, a block is to be begun."""
        return self.seconds + self.margin


class Rate:
    """Events a second over the last few seconds."""

    def __init__(self, span: float = 2.0) -> None:
        self._span = span
        self._times: deque[float] = deque()

    def tick(self, now: float) -> None:
        self._times.append(now)
        while now - self._times[0] > self._span:
            self._times.popleft()

    def clear(self) -> None:
        self._times.clear()

    @property
    def value(self) -> float:
        """0 before the second event."""
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])
