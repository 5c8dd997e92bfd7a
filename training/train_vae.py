"""Train the garden's VAE on frames that the simulator draws as they are needed.

    python -m training.train_vae --out runs/vae --minutes 25        # resumable: the same command goes on

Loss: L1 + L2 + L1 of the picture's gradients. The latents get a little noise, so that the denoiser's small errors
decode gracefully, and a small L2 instead of a KL term, so that they cannot escape that noise by growing.
`--decoder-only` trains the decoder on further latents of a frozen encoder: the latents, and with them every
denoiser trained on them, stay valid.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from engine import load_config
from models.errors import WorldError, one_line
from models.vae import VAE
from training.arguments import add_device, count, in_a_line, positive, rate, weight, whole
from training.common import AveragedWeights, Trainee, TrainingRun, load_weights, working_precision
from training.simulator import random_actions, random_poses, rollout


def garden_vae(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> VAE:
    """A VAE of the garden's sizes (configs/garden.yaml), its latents not scaled unless ``mean`` and ``std`` are given."""
    sizes = load_config("garden").vae
    return VAE(replace(sizes, latents_mean=tuple(mean or [0.0] * sizes.z_dim), latents_std=tuple(std or [1.0] * sizes.z_dim)))


def read_scale(path: Path, option: str = "--vae") -> tuple[list[float], list[float]]:
    """Mean and standard deviation per latent channel, as `training.export` wrote them beside the weights that the ``option`` of a
    command names. Raises WorldError."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        mean, std = ([float(n) for n in json.loads(metadata[name])] for name in ("latents_mean", "latents_std"))
    except Exception as error:  # safetensors names many
        raise WorldError(f"{option} {one_line(path, 200)}: no exported VAE can be read from it: {one_line(error, 160)}") from None
    channels = load_config("garden").vae.z_dim
    if not (len(mean) == len(std) == channels and all(map(math.isfinite, mean)) and all(0 < n < math.inf for n in std)):
        raise WorldError(
            f"{option} {one_line(path, 200)}: its latents_mean and latents_std are not {channels} numbers each: export the VAE again"
        )
    return mean, std


def load_garden_vae(path: Path) -> VAE:
    """The exported VAE at ``path``, float32, with its latents' scale. Raises WorldError where there is none."""
    mean, std = read_scale(path)
    weights = load_file(path)
    strange = [name for name, tensor in weights.items() if not (tensor.is_floating_point() and tensor.isfinite().all())]
    if strange:
        raise WorldError(
            f"--vae {one_line(path, 200)}: {one_line(strange[0], 80)} is not all numbers a network computes with: export it again"
        )
    vae = garden_vae(mean, std)
    load_weights(vae, {name: tensor.float() for name, tensor in weights.items()}, path, "--vae takes what training.export makes of a VAE")
    return vae.eval()


