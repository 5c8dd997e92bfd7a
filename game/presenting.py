"""How long the window takes to show a block's pictures: for the bench, on SDL's dummy driver, so that nothing comes on screen."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engine import WorldConfig
    from game.window import Window

BLOCKS = 20


class NotPresented(Exception):
    """It cannot be measured here; says why in a few words."""


def present_seconds(config: WorldConfig, frame: np.ndarray, blocks: int = BLOCKS) -> tuple[list[float], str]:
    """Seconds to show each of ``blocks`` blocks of a picture [H, W, 3], uint8, as the game does; and on what they were shown.

    Pictures are enlarged and painted one by one; what a real display waits for is not in it. Raises `NotPresented` without pygame.
    """
    with _unseen_window() as window:
        window.fit_world(config.title, config.width, config.height)
        import pygame

        width, height = pygame.display.get_window_size()
        spent = []
        for _ in range(blocks):
            begun = time.perf_counter()
            for _ in range(config.block_frames[1]):
                window.set_picture(frame)
                window.draw()
            spent.append(time.perf_counter() - begun)
    return spent, f"a window of {width}x{height} that nobody sees (SDL dummy)"


@contextmanager
def _unseen_window() -> Iterator[Window]:
    before = os.environ.get("SDL_VIDEODRIVER")
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    try:
        from game.window import NoDisplay, Window

        window = Window("Reverie")
    except ImportError as error:
        raise NotPresented(f"{error.name or 'pygame'} is not installed") from None
    except NoDisplay as problem:
        raise NotPresented(f"SDL's dummy driver does not work: {problem}") from None
    finally:
        if before is None:
            del os.environ["SDL_VIDEODRIVER"]
        else:
            os.environ["SDL_VIDEODRIVER"] = before
    try:
        yield window
    finally:
        window.close()
