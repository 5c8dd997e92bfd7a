"""Actions of all kinds of worlds, good ones and bad ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import InvalidAction

from engine import Action, load_config
from game.environment import WorldEnv
from game.gymactions import GymActions
from tests.game.environment.steps import WALK, frames_of, same
from tests.tiny_world import write_tiny_world


def test_the_spaces_of_the_published_modes() -> None:
    universal, gta, temple = (GymActions(load_config(name).actions) for name in ("universal", "gta_drive", "templerun"))
    assert universal.space == spaces.Dict(look=spaces.Box(-1, 1, (2,), np.float32), keys=spaces.MultiBinary(4))
    assert (universal.keys, universal.axes) == (("w", "s", "a", "d"), ("pitch", "yaw"))
    assert gta.space == spaces.Dict(look=spaces.Box(-1, 1, (1,), np.float32), keys=spaces.MultiBinary(2))
    assert gta.axes == ("yaw",) and gta.to_engine({"look": [0.5], "keys": [1, 0]}) == Action({"w"}, (0.0, 0.5))
    assert temple.space == spaces.Discrete(7) and temple.keys == (None, "w", "s", "z", "c", "a", "d")
    for index, key in enumerate(temple.keys):
        expected = Action(frozenset({key} - {None}))
        assert temple.to_engine(index) == temple.to_engine(np.int64(index)) == temple.to_engine(np.array(index)) == expected
    for actions in (universal, gta, temple):
        actions.space.seed(0)
        for _ in range(20):
            actions.to_engine(actions.space.sample())


NAN = float("nan")


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (None, "a dict of 'keys' and 'look', got None"),
        (3, "got 3"),
        ({}, "got an empty one"),
        ({"keys": [0, 0, 0, 0]}, "got 'keys'"),
        ({**WALK, "jump": 1}, "and 'jump'"),
        ({**WALK, "look": [0.0]}, "look is 2 numbers from -1 to 1 (pitch, yaw), got an array of shape [1]"),
        ({**WALK, "look": 0.0}, "shape []"),
        ({**WALK, "look": [NAN, 0]}, "nan"),
        ({**WALK, "look": [0, float("-inf")]}, "inf"),
        ({**WALK, "look": [0, 1.01]}, "1.01"),
        ({**WALK, "look": ["up", "left"]}, "'up'"),
        ({**WALK, "look": [[0], [0, 1]]}, "[[0], [0, 1]]"),
        ({**WALK, "keys": [0, 0, 0]}, "keys are 4 zeros or ones (w, s, a, d), got an array of shape [3]"),
        ({**WALK, "keys": np.zeros((2, 4))}, "[2, 4]"),
        ({**WALK, "keys": [0, 0, 0, 2]}, "[0, 0, 0, 2]"),
        ({**WALK, "keys": [0, 0, 0, NAN]}, "nan"),
        ({**WALK, "keys": {"w"}}, "{'w'}"),
        ({**WALK, "keys": "w" * 500}, "www…"),
    ],
)
def test_a_bad_action_is_refused_in_a_line_and_plays_nothing(make: Callable[..., WorldEnv], action: Any, words: str) -> None:
    env = make()
    env.reset(seed=1)
    with pytest.raises(InvalidAction) as caught:
        env.step(action)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert len(frames_of(env, WALK)[0]) == 9


@pytest.mark.parametrize("action", [7, -1, 1.0, NAN, None, "w", np.array([1, 2]), np.array([1]), np.array(1.0), np.array(NAN), {"keys": 1}])
def test_a_bad_discrete_action_is_refused(action: Any) -> None:
    temple = GymActions(load_config("templerun").actions)
    with pytest.raises(InvalidAction, match=r"an action is a whole number from 0 to 6 \(nothing, w, s, z, c, a, d\), got"):
        temple.to_engine(action)


def test_a_one_hot_world_plays(tmp_path: Path) -> None:
    def temple(settings: dict[str, Any]) -> None:
        keyboard = [{"does": "run on"}, {"key": "w", "does": "jump"}, {"key": "z", "does": "turn left"}]
        settings["actions"] = {"one_hot": True, "keyboard": keyboard}
        settings["model"]["action"].update(keyboard_dim=3, mouse_dim=0)

    env = WorldEnv(write_tiny_world(tmp_path, change=temple))
    env.reset(seed=1)
    session = env.world.session(seed=1)
    assert same(frames_of(env, 2, 0, 1), [session.step(Action(keys)) for keys in ({"z"}, set(), {"w"})])
    env.close()
