"""Frames into an mp4: H.264, one frame of video for one frame of the world, its own size, the world's rate.

The film is written so that a kill at any moment leaves one that plays: in fragments of a few frames, each flushed, under the
name X.part.mp4; at a proper end ffmpeg turns it into an ordinary mp4 and it gets its own name.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from engine import WorldConfig
from game.film import IDENTITY, ffmpeg_version, inspect_film, lock
from game.names import free_name, part_of
from game.sinks import Block, SinkError

FINISH_SECONDS = 60  # how long the encoder may take to finish the file
FRAGMENT_FRAMES = 3  # so many frames, and the one in the making, can be lost with the encoder
HYBRID = (7, 1)  # the first ffmpeg that turns a fragmented mp4 into an ordinary one at its end


class Recorder:
    """An mp4 sink; wrap it in `Background` to keep it off the thread that plays.

    Raises `SinkError` when the encoder cannot start, dies, or does not end well, also when the finished film has not the frames
    that were written. ffmpeg is run here and not through imageio's writer because that one hides the encoder's exit status.
    ``identity`` gives the session's hash for the film's metadata, asked for when the first block has been played.
    """

    def __init__(self, path: Path, overwrite: bool = False, identity: Callable[[], str] = lambda: "") -> None:
        self.path = path
        self.part = part_of(path)
        self.overwrite = overwrite
        self.frames = 0
        self._identity = identity
        self._mark = IDENTITY
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: IO[bytes] | None = None
        self._lock: IO[bytes] | None = None

    def open(self, config: WorldConfig) -> None:
        try:
            command = self._command(config)
            self._messages = tempfile.TemporaryFile()
            self._lock = lock(self.part)
            # A process group of its own: Ctrl-C in the terminal is for the game, which then ends the file properly.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._messages, process_group=0
            )
        except FileExistsError:
            raise SinkError(f"recording {self.path}: {self.part.name} is there; does another recording write it?") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no ffmpeg
            raise SinkError(f"recording {self.path}: the encoder does not start: {error}") from error

    def _command(self, config: WorldConfig) -> list[str]:
        first, other = config.block_frames
        width, height = self._size(config)
        fps = Fraction(config.fps).limit_denominator(1001)
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-probesize", "32", "-analyzeduration", "0"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
        if width % 2 or height % 2:  # what H.264 cannot hold gets a black line, the picture is not scaled
            command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
        command += ["-c:v", "libx264", "-preset", "veryfast", "-tune", "zerolatency", "-crf", "16", "-pix_fmt", "yuv420p"]
        command += ["-threads", "1", "-bf", "0", "-g", str(other), "-sc_threshold", "0"]  # no key frames but those asked for
        command += ["-force_key_frames", f"expr:gte(n,{first})*not(mod(n-{first},{other}))"]
        whole = "hybrid_fragmented" if ffmpeg_version() >= HYBRID else "empty_moov+default_base_moof"
        command += ["-movflags", f"{whole}+frag_keyframe", "-frag_duration", str(int(FRAGMENT_FRAMES * 1_000_000 / fps))]
        command += ["-flush_packets", "1", "-metadata", f"title={config.title}", "-metadata", f"comment={self._mark}{self._identity()}"]
        return [*command, "-f", "mp4", str(self.part.absolute())]

    def _size(self, config: WorldConfig) -> tuple[int, int]:
        """Width and height of the film."""
        return config.width, config.height

    def _pictures(self, block: Block) -> np.ndarray:
        """What is filmed of a block: uint8 `[F, H, W, 3]`."""
        return block.frames

    def write(self, block: Block) -> None:
        try:
            self._process.stdin.write(np.ascontiguousarray(self._pictures(block)).data)
            self._process.stdin.flush()
            self.frames += len(block.frames)
        except OSError as error:
            raise SinkError(self._failure()) from error

    def abort(self) -> None:
        """End the encoder at once; whoever waits for it goes on. Any thread may."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Finish the file and give it its name; raises `SinkError` if the encoder failed or the film lacks frames."""
        if self._process is None:
            self._release()
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
        try:
            if failed:
                raise SinkError(self._failure())
            film = inspect_film(self.part)
            if film.frames != self.frames:
                raise SinkError(f"recording {self.path}: {self.frames} frames were written, {film.frames} are in {self.part}")
            if self.path.exists() and not self.overwrite:  # came into being while we played
                self.path = free_name(self.path.stem, folder=self.path.parent)
            self.part.replace(self.path)
        except OSError as error:
            raise SinkError(f"recording {self.path}: it is in {self.part}: {error.strerror or error}") from error
        finally:
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            try:
                if self.part.stat().st_size == 0:
                    self.part.unlink()
            except OSError:
                pass

    def _failure(self) -> str:
        """The encoder's last words in one line, and what is left of the film."""
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            pass
        self._messages.seek(0)
        words = self._messages.read()[-2000:].decode(errors="replace").strip().splitlines()
        reason = words[-1] if words else f"the encoder ended with status {self._process.poll()}"
        return f"recording {self.path} failed after {self.frames} frames: {reason} (what there is of it is in {self.part.name})"


def film_recorder(path: Path, overwrite: bool, identity: Callable[[], str], with_hud: bool) -> Recorder:
    """A recorder of the pictures alone, or of what one sees with the HUD on."""
    if not with_hud:
        return Recorder(path, overwrite, identity)
    from game.hudfilm import HudRecorder  # and with it pygame

    return HudRecorder(path, overwrite, identity)
