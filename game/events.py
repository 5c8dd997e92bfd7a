"""pygame's events become input for `Controls` and commands for the player."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

import pygame

from game.controls import SCANCODES, Controls

if TYPE_CHECKING:
    from engine import ActionSpace


class Command(Enum):
    """What a player can ask of the program, as opposed to the world."""

    QUIT = auto()
    ESCAPE = auto()
    PAUSE = auto()
    STEP = auto()
    RESTART = auto()
    SCREENSHOT = auto()
    FULLSCREEN = auto()
    HUD = auto()
    HELP = auto()
    CAPTURE = auto()
    FOCUS_LOST = auto()
    REDRAW = auto()
    SAVE = auto()
    LOAD = auto()
    SLOT = auto()
    REWIND = auto()
    REWIND_END = auto()


@dataclass(frozen=True)
class Shortcut:
    """A command's key: the ``codes`` pygame gives it, how it is written, what it does."""

    command: Command
    codes: tuple[int, ...]
    label: str
    does: str


SHORTCUTS = (
    Shortcut(Command.PAUSE, (pygame.K_p, pygame.K_PAUSE), "P", "pause, go on"),
    Shortcut(Command.STEP, (pygame.K_PERIOD, pygame.K_KP_PERIOD), ".", "one block"),
    Shortcut(Command.RESTART, (pygame.K_RETURN, pygame.K_KP_ENTER), "Enter", "start again"),
    Shortcut(Command.REWIND, (pygame.K_BACKSPACE,), "Backspace", "rewind (hold)"),
    Shortcut(Command.SAVE, (pygame.K_F2,), "F2", "save"),
    Shortcut(Command.LOAD, (pygame.K_F4,), "F4", "load"),
    Shortcut(Command.SLOT, (), "Shift 1-9", "slot to save in"),
    Shortcut(Command.HELP, (pygame.K_F1,), "F1", "this help"),
    Shortcut(Command.HUD, (pygame.K_F3,), "F3", "keys and numbers"),
    Shortcut(Command.SCREENSHOT, (pygame.K_F8,), "F8", "screenshot"),
    Shortcut(Command.FULLSCREEN, (pygame.K_F11,), "F11", "full screen"),
    Shortcut(Command.ESCAPE, (pygame.K_ESCAPE,), "Esc", "free mouse, quit"),
)
_BY_CODE = {code: shortcut.command for shortcut in SHORTCUTS for code in shortcut.codes}
_WINDOW = {
    pygame.QUIT: Command.QUIT,
    pygame.WINDOWFOCUSLOST: Command.FOCUS_LOST,
    pygame.WINDOWSIZECHANGED: Command.REDRAW,
    pygame.WINDOWEXPOSED: Command.REDRAW,
}


def help_columns(space: ActionSpace) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(key, what it does) of the world and of the program."""
    world = [(key.upper(), does) for key, does in space.help]
    if space.has_look:
        world.append(("Mouse", "look (click)" if space.look_scale[0] else "left and right (click)"))
    return world, [(shortcut.label, shortcut.does) for shortcut in SHORTCUTS]


class EventReader:
    """Sorts one batch of events: input goes into the controls, the rest comes back as commands."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self.slot = 1  # chosen with Shift and a digit
        self._rewinding: int | None = None  # code of the key that is held for it
        self._pads: dict[int, pygame.joystick.JoystickType] = {}

    def read(self, events: list[pygame.event.Event], captured: bool) -> list[Command]:
        """``captured``: whether the mouse belongs to the game, so that its movement means looking."""
        return [command for event in events if (command := self._one(event, captured)) is not None]

    def _one(self, event: pygame.event.Event, captured: bool) -> Command | None:
        match event.type:
            case pygame.KEYDOWN:
                return self._key(event)
            case pygame.KEYUP:
                self.controls.release(SCANCODES.get(event.scancode, ""))
                if event.key == self._rewinding:
                    self._rewinding = None
                    return Command.REWIND_END
            case pygame.MOUSEMOTION if captured:
                self.controls.move_mouse(*event.rel)
            case pygame.MOUSEBUTTONDOWN if event.button == 1:
                return Command.CAPTURE
            case pygame.JOYDEVICEADDED:
                pad = pygame.joystick.Joystick(event.device_index)
                self._pads[pad.get_instance_id()] = pad  # events come only while the object is kept
            case pygame.JOYDEVICEREMOVED:
                self._pads.pop(event.instance_id, None)
                self.controls.release_all()
            case pygame.JOYAXISMOTION:
                self._stick(event)
            case pygame.JOYHATMOTION:
                self.controls.set_stick(event.value[0], -event.value[1], looks=False, source="hat")
            case kind if kind in _WINDOW:
                if kind == pygame.WINDOWFOCUSLOST:
                    self.controls.release_all()
                    self._rewinding = None
                return _WINDOW[kind]
        return None

    def _key(self, event: pygame.event.Event) -> Command | None:
        name, keys = SCANCODES.get(event.scancode, ""), self.controls.space.keys
        if event.mod & pygame.KMOD_SHIFT and name in tuple("123456789") and "shift" not in keys:
            self.slot = int(name)
            return Command.SLOT
        if event.mod & pygame.KMOD_CTRL and event.key == pygame.K_z and "ctrl" not in keys:
            return self._begin_rewind(event.key)
        if name in keys:  # the world's own keys come before the program's
            self.controls.press(name)
            return None
        if event.key == pygame.K_RETURN and event.mod & pygame.KMOD_ALT:
            return Command.FULLSCREEN
        command = Command.STEP if event.unicode == "." else _BY_CODE.get(event.key)
        return self._begin_rewind(event.key) if command == Command.REWIND else command

    def _begin_rewind(self, code: int) -> Command:
        self._rewinding = code
        return Command.REWIND

    def _stick(self, event: pygame.event.Event) -> None:
        """Axes 0 and 1 are the left stick; the right one is 2 and 3, or 3 and 4 on pads whose axis 2 is a trigger."""
        pad = self._pads.get(event.instance_id)
        if pad is None:
            return
        right = (3, 4) if pad.get_numaxes() >= 6 else (2, 3)
        for axes, looks in (((0, 1), False), (right, True)):
            if event.axis in axes and axes[1] < pad.get_numaxes():
                self.controls.set_stick(pad.get_axis(axes[0]), pad.get_axis(axes[1]), looks)
