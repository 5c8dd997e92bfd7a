"""Keys, mouse and pad become one `Action` a block. Pure Python: knows neither pygame nor threads of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine import Action, ActionSpace

# Physical keys by USB usage number (what SDL calls a scancode), so that WASD is the same cross of keys on every layout.
SCANCODES: dict[int, str] = {4 + i: letter for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
SCANCODES |= {30 + i: digit for i, digit in enumerate("1234567890")}
SCANCODES |= {40: "enter", 43: "tab", 44: "space", 79: "right", 80: "left", 81: "down", 82: "up", 225: "shift", 224: "ctrl"}

MOUSE_FULL = 300.0  # pixels of mouse movement within one block that are a full look
STICK_PRESSED = 0.5  # a move stick further out than this is a pressed key …
STICK_RELEASED = 0.35  # … until it comes back to this
STICK_DEAD = 0.15  # a look stick nearer to the middle than this is at rest
STICK_KEYS = {"up": "w", "down": "s", "left": "a", "right": "d"}


MAX_EVENTS = 64  # kept a block: a mouse sends a thousand a second

Event = tuple[float, str, *tuple[str | float, ...]]  # (time, press | release | mouse | look | all released | taps dropped | lost, what …)


@dataclass(frozen=True)
class Sample:
    """What the player wanted when a block was begun. Times are in seconds of `time.perf_counter`."""

    action: Action
    sampled_at: float
    input_at: float | None = None  # the oldest input not seen by an earlier block, if there is one
    events: tuple[Event, ...] = ()  # what came in since the sample before, oldest first


class Controls:
    """The latest-action cell: the window's thread writes input into it, the world's thread takes one `Sample` a block.

    A key counts for a block if it is held when the block is sampled, or was pressed at any moment since the last sample.
    Mouse movement adds up between two samples. Nothing queues: what a block did not take is gone.
    """

    def __init__(self, space: ActionSpace, clock: Callable[[], float] = time.perf_counter) -> None:
        self.space = space
        self._keys = frozenset(space.keys)
        self._clock = clock
        self._lock = threading.Lock()
        self._held: set[tuple[str, str]] = set()  # (source, key): a pad's W does not release the keyboard's
        self._tapped: set[str] = set()
        self._mouse = (0.0, 0.0)
        self._stick = (0.0, 0.0)
        self._input_at: float | None = None
        self._events: list[Event] = []

    def press(self, key: str, source: str = "keyboard") -> None:
        if key not in self._keys:
            return
        with self._lock:
            if (source, key) not in self._held:  # a key's own repetition is not a new tap
                self._held.add((source, key))
                self._tapped.add(key)
                self._touch("press", key, source)

    def release(self, key: str, source: str = "keyboard") -> None:
        with self._lock:
            if (source, key) in self._held:
                self._held.discard((source, key))
                self._touch("release", key, source)

    def move_mouse(self, right: float, down: float) -> None:
        """Relative mouse movement in pixels."""
        if self.space.has_look and (right or down):
            with self._lock:
                self._mouse = (self._mouse[0] - down, self._mouse[1] + right)
                self._touch("mouse", right, down)

    def set_stick(self, x: float, y: float, looks: bool, source: str = "stick") -> None:
        """Position of a pad's stick, each axis in [-1, 1], + is right and down. One stick moves, the other ``looks``."""
        if looks:
            pitch, yaw = (0.0 if abs(axis) < STICK_DEAD else _clamp(axis) for axis in (-y, x))
            with self._lock:
                if self.space.has_look and (pitch, yaw) != self._stick:
                    self._stick = (pitch, yaw)
                    self._touch("look", pitch, yaw)
            return
        for direction, amount in {"up": -y, "down": y, "left": -x, "right": x}.items():
            key = STICK_KEYS[direction]
            if amount > STICK_PRESSED:
                self.press(key, source)
            elif amount < STICK_RELEASED:
                self.release(key, source)

    def release_all(self) -> None:
        """Let go of everything, taps and mouse movement not yet taken included: the window has lost the focus."""
        with self._lock:
            self._held.clear()
            self._tapped.clear()
            self._mouse = self._stick = (0.0, 0.0)
            self._touch("all released")
            self._input_at = None

    def drop_taps(self) -> None:
        """Forget taps and mouse movement, keep what is held: they were meant for a moment that has passed."""
        with self._lock:
            self._tapped.clear()
            self._mouse = (0.0, 0.0)
            self._touch("taps dropped")
            self._input_at = None

    @property
    def held(self) -> frozenset[str]:
        """Physical keys held at this moment."""
        with self._lock:
            return frozenset(key for _, key in self._held)

    def sample(self) -> Sample:
        """The action for the block about to begin; taps and mouse movement are used up by it."""
        with self._lock:
            pressed = frozenset(key for _, key in self._held) | self._tapped
            pitch, yaw = (_clamp(self._stick[axis] + self._mouse[axis] / MOUSE_FULL) for axis in (0, 1))
            sample = Sample(Action(pressed, (pitch, yaw)), self._clock(), self._input_at, tuple(self._events))
            self._events = []
            self._tapped = set()
            self._mouse = (0.0, 0.0)
            self._input_at = None
        return sample

    def _touch(self, what: str, *details: str | float) -> None:
        """Note an event. Mouse movements there is no room for are added to the last one, other events are counted as lost."""
        now = self._clock()
        if self._input_at is None:
            self._input_at = now
        last = self._events[-1] if self._events else None
        if len(self._events) < MAX_EVENTS:
            self._events.append((now, what, *details))
        elif what == last[1] == "mouse":
            self._events[-1] = (now, what, last[2] + details[0], last[3] + details[1])
        else:
            self._events[-1] = (now, "lost", last[2] + 1 if last[1] == "lost" else 2.0)


def _clamp(value: float) -> float:
    return max(-1.0, min(1.0, value))
