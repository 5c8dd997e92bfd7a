"""What a player does, and what a world's keys mean to its model (SPEC §2)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from models.errors import WorldError

DIRECTIONS = {"up": (1.0, 0.0), "down": (-1.0, 0.0), "left": (0.0, -1.0), "right": (0.0, 1.0)}  # (pitch, yaw)


def _clamp(value: float) -> float:
    return min(1.0, max(-1.0, value))


@dataclass(frozen=True)
class Action:
    """Held keys by name (``"w"``) and an analogue look (pitch, yaw), each clamped to [-1, 1]: + is up and right."""

    keys: frozenset[str] = frozenset()
    look: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        keys = [self.keys] if isinstance(self.keys, str) else self.keys
        pitch, yaw = (float(value) for value in self.look)
        if not (math.isfinite(pitch) and math.isfinite(yaw)):
            raise ValueError(f"look needs two finite numbers, got {self.look}")
        object.__setattr__(self, "keys", frozenset(keys))
        object.__setattr__(self, "look", (_clamp(pitch), _clamp(yaw)))


IDLE = Action()


@dataclass(frozen=True)
class Key:
    """One entry of the model's keyboard vector. ``key`` is None for the entry that stands for doing nothing."""

    does: str
    key: str | None = None


@dataclass(frozen=True)
class LookKey:
    """A key that deflects the look fully in one direction: up, down, left or right."""

    key: str
    does: str
    direction: str

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction is one of {', '.join(DIRECTIONS)}; got {self.direction!r}")


@dataclass(frozen=True)
class ActionSpace:
    """The controls of one world.

    ``keyboard`` lists the model's keyboard vector in index order. ``look_scale`` is the model's (pitch, yaw) value at
    full deflection, None for a world without mouse. With ``one_hot`` exactly one keyboard entry is 1: the first held
    key, or the entry without a key. ``opposites`` are pairs of keys that cancel when held together.
    """

    keyboard: tuple[Key, ...]
    look: tuple[LookKey, ...] = ()
    look_scale: tuple[float, float] | None = None
    one_hot: bool = False
    opposites: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        names = [entry.key for entry in (*self.keyboard, *self.look) if entry.key is not None]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"key {double[0]!r} is bound twice")
        idle = sum(entry.key is None for entry in self.keyboard)
        if idle != int(self.one_hot):
            raise ValueError("a one_hot keyboard needs exactly one entry without a key, any other keyboard none")
        if self.look and self.look_scale is None:
            raise ValueError("look keys need a look_scale")
        if self.look_scale is not None and not all(math.isfinite(value) for value in self.look_scale):
            raise ValueError(f"look_scale needs two finite numbers, got {self.look_scale}")
        stray = sorted({name for pair in self.opposites for name in pair} - {entry.key for entry in self.keyboard if entry.key})
        if stray:
            raise ValueError(f"opposites names {stray[0]!r}, which is not a key of the keyboard")

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all keys of this world, keyboard first, in yaml order."""
        return tuple(entry.key for entry in (*self.keyboard, *self.look) if entry.key is not None)

    @property
    def help(self) -> tuple[tuple[str, str], ...]:
        """(key, what it does) for every key, for the help screen."""
        return tuple((entry.key, entry.does) for entry in (*self.keyboard, *self.look) if entry.key is not None)

    @property
    def has_look(self) -> bool:
        """Whether the mouse or a stick does anything here."""
        return self.look_scale is not None and any(self.look_scale)

    def deflection(self, action: Action) -> tuple[float, float]:
        """Look keys and analogue look together: (pitch, yaw) in [-1, 1]."""
        pitch, yaw = action.look
        for entry in self.look:
            if entry.key in action.keys:
                up, right = DIRECTIONS[entry.direction]
                pitch, yaw = pitch + up, yaw + right
        return _clamp(pitch), _clamp(yaw)

    def acting(self, action: Action) -> frozenset[str]:
        """Those of the held keys that do something: opposites cancel, and of a one_hot keyboard only the first counts."""
        held = set(action.keys)
        for one, other in self.opposites:
            if one in action.keys and other in action.keys:
                held -= {one, other}
        if self.one_hot:
            pressed = [entry.key for entry in self.keyboard if entry.key in held]
            held -= set(pressed[1:])
        return frozenset(held)

    def to_model(self, action: Action) -> tuple[np.ndarray, np.ndarray | None]:
        """The action as the model reads it: keyboard `[K]` and mouse `[2]` (pitch, yaw; None without mouse), float32.

        Raises WorldError when the action holds a key this world does not have.
        """
        self.check(action.keys)
        acting = self.acting(action)
        idle = not any(entry.key in acting for entry in self.keyboard)  # only a one_hot keyboard has an entry for it
        keyboard = np.array([entry.key in acting or (entry.key is None and idle) for entry in self.keyboard], dtype=np.float32)
        if self.look_scale is None:
            return keyboard, None
        return keyboard, np.array(self.deflection(action), dtype=np.float32) * np.array(self.look_scale, dtype=np.float32)

    def check(self, keys: Iterable[str]) -> None:
        """Raise WorldError when ``keys`` names a key this world does not have."""
        unknown = sorted(set(keys) - set(self.keys))
        if unknown:
            raise WorldError(f"this world has no key {unknown[0]!r}; its keys are {' '.join(self.keys)}")
