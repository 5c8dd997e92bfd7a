"""Frames into an mp4: H.264, one frame of video for one frame of the world, its own size, the world's rate."""

from __future__ import annotations

import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from engine import WorldConfig
from game.sinks import Block, SinkError

FINISH_SECONDS = 60  # how long the encoder may take to finish the file


class Recorder:
    """An mp4 sink; wrap it in `Background` to keep it off the thread that plays.

    Raises `SinkError` when the encoder cannot start, dies, or does not end well. ffmpeg is run here and not through
    imageio's writer because that one hides the encoder's exit status.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: IO[bytes] | None = None

    def open(self, config: WorldConfig) -> None:
        try:
            self._messages = tempfile.TemporaryFile()
            # A process group of its own: Ctrl-C in the terminal is for the game, which then ends the file properly.
            self._process = subprocess.Popen(
                self._command(config), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._messages, process_group=0
            )
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no ffmpeg
            raise SinkError(f"recording {self.path}: the encoder does not start: {error}") from error

    def _command(self, config: WorldConfig) -> list[str]:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{config.width}x{config.height}"]
        command += ["-r", str(Fraction(config.fps).limit_denominator(1001)), "-i", "-"]
        command += ["-c:v", "libx264", "-preset", "veryfast", "-crf", "16", "-pix_fmt", "yuv420p", "-threads", "1"]
        return [*command, "-movflags", "+faststart", "-metadata", f"title={config.title}", str(self.path.absolute())]

    def write(self, block: Block) -> None:
        try:
            self._process.stdin.write(np.ascontiguousarray(block.frames).data)
            self.frames += len(block.frames)
        except OSError as error:
            raise SinkError(self._failure()) from error

    def close(self) -> None:
        """Finish the file; raises `SinkError` if the encoder says that it did not succeed."""
        if self._process is None:
            return
        try:
            self._process.stdin.close()
        except OSError:
            pass  # the exit status below tells
        try:
            failed = self._process.wait(FINISH_SECONDS) != 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            failed = True
        if failed:
            raise SinkError(self._failure())

    def _failure(self) -> str:
        """The encoder's last words in one line."""
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            pass
        self._messages.seek(0)
        words = self._messages.read().decode(errors="replace").strip().splitlines()
        reason = words[-1] if words else f"the encoder ended with status {self._process.poll()}"
        return f"recording {self.path} failed after {self.frames} frames: {reason}"


def free_name(stem: str, suffix: str = ".mp4", folder: Path = Path()) -> Path:
    """The first of STEM.mp4, STEM-2.mp4, STEM-3.mp4 … that does not exist in ``folder``."""
    number = 1
    while (path := folder / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}").exists():
        number += 1
    return path
