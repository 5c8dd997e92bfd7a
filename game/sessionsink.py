"""Writes a session file while it is played: one line a block, on the disk before the next one."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine import WorldConfig
from game.sessionfile import encode
from game.sinks import Block, Origin, SinkError

SYNC_SECONDS = 1.0  # at most so often is the disk asked to keep what it has: a power cut loses no more


class SessionSink:
    """The session file as a sink; behind `Background` with ``keep_actions``, so that no action is ever dropped.

    Hashing happens here, on the sink's thread. ``header`` is asked for when the first block has been played; ``original``
    says what a block is called in the file (a replay gives its blocks the names they had).
    """

    def __init__(
        self,
        path: Path,
        header: Callable[[], dict[str, Any]],
        overwrite: bool = False,
        original: Callable[[Block], Block] = lambda block: block,
    ) -> None:
        self.path = path
        self.overwrite = overwrite
        self.reason = "left"  # why it ends, for the last line
        self.frames = self.blocks = 0
        self._header, self._original = header, original
        self._marks: deque[dict[str, Any]] = deque(maxlen=1000)
        self._chain = hashlib.sha256()
        self._file: IO[bytes] | None = None
        self._zero: float | None = None  # `time.perf_counter` at the first block: times in the file count from there
        self._epoch: int | None = None
        self._synced = 0.0
        self._broken = False  # a line was torn: nothing may follow it

    def open(self, config: WorldConfig) -> None:
        self._space = config.actions
        try:
            self._file = self.path.open("wb" if self.overwrite else "xb", buffering=0)
        except FileExistsError:
            raise SinkError(f"session {self.path}: exists already; choose another name or add --overwrite") from None
        except OSError as error:
            raise SinkError(f"session {self.path}: {error.strerror or error}") from error
        self._put(self._header())

    def mark(self, what: str, **more: Any) -> None:
        """Note something that is no block; any thread may. It is written with the next block."""
        self._marks.append({"mark": what, **more})

    def gap(self, block: Block) -> None:
        """The film lacks this block."""
        block = self._original(block)
        self.mark("gap", epoch=block.epoch, block=block.index, frames=len(block.frames))

    def write(self, block: Block) -> None:
        block = self._original(block)
        sample = block.sample
        if self._zero is None:
            self._zero = sample.sampled_at
        keyboard, mouse = self._space.to_model(sample.action)
        origin = block.origin if block.epoch != self._epoch else None
        if origin is None and block.epoch != self._epoch:
            if block.index:
                raise SinkError(f"session {self.path}: epoch {block.epoch} begins with block {block.index} and does not say from where")
            origin = Origin("start")
        self._epoch = block.epoch
        self._write_marks()
        line = {
            "epoch": block.epoch,
            "block": block.index,
            "keys": sorted(sample.action.keys),
            "look": list(sample.action.look),
            "keyboard": [float(value) for value in keyboard],
            "mouse": None if mouse is None else [float(value) for value in mouse],  # a float32 is a float64 without loss
            "frames": len(block.frames),
            "sha256": None if block.bare else frames_hash(block.frames),
            "sampled": self._time(sample.sampled_at),
            "started": self._time(block.started_at),
            "finished": self._time(block.finished_at),
            "shown": self._time(block.shown_at),
            "events": [[self._time(event[0]), *event[1:]] for event in sample.events],
        }
        if origin is not None:
            line["origin"] = {"kind": origin.kind, "block": block.index}
            line["origin"] |= {"parent": origin.parent} if origin.parent is not None else {}
            line["origin"] |= {"snapshot": origin.snapshot} if origin.snapshot is not None else {}
        self._put(line)
        self.blocks += 1
        self.frames += len(block.frames)

    def close(self) -> None:
        if self._file is None:
            return
        try:
            if self._broken:
                return
            self._write_marks()
            self._put({"end": self.reason, "blocks": self.blocks, "frames": self.frames, "chain": self._chain.hexdigest()}, last=True)
        finally:
            self._file.close()

    def _write_marks(self) -> None:
        while self._marks:
            self._put(self._marks.popleft())

    def _time(self, at: float | None) -> float | None:
        return None if at is None else round(at - self._zero, 6)

    def _put(self, line: dict[str, Any], last: bool = False) -> None:
        """One line, whole or not at all as far as the disk allows; synced now and then."""
        raw = encode(line)
        self._chain.update(raw)
        try:
            if self._file.write(raw) != len(raw):
                raise OSError(None, "the disk is full")
            now = time.monotonic()
            if last or now - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = now
        except OSError as error:
            self._broken = True
            raise SinkError(f"session {self.path} breaks off after {self.blocks} blocks: {error.strerror or error}") from error


def frames_hash(frames: np.ndarray) -> str:
    """sha256 of a block's RGB bytes, frame by frame, row by row."""
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()
