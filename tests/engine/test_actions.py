from __future__ import annotations

import math

import numpy as np
import pytest

from engine import Action, ActionSpace, WorldError, load_config
from engine.actions import Key, LookKey

WALK = (Key("forward", "w"), Key("back", "s"), Key("left", "a"), Key("right", "d"))
LOOK = tuple(LookKey(key, "look", direction) for key, direction in (("i", "up"), ("k", "down"), ("j", "left"), ("l", "right")))


def model(world: str, *keys: str, look: tuple[float, float] = (0, 0)) -> tuple[list[float], list[float] | None]:
    keyboard, mouse = load_config(world).actions.to_model(Action(frozenset(keys), look))
    assert keyboard.dtype == np.float32
    return keyboard.tolist(), None if mouse is None else [round(float(value), 6) for value in mouse]


def test_garden_and_universal() -> None:
    for world, full in (("garden", 3.0), ("universal", 0.1)):  # the same keys; the garden's model is spoken to more loudly
        assert model(world) == ([0, 0, 0, 0], [0, 0])
        assert model(world, "w") == ([1, 0, 0, 0], [0, 0])
        assert model(world, "s", "d") == ([0, 1, 0, 1], [0, 0])
        assert model(world, "a", "i") == ([0, 0, 1, 0], [full, 0])
        assert model(world, "k", "j") == ([0, 0, 0, 0], [-full, -full])
        assert model(world, "l", look=(0.5, 0.5)) == ([0, 0, 0, 0], [full / 2, full])  # clamped at full


def test_gta_drive_steers_with_a_and_d() -> None:
    assert model("gta_drive", "w", "a") == ([1, 0], [0, -0.1])
    assert model("gta_drive", "s", "d", look=(1, 0)) == ([0, 1], [0, 0.1])  # no pitch in this model


def test_templerun_is_one_hot_and_idle_is_not_zeros() -> None:
    assert model("templerun") == ([1, 0, 0, 0, 0, 0, 0], None)
    for index, key in enumerate("wszcad", 1):
        assert model("templerun", key) == ([float(i == index) for i in range(7)], None)
    assert model("templerun", "d", "s")[0] == [0, 0, 1, 0, 0, 0, 0]  # the first of the list
    assert not load_config("templerun").actions.has_look


def test_opposite_keys_cancel() -> None:
    assert model("garden", "w", "s", "a") == ([0, 0, 1, 0], [0, 0])
    assert model("garden", "j", "l") == ([0, 0, 0, 0], [0, 0])


def test_names_and_help_in_order() -> None:
    space = load_config("garden").actions
    assert space.keys == ("w", "s", "a", "d", "i", "k", "j", "l") and space.has_look
    assert [key for key, _ in space.help] == list(space.keys)
    assert all(text for _, text in space.help)


def test_an_action_is_clamped_and_hashable() -> None:
    action = Action({"w"}, (3, -2))  # type: ignore[arg-type]
    assert action.look == (1.0, -1.0) and action.keys == frozenset({"w"})
    assert len({action, Action(frozenset("w"), (1.0, -1.0)), Action()}) == 2
    with pytest.raises(ValueError, match="finite"):
        Action(look=(math.nan, 0))


def test_a_key_of_another_world_is_named() -> None:
    with pytest.raises(WorldError, match="no key 'z'; its keys are w s a d"):
        load_config("garden").actions.to_model(Action(frozenset({"w", "z"})))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keyboard": (*WALK, Key("again", "w"))}, "'w' is bound twice"),
        ({"keyboard": WALK, "one_hot": True}, "exactly one entry without a key"),
        ({"keyboard": (Key("idle"), *WALK)}, "exactly one entry without a key"),
        ({"keyboard": WALK, "look": LOOK}, "need a look_scale"),
        ({"keyboard": WALK, "look_scale": (math.inf, 0.1)}, "finite"),
        ({"keyboard": WALK, "opposites": (("w", "x"),)}, "names 'x'"),
    ],
)
def test_an_inconsistent_space_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSpace(**arguments)


def test_a_look_direction_is_one_of_four() -> None:
    with pytest.raises(ValueError, match="up, down, left, right"):
        LookKey("i", "look", "upp")
