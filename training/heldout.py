"""How far a garden's denoiser strays on walks it has never seen, in the latents' own variance: no decoder, no pictures.

    python -m training.heldout runs/dit assets/garden/dit.safetensors

For each run (a folder, its last.pt, or exported safetensors): the mean square error of a rollout's blocks, one after another, in decibels
too, each walk's on its own (as in a PSNR, good walks count there as much as bad ones); the same standing still; and the error of a first
block begun from pure noise and from noised truth (`training/objectives/resampling.py`). A later pass that errs as the first one does has
forgotten how to read what the noise leaves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from engine import load_config
from engine.worldfile import asset_folder
from training.arguments import add_device, count, in_a_line
from training.common import FITTING, load_weights, weights_for, working_dtype
from training.dataset import Batch
from training.draws import BatchNoise
from training.latents import ClipMaker, Clips, cut_windows
from training.objectives.resampling import Resampler
from training.train_dit import BLOCK, STEPS, as_batch, garden_dit
from training.train_vae import load_garden_vae

SEED = 900_001  # trainers use seeds below 900,000
BLOCKS = 8
FLOOR = 0.03  # added to an error before it is put into decibels: about what the decoder does not show


def unseen(vae: Path, count: int, device: torch.device, idle: float = 1 / 16) -> Clips:
    maker = ClipMaker(load_garden_vae(vae).to(device), SEED, device, compile_encoder=False, idle=idle)
    clips = maker.make(6)
    while len(clips) < count:
        clips = clips.append(maker.make(6))
    return clips


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--vae", type=Path, default=asset_folder() / "garden/vae.safetensors")
    parser.add_argument("--clips", type=count, default=48)
    parser.add_argument("--still", type=count, default=24, help="clips in which one stands still")
    add_device(parser)
    args = parser.parse_args()
    for path in (*args.runs, args.vae):
        if not path.exists():
            parser.error(f"{path} is not there: name a run's folder, its last.pt, or exported safetensors")
    weights = [weights_for("training.heldout", run)[0] for run in args.runs]  # before walks are drawn for minutes
    device = args.device
    walks, still = (windows(unseen(args.vae, count, device, idle), device) for count, idle in ((args.clips, 1 / 16), (args.still, 1.0)))
    sampler = load_config("garden").sampler
    for run, its in zip(args.runs, weights, strict=True):
        dit = garden_dit().to(device)
        load_weights(dit, its, run, f"training.heldout {FITTING}")
        play = Resampler(dit, STEPS, sampler.shift, working_dtype(device), sampler.last_noise)
        print(run)
        for name, batch in (("walking", walks), ("standing still", still)):
            errors = block_errors(play, batch, [0] * BLOCKS)
            decibels = -10 * (errors + FLOOR).log10()
            print(f"  {name}: {listed(errors)}, mean {errors.mean():.3f}", flush=True)
            print(f"    in dB: {listed(decibels, 2)}, mean {decibels.mean():.2f}", flush=True)
        firsts = [block_errors(play, walks, [begin])[:, 0].mean() for begin in range(len(STEPS))]
        print(f"  first block from pass {', '.join(f'{i + 1}: {e:.3f}' for i, e in enumerate(firsts))}", flush=True)


def windows(clips: Clips, device: torch.device) -> Batch:
    every = torch.arange(len(clips))
    return as_batch(cut_windows(clips, every, torch.zeros_like(every), BLOCK * BLOCKS), device)


def block_errors(play: Resampler, batch: Batch, begins: list[int]) -> Tensor:
    """Mean square error of each walk's blocks [N, BLOCKS]."""
    played = play(batch, begins, BatchNoise(range(len(batch.latents))))
    return (played - batch.latents).square().mean((1, 3, 4)).unflatten(1, (BLOCKS, BLOCK)).mean(-1)


def listed(errors: Tensor, digits: int = 3) -> str:
    return " ".join(f"{error:.{digits}f}" for error in errors.mean(0))


if __name__ == "__main__":
    sys.exit(main())
