"""Train a world's denoiser by a plan: a yaml of `training/configs`, or one of your own.

    python -m training.train garden_forcing --clips clips/ --out runs/forcing
    python -m training.train garden_dmd --clips clips/ --student runs/forcing --teacher runs/teacher --out runs/dmd
    torchrun --nproc-per-node 8 -m training.train garden_dmd …                     # the same, on eight devices
    python -m training.train published --dry-run                                   # shapes, weights, memory; needs nothing

The same command again goes on where the last checkpoint was. Its `last.pt` is what `training.export dit` takes.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch

from engine.config import WorldConfig
from models.errors import WorldError
from training.arguments import in_a_line, number
from training.dataset import Data, open_clips
from training.dryrun import dry_run
from training.journal import summary_writer
from training.objectives import OBJECTIVES, Networks
from training.parallel import Workers
from training.parts import check_vae, make_dit, make_vae
from training.plan import Plan, read_plan
from training.trainer import Trainer, TrainingError


def plan_file(name: str) -> Path:
    """The yaml of a plan by name or path. Raises WorldError for a name that there is not."""
    folder = Path(str(resources.files("training"))) / "configs"
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise WorldError(f"there is no plan {name!r}; give a yaml or one of {', '.join(names)}")
    return folder / f"{name}.yaml"


def make_networks(plan: Plan, world: WorldConfig, args: argparse.Namespace) -> Networks:
    """The networks that the objective needs, with their weights. Raises WorldError where one is not named."""
    kind = OBJECTIVES[plan.objective]
    if kind.needs_teacher and args.teacher is None:
        raise WorldError(f"the objective {plan.objective} learns from a teacher: give its weights with --teacher")
    student = make_dit(world, args.student, args.weights, plan.seed)
    teacher = make_dit(world, args.teacher, args.weights) if kind.needs_teacher else None
    critic = make_dit(world, args.critic or args.teacher, args.weights) if kind.has_critic else None
    target = make_dit(world, args.student, args.weights, plan.seed) if kind.has_target else None
    return Networks(student, teacher, critic, target)


def train(args: argparse.Namespace) -> None:
    """What the command line asks for. Raises WorldError for what cannot be done, TrainingError for what fails."""
    plan = read_plan(plan_file(args.plan))
    if args.iterations is not None:
        if args.iterations < 1:
            raise WorldError(f"--iterations {args.iterations}: at least 1, or leave it out for the plan's {plan.iterations}")
        plan = replace(plan, iterations=args.iterations)
    world = plan.world_config(args.world)
    if args.dry_run:
        print(dry_run(plan, world))
        return
    if args.clips is None:
        raise WorldError("give the clips to learn from with --clips (python -m training.encode makes them)")
    data = Data(open_clips(args.clips, world), world, plan.seed)
    if args.tensorboard:  # what the main process alone will need: nobody joins the others where it is missing
        summary_writer()
    if plan.sheet_every:
        check_vae(world, args.weights)
    workers = Workers.start(args.device)
    networks = make_networks(plan, world, args)
    vae = make_vae(world, args.weights, workers.device) if plan.sheet_every and workers.main else None
    trainer = Trainer(plan, world, networks, data, workers, args.out, vae, args.tensorboard)
    if workers.main:
        size, place = sum(p.numel() for p in networks.student.parameters()), f"{workers.count} x {workers.device.type}"
        print(f"{plan.objective}: {size / 1e6:.2f} M weights, {len(data)} clips, {place}", flush=True)
    trainer.run(args.minutes)
    workers.finish()


@in_a_line
def main() -> int:
    parser = argparse.ArgumentParser(prog="training.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="name of a plan in training/configs, or a yaml")
    parser.add_argument("--clips", type=Path, help="folder of encoded clips, or the clips.safetensors of a garden training")
    parser.add_argument("--out", type=Path, default=Path("runs/train"))
    parser.add_argument("--world", help="a world's yaml in the place of the plan's")
    parser.add_argument("--weights", type=Path, help="folder of the world's weights, where they are not bundled")
    for name, what in (("student", "fresh weights"), ("teacher", "none"), ("critic", "the teacher's")):
        text = f"weights of the {name}: 'world' for the world's own, a run's folder, a last.pt or safetensors; default: {what}"
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument("--iterations", type=int, help="instead of the plan's")
    minutes = number(0, math.inf, above=True)
    parser.add_argument("--minutes", type=minutes, default=math.inf, help="stop after so many, those before a resume included")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard files too: pip install 'reverie[tensorboard]'")
    parser.add_argument("--dry-run", action="store_true", help="print shapes, numbers of weights and memory, and train nothing")
    args = parser.parse_args()
    try:
        train(args)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
