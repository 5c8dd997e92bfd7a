"""Let a garden turn as far as it is told to: one number for its mouse weights, found on walks that no training saw.

    python -m training.calibrate runs/dit --out runs/calibrated.pt

A denoiser that is not certain of a turn answers with less of it: what it imagines after a turn lags behind the simulator by some
hundredths of the angle. That much is told to the model in addition: the columns of its action modules that read the yaw are multiplied
by the gain under which its rollouts stay nearest to the truth (mean of each walk's decibels, as `training.heldout`). The gain itself is
not shipped, the weights are; a run that goes on from them is free to learn another.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine import load_config
from training.heldout import BLOCKS, FLOOR, block_errors, unseen, windows
from training.objectives.resampling import Resampler
from training.train_dit import STEPS, garden_dit

SEED = 905_001  # walks of its own: neither the trainers', nor those by which the result is judged
YAW = 1  # of the mouse's two numbers
READS_MOUSE = "mouse_mlp.0.weight"  # [hidden, dim + rows x 2]


def with_gain(weights: Mapping[str, Tensor], gain: float, dim: int) -> dict[str, Tensor]:
    """The weights of a denoiser of width ``dim`` that takes each yaw for ``gain`` times as much."""
    found = {name: tensor.clone() for name, tensor in weights.items()}
    for name, tensor in found.items():
        if name.endswith(READS_MOUSE):
            tensor[:, dim + YAW :: 2] *= gain
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, or its last.pt")
    parser.add_argument("--out", type=Path, required=True, help="a .pt file that is not there yet")
    parser.add_argument("--vae", type=Path, default=Path("assets/garden/vae.safetensors"))
    parser.add_argument("--gains", type=float, nargs="+", default=[0.98, 1.0, 1.02, 1.04, 1.06, 1.08, 1.1])
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    path = args.run / "last.pt" if args.run.is_dir() else args.run
    if path.suffix != ".pt" or not path.is_file():
        parser.error(f"{path} is not there: name a run's folder or its last.pt")
    if not args.vae.is_file():
        parser.error(f"--vae {args.vae} is not there: name an exported VAE")
    if args.out.suffix != ".pt" or args.out.exists():
        parser.error(f"--out {args.out}: name a .pt file that is not there yet")
    state = torch.load(path, weights_only=True, map_location="cpu")
    device, sampler = torch.device(args.device), load_config("garden").sampler
    walks = windows(unseen(args.vae, args.clips, device, seed=SEED), device)
    dit = garden_dit().to(device)
    best, kept = -float("inf"), 1.0
    for gain in args.gains:
        dit.load_state_dict(with_gain(state["averaged"], gain, dit.config.dim), strict=False)
        errors = block_errors(Resampler(dit, STEPS, sampler.shift, torch.bfloat16, sampler.last_noise), walks, [0] * BLOCKS)
        decibels = float((-10 * (errors + FLOOR).log10()).mean())
        print(f"gain {gain:g}: error {errors.mean():.4f}, {decibels:.3f} dB", flush=True)
        if decibels > best:
            best, kept = decibels, gain
    for part in ("averaged", "model"):
        state[part] = with_gain(state[part], kept, dit.config.dim)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: state[name] for name in ("step", "seconds", "model", "averaged", "helper") if name in state}, args.out)
    print(f"{args.out}: gain {kept:g}")


if __name__ == "__main__":
    main()
