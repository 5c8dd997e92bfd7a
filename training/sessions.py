"""Recordings as training reads them: which frames of a film were made under which actions, out of the session file beside it.

A reader of its own: `game` lies above training, and asks more of a session (that it can be played again) than is needed here. Only the
blocks' order, keys, looks and numbers of frames count. A file may come from anybody: nothing in it is used as a path.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.actions import Action, ActionSpace
from models.errors import WorldError, one_line

MAX_LINE = 4 << 20  # bytes; the header has the start picture in it
MAX_FRAMES = 256  # of a block
MAX_PIXELS = 8192 * 4608  # of one frame
MAX_FPS = 240
ONLY_MP4 = ["-nostdin", "-f", "mov", "-protocol_whitelist", "file", "-max_pixels", str(MAX_PIXELS)]  # a playlist could name other files
DAMAGE = re.compile(r"\[(?:error|fatal|panic|warning(?=.*corrupt))\] (.*)")  # how ffmpeg says that it could not read something
WITH_HUD = b"reverie session with hud "  # in the comment of a film of `--record-hud`


@dataclass(frozen=True)
class Stretch:
    """Frames of a film that follow one another: what was done in each. A film is its stretches, one after another."""

    actions: tuple[Action, ...]

    def rows(self, space: ActionSpace) -> tuple[np.ndarray, np.ndarray | None]:
        """The actions as a model of that ``space`` reads them: keyboard [F, K], mouse [F, 2] or None. WorldError for an unknown key."""
        known = {action: space.to_model(action) for action in set(self.actions)}
        keyboard = np.stack([known[action][0] for action in self.actions])
        return keyboard, None if space.look_scale is None else np.stack([known[action][1] for action in self.actions])


def session_of(film: Path) -> Path:
    """Where the session file of a film lies."""
    return film.with_name(film.stem + ".session.jsonl")


def read_stretches(path: Path) -> list[Stretch]:
    """The unbroken stretches of the film that belongs to the session file ``path``. Raises WorldError.

    One ends where the game was restarted, rewound or loaded, and where the film lacks a block (a mark "gap").
    """
    blocks: list[tuple[tuple[int, int], Action, int]] = []
    gaps: set[tuple[int, int]] = set()
    for number, line in _lines(path):
        try:
            if "mark" in line:
                if line["mark"] == "gap":
                    gaps.add((_whole(line, "epoch"), _whole(line, "block")))
            elif "end" not in line:
                blocks.append(((_whole(line, "epoch"), _whole(line, "block")), _action(line), _whole(line, "frames")))
                if not 1 <= blocks[-1][2] <= MAX_FRAMES:
                    raise ValueError(f"frames must be 1 to {MAX_FRAMES}")
        except (KeyError, TypeError, ValueError) as error:
            raise WorldError(f"{one_line(path, 200)}: line {number} is no block of a session: {one_line(error, 120)}") from None
    stretches: list[Stretch] = []
    before = None
    for place, action, frames in blocks:
        if place in gaps:
            before = None
            continue
        held = (action,) * frames
        if before is not None and place == (before[0], before[1] + 1):
            stretches[-1] = Stretch(stretches[-1].actions + held)
        else:
            stretches.append(Stretch(held))
        before = place
    if not stretches:
        raise WorldError(f"{one_line(path, 200)}: not one block of a film is in it; give the file that was written beside the film")
    return stretches


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, line) after the header; a last line without its end was torn off and is left out."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE:
                    raise WorldError(f"{one_line(path, 200)}: line {number} is longer than {MAX_LINE} bytes")
                if not raw.endswith(b"\n") and number > 1:
                    return
                try:
                    line = json.loads(raw)
                except (ValueError, RecursionError):
                    line = None
                if not isinstance(line, dict) or (number == 1 and line.get("reverie") != "session"):
                    raise WorldError(f"{one_line(path, 200)}: line {number} is not that of a session file")
                if number > 1:
                    yield number, line
    except OSError as error:
        raise WorldError(f"{one_line(path, 200)}: cannot be read: {error.strerror or error}") from None


def _whole(line: dict[str, Any], name: str) -> int:
    if type(line[name]) is not int or line[name] < 0:
        raise ValueError(f"{name} must be a whole number")
    return line[name]


def _action(line: dict[str, Any]) -> Action:
    keys, (pitch, yaw) = line["keys"], line["look"]
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("keys must be a list of names")
    return Action(frozenset(keys), (float(pitch), float(yaw)))


class Film:
    """An mp4's frames [H, W, 3] uint8, by iterating once; ``fps`` (above 0, up to `MAX_FPS`) and ``size`` are there before.

    Raises WorldError where ffmpeg cannot read it. Of a damaged film there are the frames that can be read; that is told on stderr.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file() or not path.stat().st_size:
            raise WorldError(f"there is no film {one_line(path, 200)}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(WITH_HUD) >= 0:
                raise WorldError(f"{one_line(path, 200)} shows the HUD, which is no part of the world: 'reverie render' films without it")
        try:
            import imageio_ffmpeg
        except ImportError:
            raise WorldError("reading films needs a package that is missing: pip install imageio-ffmpeg") from None
        self.path = path
        self._ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
        try:
            looked = imageio_ffmpeg.read_frames(str(path), input_params=ONLY_MP4, output_params=["-frames:v", "1"])
            told = next(looked)
            looked.close()
        except Exception as error:  # it raises many kinds
            last = (str(error).strip().splitlines() or [""])[-1]
            raise WorldError(f"{one_line(path, 200)}: no mp4 that ffmpeg can read: {one_line(last, 160)}") from None
        self.fps: float = told["fps"]
        self.size: tuple[int, int] = told["size"]  # width, height, as ffmpeg hands them out: a film of a phone held upright is turned
        if not 0 < self.fps <= MAX_FPS:
            rate = f"{self.fps:g}" if self.fps else "0 (or 1000 and more)"  # of which ffmpeg writes "1k", and that is read as 0
            raise WorldError(
                f"{one_line(path, 200)}: has {rate} frames a second, up to {MAX_FPS} can be read: make it slower (ffmpeg -r 60)"
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        width, height = self.size
        command = [self._ffmpeg, "-hide_banner", "-nostats", "-loglevel", "level+warning", *ONLY_MP4, "-i", str(self.path)]
        command += ["-pix_fmt", "rgb24", "-vcodec", "rawvideo", "-f", "image2pipe", "-"]
        with tempfile.TemporaryFile() as messages, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as process:
            try:
                while len(raw := process.stdout.read(width * height * 3)) == width * height * 3:
                    yield np.frombuffer(raw, np.uint8).reshape(height, width, 3)
                process.wait()
            finally:  # also where nobody wants the rest
                process.kill()
                messages.seek(0)
                said = DAMAGE.search(messages.read(1_000_000).decode(errors="replace"))
                if said is not None:
                    words = f"is damaged; so much of it as can be read is taken (ffmpeg: {one_line(said[1], 160)})"
                    print(f"{one_line(self.path, 200)} {words}", file=sys.stderr)


def read_csv(path: Path) -> list[tuple[int, Action]]:
    """(frame, action from that frame on) of a table with lines ``frame,keys,pitch,yaw``, such as ``17,w+l,0,0.5``; rising frames.

    Pitch and yaw, in [-1, 1], may be left out; a first line of words is a heading. Raises WorldError.
    """
    found: list[tuple[int, Action]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"{one_line(path, 200)}: cannot be read: {one_line(error, 120)}") from None
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.split(",")]
        if not line.strip() or (number == 1 and cells[0].lstrip('"')[:1].isalpha()):
            continue
        try:
            if not cells[0].lstrip("-").isdecimal():
                raise ValueError(f"a frame is a whole number, not {one_line(cells[0], 40)!r}")
            frame, keys = int(cells[0]), [key for key in (cells[1] if len(cells) > 1 else "").split("+") if key and key != "idle"]
            look = [float(cell or 0) for cell in cells[2:4]] + [0.0] * (4 - max(2, min(4, len(cells))))
            if len(cells) > 4 or not all(math.isfinite(value) and abs(value) <= 1 for value in look):
                raise ValueError("a line is frame,keys,pitch,yaw with looks in [-1, 1]")
            if frame < 0 or (found and frame <= found[-1][0]):
                raise ValueError(f"frames are 0 or more and must rise, not {one_line(frame, 40)}")
        except ValueError as error:
            raise WorldError(f"{one_line(path, 200)}: line {number}: {one_line(error, 120)}") from None
        found.append((frame, Action(frozenset(keys), (look[0], look[1]))))
    if not found:
        raise WorldError(f"{one_line(path, 200)}: no actions in it")
    return found
