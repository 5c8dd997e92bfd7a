"""Rewinding from the window: while the key is held, block by block, the picture of the block returned to."""

from __future__ import annotations

import time
from collections.abc import Callable

from engine import Session
from game.presenter import Presenter
from game.sinks import Block, Origin
from game.worldthread import Errand, WorldThread

BLOCK_SECONDS = 0.15  # between two blocks while the key is held


class Rewinder:
    """Belongs to the window's thread. It asks for one block at a time and for the next when its picture is there.

    What can be gone back to are blocks that were shown, so that every epoch's parent is one that whoever watched (or records) knows.
    """

    def __init__(
        self, world: WorldThread, presenter: Presenter, tell: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """``tell`` is called by any thread."""
        self._world, self._presenter, self._tell, self._clock = world, presenter, tell, clock
        self.active = False  # from the press of the key until the game goes on
        self._holding = False
        self._asked = False
        self._next_at = 0.0
        self._end = False  # there is no more, said once a press
        self._parent = 0  # epoch of the newest block shown
        self._target: int | None = None  # the block to stand before next

    @property
    def words(self) -> str:
        """For the banner; empty when nothing is to be said."""
        return "" if not self.active or self._target is None else f"Rewinding   block {self._target + 1}"

    def shown(self, block: Block) -> None:
        """The first frame of ``block`` is on screen: one step back is to the end of the block before it."""
        self._parent, self._target = block.epoch, block.index

    def press(self) -> None:
        self.active = self._holding = True
        self._end = False
        self._world.hold(True)
        self._presenter.freeze()
        if not self._asked:
            self._ask()

    def release(self) -> None:
        if self._holding:
            self._holding = False
            self._world.hold(False)

    def forget(self) -> None:
        """The game begins anew: there is nothing to go back to."""
        self.release()
        self.active = self._asked = False
        self._target = None

    def arrived(self, origin: Origin) -> None:
        """The world stands before block ``origin.block``, and its picture is shown."""
        self._asked = False
        self._target = origin.block - 1 if origin.kind == "rewind" else None

    def turn(self, now: float) -> None:
        """Called all the time."""
        if not self.active or self._asked:
            return
        if self._holding:
            if not self._end and now >= self._next_at:
                self._ask()
            return
        self.active = False
        if self._presenter.frozen and not self._world.paused:
            self._presenter.thaw(now)

    def _ask(self) -> None:
        target, parent = self._target, self._parent
        if target is None or target < 1:
            self._end = True
            self._tell("There is nothing to go back to")
            return
        self._asked = True
        self._next_at = self._clock() + BLOCK_SECONDS

        def run(session: Session) -> Origin:
            session.rewind(session.clock.block - target)
            return Origin("rewind", block=target, parent=parent)

        def failed(error: Exception) -> None:
            self._end = True
            self._asked = False
            self._tell(f"Not rewound: {error}")

        self._world.between_blocks(Errand(run, failed))
