"""What a session leaves: its session file, its film if it is filmed, its saved games. All names are the server's own."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine import WorldConfig
from game.names import free_name, session_beside
from game.recorder import Recorder
from game.serve.limits import Limits
from game.sessionheader import Header
from game.sessionsink import SessionSink
from game.sinks import Background, Block, SinkError, close_all


class BoundedRecorder(Recorder):
    """A film that ends, properly, when it has grown to ``limit`` bytes."""

    def __init__(self, path: Path, header: Header, limit: int) -> None:
        super().__init__(path, identity=header.identity)
        self._limit = limit

    def write(self, block: Block) -> None:
        if self.part.stat().st_size >= self._limit:
            raise SinkError(f"the film has reached {self._limit / 1e6:.0f} MB and ends here; the session file goes on")
        super().write(block)


@dataclass
class SeatFiles:
    """``folder`` belongs to the session and goes with it; film and session file may lie elsewhere, to stay."""

    config: WorldConfig
    folder: Path
    film: Path
    header: Header
    session_sink: Background
    film_sink: Background | None
    _opened: list[Background] = field(default_factory=list)
    _unwritten: Block | None = None  # waits to be shown before it is written
    _told: set[str] = field(default_factory=set)

    @classmethod
    def make(
        cls, folder: Path, config: WorldConfig, keep: Path | None, filmed: bool, taken: set[Path], limits: Limits
    ) -> SeatFiles:  # fmt: skip
        """In ``folder``, made new; with ``keep`` (walk.mp4) film and session file are called like that, or walk-2.mp4 … ``taken`` are
        names that others have been given."""
        folder.mkdir(mode=0o700)
        film = folder / f"{config.name}.mp4" if keep is None else _free(keep, taken)
        header = Header()
        session = SessionSink(session_beside(film), header.get)
        film_sink = None
        if filmed or keep is not None:
            film_sink = Background(BoundedRecorder(film, header, limits.film), wait=False)
            film_sink.on_drop = session.gap
        return cls(config, folder, film, header, Background(session, wait=False, keep_actions=True), film_sink)

    def keep(self, block: Block) -> None:
        """A block made just now: it is written when it has been shown, or when the next one is there."""
        self.flush()
        self._unwritten = block

    def shown(self, epoch: int, index: int, now: float) -> None:
        """The first frame of that block is on the page's screen."""
        if self._unwritten is not None and (self._unwritten.epoch, self._unwritten.index) == (epoch, index):
            self._unwritten = replace(self._unwritten, shown_at=now)
            self.flush()

    def flush(self) -> None:
        """Hand over to film and session file what waits to be shown."""
        block, self._unwritten = self._unwritten, None
        if block is None:
            return
        if not self._opened:
            self._opened = [sink for sink in (self.session_sink, self.film_sink) if sink is not None]
            for sink in self._opened:
                sink.open(self.config)
        for sink in self._opened:
            sink.write(block)

    async def written(self, blocks: int, timeout: float = 3.0) -> None:
        """Wait until so many blocks are in the session file, those that wait to be shown included."""
        self.flush()
        sink, end = self.session_sink, time.monotonic() + timeout
        while sink in self._opened and sink.error is None and sink.sink.blocks < blocks and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def failures(self) -> list[str]:
        """What film and session file have failed with, each told once."""
        found = {str(sink.error) for sink in self._opened if sink.error is not None} - self._told
        self._told |= found
        return sorted(found)

    def close(self, reason: str) -> None:
        """Finish what was begun; raises the first failure. The session file ends with the ``reason``."""
        close_all(self._opened, reason)

    @property
    def session_path(self) -> Path:
        return self.session_sink.sink.path

    def film_path(self) -> Path | None:
        """The film as it is now, finished or not (it plays either way); None where there is none."""
        if self.film_sink is None:
            return None
        recorder = self.film_sink.sink
        return next((path for path in (recorder.path, recorder.part) if path.is_file()), None)

    def read_session(self) -> bytes | None:
        """The session file as it is now, up to its last whole line; None where it has not begun."""
        try:
            data = self.session_path.read_bytes()
        except OSError:
            return None
        return data[: data.rfind(b"\n") + 1] or None


def _free(keep: Path, taken: set[Path]) -> Path:
    path, number = free_name(keep.stem, folder=keep.parent), 1
    while path in taken:
        number += 1
        path = free_name(f"{keep.stem}-{number}", folder=keep.parent)
    taken.add(path)
    return path