def sample_clips(batch: int, frames: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Random walks: `[B, 3, F, H, W]` in [-1, 1]."""
    pose = random_poses(batch, generator)
    keyboard, mouse = random_actions(batch, frames - 1, generator)
    if device.type != "cpu":
        pose = type(pose)(*(v.to(device) for v in (pose.x, pose.y, pose.yaw, pose.pitch)))
    pictures, _ = rollout(pose, keyboard.to(device), mouse.to(device))
    return pictures.transpose(1, 2).float() / 127.5 - 1


def stream_length(text: str) -> int:
    """An argparse type: frames of a clip, one and then whole groups of four."""
    frames = whole(1, 10_000)(text)
    if frames % 4 != 1:
        raise argparse.ArgumentTypeError(f"must be 1 and a multiple of 4 more, such as 9 or 13, not {frames}")
    return frames


def picture_loss(ours: Tensor, truth: Tensor) -> Tensor:
    """L1 + 4 L2 + L1 of horizontal and vertical differences; `[B, 3, F, H, W]`."""
    error = ours - truth
    across, down = error.diff(dim=-1), error.diff(dim=-2)
    return error.abs().mean() + 4 * error.square().mean() + across.abs().mean() + down.abs().mean()


def laplacian_energy(video: Tensor) -> Tensor:
    """How much fine detail each frame [B, 3, F, H, W] has, [B, F]: the mean square of its grey picture's Laplacian."""
    grey = video.mean(1)
    middle = grey[..., 1:-1, 1:-1]
    around = grey[..., :-2, 1:-1] + grey[..., 2:, 1:-1] + grey[..., 1:-1, :-2] + grey[..., 1:-1, 2:]
    return (around - 4 * middle).square().mean((-1, -2))


def sharpness_loss(ours: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute log ratio of the frames' detail: what L1 and L2 leave soft where they are unsure of an edge's place."""
    return ((laplacian_energy(ours) + 1e-6).log() - (laplacian_energy(truth) + 1e-6).log()).abs().mean()


def reconstruct(vae: VAE, video: Tensor, noise: float, decoder_only: bool) -> tuple[Tensor, Tensor]:
    with torch.set_grad_enabled(torch.is_grad_enabled() and not decoder_only):
        z = vae.mean(video)
    return vae.pixels(z + noise * torch.randn_like(z)), z


@torch.no_grad()
def validation_psnr(vae: VAE, averaged: AveragedWeights, clips: Tensor) -> float:
    """PSNR in dB of streamed reconstruction without noise, with the averaged weights."""
    with averaged.lent_to(vae):
        mse = torch.stack([F.mse_loss(vae.pixels(vae.mean(c[None])).clamp(-1, 1), c[None]) for c in clips]).mean()
    return float(10 * torch.log10(4 / mse))


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vae"))
    parser.add_argument("--minutes", type=positive, default=25)
    parser.add_argument("--batch", type=count, default=4)
    parser.add_argument("--frames", type=stream_length, default=13, help="1 + 4m")
    parser.add_argument("--lr", type=rate, default=2e-3)
    parser.add_argument("--noise", type=weight, default=0.1)
    parser.add_argument("--sharpness", type=weight, default=0.0, help="weight of the frames' detail beside the picture's error")
    add_device(parser)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--start-from", type=Path, help="a run's folder, its last.pt, or exported safetensors")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    device = args.device
    run = TrainingRun(args.out, args.minutes)
    torch.manual_seed(0)  # of the fresh weights
    vae = garden_vae().to(device)
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.conv1.requires_grad_(False)
    trained = torch.nn.ModuleList([vae.decoder, vae.conv2]) if args.decoder_only else vae
    trainee = Trainee(vae, run, args.lr, args.lr, 0.995, start_from=args.start_from, trained=trained)
    torch.manual_seed(1000 + run.step)
    generator = torch.Generator().manual_seed(2000 + run.step)
    step_fn = reconstruct if args.no_compile else torch.compile(reconstruct)
    held_out = sample_clips(8, 17, torch.Generator().manual_seed(7), device)
    run.exclude_pause()
    reports = 0
    while run.progress < 1:
        clips = sample_clips(args.batch, args.frames, generator, device)
        with working_precision(device):
            ours, z = step_fn(vae, clips, args.noise, args.decoder_only)
        loss = picture_loss(ours.float(), clips)
        detail = sharpness_loss(ours.float(), clips)
        loss = loss + args.sharpness * detail
        (loss + 1e-3 * z.float().square().mean()).backward()
        trainee.step()
        mse = F.mse_loss(ours.detach().float(), clips)
        if run.tick(
            {"loss": loss.detach(), "psnr": 10 * torch.log10(4 / mse), "detail": detail.detach(), "z_std": z.detach().float().std()}
        ):
            reports += 1
            if reports % 9 == 0:
                trainee.save()
                print(f"   held-out PSNR {validation_psnr(vae, trainee.averaged, held_out):.2f} dB (averaged weights)", flush=True)
                run.exclude_pause()
    trainee.save()
    print(f"done: step {run.step}, held-out PSNR {validation_psnr(vae, trainee.averaged, held_out):.2f} dB")
    run.plot()


if __name__ == "__main__":
    sys.exit(main())
