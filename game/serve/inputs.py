"""What a page holds down, as the actions of its session."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from engine import ActionSpace
from game.controls import Controls, Sample
from game.serve.protocol import Input


@dataclass(frozen=True)
class Seen(Sample):
    """A sample, and the number of the newest input in it."""

    input: int = 0


class PageInputs:
    """Belongs to the server's thread, except `take`, which the session's thread calls."""

    def __init__(self, actions: ActionSpace) -> None:
        self.controls = Controls(actions)
        self._lock = threading.Lock()
        self._newest = 0  # number of the newest input
        self._held: frozenset[str] = frozenset()

    def begin(self) -> None:
        """A page is here: its inputs count from 1."""
        self._newest = 0

    def apply(self, message: Input) -> bool:
        """The newest state wins; False for an older one that comes late, which is nothing."""
        if message.id <= self._newest:
            return False
        with self._lock:
            self._newest = message.id
            for key in self._held - message.keys:
                self.controls.release(key, "page")
            for key in message.keys - self._held:
                self.controls.press(key, "page")
            self._held = message.keys
            pitch, yaw = message.look
            self.controls.set_stick(yaw, -pitch, looks=True)
            self.controls.move_mouse(*message.mouse)
        return True

    def release(self) -> None:
        with self._lock:
            self._held = frozenset()
            self.controls.release_all()

    def take(self, block: int) -> Seen:
        """The action of the next block."""
        with self._lock:
            sample = self.controls.sample()
            return Seen(sample.action, sample.sampled_at, sample.input_at, sample.events, self._newest)
