"""Train the picture decoder on what the denoiser imagines, so that soft latents still become clear pictures.

    python -m training.train_decoder --vae assets/garden/vae.safetensors --dit assets/garden/dit.safetensors --out runs/decoder --minutes 15

The decoder has only ever seen latents of true pictures. The denoiser's are an average of what may come, a little soft wherever it is
not sure of an edge's place, and the decoder passes that on. Here it is given both kinds: a walk is imagined by the real three-step sampler,
each block beside the clean truth of its past (`training/train_dit.py`: all blocks of a window at once), or is the truth with more or less
noise. The target is the simulator's picture. Encoder, latents and denoiser stay as they are.

``--clips`` are those that a training of the denoiser has used: their walks are rendered again, and nothing need be encoded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from engine import load_config
from models.dit import DiT
from models.flow import FlowSchedule, add_noise
from training.arguments import add_device, add_seed, count, in_a_line, positive, rate, share, weight, whole
from training.common import FITTING, Trainee, TrainingRun, load_weights, weights_for, working_precision
from training.latents import CLIP_BLOCKS, ClipMaker, Clips, Windows, cut_windows, joined, pictures
from training.make_clips import open_feed
from training.objectives.view import View
from training.train_dit import BLOCK, STEPS, as_batch, garden_dit
from training.train_vae import garden_vae, load_garden_vae, picture_loss, read_scale, sharpness_loss

TRUTH_NOISE = 0.1  # at most; as in `training.train_vae`
BATCH = 2  # clips a step, one after another: half the memory, and the same gradient


class Imagination:
    """A frozen denoiser that makes every block of a window out of noise and the clean blocks before it."""

    def __init__(self, dit: DiT, latents: int, device: torch.device) -> None:
        self.dit, self.device = dit.eval().requires_grad_(False), device
        schedule = FlowSchedule()
        self.timesteps = schedule.timesteps(STEPS)
        self.sigmas = schedule.sigma(self.timesteps)
        self.last_noise = load_config("garden").sampler.last_noise
        self.view = View(latents, BLOCK, dit.config.local_attn_size, "clean", device)

    @torch.no_grad()
    def __call__(self, windows: Windows) -> Tensor:
        """x0 of all blocks, [B, z, T, h, w]."""
        given = as_batch(windows, self.device)
        truth = given.latents
        x0 = torch.zeros_like(truth)  # at sigma 1 nothing is left of it
        for timestep, sigma in zip(self.timesteps, self.sigmas, strict=True):
            part = self.last_noise if timestep == self.timesteps[-1] else 1.0
            noisy = add_noise(x0, part * torch.randn_like(x0), float(sigma))
            times = timestep.float().expand(truth.shape[0], truth.shape[2]).to(self.device)
            with working_precision(self.device):
                x0 = self.view.x0(self.dit, noisy, times, sigma.to(self.device), given, truth)
        return x0


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="exported weights (safetensors)")
    parser.add_argument("--dit", type=Path, required=True, help="a run's folder, its last.pt, or exported safetensors")
    parser.add_argument("--clips", type=Path, help="of this encoder: a folder of training.make_clips, or a run's file; else some are made")
    parser.add_argument("--first-clips", type=count, default=64, help="how many are made then; two more every eighth step")
    parser.add_argument("--out", type=Path, default=Path("runs/decoder"))
    parser.add_argument("--minutes", type=positive, default=15)
    parser.add_argument("--blocks", type=whole(1, CLIP_BLOCKS), default=3)
    parser.add_argument("--lr", type=rate, default=6e-4)
    parser.add_argument("--imagined", type=share, default=0.25, help="share of the steps whose walks are imagined")
    parser.add_argument("--sharpness", type=weight, default=0.0, help="weight of the frames' detail; it teaches a mesh, see docs/GARDEN.md")
    add_seed(parser)
    add_device(parser)
    args = parser.parse_args()
    device = args.device
    feed = open_feed(parser, "--clips", args.clips) if args.clips is not None and args.clips.is_dir() else None
    if args.clips is not None and not args.clips.exists():
        parser.error(f"--clips {args.clips} is not there: name the clips.safetensors in a run's folder, or a folder of training.make_clips")
    run = TrainingRun(args.out, args.minutes)
    vae = garden_vae(*read_scale(args.vae)).to(device)
    vae.encoder.requires_grad_(False)
    vae.conv1.requires_grad_(False)
    trainee = Trainee(vae, run, args.lr, args.lr, 0.995, start_from=args.vae, trained=nn.ModuleList([vae.decoder, vae.conv2]))
    dit = garden_dit()
    load_weights(dit, weights_for("--dit", args.dit)[0], args.dit, f"--dit {FITTING}")
    imagine = Imagination(dit.to(device), BLOCK * args.blocks, device)
    seed = 9000 + 10_000 * args.seed + run.step
    maker = ClipMaker(load_garden_vae(args.vae).to(device), seed, device)
    if feed is not None:
        clips = joined(feed.new())
    else:
        clips = Clips.load(args.clips, CLIP_BLOCKS) if args.clips else maker.make(1)
    while not args.clips and len(clips) < args.first_clips:
        clips = clips.append(maker.make(2))
    torch.manual_seed(500 + seed)
    pixels = torch.compile(vae.pixels)
    mean, std = (v.view(1, -1, 1, 1, 1) for v in (torch.tensor(n, device=device) for n in read_scale(args.vae)))

    def descend() -> dict[str, Tensor]:
        """Gradients of a batch; what is reported is the last clip's."""
        pick = torch.randint(len(clips), (BATCH,))
        video = pictures(clips, pick, 4 * BLOCK * args.blocks - 3, device)
        windows = cut_windows(clips, pick, torch.zeros_like(pick), BLOCK * args.blocks)
        if torch.rand(()) < args.imagined:
            latents = imagine(windows)
        else:
            truth = windows.latents.to(device)
            latents = truth + TRUTH_NOISE * torch.rand(()).to(device) * torch.randn_like(truth)
        for z, target in zip(latents.split(1), video.split(1), strict=True):
            with working_precision(device):
                ours = pixels((z * std + mean).permute(0, 2, 3, 4, 1).contiguous()).float()  # one layout, one graph
            error, detail = picture_loss(ours, target), sharpness_loss(ours, target)
            ((error + args.sharpness * detail) / BATCH).backward()
        psnr = 10 * torch.log10(4 / (ours.detach() - target).square().mean())
        return {"error": error.detach(), "detail": detail.detach(), "psnr": psnr}

    descend()  # compiles
    vae.zero_grad(set_to_none=True)
    run.exclude_pause()
    reports = 0
    while run.progress < 1:
        if not args.clips and run.step % 8 == 7:
            clips = clips.append(maker.make(1))
        report = descend()
        trainee.step()
        if run.tick(report):
            reports += 1
            if reports % 6 == 0:
                trainee.save()
    trainee.save()
    run.plot()


if __name__ == "__main__":
    sys.exit(main())
