"""Films with the HUD in them: which keys and which look each block was made under, at a size at which that can be read."""

from __future__ import annotations

import numpy as np
import pygame

from engine import WorldConfig
from game import hud
from game.film import WITH_HUD
from game.recorder import Recorder
from game.sinks import Block

LEGIBLE = 352  # rows from which text on a picture can be read; smaller worlds are filmed enlarged


class HudRecorder(Recorder):
    """A `Recorder` that draws over what it films. Its films say so: they are no measure of what the world's pictures were."""

    def open(self, config: WorldConfig) -> None:
        pygame.font.init()
        self._config = config
        self._mark += WITH_HUD
        self._overlay = pygame.Surface(self._size(config), pygame.SRCALPHA)
        super().open(config)

    def _size(self, config: WorldConfig) -> tuple[int, int]:
        zoom = max(1, -(-LEGIBLE // config.height))
        return config.width * zoom, config.height * zoom

    def _pictures(self, block: Block) -> np.ndarray:
        space, action, size = self._config.actions, block.sample.action, self._overlay.get_size()
        acting = space.acting(action)
        self._overlay.fill((0, 0, 0, 0))
        hud.draw_numbers(self._overlay, [("block", str(block.index)), ("made in", hud.milliseconds(block.seconds))])
        hud.draw_controls(self._overlay, space.keys, acting, acting, space.deflection(action) if space.has_look else None)
        pictures = np.empty((len(block.frames), size[1], size[0], 3), np.uint8)
        for frame, picture in zip(np.ascontiguousarray(block.frames), pictures, strict=True):
            surface = pygame.image.frombuffer(frame, (self._config.width, self._config.height), "RGB")
            surface = pygame.transform.smoothscale(surface, size)
            surface.blit(self._overlay, (0, 0))
            picture[:] = np.frombuffer(pygame.image.tobytes(surface, "RGB"), np.uint8).reshape(picture.shape)
        return pictures
