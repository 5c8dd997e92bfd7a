"""Train the picture decoder on what the denoiser imagines, so that soft latents still become clear pictures.

    python -m training.train_decoder --vae assets/garden/vae.safetensors --dit assets/garden/dit.safetensors --out runs/decoder --minutes 15

The decoder has only ever seen latents of true pictures. The denoiser's are an average of what may come, a little soft wherever it is
not sure of an edge's place, and the decoder passes that on. Here it is given both kinds: a walk is imagined by the real three-step sampler,
each block beside the clean truth of its past (`training/train_dit.py`: all blocks of a window at once), or is the truth with more or less
noise. The target is the simulator's picture. Encoder, latents and denoiser stay as they are.

``--clips`` are those that a training of the denoiser has left: their walks are rendered again, and nothing need be encoded.

With ``--adversarial`` a critic of pictures (`training/adversary.py`) pulls beside nearness to the truth. Then some of the walks are played
from the start picture on, for as long as clips are: soft latents are where a critic is wanted, and no picture of the truth is near them any
more. There nearness is to what the decoder drew before this training, seen from afar (means over 4×4 pixels): the critic may change how
things are drawn, not what.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import load_config
from models.dit import DiT
from models.flow import FlowSchedule, add_noise
from training.adversary import Adversary, together
from training.common import Trainee, TrainingRun, starting_weights
from training.draws import BatchNoise
from training.latents import CLIP_BLOCKS, CLIP_FRAMES, ClipMaker, Clips, Windows, cut_windows, joined, pictures
from training.make_clips import ClipFeed
from training.objectives.resampling import Resampler
from training.objectives.view import View
from training.train_dit import BLOCK, STEPS, as_batch, garden_dit
from training.train_vae import garden_vae, load_garden_vae, picture_loss, read_scale, sharpness_loss

TRUTH_NOISE = 0.1  # at most; as in `training.train_vae`
BATCH = 2  # clips a step, one after another: half the memory, and the same gradient
SETTLING = 9  # frames of a stream begun in the middle of a walk that count for nothing
AFAR = 4  # pixels a side
CRITIC_ALONE = 200  # steps until a critic that knew nothing has its full say


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
            with torch.autocast(self.device.type, torch.bfloat16):
                x0 = self.view.x0(self.dit, noisy, times, sigma.to(self.device), given, truth)
        return x0


@dataclass
class Shown:
    """What a step shows the decoder: latents [B, z, T, h, w] and the simulator's pictures [B, 3, F, H, W] of the same moments."""

    latents: Tensor
    truth: Tensor
    near: bool  # whether the latents are of those pictures; else of a walk that was played, and has strayed


class Show:
    """Draws walks, and of each what the decoder is to see: the truth, a block imagined beside it, or a walk played from its start."""

    def __init__(self, clips: Clips, dit: DiT, blocks: int, imagined: float, played: float, device: torch.device) -> None:
        self.clips, self.blocks, self.device = clips, blocks, device
        self.imagined, self.played = imagined, played
        self.imagine = Imagination(dit, BLOCK * blocks, device)
        sampler = load_config("garden").sampler
        self.play = Resampler(dit, STEPS, sampler.shift, torch.bfloat16, sampler.last_noise)

    def draw(self) -> Shown:
        pick = torch.randint(len(self.clips), (BATCH,))
        begin = torch.zeros_like(pick)
        kind = float(torch.rand(()))
        if kind < self.played:
            whole = as_batch(cut_windows(self.clips, pick, begin, BLOCK * CLIP_BLOCKS), self.device)
            latents = self.play(whole, [0] * CLIP_BLOCKS, BatchNoise(torch.randint(2**62, (BATCH,)).tolist()))
            frames = 4 * BLOCK * self.blocks - 3
            return Shown(latents[:, :, -BLOCK * self.blocks :], pictures(self.clips, pick, CLIP_FRAMES, self.device)[:, :, -frames:], False)
        windows = cut_windows(self.clips, pick, begin, BLOCK * self.blocks)
        if kind < self.played + self.imagined:
            latents = self.imagine(windows)
        else:
            latents = windows.latents.to(self.device)
            latents = latents + TRUTH_NOISE * torch.rand(()).to(self.device) * torch.randn_like(latents)
        return Shown(latents, pictures(self.clips, pick, 4 * BLOCK * self.blocks - 3, self.device), True)


