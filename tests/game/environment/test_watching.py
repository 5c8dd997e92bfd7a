"""render_mode: rgb_array and human."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from gymnasium.error import UnsupportedMode

import game.environment
from game.environment import WorldEnv
from tests.game.environment.steps import BACK, LEFT, TURN, WALK, frames_of, same


def test_rgb_array_is_the_last_frame(make: Callable[..., WorldEnv]) -> None:
    env = make(render_mode="rgb_array", observation="block")
    observed, _ = env.reset(seed=1)
    assert np.array_equal(env.render(), observed[-1])
    observed, *_ = env.step(WALK)
    assert np.array_equal(env.render(), observed[-1])


def test_human_shows_every_frame_and_survives_a_closed_window(make: Callable[..., WorldEnv], monkeypatch: pytest.MonkeyPatch) -> None:
    import pygame

    from game.window import Window

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown: list[np.ndarray] = []
    monkeypatch.setattr(Window, "set_picture", lambda self, frame: shown.append(frame))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    env, calm = make(render_mode="human"), make()
    start = env.reset(seed=1)[0]
    calm.reset(seed=1)
    blocks = frames_of(calm, WALK, TURN, BACK)
    assert same(blocks[:2], frames_of(env, WALK, TURN)) and env.render() is None
    assert same([np.stack(shown)], [np.concatenate([start[None], *blocks[:2]])])
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert same(blocks[2:], frames_of(env, BACK)) and len(shown) == 22 and not env._view.open
    env.close()
    assert pygame.display.get_surface() is None


def test_human_keeps_the_worlds_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from game.blockview import BlockView

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    now, times = [100.0], []
    monkeypatch.setattr("game.blockview.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("game.blockview.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    view = BlockView("test", 32, 16, fps=10)
    monkeypatch.setattr(view._window, "draw", lambda: times.append(now[0]))
    view.show([LEFT] * 3)
    now[0] += 5.0  # a slow block is not caught up with
    view.show([LEFT] * 2)
    assert times == pytest.approx([100.0, 100.1, 100.2, 105.2, 105.3])
    view.close()


def test_human_without_a_display_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(game.environment.World, "load", None)
    with pytest.raises(UnsupportedMode, match="needs a display"):
        WorldEnv("garden", render_mode="human")
    with pytest.raises(UnsupportedMode, match="render_mode is one of rgb_array, human; got 'ansi'"):
        WorldEnv("garden", render_mode="ansi")
