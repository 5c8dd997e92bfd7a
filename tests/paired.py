"""Is this checkout quicker than another one? Both play the garden in turn, a few blocks at a time, each in a process of its own.

    git worktree add ../before COMMIT
    python -m tests.paired ../before [--rounds 12] [--blocks 4] [--threads 2] [--overlap [--both]]

With `--overlap` only this checkout decodes beside the next block, as a commit from before there was such a thing could not; with `--both`
the other one does so too.
Taking turns is what makes the ratio worth something on a machine whose speed drifts; single times are not. Prints JSON: milliseconds a
block of each, and the ratio round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHILD = """
import itertools, sys, time
import torch
torch.set_num_threads(int(sys.argv[1]))
from engine import Action, World
world = World.load(sys.argv[3])
if sys.argv[2] == "overlap":
    from engine import share_threads
    share_threads(world)
session = world.session(rewind_mb=0)
keys = session.world.config.actions.keys
actions = (Action(frozenset(keys[i % len(keys)])) for i in iter(int, 1) for i in range(len(keys)))
def play(count):
    if sys.argv[2] == "overlap":  # to its end: no decoder goes on into the other's turn
        from engine import Overlap
        return sum(len(played.frames) for played in Overlap(session).play(itertools.islice(actions, count)))
    return sum(len(session.step(action)) for action in itertools.islice(actions, count))
play(14)  # longer than it takes until calls are recorded
print("ready", flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    play(int(line))
    print((time.perf_counter() - begun) / int(line), flush=True)
"""


class Contender:
    """A checkout that plays when told to."""

    def __init__(self, folder: Path, threads: int, mode: str, world: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(threads), mode, world], cwd=folder, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._line() != "ready":
            raise SystemExit(f"tests.paired: nothing can be played in {folder}")

    def play(self, blocks: int) -> float:
        """Seconds a block."""
        self.process.stdin.write(f"{blocks}\n")
        self.process.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        return self.process.stdout.readline().strip()


def compare(
    other: Path, rounds: int, blocks: int, threads: int, overlap: bool, world: str = "garden", both: bool = False
) -> dict[str, object]:
    """Both in turn; ``ratio`` is how many times as quick this checkout is, the median over rounds."""
    modes = ["overlap" if overlap else "step", "overlap" if overlap and both else "step"]
    sides = [Contender(place, threads, mode, world) for place, mode in zip((ROOT, other), modes, strict=True)]
    try:
        spent = [[side.play(blocks) for side in sides] for _ in range(rounds)]
    finally:
        for side in sides:
            side.end()
    ratios = [theirs / ours for ours, theirs in spent]
    ours, theirs = (statistics.median(seconds) * 1000 for seconds in zip(*spent, strict=True))
    return {
        "threads": threads, "overlap": overlap, "both": both, "rounds": rounds, "blocks": blocks, "ms_ours": round(ours, 1),
        "ms_theirs": round(theirs, 1), "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.paired", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--overlap", action="store_true", help="this checkout plays with decoder and transformer side by side")
    parser.add_argument("--both", action="store_true", help="with --overlap: the other one too")
    args = parser.parse_args()
    print(json.dumps(compare(args.other.absolute(), args.rounds, args.blocks, args.threads, args.overlap, both=args.both)))


if __name__ == "__main__":
    main()
