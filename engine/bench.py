"""How long a block takes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from engine.actions import Action
from engine.session import Session


@dataclass(frozen=True)
class StageTime:
    """Milliseconds a block spends in one stage: median and the slow ends."""

    median: float
    p90: float
    p99: float


@dataclass(frozen=True)
class BenchReport:
    """What `benchmark` measured. ``speed`` is fps over the world's native rate: below 1 it cannot be played live."""

    world: str
    device: str
    dtype: str
    blocks: int
    frames: int
    seconds: float
    fps: float
    native_fps: int
    speed: float
    stages: dict[str, StageTime]  # in the order of the block, "total" last

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and texts, for json."""
        return asdict(self)

    def to_text(self) -> str:
        """A table for people."""
        head = (
            f"{self.world} on {self.device}, {self.dtype}: {self.frames} frames in {self.seconds:.2f} s = {self.fps:.1f} fps "
            f"({self.speed:.2f} x the native {self.native_fps})"
        )
        lines = [f"{name:<14}{stage.median:10.2f}{stage.p90:10.2f}{stage.p99:10.2f}" for name, stage in self.stages.items()]
        return "\n".join([head, "", f"{'ms per block':<14}{'median':>10}{'p90':>10}{'p99':>10}", *lines])


def benchmark(session: Session, blocks: int = 20, action_of: Callable[[int], Action] | None = None, warmup: int = 2) -> BenchReport:
    """Play ``warmup`` blocks unmeasured, then ``blocks`` measured ones, as fast as the session can.

    ``action_of(i)`` is the action of block i; by default every key of the world in turn. Raises ValueError for blocks < 1.
    """
    if blocks < 1 or warmup < 0:
        raise ValueError(f"a benchmark needs at least one block, got {blocks} (and {warmup} to warm up)")
    world, keys = session.world, session.world.config.actions.keys
    action_of = action_of or (lambda block: Action(frozenset(keys[block % len(keys) :][:1])))
    session.precise_timings = True
    try:
        for block in range(warmup):
            session.step(action_of(block))
        frames, laps = 0, []
        begun = time.perf_counter()
        for block in range(warmup, warmup + blocks):
            frames += len(session.step(action_of(block)))
            laps.append(session.timings)
        seconds = time.perf_counter() - begun
    finally:
        session.precise_timings = False
    stages = {name: _stage([lap[name] for lap in laps]) for name in laps[0]}
    native = world.config.fps
    dtype = str(world.dtype).removeprefix("torch.")
    return BenchReport(
        world.config.name, str(world.device), dtype, blocks, frames, seconds, frames / seconds, native, frames / seconds / native, stages
    )


def _stage(seconds: list[float]) -> StageTime:
    return StageTime(*(float(np.percentile(seconds, q)) * 1000 for q in (50, 90, 99)))
