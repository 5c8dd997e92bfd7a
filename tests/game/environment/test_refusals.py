"""What cannot be done is said in a line, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from engine import WorldError
from game.environment import WorldEnv
from tests.game.environment.steps import LEFT, WALK, frames_of, same
from tests.tiny_world import write_tiny_world


def test_before_reset_and_after_close(make: Callable[..., WorldEnv]) -> None:
    env = make(render_mode="rgb_array")
    for call in (lambda: env.step(WALK), env.snapshot, env.render):
        with pytest.raises(ResetNeeded, match="call reset"):
            call()
    env.reset(seed=1)
    state = env.snapshot()
    env.close()
    env.close()
    for call in (lambda: env.step(WALK), env.reset, env.snapshot, env.render, lambda: env.restore(state)):
        with pytest.raises(ClosedEnvironmentError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(observation="video"), "observation is one of frame, block; got 'video'"),
        (dict(max_blocks=0), "max_blocks is a whole number from 1"),
        (dict(max_blocks=2.5), "max_blocks"),
        (dict(start=3), "a start is a picture's file"),
        (dict(device="abacus"), "abacus"),
        (dict(dtype="int3"), "int3"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[..., WorldEnv], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(WorldError, match=words):
        make(**settings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 3}, "got int"),
        ({"begin": LEFT}, "not 'begin'"),
        ({"start": "gone.png"}, "there is no start picture gone.png"),
        ({"start": LEFT[:2]}, "at least 16x16"),
        ({"start": np.stack([LEFT] * 3)}, "at least 9 are needed"),
    ],
)
def test_a_start_that_cannot_be_used_ends_nothing(make: Callable[..., WorldEnv], options: dict[str, Any], words: str) -> None:
    env, calm = make(), make()
    for one in (env, calm):
        one.reset(seed=1)
    with pytest.raises(WorldError, match=words):
        env.reset(seed=2, options=options)
    assert same(frames_of(env, WALK), frames_of(calm, WALK))


@pytest.mark.parametrize("name", ["Universal", "GtaDrive", "TempleRun"])
def test_published_worlds_say_that_they_need_weights(name: str, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"are not bundled: get Skywork/\S+ from huggingface.co, then give weights=FOLDER"):
        gymnasium.make(f"Reverie/{name}-v0")
    with pytest.raises(WorldError, match=r"there is no \S+ in "):
        gymnasium.make(f"Reverie/{name}-v0", weights=tmp_path)


def test_a_world_without_a_start_picture_asks_for_one(tmp_path: Path) -> None:
    env = WorldEnv(write_tiny_world(tmp_path, change=lambda settings: settings.pop("start")))
    with pytest.raises(WorldError, match=r"no start picture of its own; give one with start=FILE, or reset\(options="):
        env.reset()
    assert np.array_equal(env.reset(options={"start": LEFT})[0], LEFT)
    env.close()
