"""A world's controls as a space of Gymnasium, and its samples as the engine's actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction

from engine import Action, ActionSpace

AXES = ("pitch", "yaw")  # as in `Action.look`; + is up and right


class GymActions:
    """The action space of a world.

    ``space`` is Dict(look=Box [-1, 1], keys=MultiBinary). ``look`` has one number for each of ``axes`` that the world listens to,
    ``keys`` one for each of ``keys``. A world without a look whose keyboard is one-hot has Discrete: the index into ``keys``, where
    None stands for doing nothing.
    """

    def __init__(self, controls: ActionSpace) -> None:
        scale = controls.look_scale or (0.0, 0.0)
        self.axes = tuple(axis for axis, value in zip(AXES, scale, strict=True) if value)
        self.keys = tuple(entry.key for entry in controls.keyboard)
        self.one_hot = controls.one_hot
        parts: dict[str, spaces.Space] = {}
        if self.axes:
            parts["look"] = spaces.Box(-1.0, 1.0, (len(self.axes),), np.float32)
        if self.keys:
            parts["keys"] = spaces.Discrete(len(self.keys)) if self.one_hot else spaces.MultiBinary(len(self.keys))
        self.plain = self.one_hot and not self.axes
        self.space = parts["keys"] if self.plain else spaces.Dict(parts)

    def to_engine(self, action: Any) -> Action:
        """What an action of ``space`` means. Raises InvalidAction, one line, for what is not in the space."""
        if self.plain:
            return Action(self._one(action))
        wanted = self.space.spaces
        if not isinstance(action, Mapping) or set(action) != set(wanted):
            got = " and ".join(map(repr, action)) if isinstance(action, Mapping) else one_line(action)
            raise InvalidAction(f"an action is a dict of {' and '.join(map(repr, wanted))}, got {got or 'an empty one'}")
        keys: frozenset[str] = frozenset()
        if "keys" in wanted:
            keys = self._one(action["keys"]) if self.one_hot else self._many(action["keys"])
        look = dict.fromkeys(AXES, 0.0)
        if "look" in wanted:
            look |= zip(self.axes, self._look(action["look"]), strict=True)
        return Action(keys, (look["pitch"], look["yaw"]))

    def _one(self, value: Any) -> frozenset[str]:
        index = np.asarray(value) if isinstance(value, (int, np.integer, np.ndarray)) else None
        if index is None or index.ndim or index.dtype.kind not in "iu" or not 0 <= index < len(self.keys):
            what = f"{'an action' if self.plain else 'keys'} is a whole number from 0 to {len(self.keys) - 1}"
            raise InvalidAction(f"{what} ({', '.join(key or 'nothing' for key in self.keys)}), got {one_line(value)}")
        key = self.keys[int(index)]
        return frozenset() if key is None else frozenset({key})

    def _many(self, value: Any) -> frozenset[str]:
        what = f"keys are {len(self.keys)} zeros or ones ({', '.join(self.keys)})"
        pressed = _numbers(value, len(self.keys), what)
        if not np.isin(pressed, (0, 1)).all():
            raise InvalidAction(f"{what}, got {one_line(value)}")
        return frozenset(key for key, on in zip(self.keys, pressed, strict=True) if on)

    def _look(self, value: Any) -> list[float]:
        what = f"look is {len(self.axes)} numbers from -1 to 1 ({', '.join(self.axes)})"
        look = _numbers(value, len(self.axes), what)
        if not (np.abs(look) <= 1).all():  # NaN is not
            raise InvalidAction(f"{what}, got {one_line(value)}")
        return look.tolist()


def _numbers(value: Any, count: int, what: str) -> np.ndarray:
    """``count`` real numbers as float64 `[count]`."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists within lists of several lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise InvalidAction(f"{what}, got {one_line(value)}")
    if array.shape != (count,):
        raise InvalidAction(f"{what}, got an array of shape {list(array.shape)}")
    return array.astype(np.float64)


def one_line(value: Any) -> str:
    """The value for a message, in one line of no great length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
