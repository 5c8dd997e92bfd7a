"""A first sign of life: the window while Python is still importing the engine (seconds, most of them torch)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pygame

from game.hud import draw_loading
from game.window import Window


def wait_behind(window: Window, task: Callable[[], object], words: str) -> bool:
    """Run ``task`` on a thread and keep the window alive meanwhile. False if the player closed it; raises what ``task`` raises."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="reverie-import", daemon=True)
    thread.start()
    while thread.is_alive():
        for event in pygame.event.get((pygame.QUIT, pygame.KEYDOWN)):  # the rest is the game's: a pad already there is told once
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                return False
        window.draw(lambda surface: draw_loading(surface, "Reverie", words, None))
        time.sleep(0.03)
    if errors:
        raise errors[0]
    return True
