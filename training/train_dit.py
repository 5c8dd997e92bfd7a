"""Train the garden's denoiser by teacher forcing, at the noise levels its sampler visits.

    python -m training.train_dit --vae runs/vae.safetensors --out runs/dit --minutes 60     # resumable

Every window goes through the model once as two halves side by side with the same positions: clean latents, and noisy
ones of which each block sees the clean blocks before it and itself. That is what play does one block at a time
(denoise beside cached clean keys), with a loss on every block at once. The model predicts x0.

Where a session begins, one picture is all that tells where one is, and few windows begin there: `--starts` has as many first blocks learned
beside them as one likes (docs/GARDEN.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from engine import load_config
from engine.conditioning import Windows as Rows
from models.dit import DiT
from models.flow import FlowSchedule
from training.arguments import add_device, add_seed, count, in_a_line, positive, rate, share, weight, whole
from training.common import Trainee, TrainingRun, working_dtype, working_precision
from training.dataset import Batch
from training.draws import FreshNoise
from training.guide import FIT_BATCHES, Guides
from training.latents import CLIP_BLOCKS, ClipMaker, Clips, Windows, cut_windows, joined, sample_windows
from training.learner import NOT_HIDDEN as ADAMW
from training.make_clips import open_feed
from training.objectives.forcing import robust
from training.objectives.resampling import Resampler
from training.objectives.view import View
from training.train_vae import load_garden_vae, read_scale

STEPS = load_config("garden").sampler.steps
STARTS_KEPT = 100_000  # first blocks: 2 GB
LAST_NOISE = 0.5  # of the last level, as it is learned: without any, what is to be found would stand in the question
BLOCK = 3
BEGINS = (
    0.5,
    0.3,
    0.2,
)  # how often a block of the past is played from the first, second, third pass on; from the first, all is the model's


def garden_dit() -> DiT:
    """A denoiser of the garden's sizes (configs/garden.yaml)."""
    return DiT(load_config("garden").model)


def per_block(numbers: Tensor) -> Tensor:
    """[B, blocks] as [B, 1, T, 1, 1]."""
    return numbers.repeat_interleave(BLOCK, dim=1)[:, None, :, None, None]


def drift(batch: int, blocks: int, most: float) -> Tensor:
    """How much noise each clean block gets, [B, 1, T, 1, 1]: mostly little, at most ``most``."""
    return per_block(most * torch.rand(batch, blocks).square())


def as_batch(windows: Windows, device: torch.device) -> Batch:
    """The same windows as the objectives take them."""
    rows = Rows(windows.keyboard, windows.mouse)
    return Batch(windows.latents, windows.condition, rows, windows.from_start).to(device)


