"""A clip to go on from: its frames at the world's size, and what was done meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import IDLE, Action, ActionSpace, fit_frame
from game.framesource import Film
from game.options import UsageError
from game.script import read_script
from game.sessionfile import looks_like_session, read_session


@dataclass(frozen=True, eq=False)
class Clip:
    """``frames`` `[F, height, width, 3]` uint8, cut and scaled to the world; ``fps`` of the file, None if it does not say.

    ``damage``: what could not be read of it, in ffmpeg's words; None if it is sound.
    """

    frames: np.ndarray
    fps: float | None
    damage: str | None


def read_clip(path: Path, height: int, width: int, limit: int) -> Clip:
    """At most ``limit`` + 1 frames of the file.

    Raises UsageError for a file that is missing, unreadable or no film, WorldError for frames too large or too small.
    """
    film = Film(path, limit + 1, "--start")
    frames = np.stack([fit_frame(frame, height, width) for frame in film])
    return Clip(frames, film.fps, film.damage)


def actions_of(path: Path, space: ActionSpace, blocks: int) -> list[Action]:
    """What was done during the first ``blocks`` blocks, from a script of words or a session file; idle where it has ended.

    Of a session with rewinds that is the line of play that led to its end. Raises ScriptError or SessionError for a file that is
    neither, ScriptError for keys the world does not have, UsageError for a session whose beginning is not in it.
    """
    if looks_like_session(path):
        file = read_session(path)
        line = file.lineage(file.blocks[-1].epoch) if file.blocks else []
        if line and line[0].index:
            first = line[0].index
            raise UsageError(f"--actions {path}: that session went on from a saved game or a clip, its first {first} blocks are not in it")
        actions = [block.action for block in line[:blocks]]
    else:
        script = read_script(str(path), space.keys)
        actions = [script.at(block) or IDLE for block in range(blocks)]
    return actions + [IDLE] * (blocks - len(actions))
