"""A window to watch blocks in as they are made, without anything to press."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import pygame

from game.window import Window


class BlockView:
    """Shows every frame for its time, ``fps`` a second. Belongs to the main thread.

    Whoever closes the window ends the watching, not the play.
    """

    def __init__(self, title: str, width: int, height: int, fps: float) -> None:
        """Opens the window; raises `NoDisplay` if there is none."""
        self._window: Window | None = Window(title)
        self._window.fit_world(title, width, height)
        self._seconds = 1 / fps
        self._due = time.perf_counter()

    @property
    def open(self) -> bool:
        return self._window is not None

    def show(self, frames: Iterable[np.ndarray]) -> None:
        """Frames [H, W, 3] uint8, one after the other, each when it is due; returns with the last one on screen."""
        for frame in frames:
            time.sleep(max(0.0, self._due - time.perf_counter()))
            if any(event.type == pygame.QUIT for event in pygame.event.get() if self.open):
                self.close()
            if not self.open:
                return
            self._window.set_picture(frame)
            self._window.draw()
            now = time.perf_counter()
            late = now - self._due > self._seconds  # by more than a frame: what was missed is not caught up with
            self._due = (now if late else self._due) + self._seconds

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None
