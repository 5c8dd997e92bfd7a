"""Fine-tune the denoiser on its own rollouts: the real sampler, the real rings, the simulator's truth as target.

    python -m training.finetune --vae runs/vae.safetensors --start-from runs/dit --out runs/tuned --minutes 25

Each block is denoised as in play and committed; the gradient goes through one random denoising step of it, the past
(what the rings hold) is taken as it is. So the model meets its own mistakes and learns to come back from them. The
horizon grows from two blocks to the clip's nine, which is past the point where the ring of 15 latents overwrites itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from engine import load_config
from models.dit import DiT
from training.arguments import add_device, add_seed, count, in_a_line, positive, rate, share, weight, whole
from training.common import Trainee, TrainingRun, working_dtype
from training.draws import BatchNoise
from training.guide import FIT_BATCHES, Guides, PoseGuide
from training.latents import CLIP_BLOCKS, CLIP_LATENTS, ClipMaker, Clips, Windows, cut_windows, joined
from training.make_clips import open_feed
from training.objectives.forcing import robust
from training.objectives.rollout import Rollout as SelfForcing
from training.plan import RolloutSettings
from training.train_dit import ADAMW, BLOCK, STEPS, as_batch, garden_dit
from training.train_vae import load_garden_vae, read_scale


class Rollout:
    """Plays windows block by block with gradients: the error of x0 against the truth, and ``guidance`` times that of the pose."""

    def __init__(self, dit: DiT, device: torch.device, guide: PoseGuide | None = None, guidance: float = 0.0, scale: float = 0.0) -> None:
        self.device, self.guide, self.guidance, self.scale = device, guide, guidance, scale
        settings = RolloutSettings(finish=True, gradient_latents=CLIP_LATENTS)
        sampler = load_config("garden").sampler
        self.rollout = SelfForcing(dit, STEPS, sampler.shift, settings, working_dtype(device), last_noise=sampler.last_noise)

    def __call__(self, windows: Windows, blocks: int, given: int) -> dict[str, float]:
        """Backpropagates as it goes; ``given`` first blocks are the truth and only committed. Errors of the passes with the gradient:
        all blocks', the first's and the last's."""
        batch = as_batch(windows, self.device)
        exits = torch.randint(len(STEPS), (blocks,)).tolist()
        noise = BatchNoise(torch.randint(2**62, (len(batch.latents),)).tolist())
        errors = []
        for clock, x0 in self.rollout.play(batch, exits, noise, given):
            if clock.block < given:
                continue
            own = slice(clock.start, clock.start + BLOCK)
            each = (x0 - batch.latents[:, :, own]).square().mean((1, 2, 3, 4))  # [B]
            error = each.mean()
            loss = robust(each, self.scale).mean() if self.scale else error
            if self.guide is not None:
                loss = loss + self.guidance * self.guide.loss(windows.pose[:, own].to(self.device)).mean()
            (loss / (blocks - given)).backward()
            errors.append(error.item())
        return {"loss": sum(errors) / len(errors), "first": errors[0], "last": errors[-1]}


