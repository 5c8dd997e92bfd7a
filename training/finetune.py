"""Fine-tune the denoiser on its own rollouts: the real sampler, the real rings, the simulator's truth as target.

    python -m training.finetune --vae runs/vae.safetensors --start-from runs/dit --out runs/tuned --minutes 25

Each block is denoised as in play and committed; the gradient goes through one random denoising step of it, the past
(what the rings hold) is taken as it is. So the model meets its own mistakes and learns to come back from them. The
horizon grows from two blocks to the clip's nine, which is past the point where the ring of 15 latents overwrites itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from models.dit import DiT
from models.flow import FlowSchedule, add_noise
from training.common import Trainee, TrainingRun
from training.guide import PoseGuide
from training.latents import CLIP_BLOCKS, ClipMaker, Clips, Windows, cut_windows
from training.train_dit import ADAMW, BLOCK, STEPS, garden_dit
from training.train_vae import load_garden_vae


class Rollout:
    """Plays windows block by block with gradients: the error of x0 against the truth, and ``guidance`` times that of the pose."""

    def __init__(self, dit: DiT, device: torch.device, guide: PoseGuide | None = None, guidance: float = 0.0) -> None:
        self.dit, self.device, self.guide, self.guidance = dit, device, guide, guidance
        schedule = FlowSchedule()
        self.timesteps = schedule.timesteps(STEPS).to(device)
        self.sigmas = [float(s) for s in schedule.sigma(schedule.timesteps(STEPS))]

    def _pass(self, latents: Tensor, windows: Windows, cache: object, block: int, timestep: Tensor | float) -> Tensor:
        own = slice(BLOCK * block, BLOCK * (block + 1))
        x = torch.cat([latents, windows.condition[:, :, own].to(self.device)], dim=1)
        t = torch.full((x.shape[0], BLOCK), float(timestep), device=self.device)
        keyboard, mouse = windows.keyboard[:, own].to(self.device), windows.mouse[:, own].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.dit(x, t, keyboard, mouse, cache, BLOCK * block).float()

    def __call__(self, windows: Windows, blocks: int, given: int) -> dict[str, float]:
        """Backpropagates as it goes; ``given`` first blocks are the truth and only committed. Errors of the first and last block."""
        truth = windows.latents.to(self.device)
        batch, _, _, height, width = truth.shape
        cache = self.dit.new_cache(batch, height // 2, width // 2, self.device, torch.float32)
        errors = []
        for block in range(blocks):
            target = truth[:, :, BLOCK * block : BLOCK * (block + 1)]
            if block < given:
                x0 = target
            else:
                chosen = int(torch.randint(len(STEPS), ()))
                x = torch.randn_like(target)
                for step, (timestep, sigma) in enumerate(zip(self.timesteps, self.sigmas, strict=True)):
                    if step:
                        x = add_noise(x0, torch.randn_like(x0), sigma)
                    with torch.set_grad_enabled(step == chosen):
                        out = self._pass(x, windows, cache, block, timestep)
                        if step == chosen:
                            loss = (out - target).square().mean()
                            if self.guide is not None:
                                pose = windows.pose[:, BLOCK * block : BLOCK * (block + 1)].to(self.device)
                                loss = loss + self.guidance * self.guide.loss(pose).mean()
                            (loss / (blocks - given)).backward()
                    x0 = out.detach()
                errors.append(float((x0 - target).square().mean()))
            if block < blocks - 1:
                with torch.no_grad():
                    self._pass(x0, windows, cache, block, 0.0)
        return {"loss": sum(errors) / len(errors), "first": errors[0], "last": errors[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, required=True, help="a run's folder (its clips serve too), or exported safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/tuned"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--first-horizon", type=int, default=2)
    parser.add_argument("--last-horizon", type=int, default=CLIP_BLOCKS, help="blocks; the ring overwrites itself from the sixth on")
    parser.add_argument("--guidance", type=float, default=0.5, help="weight of the pose's error beside the picture's")
    parser.add_argument("--guided-layer", type=int, default=4, help="whose tokens tell the pose")
    parser.add_argument("--first-clips", type=int, default=60, help="clips encoded before the first step")
    parser.add_argument("--grow-every", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    run = TrainingRun(args.out, args.minutes)
    torch.manual_seed(0)  # of the fresh weights
    dit = garden_dit().to(device)
    guide = PoseGuide(dit, args.guided_layer).to(device)
    trainee = Trainee(dit, run, args.lr, args.lr / 2, 0.998, (*ADAMW, "read"), args.start_from, helper=guide)
    torch.manual_seed(6000 + run.step)
    generator = torch.Generator().manual_seed(7000 + run.step)
    maker = ClipMaker(load_garden_vae(args.vae).to(device), 8000 + run.step, device)
    stored = (args.out if not trainee.fresh else args.start_from) / "clips.safetensors"
    clips = Clips.load(stored) if stored.is_file() else maker.make(2)
    while len(clips) < args.first_clips:
        clips = clips.append(maker.make(2))
    rollout = Rollout(dit, device, guide, args.guidance)
    run.exclude_pause()

    def save() -> None:
        trainee.save()
        clips.save(args.out / "clips.safetensors")

    reports = 0
    while run.progress < 1:
        if run.step % args.grow_every == 0:
            clips = clips.append(maker.make(2))
        blocks = args.first_horizon + round(min(1.0, 1.6 * run.progress) * (args.last_horizon - args.first_horizon))
        pick = torch.randint(len(clips), (args.batch,), generator=generator)
        from_start = bool(torch.rand((), generator=generator) < 0.5)
        latest = CLIP_BLOCKS - blocks
        offset = 0 if from_start or latest == 0 else int(torch.randint(1, latest + 1, (), generator=generator))
        windows = cut_windows(clips, pick, torch.full((args.batch,), BLOCK * offset), BLOCK * blocks)
        report = rollout(windows, blocks, given=0 if offset == 0 else 1)
        trainee.step()
        if run.tick({**report, "blocks": blocks}):
            reports += 1
            if reports % 6 == 0:
                save()
                run.plot()
    save()
    run.plot()


if __name__ == "__main__":
    main()
