"""How far a garden's denoiser strays on walks it has never seen, in the latents' own variance: no decoder, no pictures.

    python -m training.heldout runs/dit assets/garden/dit.safetensors

For each run (a folder, its last.pt, or exported safetensors): the mean square error of a rollout's blocks, one after another, and of a
first block begun from pure noise and from noised truth (`training/objectives/resampling.py`). A later pass that errs as the first one does
has forgotten how to read what the noise leaves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from engine import load_config
from training.common import starting_weights
from training.draws import BatchNoise
from training.latents import ClipMaker, Clips, cut_windows
from training.objectives.resampling import Resampler
from training.train_dit import BLOCK, STEPS, as_batch, garden_dit
from training.train_vae import load_garden_vae

SEED = 900_001  # trainers use seeds below 900,000
BLOCKS = 8


def unseen(vae: Path, count: int, device: torch.device) -> Clips:
    maker = ClipMaker(load_garden_vae(vae).to(device), SEED, device, compile_encoder=False)
    clips = maker.make(6)
    while len(clips) < count:
        clips = clips.append(maker.make(6))
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--vae", type=Path, default=Path("assets/garden/vae.safetensors"))
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    for path in (*args.runs, args.vae):
        if not path.exists():
            parser.error(f"{path} is not there: name a run's folder, its last.pt, or exported safetensors")
    device = torch.device(args.device)
    clips = unseen(args.vae, args.clips, device)
    every = torch.arange(len(clips))
    batch = as_batch(cut_windows(clips, every, torch.zeros_like(every), BLOCK * BLOCKS), device)

    def errors(played: torch.Tensor) -> list[float]:
        return (played - batch.latents).square().mean((0, 1, 3, 4)).view(BLOCKS, BLOCK).mean(1).tolist()

    for run in args.runs:
        dit = garden_dit().to(device)
        dit.load_state_dict(starting_weights(run)[0])
        play = Resampler(dit, STEPS, load_config("garden").sampler.shift, torch.bfloat16)
        rollout = errors(play(batch, [0] * BLOCKS, BatchNoise(every.tolist())))
        firsts = [errors(play(batch, [begin], BatchNoise(every.tolist())))[0] for begin in range(len(STEPS))]
        print(f"{run}: rollout {' '.join(f'{e:.3f}' for e in rollout)}, mean {sum(rollout) / BLOCKS:.3f}; ", end="")
        print(f"first block from pass {', '.join(f'{i + 1}: {e:.3f}' for i, e in enumerate(firsts))}", flush=True)


if __name__ == "__main__":
    main()