class TeacherForcing:
    """One training loss over a batch of windows: the error of x0, and ``guidance`` times that of the guide."""

    def __init__(
        self, dit: DiT, guide: Guides, latents: int, device: torch.device, context_noise: float, guidance: float, compiled: bool,
        resampling: float = 0.0, scale: float = 0.0, steps: Sequence[int] = STEPS, either_noise: bool = False,
        begins: Sequence[float] = BEGINS,
    ) -> None:  # fmt: skip
        self.guide, self.guidance = guide, guidance
        self.device, self.latents, self.context_noise = device, latents, context_noise
        schedule, sampler = FlowSchedule(), load_config("garden").sampler
        self.timesteps = schedule.timesteps(steps).to(device)
        self.sigmas = schedule.sigma(self.timesteps).to(device)
        self.strengths = torch.ones(len(steps), device=device)  # of the noise at each step
        self.strengths[2 if either_noise else -1 :] = LAST_NOISE
        self.either_noise = either_noise
        self.begins = torch.tensor(begins[: len(steps)])
        self.dit = dit
        self.view = View(latents, BLOCK, dit.config.local_attn_size, "clean", device)
        self.resampling, self.scale = resampling, scale
        if resampling:
            self.resampler = Resampler(dit, steps, sampler.shift, working_dtype(device), sampler.last_noise)
        if compiled:  # layer by layer: two kinds of layer are two compilations (with first blocks besides, four), whatever the depth
            for layer in dit.blocks:
                layer.forward = torch.compile(layer.forward, dynamic=False)  # and not the call around it, which holds the guide's hook

    def __call__(self, windows: Windows, level_weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what it is made of: error of x0 per noise level, of the pose when imagining and when seeing.

        First blocks of windows cut from the middle of a session do not count.
        """
        given = as_batch(windows, self.device)
        x0 = given.latents
        batch, blocks = x0.shape[0], self.latents // BLOCK
        level = torch.multinomial(level_weights, batch * blocks, replacement=True).view(batch, blocks).to(self.device)
        sigma = per_block(self.sigmas[level])
        strength = self.strengths[level]  # [B, blocks]
        if self.either_noise:
            strength = torch.where(torch.rand_like(strength) < 0.5, 1.0, strength)
        noisy = (1 - sigma) * x0 + per_block(strength) * sigma * torch.randn_like(x0)
        amount = drift(batch, blocks, self.context_noise).to(self.device)
        clean = (self._past(given) if torch.rand(()) < self.resampling else x0) + amount * torch.randn_like(x0)
        with working_precision(self.device):
            out = self.view.x0(self.dit, noisy, self.timesteps[level].repeat_interleave(BLOCK, dim=1), sigma, given, clean)
        pose, known = windows.pose.to(self.device), self.view.known
        seen, lost = self.guide.loss(pose, known)
        saw = seen.mean() if known else seen.new_zeros(())  # who is at the start has seen nothing yet
        error = (out - x0).square().mean((1, 3, 4))  # [B, T]
        error = error.view(batch, blocks, BLOCK).mean(-1)
        counts = torch.ones_like(error)
        counts[~windows.from_start.to(self.device), 0] = 0
        report = {}
        for i, name in enumerate(f"s{float(sigma):.2f}" for sigma in self.sigmas):
            chosen = counts * (level == i)
            report[name] = (error.detach() * chosen).sum() / chosen.sum().clamp_min(1)
        lost = lost.view(batch, blocks, BLOCK).mean(-1)
        lost = (lost * counts).sum() / counts.sum()
        report |= {"pose": lost.detach(), "seen": saw.detach()}
        if self.scale:
            error = robust(error, self.scale)
        loss = (error * counts).sum() / counts.sum()
        return loss + self.guidance * (lost + saw), report

    def _past(self, given: Batch) -> Tensor:
        """The window as the model itself plays it, but the last block, which nobody sees; a fifth of the windows as they are."""
        batch, blocks = len(given.latents), self.latents // BLOCK
        begins = torch.multinomial(self.begins, blocks - 1, replacement=True).tolist()
        noise = FreshNoise(batch, self.device)
        kept = torch.rand(batch, 1, 1, 1, 1, device=self.device) < 0.2
        return torch.where(kept, given.latents, self.resampler(given, begins, noise))


@in_a_line
def main() -> None:
    layer = whole(0, load_config("garden").model.num_layers - 1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="weights written by training.export (safetensors)")
    parser.add_argument("--out", type=Path, default=Path("runs/dit"))
    parser.add_argument("--minutes", type=positive, default=60)
    parser.add_argument("--batch", type=count, default=8)
    parser.add_argument("--blocks", type=whole(2, CLIP_BLOCKS), default=5)
    parser.add_argument("--lr", type=rate, default=2e-3)
    parser.add_argument("--slow-looking", type=weight, default=1.0, help="factor on the rates up to the guided layer")
    parser.add_argument("--context-noise", type=share, default=0.3)
    parser.add_argument(
        "--resampling", type=share, default=0.0, help="share of the steps whose past the model makes; it grows for half the time"
    )
    parser.add_argument("--resampling-from", type=share, default=0.0, help="share of the time before that begins, for weights yet to mend")
    parser.add_argument("--resampling-at-once", action="store_true", help="from the first step on: for weights that are used to it")
    parser.add_argument(
        "--begins",
        type=float,
        nargs="+",
        default=list(BEGINS),
        help="how often a block of that past is played from the first pass on, the second …",
    )
    parser.add_argument("--robust", type=weight, default=0.0, help="a block's error beyond this counts as its logarithm; 0: as it is")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="noise levels as the sampler has them; else the garden's")
    parser.add_argument("--either-noise", action="store_true", help="from the third level on half of the blocks have all of their noise")
    parser.add_argument("--idle", type=share, default=1 / 16, help="share of the new clips in which one stands still")
    parser.add_argument("--guidance", type=weight, default=0.5, help="weight of the pose's error beside the picture's")
    parser.add_argument("--guided-layer", type=layer, default=5, help="whose tokens tell the pose of what they see")
    parser.add_argument("--told-layer", type=layer, default=6, help="whose tokens tell the pose of what is to be drawn")
    parser.add_argument("--first-clips", type=count, default=160, help="clips encoded before the first step")
    parser.add_argument("--grow-every", type=count, default=4, help="steps between two batches of new clips")
    parser.add_argument("--draw", type=count, default=2, help="start pictures of a batch of new clips, which has two clips of each")
    parser.add_argument("--pool", type=count, default=20000, help="only the newest so many clips are kept: each is seen equally often")
    parser.add_argument("--feed", type=Path, help="folder that training.make_clips fills: clips come from there, none are made here")
    parser.add_argument("--starts", type=Path, help="folder that make_clips --blocks 1 fills: first blocks, learned besides")
    parser.add_argument("--starts-batch", type=count, default=16, help="of them beside each step's windows")
    add_seed(parser)
    add_device(parser)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--start-from", type=Path, help="a run's folder, its last.pt, or exported safetensors")
    args = parser.parse_args()
    feed = None if args.feed is None else open_feed(parser, "--feed", args.feed)
    starts_feed = None if args.starts is None else open_feed(parser, "--starts", args.starts, 1)
    try:
        FlowSchedule().timesteps(args.steps)
    except ValueError as error:
        parser.error(f"--steps: {error}")
    if not (any(args.begins[: len(args.steps)]) and all(0 <= share < inf for share in args.begins)):
        parser.error(f"--begins {' '.join(f'{share:g}' for share in args.begins)}: shares, 0 or more, not all of them 0")
    if len(args.steps) < 2:
        parser.error(f"--steps {args.steps[0]}: name two levels or more")
    device = args.device
    starts = None if starts_feed is None else joined(starts_feed.new()).to(device)
    read_scale(args.vae)  # which nothing else may look at: with a --feed all is encoded
    run = TrainingRun(args.out, args.minutes)
    torch.manual_seed(0)  # of the fresh weights
    dit = garden_dit().to(device)
    guide = Guides(dit, args.guided_layer, args.told_layer).to(device)
    looking = [dit.patch_embedding, dit.time_embedding, dit.time_projection, *dit.blocks[: args.guided_layer + 1]]
    trainee = Trainee(
        dit, run, args.lr, args.lr / 2, 0.998, (*ADAMW, "read"), args.start_from, helper=guide, slow=looking, slowness=args.slow_looking
    )
    seed = 10_000 * args.seed + run.step
    torch.manual_seed(3000 + seed)
    generator = torch.Generator().manual_seed(4000 + seed)
    print(f"{sum(p.numel() for p in dit.parameters()) / 1e6:.2f} M parameters", flush=True)
    stored = args.out / "clips.safetensors"
    if feed is not None:
        clips = joined(feed.new()).newest(args.pool).to(device)  # windows are cut where the model is
    else:
        maker = ClipMaker(load_garden_vae(args.vae).to(device), 5000 + seed, device, not args.no_compile, args.idle)
        clips = Clips.load(stored, CLIP_BLOCKS) if stored.exists() else maker.make(2)
        while len(clips) < args.first_clips:
            clips = clips.append(maker.make(2))
            print(f"\r{len(clips)} clips", end="", flush=True)
        print()
    forcing = TeacherForcing(
        dit, guide, BLOCK * args.blocks, device, args.context_noise, args.guidance, not args.no_compile, args.resampling, args.robust,
        args.steps, args.either_noise, args.begins,
    )  # fmt: skip
    first = TeacherForcing(  # for --starts: windows of one block have no past, and the layers are compiled already
        dit, guide, BLOCK, device, 0.0, args.guidance, False, 0.0, args.robust, args.steps, args.either_noise
    )
    level_weights = torch.tensor([0.6] + [0.4 / (len(args.steps) - 1)] * (len(args.steps) - 1))

    def begin() -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of first blocks. So little work that on a GPU it is not worth compiling the layers for once more: a minute."""
        with torch.compiler.set_stance("force_eager" if device.type == "cuda" else "default"):
            return first(draw_starts(), level_weights)

    def draw_starts() -> Windows:
        pick = torch.randint(len(starts), (args.starts_batch,), generator=generator)
        return cut_windows(starts, pick, torch.zeros_like(pick), BLOCK)

    if trainee.helpless:
        forcing.resampling = args.resampling * float(args.resampling_at_once)
        with guide.fitting():  # with gradients that nobody takes: without them the layers would be compiled once more
            for _ in range(FIT_BATCHES):
                forcing(sample_windows(clips, args.batch, args.blocks, generator), level_weights)
                if starts is not None:
                    begin()
    run.exclude_pause()

    def save() -> None:
        trainee.save()
        if feed is None:
            clips.save(stored)

    reports = 0
    while run.progress < 1:
        if feed is not None:
            clips = joined([clips, *(part.to(device) for part in feed.new())]).newest(args.pool)
        elif run.step % args.grow_every == 0:
            clips = clips.append(maker.make(args.draw)).newest(args.pool)
        grown = 1.0 if args.resampling_at_once else min(1.0, 2 * max(0.0, run.progress - args.resampling_from))
        forcing.resampling = args.resampling * grown
        loss, report = forcing(sample_windows(clips, args.batch, args.blocks, generator), level_weights)
        loss.backward()
        if starts_feed is not None:
            starts = joined([starts, *(part.to(device) for part in starts_feed.new())]).newest(STARTS_KEPT)
            begun, told = begin()
            begun.backward()
            report |= {"starts": begun.detach(), "their pose": told["pose"]}
        trainee.step()
        if run.tick({"loss": loss.detach(), **report, "clips": len(clips)}):
            reports += 1
            if reports % 6 == 0:
                save()
                run.plot()
    save()
    run.plot()


if __name__ == "__main__":
    sys.exit(main())
