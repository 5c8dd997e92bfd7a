"""Look for trouble in a film or a folder of pictures: noise, grids, drift, flicker, and what else goes wrong in a world's pictures."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from game.options import UsageError, absolute, refuse_inputs, same_file, whole

if TYPE_CHECKING:
    import numpy as np

    from game.diagnosis import Diagnosis

FOLDER_FPS = 16
SHOWN = {"mean": "mean", "std": "std", "min": "min", "max": "max", "difference": "diff", "zigzag": "zigzag", "checkerboard": "checker",
         "power across": "pow-", "power down": "pow|", "sharpness": "sharp", "saturation": "satur"}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILM|FOLDER", help="an mp4 or its like, or a folder of pictures in order of name")
    parser.add_argument("--fps", type=whole(1, 240), metavar="N", help=f"frames a second (the film's; {FOLDER_FPS} for a folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers of every frame, and the verdicts")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="the numbers over time, as a picture (needs matplotlib)")
    parser.add_argument("--overwrite", action="store_true", help="let --json and --plot replace what is there")


def run(args: argparse.Namespace) -> int:
    """Print the table and the verdicts; 0 whether or not there is trouble."""
    _check(args)
    from game.diagnosis import Meter, diagnose

    meter = Meter()
    frames, fps = _frames(args)
    for frame in frames:
        if meter.shape is not None and frame.shape != meter.shape:
            raise UsageError(f"{args.source}: frames of different sizes, {frame.shape[1::-1]} after {meter.shape[1::-1]}")
        if min(frame.shape[:2]) < 16:
            raise UsageError(f"{args.source}: frames of {frame.shape[1]}x{frame.shape[0]} are too small, at least 16x16 are needed")
        meter.add(frame)
    diagnosis, damage = diagnose(meter.table(), fps()), getattr(frames, "damage", None)
    if damage is not None:
        count = len(diagnosis.table["mean"])
        print(f"reverie: {args.source}: is damaged; judged are the {count} frames that can be read (ffmpeg: {damage})", file=sys.stderr)
    print(_text(diagnosis))
    if args.json is not None:
        _write(args.json, lambda path: path.write_text(_json(diagnosis, damage), encoding="utf-8"))
    if args.plot is not None:
        _write(args.plot, lambda path: _plot(diagnosis, path))
    return 0


def _check(args: argparse.Namespace) -> None:
    from game.framesource import PICTURES

    if not args.source.exists():
        raise UsageError(f"{args.source}: no such film or folder")
    if not (args.source.is_file() or args.source.is_dir()):  # one waits for ever for what comes out of a pipe
        raise UsageError(f"{args.source}: is a pipe or a device; give a film, or a folder of pictures")
    if args.json is not None and args.plot is not None and absolute(args.json) == absolute(args.plot):
        raise UsageError(f"--plot {args.plot}: is the file of --json; name another")
    for option in ("json", "plot"):
        path = getattr(args, option)
        if path is None:
            continue
        picture = args.source.is_dir() and path.suffix.lower() in PICTURES and same_file(path.parent, args.source)
        film = args.source if args.source.is_file() else None
        refuse_inputs({f"--{option}": path}, {"a picture": path if picture else None, "the film": film})
        if path.is_dir() or not absolute(path).parent.is_dir():
            raise UsageError(f"--{option} {path}: is a folder, or lies in one that does not exist")
        if path.exists() and not args.overwrite:
            raise UsageError(f"--{option} {path}: exists already; choose another name or add --overwrite")
    if args.plot is not None:
        if args.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise UsageError(f"--plot {args.plot}: the name must end in .png, .svg or .pdf")
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise UsageError("--plot needs matplotlib: pip install matplotlib; everything else works without") from None


def _frames(args: argparse.Namespace) -> tuple[Iterable[np.ndarray], Callable[[], float]]:
    """The frames, and what says afterwards how many of them a second."""
    from game.framesource import Film, folder_frames

    if args.source.is_dir():
        return folder_frames(args.source), lambda: float(args.fps or FOLDER_FPS)
    film = Film(args.source)
    return film, lambda: float(args.fps or film.fps or FOLDER_FPS)


def _text(diagnosis: Diagnosis) -> str:
    """A row a second, then a line for each kind of trouble."""
    rows = diagnosis.seconds()
    lines = ["second" + "".join(f"{short:>9}" for short in SHOWN.values())]
    step = max(1, math.ceil(len(rows) / 60))  # an hour fits a screen too
    for second in range(0, len(rows), step):
        lines.append(f"{second:>6}" + "".join(f"{_short(rows[second][name]):>9}" for name in SHOWN))
    lines += ["", *(f"{'TROUBLE' if t.found else 'fine':<8}{t.kind}: {t.says}" for t in diagnosis.troubles)]
    found = [trouble.kind for trouble in diagnosis.troubles if trouble.found]
    return "\n".join([*lines, "", f"verdict: {', '.join(found) if found else 'nothing wrong to be seen'}"])


def _short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _json(diagnosis: Diagnosis, damage: str | None) -> str:
    frames = {name: [None if math.isnan(value) else round(value, 4) for value in column] for name, column in diagnosis.table.items()}
    troubles = {trouble.kind: {"found": trouble.found, "says": trouble.says} for trouble in diagnosis.troubles}
    found = {"fps": diagnosis.fps, "sound": diagnosis.sound, "damage": damage, "troubles": troubles, "frames": frames}
    return json.dumps(found, indent=1)


def _plot(diagnosis: Diagnosis, path: Path) -> None:
    """Every column over seconds, one above the other."""
    from matplotlib.figure import Figure  # not pyplot: nothing is to be shown

    from game.diagnosis import COLUMNS

    figure = Figure(figsize=(10, 1.3 * len(COLUMNS)), layout="constrained")
    axes = figure.subplots(len(COLUMNS), 1, sharex=True)
    for axis, (name, column) in zip(axes, diagnosis.table.items(), strict=True):
        axis.plot([frame / diagnosis.fps for frame in range(len(column))], column, linewidth=0.8)
        axis.set_ylabel(name, rotation=0, ha="right", fontsize=8)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("seconds")
    found = [trouble.kind for trouble in diagnosis.troubles if trouble.found]
    figure.suptitle(", ".join(found) if found else "nothing wrong to be seen")
    figure.savefig(path, dpi=110)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None
    print(f"written: {path}")
