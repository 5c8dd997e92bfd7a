"""What a page shows, as far as the server knows: the counterpart of `game/presenter.py` for a picture that is elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from game.pacing import Estimate, Timeline
from game.serve.protocol import At
from game.worldthread import Turns

HURRY = 0.005  # seconds by which a page may move its schedule forward with each block: clocks differ, but nobody plays faster
DRIFT = 0.2  # part of a difference between the page's schedule and ours that is taken over with each block
FAR = 0.25  # seconds of difference that are no drift: the page's picture has stood meanwhile


class PageTimeline(Timeline):
    """Frames are due here earlier than on the page's screen: by the time their way there takes, and by what a turn of the model is
    waited for. All of it is measured."""

    def __init__(self, fps: float, most: float) -> None:
        """``most``: seconds that all of it may be; a page that answers late must not have blocks made far ahead."""
        super().__init__(fps)
        self._most = most
        self.delivery = Estimate()  # from a finished block to the page's word that its first frame is there
        self.queue = Estimate()  # from asking for the model to getting it

    @property
    def ahead(self) -> float:
        """Seconds that a block must be finished before it is seen."""
        return min(self._most, self.delivery.seconds + self.queue.seconds)

    def due(self, frame: int) -> float | None:
        due = super().due(frame)
        return None if due is None else due - self.ahead

    def shown_at(self, frame: int) -> float | None:
        """When the frame is on the page's screen."""
        return super().due(frame)

    def took(self, seconds: float, fresh: bool = False) -> None:
        """A block was so long on its way. ``fresh`` forgets all before: the first one of a page has opened the browser's decoder,
        which says nothing of the others."""
        delivery = Estimate() if fresh else self.delivery
        delivery.add(seconds)
        self.delivery = delivery  # the session's thread reads it meanwhile

    def timed(self, turns: Turns) -> Turns:
        """``turns``, and how long they are waited for goes into `queue`."""

        def take(work: Callable[[], Any], due: float) -> Any:
            asked = time.perf_counter()

            def begin() -> Any:
                self.queue.add(time.perf_counter() - asked)
                return work()

            return turns(begin, due)

        return take


class Screen:
    """The page paces the frames, tells when a block begins to show (`at`) and is told to freeze and to go on.

    ``tell`` sends it a message. Belongs to the server's thread.
    """

    def __init__(self, timeline: PageTimeline, tell: Callable[[dict[str, Any]], None], lead: Callable[[], float]) -> None:
        self._timeline, self._tell, self._lead = timeline, tell, lead
        self.epoch = 0
        self.frozen = False
        self.shown: int | None = None  # newest block of this epoch on screen
        self.underruns = 0
        self.moved_at = time.perf_counter()  # the last sign of a moving picture

    def restart(self, epoch: int) -> None:
        """Only blocks of ``epoch`` count from now on."""
        self.epoch, self.shown, self.frozen = epoch, None, False
        self.moved_at = time.perf_counter()
        self._timeline.stop()
        self._tell({"t": "epoch", "epoch": epoch})

    def welcome(self) -> None:
        """A page is here that has shown nothing yet."""
        self.shown, self.frozen = None, False
        self.moved_at = time.perf_counter()
        self._tell({"t": "epoch", "epoch": self.epoch})

    def freeze(self) -> None:
        self.frozen = True
        self._timeline.stop()
        self._tell({"t": "freeze", "epoch": self.epoch})

    def thaw(self, now: float, until: int | None = None) -> None:
        """Go on from the frozen frame; with ``until`` freeze again when that block has been shown."""
        self.frozen, self.moved_at = False, now
        lead = 0 if until is not None else round(self._lead() * 1000)
        self._tell({"t": "thaw", "epoch": self.epoch, "until": until, "lead": lead})

    def page_froze(self, epoch: int) -> None:
        """The single block is over."""
        if epoch == self.epoch:
            self.frozen = True
            self._timeline.stop()

    def at(self, message: At, now: float, newest: int, first_frame: int) -> bool:
        """The page's word on when a frame is seen; True when it is the first of a block not seen before.

        ``newest`` is the newest block it can have, and ``first_frame`` that one's. What cannot be is passed over.
        """
        if message.epoch != self.epoch or message.block > newest or message.frame > first_frame + 256:
            return False
        self.moved_at = now
        self._align(message, now)
        if self.shown is not None and message.block <= self.shown:
            return False
        self.shown = message.block
        self.underruns += message.late
        return True

    def _align(self, message: At, now: float) -> None:
        """Follow the page's schedule. Backward at once if its picture stood, else slowly; forward hardly."""
        if self.frozen:
            return
        theirs, ours = now + max(-1.0, min(message.seconds, 10.0)), self._timeline.shown_at(message.frame)
        if ours is None:
            self._timeline.start(message.frame, max(theirs, now - 0.1))
        elif message.late or theirs - ours > FAR:
            self._timeline.start(message.frame, max(theirs, ours))
        else:
            self._timeline.start(message.frame, ours + max(-HURRY, DRIFT * (theirs - ours)))
