"""A film to go on from: mp4 and its like into frames of the world's size, and what was done meanwhile.

ffmpeg is told which kind of file it reads and that it may read nothing else: a playlist could name other files and servers.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from engine import Action, ActionSpace, fit_frame
from game.options import UsageError

MAX_PIXELS = 8192 * 4608  # of one frame
SECONDS = 300.0  # how long ffmpeg may take


@dataclass(frozen=True, eq=False)
class Clip:
    """``frames`` `[F, height, width, 3]` uint8, cut and scaled to the world; ``fps`` of the file, None if it does not say."""

    frames: np.ndarray
    fps: float | None


def read_clip(path: Path, height: int, width: int, limit: int) -> Clip:
    """At most ``limit`` + 1 frames of the file, whichever kind its first bytes say it is.

    Raises UsageError for a file that is missing, unreadable or no film, and for frames too large or too small.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-nostats", "-threads", "1"]
    command += ["-max_pixels", str(MAX_PIXELS), "-protocol_whitelist", "file", "-f", _kind(path), "-i", f"file:{path.absolute()}"]
    command += ["-map", "0:v:0", "-fps_mode", "passthrough", "-frames:v", str(limit + 1), "-pix_fmt", "rgb24"]
    command += ["-c:v", "ppm", "-f", "image2pipe", "-"]  # each picture says how large it is
    frames = []
    with tempfile.TemporaryFile() as messages, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as process:
        alarm = threading.Timer(SECONDS, process.kill)
        alarm.start()
        try:
            while (frame := _read_ppm(process.stdout)) is not None:
                frames.append(fit_frame(frame, height, width))
            status = process.wait()
        finally:
            alarm.cancel()
            process.kill()
        messages.seek(0)
        said = messages.read(1_000_000).decode(errors="replace")
    if not frames:
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), f"ffmpeg ended with status {status}")
        raise UsageError(f"--start {path}: no frame can be read from it ({last[-160:]})")
    rate = re.search(r"Video:.*?([0-9.]+) fps", said)
    return Clip(np.stack(frames), float(rate[1]) if rate else None)


def actions_of(path: Path, space: ActionSpace, blocks: int) -> list[Action]:
    """What was done during the first ``blocks`` blocks, from a script of words; idle where it has ended.

    Raises ScriptError for a file that is no script, or names keys the world does not have.
    """
    from game.sessionfile import read_script

    script = read_script(str(path), space.keys)
    return [Action(script.at(block) or frozenset()) for block in range(blocks)]


def _kind(path: Path) -> str:
    """ffmpeg's name for the kind of file."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UsageError(f"--start {path}: {error.strerror or error}") from None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    raise UsageError(f"--start {path}: is no film that can be read; give an mp4, mov, webm, mkv or avi file, or a picture")


def _read_ppm(stream: IO[bytes]) -> np.ndarray | None:
    """The next picture `[H, W, 3]` of a stream of binary PPMs as ffmpeg writes them; None at its end."""
    if stream.readline(8) != b"P6\n":
        return None
    width, height = (int(word) for word in stream.readline(24).split())
    if stream.readline(8) != b"255\n":
        return None
    data = stream.read(width * height * 3)
    return np.frombuffer(data, np.uint8).reshape(height, width, 3) if len(data) == width * height * 3 else None
