"""From a session's newest block to its page: what is on its way there, and when the next one is to be begun."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from game.serve.link import Link, Parcel
from game.serve.protocol import FrameHeader, Got
from game.serve.screen import PageTimeline, Screen
from game.sinks import Block


class Delivery:
    """Sends blocks, or the newest picture as a still, and learns how long they take. Belongs to the server's thread."""

    def __init__(self, timeline: PageTimeline, screen: Screen, lead: Callable[[], float]) -> None:
        """``lead()`` is how long before it is seen a block is begun, in seconds."""
        self.link: Link | None = None  # to the page, while there is one
        self.newest: Block | None = None  # made, of the epoch on screen
        self.picture: np.ndarray | None = None  # the newest frame, for a page that comes back
        self._timeline, self._screen, self._lead = timeline, screen, lead
        self._finished: dict[Got, float] = {}  # when blocks on their way were finished
        self._arrivals = 0  # blocks this page has told of
        self._stalled = False  # no more blocks are made until the page moves

    def begin(self) -> None:
        """What was on its way counts no more: another page is there."""
        self._finished.clear()
        self._arrivals = 0

    def flow_into(self, epoch: int) -> None:
        """Only blocks of ``epoch`` count from now on."""
        self.newest = None
        self._finished.clear()
        self._screen.restart(epoch)

    def send(self, block: Block) -> None:
        self.newest, self.picture = block, block.frames[-1]
        if self.link is None:
            return
        hold = max(0.0, self._lead() - len(block.frames) / self._timeline.fps)
        header = self._header(block, still=False, hold=hold, input=getattr(block.sample, "input", 0))
        if self.link.deliver(Parcel(header, block.frames, lambda: self._screen.epoch == block.epoch)):
            self._finished[Got(block.epoch, block.index)] = block.finished_at
        elif not self._timeline.running:  # the first of an epoch: the page will never ask for the next
            self._stalled = True

    def show_still(self) -> None:
        if self.link is not None and self.picture is not None:
            epoch = self._screen.epoch
            header = self._header(self.newest, still=True)
            self.link.deliver(Parcel(header, self.picture[None], lambda: self._screen.epoch == epoch))

    def arrived(self, message: Got, now: float) -> None:
        """A block is there."""
        finished = self._finished.pop(message, None)
        if self.link is None or not self.link.got(message):
            return
        if finished is not None:
            self._arrivals += 1
            self._timeline.took(max(0.0, now - finished - message.spread), fresh=self._arrivals <= 2)
        if self._stalled and self.link.idle and not self._screen.frozen:
            self._stalled = False
            self.go_on()

    def moved(self) -> None:
        """The page's picture has moved."""
        self._stalled = False

    def go_on(self) -> None:
        """Have the next block made, for a page that shows none."""
        now, newest = time.perf_counter(), self.newest
        self._screen.moved_at = now
        self._timeline.start(newest.first_frame + len(newest.frames), now + self._lead())

    def look(self, now: float, patience: float) -> None:
        """Make no more for a page whose picture has not moved for so many seconds."""
        if self.link is not None and not self._screen.frozen and self._timeline.running and now - self._screen.moved_at > patience:
            self._stalled = True
            self._timeline.stop()

    def _header(self, block: Block | None, still: bool, hold: float = 0.0, input: int = 0) -> FrameHeader:
        index, frame, count, seconds = (0, 0, 1, 0.0)
        if block is not None:
            index, frame, count, seconds = block.index, block.first_frame, len(block.frames), block.seconds
        return FrameHeader(
            "jpeg", still, self._screen.epoch, index, frame, input, round(seconds * 1e6), 0, round(hold * 1000), 0, 1 if still else count
        )
