"""A clip to go on from: its frames at the world's size, and what was done meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import Action, ActionSpace, fit_frame
from game.framesource import Film
from game.sessionfile import read_script


@dataclass(frozen=True, eq=False)
class Clip:
    """``frames`` `[F, height, width, 3]` uint8, cut and scaled to the world; ``fps`` of the file, None if it does not say."""

    frames: np.ndarray
    fps: float | None


def read_clip(path: Path, height: int, width: int, limit: int) -> Clip:
    """At most ``limit`` + 1 frames of the file.

    Raises UsageError for a file that is missing, unreadable or no film, WorldError for frames too large or too small.
    """
    film = Film(path, limit + 1, "--start")
    frames = np.stack([fit_frame(frame, height, width) for frame in film])
    return Clip(frames, film.fps)


def actions_of(path: Path, space: ActionSpace, blocks: int) -> list[Action]:
    """What was done during the first ``blocks`` blocks, from a script of words; idle where it has ended.

    Raises ScriptError for a file that is no script, or names keys the world does not have.
    """
    script = read_script(str(path), space.keys)
    return [Action(script.at(block) or frozenset()) for block in range(blocks)]
