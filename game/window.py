"""The window: shows pictures with their aspect kept, texts over them, full screen, the captured mouse."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pygame
from PIL import Image

TOAST_SECONDS = 4.0
ENLARGE = 4  # in front of the last scaling, where the window has room for it
BACKGROUND = (10, 11, 14)


class NoDisplay(Exception):
    """There is nothing to open a window on; says why in a few words."""


def display_missing() -> str | None:
    """Why no window can be opened, as far as that can be told without trying; None if it is worth a try."""
    on_desk = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith(("linux", "freebsd")) and not _asked_driver() and not on_desk:
        return "neither DISPLAY nor WAYLAND_DISPLAY is set"
    return None


class Window:
    """One resizable window. All of it belongs to the main thread, except `toast`, which any thread may call."""

    def __init__(self, title: str) -> None:
        """Opens the window at a size that suits the screen; raises `NoDisplay` if there is none."""
        reason = display_missing()
        if reason:
            raise NoDisplay(reason)
        try:
            pygame.display.init()
            if pygame.display.get_driver() in ("dummy", "offscreen") and pygame.display.get_driver() not in _asked_driver():
                raise pygame.error("no display answers")
            pygame.font.init()
            pygame.joystick.init()
            desktops = pygame.display.get_desktop_sizes()
            self._desktop = desktops[0] if desktops else (1280, 720)
            self._windowed_size = window_size((16, 9), self._desktop)
            pygame.display.set_icon(_icon())
            pygame.display.set_mode(self._windowed_size, pygame.RESIZABLE)
        except pygame.error as error:
            pygame.display.quit()
            raise NoDisplay(str(error)) from error
        pygame.display.set_caption(title)
        self.captured = False
        self.fullscreen = False
        self._toasts: list[tuple[float, str]] = []
        self._toasting = threading.Lock()
        self._picture: pygame.Surface | None = None
        self._scaled: pygame.Surface | None = None

    def fit_world(self, title: str, width: int, height: int) -> None:
        """Take the world's title, and its aspect unless the player has already changed the size."""
        pygame.display.set_caption(title)
        if not self.fullscreen and pygame.display.get_window_size() == self._windowed_size:
            self._windowed_size = window_size((width, height), self._desktop)
            pygame.display.set_mode(self._windowed_size, pygame.RESIZABLE)

    def set_picture(self, frame: np.ndarray) -> None:
        """``frame`` [H, W, 3] uint8 is what `draw` shows from now on."""
        image = Image.fromarray(frame)
        if pygame.display.get_window_size()[0] >= ENLARGE * image.width:
            # Bilinear alone makes stairs out of the edges of a small picture; bicubic all the way costs seven times as much.
            image = image.resize((ENLARGE * image.width, ENLARGE * image.height), Image.Resampling.BICUBIC)
        self._picture = pygame.image.frombuffer(image.tobytes(), image.size, "RGB").convert()
        self._scaled = None

    def draw(self, *overlays: Callable[[pygame.Surface], None]) -> None:
        """Paint the picture, then the overlays in order, and show it all."""
        surface = pygame.display.get_surface()
        surface.fill(BACKGROUND)
        picture = self.scaled_picture()
        if picture is not None:
            surface.blit(picture, fit(picture.get_size(), surface.get_size())[:2])
        for overlay in overlays:
            overlay(surface)
        pygame.display.flip()

    def scaled_picture(self) -> pygame.Surface | None:
        """The picture as large as the window allows, without anything over it."""
        if self._picture is None:
            return None
        _, _, width, height = fit(self._picture.get_size(), pygame.display.get_window_size())
        if self._scaled is None or self._scaled.get_size() != (width, height):
            self._scaled = pygame.transform.smoothscale(self._picture, (width, height))
        return self._scaled

    def toast(self, text: str) -> None:
        """Say something for a few seconds."""
        with self._toasting:
            self._toasts.append((time.perf_counter() + TOAST_SECONDS, text))

    def toasts(self) -> tuple[str, ...]:
        """What is being said at the moment."""
        now = time.perf_counter()
        with self._toasting:
            self._toasts = [toast for toast in self._toasts if toast[0] > now]
            return tuple(text for _, text in self._toasts[-3:])

    def capture(self, captured: bool) -> None:
        """Take the mouse for looking around, or give it back."""
        if captured != self.captured:
            self.captured = captured
            pygame.mouse.set_relative_mode(captured)  # hides the pointer and keeps it here
            pygame.event.clear(pygame.MOUSEMOTION)  # on the way there it jumped

    def toggle_fullscreen(self) -> None:
        if not self.fullscreen:
            self._windowed_size = pygame.display.get_window_size()
        self.fullscreen = not self.fullscreen
        if self.fullscreen:
            pygame.display.set_mode((0, 0), pygame.FULLSCREEN)
        else:
            pygame.display.set_mode(self._windowed_size, pygame.RESIZABLE)
        self._scaled = None

    def close(self) -> None:
        pygame.joystick.quit()
        pygame.display.quit()


def _asked_driver() -> str:
    """The video driver somebody wants, "" for SDL's own choice."""
    return os.environ.get("SDL_VIDEODRIVER") or os.environ.get("SDL_VIDEO_DRIVER") or ""


def fit(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int, int, int]:
    """x, y, width, height of the largest picture of the shape of ``inner`` in the middle of ``outer``."""
    scale = min(outer[0] / inner[0], outer[1] / inner[1])
    width, height = max(1, round(inner[0] * scale)), max(1, round(inner[1] * scale))
    return (outer[0] - width) // 2, (outer[1] - height) // 2, width, height


def window_size(world: tuple[int, int], desktop: tuple[int, int]) -> tuple[int, int]:
    """A first size: the world's shape, on three quarters of the desktop at most, not above 1280 × 800."""
    room = min(1280, desktop[0] * 3 // 4), min(800, desktop[1] * 3 // 4)
    return fit(world, room)[2:]


def _icon() -> pygame.Surface:
    """A low sun over a hill."""
    icon = pygame.Surface((64, 64))
    icon.fill((70, 110, 200))
    pygame.draw.circle(icon, (255, 214, 120), (38, 30), 14)
    pygame.draw.ellipse(icon, (58, 140, 84), (-20, 36, 104, 60))
    return icon
