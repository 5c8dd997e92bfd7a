"""Saving and loading from the window: nine slots a world, files in a folder, and nobody waits for a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from engine import Session, Snapshot
from game.sinks import Origin
from game.worldthread import Errand, WorldThread

FOLDER = Path("reverie-saves")  # in the current folder, as the screenshots' is
CLOSE_SECONDS = 30.0  # how long the end of the game waits for a save that is still being written


class Saves:
    """F2 and F4. The world's thread copies the state out, or in, between two blocks; files are written and read on threads of their own.

    All that can go wrong is one toast. ``tell`` is called by any thread.
    """

    def __init__(self, world: WorldThread, name: str, tell: Callable[[str], None], folder: Path = FOLDER) -> None:
        """``name`` is the world's."""
        self.slot = 1
        self.folder = folder
        self._world, self._name, self._tell = world, name, tell
        self._saving = False
        self._loading = False
        self._writer: threading.Thread | None = None

    def path(self, slot: int) -> Path:
        return self.folder / f"{self._name}-{slot}.safetensors"

    def choose(self, slot: int) -> None:
        self.slot = slot
        self._tell(f"Slot {slot}" + ("" if self.path(slot).is_file() else " (empty)"))

    def save(self) -> None:
        """Save the game as it stands after the newest block that was made."""
        if self._saving:
            self._tell("Still saving")
            return
        self._saving, path, slot = True, self.path(self.slot).absolute(), self.slot  # where it is now, whatever happens meanwhile

        def run(session: Session) -> None:
            snapshot = session.snapshot()
            self._writer = threading.Thread(target=self._write, args=(snapshot, path, slot), name="reverie-save", daemon=True)
            self._writer.start()

        self._world.between_blocks(Errand(run, self._not_saved))

    def load(self) -> None:
        """Go on from the chosen slot, if what lies there is sound and of this world."""
        if self._loading:
            self._tell("Still loading")
            return
        path, slot, session = self.path(self.slot), self.slot, self._world.session
        if not path.is_file():
            self._tell(f"Slot {slot} is empty")
            return
        self._loading = True
        threading.Thread(target=self._read, args=(session, path, slot), name="reverie-load", daemon=True).start()

    def close(self) -> None:
        """Wait for what is still being written."""
        if self._writer is not None:
            self._writer.join(CLOSE_SECONDS)

    def _write(self, snapshot: Snapshot, path: Path, slot: int) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
            snapshot.save(path)
        except Exception as error:
            self._not_saved(error)
        else:
            self._saving = False
            self._tell(f"Saved in slot {slot}: {self.folder / path.name}")

    def _read(self, session: Session, path: Path, slot: int) -> None:
        try:
            snapshot = session.read_snapshot(path)
        except Exception as error:
            self._not_loaded(error)
            return

        def run(session: Session) -> Origin:
            session.restore(snapshot)
            self._loading = False
            self._tell(f"Loaded slot {slot}: block {snapshot.block}")
            return Origin("load", block=snapshot.block, snapshot=snapshot.sha256)

        self._world.between_blocks(Errand(run, self._not_loaded))

    def _not_saved(self, error: Exception) -> None:
        self._saving = False
        self._tell(f"Not saved: {error}")

    def _not_loaded(self, error: Exception) -> None:
        self._loading = False
        self._tell(f"Not loaded: {error}")
