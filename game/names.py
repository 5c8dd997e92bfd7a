"""What files are called: walk.mp4, its session walk.session.jsonl, and walk.part.mp4 while it is not finished."""

from __future__ import annotations

import re
from pathlib import Path

SESSION = ".session.jsonl"
PART = ".part.mp4"
DUMPED_FRAME = re.compile(r"frame_([0-9]{6}|[1-9][0-9]{6,})\.png")  # in the folder of --dump
DUMPED_ACTIONS = "actions.jsonl"


def is_dumped(name: str) -> bool:
    """Whether a file of --dump is called so."""
    return name == DUMPED_ACTIONS or DUMPED_FRAME.fullmatch(name) is not None


def session_beside(film: Path) -> Path:
    """The session file that goes with a film."""
    return film.with_suffix(SESSION)


def film_beside(session: Path) -> Path:
    """The film that goes with a session file, if it has the usual name."""
    return session.with_name(session.name.removesuffix(SESSION) + ".mp4")


def part_of(film: Path) -> Path:
    """Where a film is written until it is finished."""
    return film.with_name(film.stem + PART)


def free_name(stem: str, suffix: str = ".mp4", folder: Path = Path()) -> Path:
    """The first of STEM.mp4, STEM-2.mp4, STEM-3.mp4 … that does not exist in ``folder``, nor its session file or unfinished film."""
    number = 1
    while True:
        path = folder / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}"
        if not any(other.exists() for other in (path, session_beside(path), part_of(path))):
            return path
        number += 1
