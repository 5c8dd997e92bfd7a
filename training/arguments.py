"""Types of the trainers' arguments, and how their commands end: what is wrong is said in one line, before anything is written."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from engine.world import device_named
from models.errors import WorldError, one_line

LAST_SEED = 88  # a training under this seed draws from 880,000 on; the evaluation's walks begin at 900,000


def whole(low: int, high: int = 1_000_000) -> Callable[[str], int]:
    """An argparse type: whole numbers from ``low`` to ``high``."""

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


def new_folder(path: Path) -> Path:
    """Make the folder that ``--out`` names, with those above it. Raises WorldError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorldError(f"--out {one_line(path, 200)}: no folder can be made there: {error.strerror}") from None
    return path


def in_a_line(main: Callable[..., int | None]) -> Callable[..., int]:
    """A command that ends in one line and with status 2 where what was asked for cannot be done."""

    @functools.wraps(main)
    def run(*args: object) -> int:
        try:
            return main(*args) or 0
        except WorldError as error:
            print(error, file=sys.stderr)
            return 2

    return run
