"""Teach the denoiser's first layers where they stand, and nothing else.

    python -m training.localise --start-from assets/garden/dit.safetensors --feed runs/feed --out runs/places --minutes 25
    python -m training.train_dit --start-from runs/places/whole.pt --guidance 1 --slow-looking 0.25 --resampling-from 0.2 …

Whoever knows the map and where he stands knows the picture. In forcing, the guide (`training/guide.py`) is one voice among several, and
every step pays for all layers and both halves of the window. Here only the clean half goes through the network, only up to the guide's
layer, and only the pose counts: 0.53 s a step on a core instead of 1.4, and every gradient is about the place. The layers after it do not
change and no longer understand those before: forcing has to follow, two hours of it on two cores, in which these layers learn slowly, so
that they forget nothing while the others learn to draw again (docs/GARDEN.md). `last.pt` is of this run; what others begin with is
`whole.pt`.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from math import pi
from pathlib import Path

import torch
from torch import Tensor, nn

from engine import load_config
from models.attention import MaskPlan
from models.dit import DiT
from training.arguments import add_device, add_seed, count, in_a_line, positive, rate, weight, whole
from training.common import FITTING, Trainee, TrainingRun, load_weights, weights_for, working_precision
from training.guide import FIT_BATCHES, PoseGuide
from training.latents import CLIP_BLOCKS, Clips, Windows, cut_windows, joined, sample_windows
from training.learner import NOT_HIDDEN as ADAMW
from training.make_clips import open_feed
from training.masks import block_causal
from training.simulator import world
from training.train_dit import BLOCK, as_batch, drift, garden_dit

HELD_OUT = 32  # clips, the first of the feed: the same when a run goes on


def first_layers(count: int) -> DiT:
    """The garden's denoiser with its first ``count`` layers only; all names are those of the whole."""
    config = load_config("garden").model
    kept = tuple(i for i in config.action.blocks if i < count)
    return DiT(replace(config, num_layers=count, action=replace(config.action, blocks=kept)))


