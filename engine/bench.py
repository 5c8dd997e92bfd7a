"""How fast a world is, stage by stage and end to end, held against what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from engine.actions import Action
from engine.baseline import Baseline
from engine.bench_flops import block_work
from engine.bench_machine import Ceiling, describe_machine, measure_ceiling, peak_memory
from engine.device import synchronize
from engine.overlap import Overlap
from engine.session import Session

PARTS = ("all", "transformer", "decoder")  # of a block, to compare
SETTLE = 5  # blocks after which the window is full, for every window there is


@dataclass(frozen=True)
class StageTime:
    """Milliseconds a block spends in one stage: median and the slow ends."""

    median: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Efficiency:
    """What was reached, against what the machine can do at best (`bench_machine.Ceiling`)."""

    transformer_tflops: float
    decoder_tflops: float
    ceiling_tflops: float
    transformer_share: float  # of the ceiling, 0 to 1
    decoder_share: float
    read_gb_s: float  # weights and caches that the transformer must read, over its time
    copy_gb_s: float  # the ceiling


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
    stages: dict[str, StageTime]  # of the blocks that have it, in the order of the block, "total" last
    first_frame: StageTime | None = None  # milliseconds from having an action to its block's frames in host memory; the commit comes after
    present: StageTime | None = None  # to paint a block's pictures on a window: by the game's own thread, so it is in no total
    presented: str = ""  # on what, or why it was not measured
    efficiency: Efficiency | None = None
    startup: dict[str, float] = field(default_factory=dict)  # seconds
    peak_bytes: dict[str, int] = field(default_factory=dict)
    machine: dict[str, object] = field(default_factory=dict)
    engine: dict[str, object] = field(default_factory=dict)  # how it was played: decoder, compiled or not, attention, …

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and texts, for json."""
        return asdict(self)

    def to_text(self) -> str:
        """A table for people."""
        head = (
            f"{self.world} on {self.device}, {self.dtype}: {self.frames} frames in {self.seconds:.2f} s = {self.fps:.1f} fps "
            f"({self.speed:.2f} x the native {self.native_fps})"
        )
        others = {"present": self.present, "action→frame": self.first_frame}
        stages = {**self.stages, **{name: stage for name, stage in others.items() if stage is not None}}
        lines = [f"{name:<14}{stage.median:10.2f}{stage.p90:10.2f}{stage.p99:10.2f}" for name, stage in stages.items()]
        return "\n".join([head, "", f"{'ms per block':<14}{'median':>10}{'p90':>10}{'p99':>10}", *lines, *self._remarks()])

    def _remarks(self) -> list[str]:
        found = []
        if (e := self.efficiency) is not None:
            found.append(
                f"transformer {e.transformer_tflops:.3g} TFLOP/s ({e.transformer_share:.0%} of {e.ceiling_tflops:.3g}), "
                f"decoder {e.decoder_tflops:.3g} TFLOP/s ({e.decoder_share:.0%}, convolutions counted as plain sums); "
                f"weights and caches at {e.read_gb_s:.3g} GB/s (a copy: {e.copy_gb_s:.3g})"
            )
        if self.presented:
            found.append(f"present: {self.presented}")
        if self.startup:
            found.append("start-up: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.startup.items()))
        if self.peak_bytes:
            found.append("peak memory: " + ", ".join(f"{where} {size / 1e6:.0f} MB" for where, size in self.peak_bytes.items()))
        if self.engine:
            found.append("played with: " + ", ".join(f"{name} {value}" for name, value in self.engine.items()))
        if self.machine:
            found.append("on: " + ", ".join(f"{name} {value}" for name, value in self.machine.items()))
        return ["", *found] if found else []


def benchmark(
    session: Session,
    blocks: int = 20,
    action_of: Callable[[int], Action] | None = None,
    warmup: int = 2,
    startup: dict[str, float] | None = None,
    ceiling: Ceiling | None = None,
    overlap: bool = False,
) -> BenchReport:
    """Play ``warmup`` blocks unmeasured, then ``blocks`` measured ones, as fast as the session can.

    ``action_of(i)`` is the action of block i; by default every key of the world in turn. Where a device works beside the host the
    blocks are played twice: once without waiting, for the rate, and once waiting after every stage, for the stages. ``ceiling``
    adds what part of the machine is used, ``startup`` is passed on. With ``overlap`` decoder and transformer work side by side
    (`engine.overlap`), and stages overlap. Raises ValueError for blocks < 1.
    """
    if blocks < 1 or warmup < 0:
        raise ValueError(f"a benchmark needs at least one block, got {blocks} (and {warmup} to warm up)")
    world, keys = session.world, session.world.config.actions.keys
    choose = action_of or (lambda block: Action(frozenset(keys[block % len(keys) :][:1])))
    for block in range(warmup):
        session.step(choose(block))
    precise = world.device.type == "cpu"  # nothing to wait for
    session.precise_timings = precise
    try:
        play = _play_beside if overlap else _play
        frames, laps, ready, seconds = play(session, choose, warmup, blocks)
        if not precise:
            session.precise_timings = True
            totals = [lap["total"] for lap in laps]
            _, laps, _, _ = _play(session, choose, warmup + blocks, blocks)
            for lap, total in zip(laps, totals, strict=True):
                lap["total"] = total  # as it is played, not as it is measured
    finally:
        session.precise_timings = False
    return BenchReport(
        world=world.config.name,
        device=str(world.device),
        dtype=str(world.dtype).removeprefix("torch."),
        blocks=blocks,
        frames=frames,
        seconds=seconds,
        fps=frames / seconds,
        native_fps=world.config.fps,
        speed=frames / seconds / world.config.fps,
        stages={name: stage_time(seconds) for name, seconds in _by_stage(laps).items()},
        first_frame=stage_time(ready),
        efficiency=None if ceiling is None else _efficiency(session, laps, ceiling),
        startup=dict(startup or {}),
        peak_bytes=peak_memory(world.device),
        machine=describe_machine(world.device),
        engine=world.describe() | {"overlap": overlap} | ({"graphs": session.graphed} if world.device.type == "cuda" else {}),
    )


@dataclass(frozen=True)
class Comparison:
    """Blocks of a session and of the plain variant in turn, in one process. ``ratio`` is the median of the block by block ratios."""

    part: str  # what of a block was measured, of `PARTS`
    blocks: int
    ours: StageTime
    baseline: StageTime
    ratio: float
    ratios: list[float]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def to_text(self) -> str:
        low, high = min(self.ratios), max(self.ratios)
        what = "" if self.part == "all" else f"{self.part}: "
        return (
            f"{what}{self.ratio:.2f} x the plain variant ({low:.2f} to {high:.2f} block by block, {self.blocks} blocks each in turn): "
            f"{self.ours.median:.2f} ms a block against {self.baseline.median:.2f}"
        )


def compare(
    session: Session, plain: Baseline, blocks: int = 20, action_of: Callable[[int], Action] | None = None, warmup: int | None = None,
    part: str = "all",
) -> Comparison:  # fmt: skip
    """Play the session and ``plain`` block by block in turn, so that both see the same machine; measured once the window is full.

    ``part`` (of `PARTS`): "transformer" decodes nothing; "decoder" makes pictures of random latents, measured from the second block on,
    and neither can be played on afterwards.
    """
    model = session.world.config.model
    if warmup is None:
        warmup = 1 if part == "decoder" else -(-model.local_attn_size // model.num_frame_per_block)
    keys = session.world.config.actions.keys
    choose = action_of or (lambda block: Action(frozenset(keys[block % len(keys) :][:1])))
    spent: tuple[list[float], list[float]] = ([], [])
    for block in range(warmup + blocks):
        for play, seconds in zip((_part_of(session, part), _part_of(plain, part)), spent, strict=True):
            begun = time.perf_counter()
            play(choose(block))
            if block >= warmup:
                seconds.append(time.perf_counter() - begun)
    ratios = [theirs / ours for ours, theirs in zip(*spent, strict=True)]
    return Comparison(part, blocks, stage_time(spent[0]), stage_time(spent[1]), float(np.median(ratios)), ratios)


def _part_of(player: Session | Baseline, part: str) -> Callable[[Action], object]:
    """Plays as much of a block as ``part`` says, and waits for the device."""
    world = player.world

    def whole(action: Action) -> None:
        player.step(action)
        for device in {world.device, world.decode_device}:  # a session's frames are there before its clean pass is done
            synchronize(device)

    def transformer(action: Action) -> None:
        player.imagine_only(action)
        synchronize(world.device)

    def decoder(action: Action) -> None:
        n = world.config.model.num_frame_per_block
        latents = world.random_start().latents[:, :, :1].expand(-1, -1, n, -1, -1).contiguous()
        if isinstance(player, Session):
            player.develop_only(latents)
        else:
            player.develop(latents)

    return {"all": whole, "transformer": transformer, "decoder": decoder}[part]


def ceiling_of(session: Session) -> Ceiling:
    """The ceilings of the machine that a session is played on, measured now."""
    return measure_ceiling(session.world.device, session.world.dtype)


def stage_time(seconds: list[float]) -> StageTime:
    return StageTime(*(float(np.percentile(seconds, q)) * 1000 for q in (50, 90, 99)))


def _by_stage(laps: list[dict[str, float]]) -> dict[str, list[float]]:
    """Seconds of each stage in the blocks that have it, in the order of the block, "total" last: a block held still has no commit."""
    names = dict.fromkeys(name for lap in sorted(laps, key=len, reverse=True) for name in lap if name != "total")
    return {name: [lap[name] for lap in laps if name in lap] for name in (*names, "total")}


def _play(
    session: Session, choose: Callable[[int], Action], first: int, blocks: int
) -> tuple[int, list[dict[str, float]], list[float], float]:
    """(frames, timings of each block, seconds from action to frames of each block, seconds of all)."""
    frames, laps, ready = 0, [], []
    begun = time.perf_counter()
    for block in range(first, first + blocks):
        action = choose(block)
        sampled = time.perf_counter()
        frames += len(session.step(action, lambda _: ready.append(time.perf_counter() - sampled)))  # noqa: B023 - called before it returns
        laps.append(session.timings)
    return frames, laps, ready, time.perf_counter() - begun


def _play_beside(
    session: Session, choose: Callable[[int], Action], first: int, blocks: int
) -> tuple[int, list[dict[str, float]], list[float], float]:
    """`_play` with decoder and transformer side by side. One block more at each end is played and not measured."""
    sampled: list[float] = []

    def actions() -> Iterator[Action]:
        for block in range(first, first + blocks + 2):
            sampled.append(time.perf_counter())
            yield choose(block)

    laps, ready, frames, begun, ended = [], [], 0, 0.0, 0.0
    for number, block in enumerate(Overlap(session).play(actions())):
        now = time.perf_counter()
        if number == 0:
            begun = now
        elif number <= blocks:
            ended, frames = now, frames + len(block.frames)
            laps.append(block.timings)
            ready.append(now - sampled[number])
    return frames, laps, ready, ended - begun


def _efficiency(session: Session, laps: list[dict[str, float]], ceiling: Ceiling) -> Efficiency | None:
    """Of the medians. Only blocks with a full window are counted as such, so begin with `SETTLE` blocks."""
    world = session.world
    work = block_work(world.config, world.dtype)
    stages = _by_stage(laps)
    median = {name: float(np.median(seconds)) for name, seconds in stages.items()}
    commits = len(stages.get("commit", ())) / len(laps)  # part of the blocks: one that is held still commits nothing
    transformer = sum(seconds for name, seconds in median.items() if name.startswith("denoise")) + commits * median.get("commit", 0.0)
    flops = work.passes * work.denoise_pass + commits * work.commit
    reads = (work.passes + commits) * (work.dit_bytes + work.cache_bytes)
    reached, decoded = flops / transformer / 1e12, work.decode / median["decode"] / 1e12
    return Efficiency(
        transformer_tflops=reached,
        decoder_tflops=decoded,
        ceiling_tflops=ceiling.tflops,
        transformer_share=reached / ceiling.tflops,
        decoder_share=decoded / ceiling.tflops,
        read_gb_s=reads / transformer / 1e9,
        copy_gb_s=ceiling.copy_gb_s,
    )
