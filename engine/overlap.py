"""Transformer and decoder side by side: while a block is decoded, the next one is denoised.

It makes more frames a second, not earlier ones: the action of a block is taken while the block before is still being decoded. So it
serves whoever plays as fast as it goes (headless play, benchmarks), or a decoder on a device of its own. Each side computes with as
many threads as the process has been told to use, so that every bit is that of `Session.step`; where both compute on one processor,
`share_threads` halves that number first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.actions import Action
from engine.clock import BlockClock
from engine.exact import pin_threads
from engine.session import Session
from engine.stopwatch import Stopwatch
from engine.world import World


def share_threads(world: World) -> None:
    """Before a session is begun that `Overlap` shall play: halve the threads, if both of its sides compute on the processor.

    From then on the process computes so, whatever it does: a session whose number of threads changed on the way could not be replayed.
    """
    if world.device.type == "cpu" and world.decode_device.type == "cpu":
        pin_threads(max(1, torch.get_num_threads() // 2))


@dataclass(frozen=True)
class Played:
    """A block as it comes out: uint8 ``frames`` `[F, H, W, 3]` and the seconds of its stages ("total" since the block before)."""

    clock: BlockClock
    frames: np.ndarray
    timings: dict[str, float]


@dataclass(frozen=True)
class Decoding:
    """A block whose transformer part is done."""

    clock: BlockClock
    pictures: Future[np.ndarray]
    watch: Stopwatch


class Overlap:
    """Plays a session, which it owns meanwhile; between two calls of `play` the session is as if it had been stepped.

    A game played so cannot be rewound. If decoding fails, the session is reset, for by then it has gone on.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        world = session.world
        self._on_gpu = world.decode_device.type == "cuda"
        self._stream = torch.cuda.Stream(world.decode_device) if self._on_gpu else None
        # From one GPU to another: on the first one's usual stream the copy would wait for the next block.
        apart = self._on_gpu and world.device.type == "cuda" and world.device != world.decode_device
        self._leaving = torch.cuda.Stream(world.device) if apart else None

    @torch.inference_mode()
    def play(self, actions: Iterable[Action]) -> Iterator[Played]:
        """A block for each action, in order. The next action is asked for before a block is handed out."""
        session, threads = self.session, torch.get_num_threads()
        waiting: Decoding | None = None
        played: Played | None = None
        since = time.perf_counter()
        with ThreadPoolExecutor(1, "reverie-decoder", initializer=lambda: torch.set_num_threads(threads)) as decoder:

            def denoised(latents: Tensor, watch: Stopwatch) -> None:
                """The block before is finished, and this one decoded while its clean pass is made, and the next block."""
                nonlocal waiting, played, since
                before, waiting = waiting, None
                played = None if before is None else self._finish(before, since)
                since = time.perf_counter() if before is not None else since
                waiting = Decoding(session.clock, decoder.submit(self._decode, latents, self._event(), watch), watch)

            try:
                for action in actions:
                    clock = session.clock
                    try:
                        rows, _, _ = session.imagine(action, denoised)
                    except BaseException:
                        if waiting is not None and waiting.clock is clock:  # its clean pass failed: the block was not played
                            wait([waiting.pictures])
                            waiting = None
                        raise
                    session.advance(rows)
                    if played is not None:
                        yield played
                if waiting is not None:
                    last, waiting = waiting, None
                    yield self._finish(last, since)
            finally:
                if waiting is not None:  # whoever asked has left, or an action failed: the block is finished all the same
                    self._finish(waiting, since)

    def _event(self) -> torch.cuda.Event | None:
        if not self._on_gpu:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.session.world.device) if self.session.world.device.type == "cuda" else None)
        return event

    @torch.inference_mode()
    def _decode(self, latents: Tensor, ready: torch.cuda.Event | None, watch: Stopwatch) -> np.ndarray:
        own = Stopwatch(watch.devices)
        if self._stream is None:
            pictures = self.session.develop(latents, own)
        else:
            for stream in filter(None, (self._leaving, self._stream)):
                stream.wait_event(ready)
            if latents.is_cuda:
                latents.record_stream(self._leaving or self._stream)
            with torch.cuda.stream(self._leaving), torch.cuda.stream(self._stream):  # the second one's device is the current one
                pictures = self.session.develop(latents, own)
        watch.laps |= own.laps
        return pictures

    def _finish(self, block: Decoding, since: float) -> Played:
        try:
            pictures = block.pictures.result()
        except BaseException:
            self.session.reset()
            raise
        self.session.shown(pictures[-1])
        self.session.timings = {**block.watch.laps, "total": time.perf_counter() - since}
        return Played(block.clock, pictures, self.session.timings)
