"""Frames of a film or of a folder of pictures, one at a time. Knows neither the engine nor a window.

ffmpeg is told which kind of file it reads and that it may read nothing else: a playlist could name other files and servers.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np
from PIL import Image

from game.options import UsageError

MAX_PIXELS = 8192 * 4608  # of one frame
SECONDS = 600.0  # how long one may wait for ffmpeg, all of a film's frames together
COMPLAINT = re.compile(r"\[(?:error|fatal|panic|warning(?=.*[Cc]orrupt))\] (.*)")  # a line of ffmpeg's, and what it says
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Film:
    """A film's frames `[H, W, 3]` uint8, by iterating once. ``fps`` is there afterwards, None if the file does not say.

    So is ``damage``: the first thing that ffmpeg could not read on its way, in its words; None for a sound film. What is damaged
    gives as many frames as can be read, and ffmpeg calls that well done. Raises UsageError (naming ``option``) for a file that
    is missing, unreadable or no film, and after the frames there were if ffmpeg failed, or kept us waiting for `SECONDS`.
    """

    def __init__(self, path: Path, limit: int | None = None, option: str = "") -> None:
        self.path, self.limit, self.option = path, limit, option
        self.fps: float | None = None
        self.damage: str | None = None
        self._kind = self._find_kind()

    def __iter__(self) -> Iterator[np.ndarray]:
        """At most ``limit`` frames."""
        count, status = 0, 0
        with tempfile.TemporaryFile() as messages, subprocess.Popen(self._command(), stdout=subprocess.PIPE, stderr=messages) as process:
            patience = Patience(process, SECONDS)
            try:
                while True:
                    with patience:
                        frame = _read_ppm(process.stdout)
                        if frame is None:
                            status = process.wait()
                            break
                    count += 1
                    yield frame
            finally:
                patience.end()
                process.kill()
            messages.seek(0)
            said = messages.read(1_000_000).decode(errors="replace")
        rate = re.search(r"Video:.*?([0-9.]+) fps", said)
        self.fps = float(rate[1]) if rate else None
        if patience.lost:
            raise UsageError(f"{self._name}: given up after {count} frames: {SECONDS:g} s in all are the most that ffmpeg is waited for")
        complaints = [words.strip()[-160:] for words in COMPLAINT.findall(said)]
        if count == 0 or status:
            what = "no frame can be read from it" if count == 0 else f"it can be read up to frame {count} and not further"
            raise UsageError(f"{self._name}: {what} ({complaints[-1] if complaints else f'ffmpeg ended with status {status}'})")
        self.damage = complaints[0] if complaints else None

    @property
    def _name(self) -> str:
        return f"{self.option} {self.path}".strip()

    def _command(self) -> list[str]:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info", "-threads", "1"]
        command += ["-max_pixels", str(MAX_PIXELS), "-protocol_whitelist", "file", "-f", self._kind, "-i", f"file:{self.path.absolute()}"]
        command += ["-map", "0:v:0", "-fps_mode", "passthrough", "-pix_fmt", "rgb24"]
        command += [] if self.limit is None else ["-frames:v", str(self.limit)]
        return [*command, "-c:v", "ppm", "-f", "image2pipe", "-"]  # each picture says how large it is

    def _find_kind(self) -> str:
        """ffmpeg's name for the kind of file its first bytes say it is."""
        try:
            with open(self.path, "rb") as file:
                head = file.read(16)
        except OSError as error:
            raise UsageError(f"{self._name}: {error.strerror or error}") from None
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
            return "mov"
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return "matroska"
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return "avi"
        raise UsageError(f"{self._name}: is no film that can be read; give an mp4, mov, webm, mkv or avi file, or pictures")


class Patience:
    """Kills ``process`` once it has been waited for, inside of ``with``, for so many ``seconds`` in all; time between waits is free."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.lost = False  # whether it came to that
        self._process, self._seconds = process, seconds
        self._waited: tuple[float, float | None] = 0.0, None  # seconds of waits that are over, and since when there is another
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="ffmpeg-watch", daemon=True).start()

    def __enter__(self) -> None:
        self._waited = self._waited[0], time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._waited = self._spent(), None

    def end(self) -> None:
        """Nobody waits any more."""
        self._ended.set()

    def _spent(self) -> float:
        before, since = self._waited
        return before + (0.0 if since is None else time.monotonic() - since)

    def _watch(self) -> None:
        left = self._seconds
        while not self._ended.wait(max(left, 0.05)):  # it cannot be over sooner; nor need it be told to the moment
            left = self._seconds - self._spent()
            if left <= 0 and self._waited[1] is not None:
                self.lost = True
                return self._process.kill()


def folder_frames(folder: Path) -> Iterator[np.ndarray]:
    """The pictures of a folder as frames, in the order of their names. Raises UsageError where there are none, or one cannot be read."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES and file.is_file())
    if not files:
        raise UsageError(f"{folder}: holds no pictures")
    for file in files:
        try:
            with Image.open(file, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
                yield np.asarray(image.convert("RGB"))
        except Exception as error:  # a damaged picture can fail in almost any way
            raise UsageError(f"{file}: cannot be read as a picture ({type(error).__name__})") from None


def _read_ppm(stream: IO[bytes]) -> np.ndarray | None:
    """The next picture `[H, W, 3]` of a stream of binary PPMs as ffmpeg writes them; None at its end."""
    if stream.readline(8) != b"P6\n":
        return None
    width, height = (int(word) for word in stream.readline(24).split())
    if stream.readline(8) != b"255\n":
        return None
    data = stream.read(width * height * 3)
    return np.frombuffer(data, np.uint8).reshape(height, width, 3) if len(data) == width * height * 3 else None