def from_afar(video: Tensor) -> Tensor:
    """Means over squares of pixels: [B, 3, F, H, W] -> [B, 3, F, H / 4, W / 4]."""
    return F.avg_pool3d(video, (1, AFAR, AFAR))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="exported weights (safetensors)")
    parser.add_argument("--dit", type=Path, required=True, help="a run's folder, its last.pt, or exported safetensors")
    parser.add_argument("--clips", type=Path, help="clips.safetensors of a run of train_dit with this encoder; else some are made first")
    parser.add_argument("--first-clips", type=int, default=64, help="how many are made then; two more every eighth step")
    parser.add_argument("--out", type=Path, default=Path("runs/decoder"))
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--imagined", type=float, default=0.25, help="share of the steps whose walks are imagined")
    parser.add_argument("--sharpness", type=float, default=0.0, help="weight of the frames' detail; it teaches a mesh, see docs/GARDEN.md")
    parser.add_argument("--adversarial", type=float, default=0.0, help="how much the critic pulls beside nearness, of which it is a share")
    parser.add_argument("--critic-lr", type=float, default=5e-4)
    parser.add_argument("--played", type=float, default=0.25, help="share of the steps whose walks are played; with --adversarial only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.clips is not None and not args.clips.exists():
        parser.error(f"--clips {args.clips} is not there: name the clips.safetensors in a run's folder, or a folder of training.make_clips")
    run = TrainingRun(args.out, args.minutes)
    vae = garden_vae(*read_scale(args.vae)).to(device)
    vae.encoder.requires_grad_(False)
    vae.conv1.requires_grad_(False)
    trainee = Trainee(vae, run, args.lr, args.lr, 0.995, start_from=args.vae, trained=nn.ModuleList([vae.decoder, vae.conv2]))
    dit = garden_dit()
    dit.load_state_dict(starting_weights(args.dit)[0], strict=False)
    before = load_garden_vae(args.vae).to(device).requires_grad_(False)
    seed = 9000 + 10_000 * args.seed + run.step
    maker = ClipMaker(before, seed, device)
    if args.clips is not None:
        clips = joined(ClipFeed(args.clips).new()) if args.clips.is_dir() else Clips.load(args.clips)
    else:
        clips = maker.make(1)
    while args.clips is None and len(clips) < args.first_clips:
        clips = clips.append(maker.make(2))
    torch.manual_seed(500 + seed)
    show = Show(clips, dit.to(device), args.blocks, args.imagined, args.played if args.adversarial else 0.0, device)
    adversary, kept = Adversary(device, args.critic_lr), args.out / "critic.pt"
    if args.adversarial and kept.exists() and not trainee.fresh:
        adversary.load(kept)
    pixels = torch.compile(vae.pixels)
    mean, std = (v.view(1, -1, 1, 1, 1) for v in (torch.tensor(n, device=device) for n in read_scale(args.vae)))

    def descend() -> dict[str, Tensor | float]:
        """Gradients of a batch; what is reported is the last clip's."""
        shown, report = show.draw(), {}
        first = int(torch.randint(3, ())) if shown.near else SETTLING
        for latents, truth in zip(shown.latents.split(1), shown.truth.split(1), strict=True):
            z = (latents * std + mean).permute(0, 2, 3, 4, 1)
            with torch.autocast(device.type, torch.bfloat16):
                drawn = pixels(z).float()
            ours = drawn.detach().requires_grad_(True)
            if shown.near:
                error = picture_loss(ours, truth)
                detail = sharpness_loss(ours, truth)
                (nearness,) = torch.autograd.grad(error + args.sharpness * detail, ours)
                psnr = 10 * torch.log10(4 / (ours.detach() - truth).square().mean())
                report |= {"error": error.detach(), "detail": detail.detach(), "psnr": psnr}
            else:
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                    known = before.pixels(z).float()
                (nearness,) = torch.autograd.grad(picture_loss(from_afar(ours), from_afar(known)), ours)
            if args.adversarial:
                pull, apart = adversary.pull(ours, truth, first)
                nearness = together(nearness, pull, args.adversarial * min(1.0, run.step / CRITIC_ALONE))
                report["apart" if shown.near else "apart_played"] = apart
            drawn.backward(nearness / BATCH)
        return report

    def save() -> None:
        if args.adversarial:
            adversary.save(kept)
        trainee.save()

    descend()  # compiles
    vae.zero_grad(set_to_none=True)
    run.exclude_pause()
    reports = 0
    while run.progress < 1:
        if args.clips is None and run.step % 8 == 7:
            show.clips = show.clips.append(maker.make(1))
        report = descend()
        trainee.step()
        if run.tick(report):
            reports += 1
            if reports % 6 == 0:
                save()
    save()
    run.plot()


if __name__ == "__main__":
    main()
