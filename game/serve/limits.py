"""How much of everything a client may have, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Seconds and bytes unless said otherwise. The command line changes ``sessions``, tests change the rest."""

    sessions: int = 4  # that play, or may come back
    ended: int = 8  # that are over and whose files may still be fetched
    kept: float = 600.0  # for so long
    vanished: float = 60.0  # within which a player may come back
    idle: float = 900.0  # without any input
    stalled: float = 5.0  # without a sign of the page's picture moving: no more blocks are made until there is one
    connections: int = 128  # open sockets, of all clients together
    silent: float = 15.0  # from a connection to its first request
    upload: int = 16 << 20
    upload_seconds: float = 60.0
    upload_pixels: int = 40_000_000
    message: int = 2048  # bytes of one message from a page
    messages: tuple[float, float] = (200.0, 400.0)  # a second, and at once; what comes beyond is thrown away unread
    commands: tuple[float, float] = (4.0, 12.0)  # the same for saving, restarting …
    starts: tuple[float, float] = (2.0, 20.0)  # the same for new sessions, of all clients together
    excess: int = 2000  # messages thrown away before the connection is closed
    malformed: int = 20  # messages that make no sense before the connection is closed
    outbox: int = 64  # short messages that may wait for a page before the connection is closed
    film: int = 1 << 30  # bytes of one film
    saves: int = 4 << 30  # bytes of one session's saved games
    heartbeat: float = 10.0  # between two pings; a page that answers none is gone


class Allowance:
    """A bucket of tokens: ``rate`` a second on average, ``burst`` at once."""

    def __init__(self, allowed: tuple[float, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst = allowed
        self._clock = clock
        self._left, self._at = self._burst, clock()

    def take(self) -> bool:
        """Use one token up; False if there is none."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
