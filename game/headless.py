"""Playing without a window: one thread, no pacing, the same blocks into the same sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from engine import Action, Session, WorldConfig
from game.controls import Sample
from game.script import Script
from game.sinks import Block, Sink, Tally, close_all
from game.worldthread import first_origin


def play_headless(
    session: Session, config: WorldConfig, script: Script, blocks: int, sinks: Iterable[Sink], stop: Callable[[], bool] = lambda: False
) -> Tally:
    """Play ``blocks`` blocks unpaced into the sinks, or until ``stop`` says so; past the script's end nothing is pressed.

    Ctrl-C ends it early and properly. Raises `SinkError` if a sink fails.
    """
    tally = Tally()
    everywhere = [tally, *sinks]
    opened: list[Sink] = []
    reason = "failed"
    try:
        for index in range(blocks):
            clock = session.clock
            sample = Sample(script.at(index) or Action(), time.perf_counter())
            if index == 0:
                tally.open(config)
            origin = first_origin(session) if index == 0 else None
            started_at = time.perf_counter()
            frames = session.step(sample.action)
            block = Block(0, clock.block, clock.frames.start, sample, frames, time.perf_counter(), origin, started_at=started_at)
            for sink in everywhere:
                if index == 0 and sink is not tally:
                    sink.open(config)
                    opened.append(sink)
                sink.write(block)
            if stop():
                break
        reason = "played to the end"
    except KeyboardInterrupt:
        reason = "interrupted"
    finally:
        close_all(opened, reason)
    return tally
