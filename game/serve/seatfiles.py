"""What a session leaves: its session file, its film if it is filmed, its saved games. All names are the server's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from game.names import free_name, session_beside
from game.recorder import Recorder
from game.serve.limits import Limits
from game.sessionheader import Header
from game.sessionsink import SessionSink
from game.sinks import Background, Block, SinkError


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

    folder: Path
    film: Path
    header: Header
    session_sink: Background
    film_sink: Background | None

    @classmethod
    def make(cls, folder: Path, name: str, keep: Path | None, filmed: bool, taken: set[Path], limits: Limits) -> SeatFiles:
        """In ``folder``, made new; with ``keep`` (walk.mp4) film and session file are called like that, or walk-2.mp4 … ``taken`` are
        names that others have been given."""
        folder.mkdir(mode=0o700)
        film = folder / f"{name}.mp4" if keep is None else _free(keep, taken)
        header = Header()
        session = SessionSink(session_beside(film), header.get)
        film_sink = None
        if filmed or keep is not None:
            film_sink = Background(BoundedRecorder(film, header, limits.film), wait=False)
            film_sink.on_drop = session.gap
        return cls(folder, film, header, Background(session, wait=False, keep_actions=True), film_sink)

    @property
    def sinks(self) -> list[Background]:
        return [self.session_sink, *([] if self.film_sink is None else [self.film_sink])]

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
