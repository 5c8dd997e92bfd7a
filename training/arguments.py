"""Types of the trainers' arguments, and how their commands end: what is wrong is said in one line, before anything is written."""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from engine.world import device_named
from models.errors import WorldError, one_line

LAST_SEED = 88  # a training under this seed draws from 880,000 on; the evaluation's walks begin at 900,000


def whole(low: int, high: int = 1_000_000) -> Callable[[str], int]:
    """An argparse type: whole numbers from ``low`` to ``high``. `game/options.py` has the same: neither floor may import the other."""

    def parse(text: str) -> int:
        if len(text) > 30 or not text.strip().lstrip("+-").isdecimal():
            raise argparse.ArgumentTypeError(f"must be a whole number, not {one_line(text, 40)!r}")
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, not {int(text)}")
        return int(text)

    return parse


def number(low: float, high: float = 1e6, above: bool = False) -> Callable[[str], float]:
    """An argparse type: numbers from ``low`` to ``high``; with ``above`` greater than ``low``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, not {one_line(text, 40)!r}") from None
        if not low <= value <= high or (above and value == low):  # NaN is in no range
            limits = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"must be {limits}, not {one_line(text, 40)}")
        return value

    return parse


count = whole(1)
positive = number(0, above=True)
weight = number(0)
share = number(0, 1)
rate = number(0, 1, above=True)  # of learning
seed = whole(0, LAST_SEED)


def device(text: str) -> torch.device:
    """An argparse type: a device that is there."""
    try:
        return device_named(text)
    except WorldError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``; else the GPU where there is one."""
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")


def add_seed(parser: argparse.ArgumentParser, what: str = "other walks, other noise", last: int = LAST_SEED) -> None:
    """``--seed``; of ``what``."""
    parser.add_argument("--seed", type=whole(0, last), default=0, help=f"0 to {last}: {what}")


def new_folder(path: Path, option: str = "--out") -> Path:
    """Make the folder that ``option`` names, with those above it. Raises WorldError where nothing can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise WorldError(f"{option} {one_line(path, 200)}: {one_line(error.strerror, 80)}: name a folder that can be written to") from None
    return path


def check_file(option: str, path: Path | None, *suffixes: str) -> None:
    """Raises WorldError where a file that a command is to write at its end, or to replace, could not be written. Makes its folder."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise WorldError(f"{option} {one_line(path, 200)}: its name must end in {' or '.join(suffixes)}")
    new_folder(path.parent, option)
    if path.is_dir():
        raise WorldError(f"{option} {one_line(path, 200)} is a folder: name a file")


def in_a_line(main: Callable[..., int | None]) -> Callable[..., int]:
    """A command that ends in one line and with status 2 where what was asked for cannot be done."""

    @functools.wraps(main)
    def run(*args: object) -> int:
        try:
            return main(*args) or 0
        except WorldError as error:
            print(error, file=sys.stderr)
        except OSError as error:
            if error.filename is None:  # of no file that somebody named
                raise
            print(f"{one_line(error.filename, 200)}: {one_line(error.strerror, 80)}", file=sys.stderr)
        return 2

    return run
