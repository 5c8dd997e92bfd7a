"""What is quicker and not the same: how far it is from the exact path, from the simulator, and how long a block takes.

    python -m tests.apart [--blocks 60] [--starts 16]

The garden plays a walk of twenty blocks over and over, exactly and with each option in turn, block by block, same seed and actions. Prints
the time a block takes, as a share of the exact one's; PSNR of the option's pictures against the exact ones, a block of them at a time; and
how sharp all of them are, as a share of the exact ones' (`training.measures.look`). The first row is the exact path in other numbers. With
``--starts`` it plays beside the simulator, too, as `training.evaluate` does. Run it with one thread (OMP_NUM_THREADS=1) on an idle core.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from engine import World, WorldError, load_config
from engine.bench_machine import describe_machine
from training import measures

WALK = 20  # blocks
OPTIONS: dict[str, dict[str, object]] = {
    "--linears float8": {"linears": "float8"},
    "--steps 1000,333": {"sampler.steps": [1000, 333]},
    "--steps 1000,500": {"sampler.steps": [1000, 500]},
    "--steps 1000": {"sampler.steps": [1000]},
    "--context last": {"sampler.context": "last"},
}


def psnr(ours: np.ndarray, exact: np.ndarray) -> float:
    """Of uint8 frames, in dB; infinite where they are the same."""
    error = np.square(ours.astype(np.float64) - exact).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def against_the_simulator(world: World, starts: int) -> str:
    found = measures.faithful(world, starts, seconds=(1, 4))
    return "; ".join(f"after {s} s {found[f'psnr_{s}s']:.1f} ({found[f'psnr_{s}s_mean_of_starts']:.1f}) dB" for s in (1, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--starts", type=int, default=0, help="play so many starts beside the simulator, too: minutes")
    parser.add_argument("--dtype", help="numbers to compute in (the machine's own)")
    args = parser.parse_args()
    exact = World.load("garden", dtype=args.dtype)
    actions = (measures.random_walk(WALK, np.random.default_rng(0)) * (args.blocks // WALK + 1))[: args.blocks]
    told = describe_machine(exact.device)
    print(f"{told['processor']}, {told['threads']} thread(s), {str(exact.dtype).removeprefix('torch.')}, torch {told['torch']}")
    if args.starts:
        print(f"exact, {args.starts} starts: {against_the_simulator(exact, args.starts)}", flush=True)
    print("| option | a block | block 0 | block 1 | block 4 | median | last 20 | sharpness |")
    print("| --- " * 8 + "|")
    other = "bfloat16" if exact.dtype == torch.float32 else "float32"  # exact too: a scale for the rest
    for option, change in {f"--dtype {other}": {"dtype": other}, **OPTIONS}.items():
        try:
            world = World.load(load_config("garden", change), dtype=change.get("dtype", args.dtype))
        except WorldError as refused:
            print(f"| `{option}` | {refused} | | | | | | |")
            continue
        sessions, spent, apart, sharp = [w.session(0, rewind_mb=0) for w in (exact, world)], ([], []), [], ([], [])
        for action in actions:
            frames = []
            for session, seconds in zip(sessions, spent, strict=True):
                begun = time.perf_counter()
                frames.append(session.step(action))
                seconds.append(time.perf_counter() - begun)
            apart.append(psnr(frames[1], frames[0]))
            for its, made in zip(sharp, frames, strict=True):
                its.append(measures.look(made)["sharpness"])
        share = statistics.median(ours / theirs for theirs, ours in list(zip(*spent, strict=True))[5:])
        numbers = [apart[0], apart[1], apart[4], statistics.median(apart), statistics.median(apart[-20:])]
        cells = " | ".join("same" if value == float("inf") else f"{value:.1f}" for value in numbers)
        print(f"| `{option}` | {share:.2f} × | {cells} | {sum(sharp[1]) / sum(sharp[0]):.2f} × |", flush=True)
        if args.starts:
            print(f"{option}, {args.starts} starts: {against_the_simulator(world, args.starts)}", flush=True)


if __name__ == "__main__":
    main()
