"""Playing without a window: one thread, no pacing, the same blocks into the same sinks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from engine import Action, BlockClock, Overlap, Session, WorldConfig
from game.controls import Sample
from game.script import Script
from game.sinks import Block, Sink, Tally, close_all
from game.worldthread import first_origin


def play_headless(
    session: Session, config: WorldConfig, script: Script, blocks: int, sinks: Iterable[Sink], stop: Callable[[], bool] = lambda: False,
    overlap: bool = False,
) -> Tally:  # fmt: skip
    """Play ``blocks`` blocks unpaced into the sinks, or until ``stop`` says so; past the script's end nothing is pressed.

    With ``overlap`` a block is decoded while the next one is begun (`engine.Overlap`).
    Ctrl-C ends it early and properly: the sinks are closed, and the tally says that it was `interrupted`, which is for the caller to
    tell. Raises `SinkError` if a sink fails.
    """
    tally = Tally()
    everywhere = [tally, *sinks]
    opened: list[Sink] = []
    reason = "failed"
    samples: deque[Sample] = deque()  # of blocks begun

    def take(index: int) -> Action:
        samples.append(Sample(script.at(index) or Action(), time.perf_counter()))
        return samples[-1].action

    play = _side_by_side if overlap else _in_turn
    origin = first_origin(session)
    try:
        tally.open(config)
        for index, (clock, frames, started_at) in enumerate(play(session, take, blocks)):
            block = Block(0, clock.block, clock.frames.start, samples.popleft(), frames, time.perf_counter(), origin, started_at=started_at)
            origin = None
            for sink in everywhere:
                if index == 0 and sink is not tally:
                    sink.open(config)
                    opened.append(sink)
                sink.write(block)
            if stop():
                break
        reason = "played to the end"
    except KeyboardInterrupt:
        reason, tally.interrupted = "interrupted", True
    finally:
        close_all(opened, reason)
    return tally


Made = tuple[BlockClock, np.ndarray, float]  # a block's place, its frames, and when it was begun


def _in_turn(session: Session, take: Callable[[int], Action], blocks: int) -> Iterator[Made]:
    for index in range(blocks):
        clock, action, began = session.clock, take(index), time.perf_counter()
        yield clock, session.step(action), began


def _side_by_side(session: Session, take: Callable[[int], Action], blocks: int) -> Iterator[Made]:
    began: deque[float] = deque()

    def actions() -> Iterator[Action]:
        for index in range(blocks):
            began.append(time.perf_counter())
            yield take(index)

    for played in Overlap(session).play(actions()):
        yield played.clock, played.frames, began.popleft()
