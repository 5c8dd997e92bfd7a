"""Look at the garden and measure it: `python -m training.simulator --sheet out.png --measure`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from training.arguments import check_file, in_a_line, whole
from training.simulator import FPS, random_actions, random_poses, render, rollout


def tile(frames: Tensor, columns: int, zoom: int = 2) -> Tensor:
    """Pictures uint8 [N,3,H,W] as one sheet [3,...] with thin gaps, enlarged without smoothing."""
    frames = torch.nn.functional.pad(frames, (0, 2, 0, 2), value=30)
    rows = [torch.cat(list(frames[i : i + columns]), dim=2) for i in range(0, len(frames), columns)]
    return torch.cat(rows, dim=1).repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)


def sheet(seed: int = 0) -> Tensor:
    """Six by six random views, and under them three walks, one picture every half second."""
    generator = torch.Generator().manual_seed(seed)
    views = render(random_poses(36, generator))
    keyboard, mouse = random_actions(3, 5 * FPS // 2, generator)
    walks = rollout(random_poses(3, generator), keyboard, mouse)[0][:, :: FPS // 2]
    return tile(torch.cat([views, walks.flatten(0, 1)]), 6)


def measure(seed: int = 1) -> None:
    """Speed of rendering, and how much the world moves: PSNR of repeating the first frame of 64 random walks."""
    generator = torch.Generator().manual_seed(seed)
    poses = random_poses(256, generator)
    render(poses)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        render(poses)
        best = min(best, time.perf_counter() - begin)
    print(f"{256 / best:.0f} frames/s on {torch.get_num_threads()} threads")
    keyboard, mouse = random_actions(64, 4 * FPS, generator)
    frames = rollout(random_poses(64, generator), keyboard, mouse)[0].float() / 255
    for seconds in (1, 4):
        error = (frames[:, seconds * FPS] - frames[:, 0]).square().mean((1, 2, 3))
        moved = error[error > 1e-6]
        pooled, mean = -10 * error.mean().log10(), -10 * moved.log10().mean()
        still = 64 - len(moved)
        print(
            f"first frame repeated after {seconds} s: {pooled:.1f} dB (mean error of all 64), "
            f"{mean:.1f} dB (mean PSNR of the {len(moved)} that moved), median {-10 * error.median().log10():.1f} dB, "
            f"{still} still"
        )
    idle = (keyboard.abs().sum(2) + mouse.abs().sum(2) == 0).float().mean()
    print(f"idle rows {idle:.0%}; mean picture {frames.mean():.2f}, deviation {frames.std():.2f}")


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--measure", action="store_true", help="print speed and PSNR of the repeated first frame")
    arguments = parser.parse_args()
    if not (arguments.sheet or arguments.measure):
        parser.error("nothing to do: --sheet PNG draws a contact sheet, --measure prints numbers")
    check_file("--sheet", arguments.sheet, ".png")
    if arguments.sheet:
        from PIL import Image

        Image.fromarray(sheet(arguments.seed).permute(1, 2, 0).contiguous().numpy()).save(arguments.sheet)
    if arguments.measure:
        measure()


if __name__ == "__main__":
    sys.exit(main())
