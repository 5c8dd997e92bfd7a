"""Where blocks of frames go: one small protocol for the mp4, the folder of pictures and whatever comes later."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from PIL import Image

from engine import WorldConfig
from game.controls import Sample
from game.names import DUMPED_ACTIONS, DUMPED_FRAME

MAX_BARE = 10_000  # blocks without their frames that may wait to be written: hours of play
STUCK_SECONDS = 10.0  # how long a sink may get nothing done at the end


@dataclass(frozen=True)
class Origin:
    """Where the first block of an epoch goes on from: the start picture, a block of an earlier epoch, or a loaded snapshot."""

    kind: Literal["start", "rewind", "load"]
    block: int = 0  # the first block made in this epoch
    parent: int | None = None  # of a rewind: the epoch whose blocks 0 .. block - 1 stay
    snapshot: str | None = None  # of a load: sha256 of the snapshot


@dataclass(frozen=True, eq=False)
class Block:
    """One block as it came out of the world. Times are in seconds of `time.perf_counter`."""

    epoch: int  # counts restarts, rewinds and loads
    index: int  # from 0 at the start picture
    first_frame: int  # number of its first frame, from 0 in each epoch
    sample: Sample
    frames: np.ndarray  # [9 | 12, H, W, 3] uint8
    finished_at: float
    origin: Origin | None = None  # set on the first block of each epoch
    started_at: float | None = None  # when the model began, right after the sample was taken
    shown_at: float | None = None  # when its first frame came on screen, if there is one
    bare: bool = False  # its frames were let go: what is there has their number and no content

    @property
    def seconds(self) -> float:
        """How long the world took to make it."""
        return self.finished_at - self.sample.sampled_at


class SinkError(Exception):
    """A sink cannot go on (encoder died, disk full …); one line."""


class Sink(Protocol):
    """Takes every block played, in order. All methods raise `SinkError`; after one, only `close` is called."""

    frames: int  # taken so far

    def open(self, config: WorldConfig) -> None: ...
    def write(self, block: Block) -> None: ...
    def close(self) -> None: ...


class Background:
    """Runs another sink on a thread of its own behind a bounded queue.

    With ``wait`` (nobody is watching) a full queue holds the writer up; without it (live play) a block that finds the
    queue full is dropped whole, counted and told to ``on_drop``; with ``keep_actions`` it loses only its frames. A failure
    ends the sink, never the game: it is kept in ``error``, and all further blocks are told to ``on_drop`` (by any thread).
    """

    def __init__(self, sink: Sink, wait: bool, depth: int = 4, keep_actions: bool = False) -> None:
        self.sink = sink
        self.wait = wait
        self.dropped = 0
        self.error: SinkError | None = None
        self.on_drop: Callable[[Block], None] = lambda block: None
        self._depth = depth
        self._bare = keep_actions
        self._queue: queue.Queue[Block | None] = queue.Queue(MAX_BARE if keep_actions and not wait else depth)
        self._steps = 0  # grows with everything the thread has done
        self._opened = threading.Event()
        self._config: WorldConfig | None = None
        self._thread = threading.Thread(target=self._run, name=f"reverie-{type(sink).__name__}", daemon=True)

    def open(self, config: WorldConfig) -> None:
        """Open the sink behind, on its thread; a failure counts like one of `write`."""
        self._config = config
        self._thread.start()
        if self.wait:
            self._opened.wait()
            if self.error:
                raise self.error

    def write(self, block: Block) -> None:
        """Hand ``block`` over. Raises the failure there was if ``wait``; in live play it is told at the end."""
        if self.error:
            if self.wait:
                raise self.error
            self.on_drop(block)
            return
        if self._bare and not self.wait and self._queue.qsize() >= self._depth:
            block = replace(block, frames=np.broadcast_to(np.uint8(0), block.frames.shape), bare=True)
        try:
            self._queue.put(block, block=self.wait)
        except queue.Full:
            self.dropped += 1
            self.on_drop(block)

    def close(self) -> None:
        """Write what is queued, then close the sink behind; raises the failure there was, if any.

        A sink that gets nothing done for `STUCK_SECONDS` is given up: told to `abort`, if it knows how.
        """
        if self._thread.is_alive():
            self._put_end()
            while not self._joined():
                pass
        if self.error:
            raise self.error

    def _put_end(self) -> None:
        steps, since = self._steps, time.monotonic()
        while self._thread.is_alive():
            try:
                return self._queue.put(None, timeout=0.1)
            except queue.Full:
                if self._steps != steps:
                    steps, since = self._steps, time.monotonic()
                elif time.monotonic() - since > STUCK_SECONDS:
                    self._give_up()
                    since = time.monotonic()

    def _joined(self) -> bool:
        """Whether the thread has ended; waits for it as long as it gets something done."""
        steps = self._steps
        self._thread.join(STUCK_SECONDS)
        if self._thread.is_alive() and self._steps == steps:
            self._give_up()
            self._thread.join(STUCK_SECONDS)
            return True  # a daemon: the process ends without it
        return not self._thread.is_alive()

    def _give_up(self) -> None:
        self.error = self.error or SinkError(f"{type(self.sink).__name__}: nothing was written for {STUCK_SECONDS:.0f} s, given up")
        abort = getattr(self.sink, "abort", None)
        if abort is not None:
            abort()

    def _run(self) -> None:
        self._guard(lambda: self.sink.open(self._config))
        self._opened.set()
        while (block := self._queue.get()) is not None:
            self._guard(lambda block=block: self.sink.write(block))
            if self.error:
                self.on_drop(block)
            self._steps += 1
        self._guard(self.sink.close, always=True)

    def _guard(self, call: Callable[[], None], always: bool = False) -> None:
        """Keep the first failure and swallow what follows it, so that the queue goes on being emptied."""
        if self.error and not always:
            return
        try:
            call()
        except SinkError as error:
            self.error = self.error or error
        except Exception as error:  # the game goes on whatever happens here
            self.error = self.error or SinkError(f"{type(self.sink).__name__}: {type(error).__name__}: {error}")


class Dump:
    """Every frame as a PNG, and ``actions.jsonl`` with one line a frame: file, epoch, block, keys, look.

    With ``overwrite`` the frames of an earlier dump go first: a shorter one would leave the rest of them lying.
    """

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder = self.path = folder
        self.overwrite = overwrite
        self.frames = 0
        self._actions: IO[str] | None = None

    def open(self, config: WorldConfig) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._actions = (self.folder / DUMPED_ACTIONS).open("w", encoding="utf-8")
            if self.overwrite:
                for path in list(self.folder.iterdir()):
                    if DUMPED_FRAME.fullmatch(path.name) and path.is_file():
                        path.unlink()
        except OSError as error:
            raise SinkError(f"cannot write into {self.folder}: {error.strerror}") from error

    def write(self, block: Block) -> None:
        action = block.sample.action
        try:
            for frame in block.frames:
                name = f"frame_{self.frames:06d}.png"
                Image.fromarray(frame).save(self.folder / name, compress_level=1)
                line = {"frame": self.frames, "file": name, "epoch": block.epoch, "block": block.index}
                line |= {"keys": sorted(action.keys), "look": list(action.look)}
                self._actions.write(json.dumps(line) + "\n")
                self.frames += 1
            self._actions.flush()
        except OSError as error:
            raise SinkError(f"cannot write into {self.folder}: {error.strerror}") from error

    def close(self) -> None:
        if self._actions:
            self._actions.close()


def close_all(sinks: Iterable[Sink], reason: str = "left") -> None:
    """Close every sink, whatever the others do; then raise the first failure. A session file ends with the ``reason``."""
    failures = []
    for sink in sinks:
        inner = getattr(sink, "sink", sink)
        if hasattr(inner, "reason"):
            inner.reason = reason
        try:
            sink.close()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


class Tally:
    """Counts what was played and how fast: the summary of a headless run."""

    def __init__(self) -> None:
        self.blocks = self.frames = 0
        self.interrupted = False  # whether Ctrl-C ended it before its time
        self._began = self._ended = 0.0

    def open(self, config: WorldConfig) -> None:
        self._began = self._ended = time.perf_counter()

    def write(self, block: Block) -> None:
        self.blocks += 1
        self.frames += len(block.frames)
        self._ended = time.perf_counter()

    def close(self) -> None:
        pass

    @property
    def seconds(self) -> float:
        return self._ended - self._began

    @property
    def fps(self) -> float:
        return self.frames / self.seconds if self.seconds > 0 else 0.0
