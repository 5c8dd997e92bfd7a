"""What the command lines share: a parser that refuses in one line, types of arguments, checks of places to write to."""

from __future__ import annotations

import argparse
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from game.names import PART

CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")


class UsageError(Exception):
    """What was asked for cannot be done; one line."""


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` where argparse would print usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the options)")


def refuse_given(what: str, options: dict[str, object]) -> None:
    """Refuse those of the ``options`` (values by name) that were given. 0 and an empty text are given too.

    ``what`` is how the line goes, with {} for the option's name.
    """
    for option, value in options.items():
        if value is not None and value is not False:
            raise UsageError(what.format(option))


def whole(low: int, high: int):
    """An argparse type: whole numbers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if len(text) > 30 or not text.strip().lstrip("+-").isdecimal():
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text[:40]!r}")
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, not {int(text)}")
        return int(text)

    return parse


def listed(low: int, high: int):
    """An argparse type: whole numbers from ``low`` to ``high``, with commas between them, each smaller than the one before."""
    one = whole(low, high)

    def parse(text: str) -> list[int]:
        numbers = [one(word) for word in text.split(",")[:100]]
        if any(a <= b for a, b in pairwise(numbers)):
            raise argparse.ArgumentTypeError(f"each must be smaller than the one before, not {text[:40]!r}")
        return numbers

    return parse


def size(text: str) -> tuple[int, int]:
    """An argparse type: WIDTHxHEIGHT in pixels."""
    match = re.fullmatch(r"([0-9]{1,5})[x×]([0-9]{1,5})", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT such as 640x352, not {text[:40]!r}")
    return int(match[1]), int(match[2])


def folder(text: str) -> Path:
    """An argparse type: a folder. An empty text is none, where `Path` would take it for the current one."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must name a folder, not {text[:40]!r} (. is the current one)")
    return Path(text)


def is_clip(path: Path) -> bool:
    """Whether a start is a film rather than a picture, by its name."""
    return path.suffix.lower() in CLIP_SUFFIXES


def check_record(path: Path, overwrite: bool, session: Path | None = None, option: str = "--record") -> None:
    """Refuse what ``option`` could not film to, before anything is loaded; ``session`` is its session file, if there will be one.

    On the way, films that a crash left unfinished in that folder get their names, and that is told.
    """
    if path.suffix.lower() != ".mp4" or path.name.endswith(PART):
        raise UsageError(f"{option} {path}: the name must end in .mp4{f', not in {PART}' if path.name.endswith(PART) else ''}")
    check_place(option, path)
    tell_recovered(absolute(path).parent)
    check_new(option, path, overwrite)
    if session is not None and session.exists() and not overwrite:
        raise UsageError(f"{option} {path}: {session} exists already; choose another name or add --overwrite")


def refuse_inputs(outputs: dict[str, Path | None], inputs: dict[str, Path | str | None]) -> None:
    """Refuse each of the ``outputs`` (by option) that is one of the ``inputs`` (by option, or in words): what is read would be lost.

    Files are compared, not names: a link and another way of writing the path are the same file. --overwrite is no leave for that.
    """
    for option, output in outputs.items():
        for name, source in inputs.items():
            if output is not None and source is not None and same_file(output, source):
                what = f"the file of {name}" if name.startswith("--") else name
                raise UsageError(f"{option} {output}: would take the place of {what}, which is read here; choose another name")


def same_file(first: Path | str, second: Path | str) -> bool:
    """Whether both name one file that is there."""
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):  # not there, or no name at all
        return False


def check_new(option: str, path: Path, overwrite: bool) -> None:
    """Refuse a file that an option could not write."""
    check_place(option, path)
    if path.exists() and not overwrite:
        raise UsageError(f"{option} {path}: exists already; choose another name or add --overwrite")


def check_place(option: str, path: Path) -> None:
    """Refuse a place where an option could not put a file."""
    folder = absolute(path).parent
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option} {path}: the folder {folder} cannot be written to")
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder")


def tell_recovered(folder: Path) -> None:
    """Finish what a crash left unfinished in a folder, and say so."""
    if any(folder.glob(f"*{PART}")):
        from game.film import recover_parts

        for line in recover_parts(folder):
            print(f"reverie: {line}", file=sys.stderr)


def absolute(path: Path) -> Path:
    """The whole path; the current folder may have been removed."""
    try:
        return path.absolute()
    except FileNotFoundError:
        raise UsageError(f"{path}: the current folder does not exist any more") from None


class ConsoleProgress:
    """Loading (or ``doing``), told on stderr: one moving line in a terminal, one line a part elsewhere."""

    def __init__(self, name: str, doing: str = "loading") -> None:
        self._name = f"{doing} {name}"
        self._told = ""

    def __call__(self, what: str, part: float) -> None:
        if sys.stderr.isatty():
            end = "\n" if part >= 1 else ""
            print(f"\r{self._name}: {what:<14}{part:>5.0%}", end=end, file=sys.stderr, flush=True)
        elif what != self._told:
            self._told = what
            print(f"{self._name}: {what}", file=sys.stderr, flush=True)
