"""Films as files: what is in one, its frames, and finding those that a crash has left unfinished."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from game.names import PART, free_name, session_beside
from game.sessionfile import MAX_HEADER

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be renamed anyway
    fcntl = None

IDENTITY = "reverie session "  # in a film's comment, followed by the sha256 of its session's header
WITH_HUD = "with hud "  # between the two, where the pictures are not the world's alone
MAX_PARTS = 20  # looked at in one folder
INSPECT_SECONDS = 120

_FRAMES = re.compile(rb"frame=\s*([0-9]+)")
_COMMENT = re.compile(rb"comment\s*: " + IDENTITY.encode() + rb"(" + WITH_HUD.encode() + rb")?([0-9a-f]{64})?\s")


class FilmError(ValueError):
    """A film that cannot be read; one line."""


@dataclass(frozen=True)
class Film:
    """``identity`` is the sha256 of its session's header, "" for a film of ours without one, None for one that is not ours."""

    frames: int
    identity: str | None
    hud: bool = False


@cache
def ffmpeg_version() -> tuple[int, int]:
    """Of the ffmpeg in use; builds that name no number count as new. Raises RuntimeError or OSError when there is none."""
    done = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-version"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    match = re.match(rb"ffmpeg version n?([0-9]+)\.([0-9]+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (99, 0)


def lock(part: Path) -> IO[bytes]:
    """Create ``part`` and keep it for this process until what is returned is closed. Raises FileExistsError, OSError."""
    file = part.open("xb")
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def in_use(part: Path) -> bool:
    """Whether a running recording writes it."""
    if fcntl is None:
        return False
    try:
        with part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def inspect_film(path: Path) -> Film:
    """Count a film's frames by reading through it, without decoding; of a broken one, those that can be read."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-protocol_whitelist", "file", "-i", str(path.absolute())]
    command += ["-map", "0:v:0", "-c", "copy", "-f", "null", "-"]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=INSPECT_SECONDS)
    except subprocess.TimeoutExpired:
        return Film(0, None)
    frames, comment = _FRAMES.findall(done.stderr), _COMMENT.search(done.stderr)
    count = int(frames[-1]) if frames else 0
    return Film(count, None) if comment is None else Film(count, (comment[2] or b"").decode(), comment[1] is not None)


def read_film(path: Path, height: int, width: int) -> Iterator[np.ndarray]:
    """Its frames, decoded, one after another: uint8 `[H, W, 3]`. Raises FilmError for a film of another size or none at all."""
    reader = _reader(path)
    try:
        try:
            size = tuple(next(reader)["size"])
        except OSError:  # a sound film, too: imageio was seen to miss ffmpeg's header, and to give up after ten seconds
            reader.close()
            reader = _reader(path)
            size = tuple(next(reader)["size"])
        if size != (width, height):
            raise FilmError(f"{path}: is {size[0]}x{size[1]}, not {width}x{height}")
        for data in reader:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    except (OSError, RuntimeError, StopIteration, KeyError) as error:
        raise FilmError(f"{path}: cannot be read as a film ({' '.join(str(error).split())[-80:]})") from None
    finally:
        reader.close()


def _reader(path: Path) -> Iterator:
    quiet = ["-nostdin"]  # else "Press [q] to stop" may land in the middle of the line that imageio reads the size from
    return imageio_ffmpeg.read_frames(str(path.absolute()), input_params=quiet, output_params=["-fps_mode", "passthrough"])


def recover_parts(folder: Path) -> list[str]:
    """Give every film that a crash left unfinished in ``folder`` a name, and its session file too; a line to tell for each."""
    told = []
    for part in sorted(folder.glob(f"*{PART}"))[:MAX_PARTS]:
        if part.is_file() and not part.is_symlink() and not in_use(part):
            film = inspect_film(part)
            if film.frames and film.identity is not None:
                told.append(_recover(part, film))
            elif part.stat().st_size == 0:
                part.unlink()
    return told


def _recover(part: Path, film: Film) -> str:
    """Beside X.part.mp4 lies X.session.jsonl, if it is of the same session; both become X-recovered."""
    stem = part.name.removesuffix(PART)
    session = session_beside(part.with_name(f"{stem}.mp4"))
    path = free_name(f"{stem}-recovered", folder=part.parent)
    part.rename(path)
    told = f"recovered {path} ({film.frames} frames) from a recording that was cut off"
    if film.identity and _identity(session) == film.identity:
        session.rename(session_beside(path))
        told += f", with {session_beside(path).name}"
    return told


def _identity(session: Path) -> str | None:
    try:
        with session.open("rb") as file:
            return hashlib.sha256(file.readline(MAX_HEADER + 1)).hexdigest()
    except OSError:
        return None
