"""A thread that waits for something to do and can be told to end."""

from __future__ import annotations

import threading


class Cancelled(Exception):
    """Raised out of what a thread is doing, or waits for, when it is to end meanwhile."""


class WaitingThread(threading.Thread):
    """``run`` waits on `_changed` and ends when it finds `_stopping` set. A daemon: one that hangs does not keep the process."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._changed = threading.Condition()
        self._stopping = False

    def stop(self, timeout: float = 10.0) -> bool:
        """End the thread after what it is doing; True if it ended within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self.is_alive():
            self.join(timeout)
        return not self.is_alive()