@in_a_line
def main() -> None:
    layer = whole(0, load_config("garden").model.num_layers - 1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, required=True, help="a run's folder (its clips serve too), or exported safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/tuned"))
    parser.add_argument("--minutes", type=positive, default=25)
    parser.add_argument("--batch", type=count, default=12)
    parser.add_argument("--lr", type=rate, default=6e-4)
    parser.add_argument("--first-horizon", type=whole(1, CLIP_BLOCKS), default=2)
    parser.add_argument(
        "--last-horizon", type=whole(1, CLIP_BLOCKS), default=CLIP_BLOCKS, help="blocks; the ring overwrites itself from the sixth on"
    )
    parser.add_argument("--robust", type=weight, default=0.0, help="a block's error beyond this counts as its logarithm; 0: as it is")
    parser.add_argument("--guidance", type=weight, default=0.5, help="weight of the pose's error beside the picture's")
    parser.add_argument("--guided-layer", type=layer, default=5, help="as train_dit has it: that guide is kept and not asked")
    parser.add_argument("--told-layer", type=layer, default=6, help="whose tokens tell the pose of what is to be drawn")
    parser.add_argument("--first-clips", type=count, default=60, help="clips encoded before the first step")
    parser.add_argument("--grow-every", type=count, default=3, help="steps between two batches of new clips")
    parser.add_argument("--draw", type=count, default=2, help="start pictures of a batch of new clips, which has two clips of each")
    parser.add_argument("--pool", type=count, default=480, help="only the newest so many clips are kept: each is seen equally often")
    parser.add_argument("--feed", type=Path, help="folder that training.make_clips fills: clips come from there, none are made here")
    parser.add_argument("--idle", type=share, default=1 / 16, help="share of the new clips in which one stands still")
    add_seed(parser)
    add_device(parser)
    args = parser.parse_args()
    if args.last_horizon < args.first_horizon:
        parser.error(f"--last-horizon {args.last_horizon}: not below --first-horizon, which is {args.first_horizon}")
    feed = None if args.feed is None else open_feed(parser, "--feed", args.feed)
    device = args.device
    read_scale(args.vae)  # which nothing else may look at: with a --feed all is encoded
    run = TrainingRun(args.out, args.minutes)
    torch.manual_seed(0)  # of the fresh weights
    dit = garden_dit().to(device)
    guide = Guides(dit, args.guided_layer, args.told_layer).to(device)
    trainee = Trainee(dit, run, args.lr, args.lr / 2, 0.998, (*ADAMW, "read"), args.start_from, helper=guide)
    seed = 10_000 * args.seed + run.step
    torch.manual_seed(6000 + seed)
    generator = torch.Generator().manual_seed(7000 + seed)
    if feed is not None:
        clips = joined(feed.new())
    else:
        maker = ClipMaker(load_garden_vae(args.vae).to(device), 8000 + seed, device, idle=args.idle)
        stored = (args.out if not trainee.fresh else args.start_from) / "clips.safetensors"
        clips = Clips.load(stored, CLIP_BLOCKS) if stored.is_file() else maker.make(2)
        while len(clips) < args.first_clips:
            clips = clips.append(maker.make(2))
    rollout = Rollout(dit, device, guide.told, args.guidance, args.robust)

    def played(blocks: int) -> dict[str, float]:
        """One rollout over windows of so many blocks, and its gradients."""
        pick = torch.randint(len(clips), (args.batch,), generator=generator)
        from_start = bool(torch.rand((), generator=generator) < 0.5)
        latest = CLIP_BLOCKS - blocks
        offset = 0 if from_start or latest == 0 else int(torch.randint(1, latest + 1, (), generator=generator))
        windows = cut_windows(clips, pick, torch.full((args.batch,), BLOCK * offset), BLOCK * blocks)
        return rollout(windows, blocks, given=0 if offset == 0 else 1)

    if trainee.helpless:
        with guide.told.fitting():
            for _ in range(FIT_BATCHES):
                played(args.first_horizon)
        dit.zero_grad(), guide.zero_grad()
    run.exclude_pause()

    def save() -> None:
        trainee.save()
        if feed is None:
            clips.save(args.out / "clips.safetensors")

    reports = 0
    while run.progress < 1:
        if feed is not None:
            clips = joined([clips, *feed.new()])
        elif run.step % args.grow_every == 0:
            clips = clips.append(maker.make(args.draw)).newest(args.pool)
        blocks = args.first_horizon + round(min(1.0, 1.6 * run.progress) * (args.last_horizon - args.first_horizon))
        report = played(blocks)
        trainee.step()
        if run.tick({**report, "blocks": blocks}):
            reports += 1
            if reports % 6 == 0:
                save()
                run.plot()
    save()
    run.plot()


if __name__ == "__main__":
    sys.exit(main())
