"""An hour of play without a window, recorded: is memory flat, does the rate hold, do film, session file and clock agree?

python -m tests.hour                    # 60 minutes of the garden, as fast as it goes
python -m tests.hour --pace             # at its native rate, as it is played
python -m tests.hour --seconds 600 --world garden --keep out/
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import Action, World, WorldConfig
from game.film import inspect_film
from game.headless import play_headless
from game.recorder import Recorder
from game.script import Script, demo_script
from game.sessionfile import read_session
from game.sessionheader import Header, build_header
from game.sessionsink import SessionSink
from game.sinks import Background, Block

SETTLE = 60.0  # seconds after which memory is to stay where it is


@dataclass(frozen=True)
class Report:
    """Frames counted in three places; memory of the last tenth over that after `SETTLE` (or half-way); rates in frames a second."""

    film: int
    session: int
    clock: int
    growth: float
    rates: tuple[float, ...]  # of each tenth of the time
    late: int  # blocks


class Samples:
    """A sink that notes time and memory at every block; paced, it waits until the block would be on screen."""

    def __init__(self, seconds: float, pace: bool = False) -> None:
        self.frames = 0
        self.late = 0  # blocks that came after their time; paced only
        self.seconds, self.pace = seconds, pace
        self.notes: list[tuple[float, int, int]] = []  # (seconds since the first block, frames, bytes resident)

    def open(self, config: WorldConfig) -> None:
        self._fps = config.fps
        self._began = time.perf_counter()

    def write(self, block: Block) -> None:
        if self.pace:
            spare = self._began + self.frames / self._fps - time.perf_counter()
            self.late += spare < 0 and self.frames > 0
            time.sleep(max(0.0, spare))
        self.frames += len(block.frames)
        self.notes.append((time.perf_counter() - self._began, self.frames, resident()))

    def close(self) -> None:
        pass

    @property
    def over(self) -> bool:
        return bool(self.notes) and self.notes[-1][0] >= self.seconds


def resident() -> int:
    """Bytes of memory this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def play(world_name: str | Path, folder: Path, seconds: float, pace: bool = False) -> Report:
    """Play for so long, recording into ``folder``; with ``pace`` at the world's rate."""
    world = World.load(world_name)
    session = world.session(seed=1, rewind_mb=0)  # as headless play has it
    header = Header()
    header.fields = build_header(world, session, None)
    film, samples = Recorder(folder / "hour.mp4", identity=header.identity), Samples(seconds, pace)
    sinks = [Background(SessionSink(folder / "hour.session.jsonl", header.get), wait=True), Background(film, wait=True), samples]
    script = demo_script(world.config.actions.keys) if seconds > 10 else Script([(Action("w"), 1)], endless=True)
    play_headless(session, world.config, script, 10**9, sinks, stop=lambda: samples.over)
    times, frames, memory = (np.array(column) for column in zip(*samples.notes, strict=True))
    settled = memory[np.searchsorted(times, min(SETTLE, times[-1] / 2)) :][: max(1, len(times) // 10)]
    edges = np.searchsorted(times, np.linspace(0, times[-1], 11))
    rates = tuple(
        float((frames[b] - frames[a]) / (times[b] - times[a]))
        for a, b in zip(edges, np.minimum(edges[1:], len(times) - 1), strict=False)
        if b > a
    )
    counted = sum(block.frames for block in read_session(folder / "hour.session.jsonl").blocks)
    growth = float(np.median(memory[-max(1, len(memory) // 10) :]) / np.median(settled) - 1)
    return Report(inspect_film(folder / "hour.mp4").frames, counted, session.clock.frames.start, growth, rates, samples.late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="garden")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--pace", action="store_true", help="play at the world's native rate")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave film and session file here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = play(args.world, args.keep or Path(folder), args.seconds, args.pace)
    print(f"frames: film {report.film}, session file {report.session}, clock {report.clock}")
    print(f"memory at the end against that after a minute: {report.growth:+.2%}")
    print("frames a second, tenth by tenth: " + " ".join(f"{rate:.1f}" for rate in report.rates))
    if args.pace:
        print(f"blocks that came too late: {report.late}")
    ok = report.film == report.session == report.clock and abs(report.growth) <= 0.02
    print("as promised" if ok else "NOT as promised")
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
