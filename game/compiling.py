"""The compiler beside the game: play begins with the layers as they are, and changes over between two blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from engine import Compiled, Session, World, WorldError, compile_world, pin_threads, threads_in_use
from game.worldthread import Errand, WorldThread

Progress = Callable[[str, float], None]


class CompilerThread:
    """Compiles a session's world on a thread of its own, and has the world's thread take up what came of it.

    Only for games that nobody is to play again from a file: what is played before and after the change differs in the last bits.
    """

    def __init__(
        self, thread: WorldThread, tell: Callable[[str], None], make: Callable[[World, Progress], Compiled] = compile_world
    ) -> None:
        """``tell`` says something to the player, any thread may call it; ``make`` is the compiler, told where to report to."""
        self._thread, self._tell, self._make = thread, tell, make
        self._part = 0.0
        self._since: float | None = None
        self._outcome = ""

    @property
    def words(self) -> str:
        """For the HUD: how far it is; empty before it has begun."""
        if self._since is None or self._outcome:
            return self._outcome
        return f"being compiled, {self._part:.0%}, {time.perf_counter() - self._since:.0f} s"

    def _report(self, what: str, part: float) -> None:
        self._part = part

    def start(self, session: Session) -> None:
        """Begin to compile. Called by the world's thread, before its first block."""
        self._since = time.perf_counter()
        self._tell("Compiling meanwhile: it will be faster soon")
        worker = threading.Thread(target=self._work, args=(session.world, threads_in_use()), name="reverie-compiler", daemon=True)
        worker.start()

    def _work(self, world: World, threads: int) -> None:
        pin_threads(threads)  # of this thread too: compiled code is only good for the number it was compiled with
        try:
            compiled = self._make(world, self._report)
        except WorldError as error:
            self._failed(error)
        except BaseException as error:
            self._failed(error)
            raise
        else:
            self._thread.between_blocks(Errand(lambda session: self._change(session, compiled), self._failed))

    def _change(self, session: Session, compiled: Compiled) -> None:
        session.adopt(compiled)
        self._thread.estimate.forget()
        self._outcome = "compiled"
        self._tell("Compiled: from here on it is faster")

    def _failed(self, error: BaseException) -> None:
        self._outcome = "not compiled"
        self._tell(f"Not compiled: {error}")