class Localiser(nn.Module):
    """What the last of ``dit``'s layers knows about the poses of clean latents, beside those before them."""

    def __init__(self, dit: DiT, latents: int, device: torch.device, noise: float) -> None:
        super().__init__()
        self.dit, self.guide = dit, PoseGuide(dit, len(dit.blocks) - 1)
        self.latents, self.device, self.noise = latents, device, noise
        mask = block_causal(latents, BLOCK, dit.config.local_attn_size)
        self.mask, self.plan = mask.to(device), MaskPlan.from_mask(mask)

    def look(self, windows: Windows, noise: float = 0.0) -> None:
        """Through the layers, each block with up to ``noise``; the guide has heard it then."""
        given = as_batch(windows, self.device)
        batch = len(given.latents)
        amount = drift(batch, self.latents // BLOCK, noise).to(self.device)
        x = torch.cat([given.latents + amount * torch.randn_like(given.latents), given.condition], dim=1)
        clean = torch.zeros(batch, self.latents, device=self.device)
        with working_precision(self.device):
            self.dit.forward_parallel(
                x, clean, given.rows.keyboard, given.rows.mouse, torch.arange(self.latents), self.mask, None, self.plan
            )

    def loss(self, windows: Windows) -> Tensor:
        self.look(windows, self.noise)
        return self.guide.loss(windows.pose.to(self.device)).mean()

    @torch.no_grad()
    def strays(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """By how much the heading [B, T] (degrees) and the place [B, T] (cells) are wrong, as all tokens of a latent tell them together."""
        self.look(windows)
        told, pose = self.guide.told().mean(2), windows.pose.to(self.device)
        yaw, middle = torch.atan2(told[..., 1], told[..., 0]), world.SIZE / 2
        turned = (torch.remainder(yaw - pose[..., 2] + pi, 2 * pi) - pi).abs() * 180 / pi
        away = torch.hypot(middle - middle * told[..., 2] - pose[..., 0], middle - middle * told[..., 3] - pose[..., 1])
        return turned, away


def report(localiser: Localiser, held: Clips) -> str:
    """Errors on walks that are not trained on: medians of a walk's first latent, and of those with a past."""
    found = [
        localiser.strays(cut_windows(held, pick, torch.zeros_like(pick), localiser.latents))
        for pick in torch.arange(len(held)).split(8)
    ]  # fmt: skip
    turned, away = (torch.cat(part) for part in zip(*found, strict=True))
    words = [
        f"{name} {float(turned[:, own].median()):.2f} degrees, {float(away[:, own].median()):.3f} cells"
        for name, own in (("first", slice(1)), ("later", slice(BLOCK, None)))
    ]
    return "held out: " + "; ".join(words)


def write_whole(dit: DiT, guide: PoseGuide, start: dict[str, Tensor], path: Path) -> None:
    """All layers, those after the guide's as they were in ``start``, and the guides as `training.train_dit` reads them."""
    weights = start | {name: p.detach() for name, p in dit.named_parameters() if not name.startswith("head.")}
    helper = {f"{which}.{name}": value for which in ("seen", "told") for name, value in guide.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    torch.save({"averaged": weights, "helper": helper}, temporary)
    os.replace(temporary, path)


@in_a_line
def main() -> None:
    layer = whole(0, load_config("garden").model.num_layers - 1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start-from", type=Path, help="a run's folder, its last.pt, or exported safetensors; else fresh weights")
    parser.add_argument("--feed", type=Path, required=True, help="folder that training.make_clips fills")
    parser.add_argument("--out", type=Path, default=Path("runs/places"))
    parser.add_argument("--minutes", type=positive, default=25)
    parser.add_argument("--batch", type=count, default=8)
    parser.add_argument("--blocks", type=whole(1, CLIP_BLOCKS), default=4)
    parser.add_argument("--lr", type=rate, default=1e-3)
    parser.add_argument("--noise", type=weight, default=0.3, help="at most; how much of it, each block draws")
    parser.add_argument("--layer", type=layer, default=5, help="the last one that is trained; its tokens tell the pose")
    add_seed(parser)
    add_device(parser)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    feed = open_feed(parser, "--feed", args.feed)
    device = args.device
    run = TrainingRun(args.out, args.minutes)
    torch.manual_seed(0)
    dit = first_layers(args.layer + 1).to(device)
    localiser = Localiser(dit, BLOCK * args.blocks, device, args.noise).to(device)
    full = garden_dit()
    if args.start_from is not None:
        load_weights(full, weights_for("--start-from", args.start_from)[0], args.start_from, f"--start-from {FITTING}")
    start = full.state_dict()
    dit.load_state_dict({name: start[name] for name in dit.state_dict()})
    trainee = Trainee(localiser, run, args.lr, args.lr / 2, 0.997, (*ADAMW, "read"))
    if not args.no_compile:
        for layer in dit.blocks:
            layer.forward = torch.compile(layer.forward)
    torch.manual_seed(8000 + 10_000 * args.seed + run.step)
    generator = torch.Generator().manual_seed(9000 + 10_000 * args.seed + run.step)
    clips = joined(feed.new())
    if len(clips) <= HELD_OUT:
        parser.error(f"--feed {args.feed} has {len(clips)} clips, of which {HELD_OUT} are held out: let training.make_clips draw more")
    held, clips = clips.oldest(HELD_OUT), clips.newest(len(clips) - HELD_OUT)
    if trainee.fresh and args.start_from is not None:
        with localiser.guide.fitting():  # with gradients that nobody takes: without them the layers would be compiled once more
            for _ in range(FIT_BATCHES):
                localiser.loss(sample_windows(clips, args.batch, args.blocks, generator))
    run.exclude_pause()

    def save() -> None:
        trainee.save()
        with trainee.averaged.lent_to(localiser):
            print("  " + report(localiser, held), flush=True)
            write_whole(dit, localiser.guide, start, args.out / "whole.pt")
        run.exclude_pause()

    reports = 0
    while run.progress < 1:
        clips = joined([clips, *feed.new()])
        loss = localiser.loss(sample_windows(clips, args.batch, args.blocks, generator))
        loss.backward()
        trainee.step()
        if run.tick({"loss": loss.detach(), "clips": len(clips)}):
            reports += 1
            if reports % 6 == 0:
                save()
    save()
    run.plot()


if __name__ == "__main__":
    sys.exit(main())
