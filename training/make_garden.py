"""Make the garden, or a better one, from nothing: every stage in turn, each within its own budget of minutes.

    python -m training.make_garden --out runs/garden                        # 6 hours on a processor, 30 minutes on a large GPU
    python -m training.make_garden --out runs/garden --from-shipped         # goes on from what is in the box: no VAE, shorter
    python -m training.make_garden --out runs/garden --minutes forcing=90 rollout=45

Stages: vae, streams (the VAE on long clips), clips (walks are drawn and encoded), starts (first blocks of many more), places (the first
layers learn where they stand), forcing, rollout, decoder (on imagined latents), then the evaluation of what came of it beside what is
shipped. 0 minutes leave a stage out; rollouts on the truth are left out unless asked for, because they bring the model nearer to the truth
and make its pictures softer; so are places on top of what is shipped: it has learned them, and after them the layers that follow must
learn to draw again, for two hours (docs/GARDEN.md). The same command again goes on where the last one stopped, in the middle of a stage if
need be. What it makes is a world: `python play.py --world runs/garden/garden.yaml`. Its weights are in files of at most 16 MiB; what a
stage keeps for itself, such as `last.pt` with its averages and the optimiser's numbers, is larger.

A stage's minutes are those of its steps: reading, fitting and compiling come on top, a minute or so for each stage on a GPU, for which its
budgets leave room in the half hour. Of what is set for a GPU, clips, starts and forcing have been run on one (an H200, for minutes:
docs/GARDEN.md); the rest is a plan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from engine.worldfile import asset_folder
from training.arguments import LAST_SEED, add_seed, whole

SHIPPED = asset_folder() / "garden"
STAGES = ("vae", "streams", "clips", "starts", "places", "forcing", "rollout", "decoder")
MINUTES = {"cpu": (45, 10, 45, 12, 45, 185, 0, 15), "cuda": (5, 1, 3, 1, 2, 9, 0, 2)}  # no rollouts unless asked for: see docs/GARDEN.md
SHORTER = {"cpu": (0, 0, 35, 12, 0, 100, 0, 15), "cuda": (0, 0, 4, 1, 0, 17, 0, 2)}  # on top of what is shipped
OPTIONS = {
    "cpu": {
        "vae": "--batch 3 --frames 9",
        "streams": "--batch 1 --frames 41 --lr 5e-4 --no-compile",
        "clips": "--idle 0.12 --turning 0.1",
        "starts": "--idle 0.08 --blocks 1 --walks 1 --draw 16 --shard 800",
        "places": "",
        "forcing": "--resampling 0.7",
        "rollout": "--pool 480 --grow-every 3 --batch 8 --first-horizon 3 --idle 0.2 --robust 0.1",
        "decoder": "",
    },
    "cuda": {
        "vae": "--batch 16 --frames 13",
        "streams": "--batch 4 --frames 41 --lr 5e-4 --no-compile",
        "clips": "--idle 0.1 --turning 0.3 --draw 32 --shard 128 --no-compile",
        "starts": "--idle 0.08 --blocks 1 --walks 1 --draw 128 --shard 1024 --no-compile",
        "places": "--batch 64",
        "forcing": "--batch 160 --blocks 6 --starts-batch 160 --resampling 0.7 --context-noise 0.2",
        "rollout": "--batch 48 --pool 4000 --grow-every 1 --draw 6 --first-horizon 3 --idle 0.2 --robust 0.1",
        "decoder": "",
    },
}
TRAINED = {  # for weights that know the garden: what those from nothing learn at, they only shake at
    "cpu": ("--lr", "5e-4", "--robust", "0.03"),
    "cuda": ("--lr", "1.2e-3", "--robust", "0.05"),
}
USED_TO = {  # and for those that have learned where they stand and seen what they make
    "cpu": ("--resampling-at-once", "--slow-looking", "0.5"),
    "cuda": ("--resampling-at-once", "--slow-looking", "0.7"),
}
PLACED = ("--guidance", "1", "--slow-looking", "0.25", "--resampling-from", "0.2")  # after places: to forget nothing, to draw first
ALONE = {  # forcing that draws its own clips
    "cpu": ("--pool", "480", "--grow-every", "3", "--idle", "0.12"),
    "cuda": ("--pool", "4000", "--grow-every", "1", "--draw", "8", "--idle", "0.12"),
}
GUIDED = {"cpu": ("--guidance", "1"), "cuda": ("--guidance", "2")}
MANY = "60000"  # clips kept: a GPU makes more than a training keeps by itself
MODULES = {
    "vae": "train_vae", "streams": "train_vae", "clips": "make_clips", "starts": "make_clips", "places": "localise",
    "forcing": "train_dit", "rollout": "finetune", "decoder": "train_decoder",
}  # fmt: skip
COMPARED = (  # table, number, whether more is better
    ("faithful", "psnr_1s", True), ("faithful", "psnr_4s", True), ("faithful", "psnr_16s", True), ("faithful", "idle_16s", True),
    ("obedient", "share", True), ("obedient", "share_at_once", True), ("turning", "psnr_to_start", True), ("quiet", "mean_drift", False),
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A command of this repository, and what of it the reader is told."""

    name: str
    arguments: tuple[str, ...]

    def run(self) -> None:
        print(f"\n== {self.name}: python -m {' '.join(self.arguments)}", flush=True)
        status = subprocess.run([sys.executable, "-m", *self.arguments]).returncode
        if status:
            raise SystemExit(f"make_garden: {self.name} ended with status {status}; the same command goes on from there")


def plan(out: Path, device: str, minutes: dict[str, float], from_shipped: bool, seed: int = 0) -> list[Job]:
    """What is to be run, in order. ``minutes`` by stage; a stage without any is left out. Raises ValueError if nothing would be left."""
    jobs: list[Job] = []
    left = [stage for stage in STAGES if minutes[stage] > 0]
    if from_shipped:
        left = [stage for stage in left if stage not in ("vae", "streams")]
    if "forcing" not in left:  # which they are for
        left = [stage for stage in left if stage != "starts"]
    if not left:
        raise ValueError("every stage has 0 minutes: nothing to do")
    if not from_shipped and not {"vae", "forcing"} <= set(left):
        raise ValueError("a garden from nothing needs minutes for vae and forcing; --from-shipped goes on from what is in the box")
    if "places" in left and not {"clips", "forcing"} <= set(left):
        raise ValueError("places are learned from clips, and after them comes forcing: give all three minutes, or places none")

    def train(stage: str, *given: str) -> None:
        common = ("--out", str(out / stage), "--minutes", f"{minutes[stage]:g}", "--device", device)
        jobs.append(Job(stage, (f"training.{MODULES[stage]}", *given, *common, *OPTIONS[device][stage].split())))

    vae, dit = SHIPPED / "vae.safetensors", SHIPPED / "dit.safetensors"
    ours, scale = out / "vae.safetensors", ("--keep-scale", str(vae))
    if "vae" in left:
        train("vae")
        last = out / "vae"
        if "streams" in left:
            train("streams", "--start-from", str(out / "vae"))
            last = out / "streams"
        vae = out / "first-vae.safetensors"
        jobs.append(Job("export", ("training.export", "vae", str(last / "last.pt"), str(vae))))
        scale = ("--keep-scale", str(vae))
    feed: tuple[str, ...] = ()
    if "clips" in left:
        train("clips", "--vae", str(vae), "--seed", str(seed))
        feed = ("--feed", str(out / "clips"))
    if "starts" in left:
        train("starts", "--vae", str(vae), "--seed", str(seed + 2))
    for number, stage in enumerate(("places", "forcing", "rollout")):
        if stage in left:
            begin = ("--start-from", str(dit)) if dit != SHIPPED / "dit.safetensors" or from_shipped else ()
            if stage == "forcing":
                begin += (TRAINED[device] if from_shipped else ()) + (PLACED if "places" in left else GUIDED[device])
                begin += USED_TO[device] if from_shipped and "places" not in left else ()
                begin += ("--starts", str(out / "starts")) if "starts" in left else ()
                begin += ("--pool", MANY) if feed and device == "cuda" else ()
            if stage != "places":
                begin += ("--vae", str(vae))
            walks = feed or (() if stage == "rollout" else ALONE[device])
            train(stage, *begin, *walks, "--seed", str(seed + number))
            dit = out / stage if stage != "places" else out / stage / "whole.pt"
    if "decoder" in left:
        walks = ("--clips", str(out / "clips")) if feed else ()
        train("decoder", "--vae", str(vae), "--dit", str(dit), *walks)
        jobs.append(Job("export", ("training.export", "vae", str(out / "decoder" / "last.pt"), str(ours), *scale)))
    if dit.suffix != ".safetensors":
        jobs.append(Job("export", ("training.export", "dit", str(dit / "last.pt"), str(out / "dit.safetensors"))))
    return jobs


def write_world(out: Path) -> Path:
    """The yaml of what was made: the garden with these weights and this scale of its latents. Returns its path."""
    from training.train_vae import read_scale

    own: dict[str, list[str]] = {}
    settings: dict[str, object] = {"extends": "garden", "title": f"The garden, as made in {out.name}", "weights": own}
    for part in ("dit", "vae"):
        shards = sorted(out.glob(f"{part}-*-of-*.safetensors")) or [out / f"{part}.safetensors"]
        if part == "vae" and not shards[0].exists():
            shards = [out / "first-vae.safetensors"]
        if shards[0].exists():
            own[part] = [file.name for file in shards]
    if "vae" in own:
        mean, std = read_scale(out / own["vae"][0])
        settings["vae"] = {"latents_mean": mean, "latents_std": std}
    path = out / "garden.yaml"
    path.write_text("# Written by training.make_garden.\n" + yaml.safe_dump(settings, sort_keys=False))
    return path


def old_against_new(old: dict, new: dict) -> str:
    """A line for each number that both evaluations have, with the better one marked."""
    lines = [f"{'':28}{'shipped':>10}{'made':>10}"]
    for table, number, more in COMPARED:
        before, after = (report.get(table, {}).get(number) for report in (old, new))
        if before is None or after is None:
            continue
        better = after > before if more else after < before
        mark = "" if after == before else "better" if better else "worse"
        lines.append(f"{table + ' ' + number:28}{before:10.3f}{after:10.3f}  {mark}")
    for look in ("sharpness", "edges", "contrast", "saturation"):
        before, after = (report.get("stable", {}).get(look, {}).get("ratio") for report in (old, new))
        if before is not None and after is not None:
            mark = "" if after == before else "better" if abs(after - 1) < abs(before - 1) else "worse"
            lines.append(f"{'stable ' + look:28}{before:10.3f}{after:10.3f}  {mark}")
    return "\n".join(lines)


def budgets(words: Sequence[str], device: str, from_shipped: bool) -> dict[str, float]:
    """Minutes of each stage: the device's, with what ``words`` such as ``forcing=90`` say instead. Raises ValueError."""
    found = dict(zip(STAGES, map(float, (SHORTER if from_shipped else MINUTES)[device]), strict=True))
    for word in words:
        stage, _, value = word.partition("=")
        if stage not in found:
            raise ValueError(f"--minutes {word}: the stages are {', '.join(STAGES)}, as in forcing=90")
        try:
            minutes = float(value)
        except ValueError:
            minutes = -1.0
        if not 0 <= minutes < 1e5:
            raise ValueError(f"--minutes {word}: {value!r} is no number of minutes")
        found[stage] = minutes
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/garden"))
    parser.add_argument("--minutes", nargs="+", default=[], metavar="STAGE=N", help="other budgets than the device's own")
    parser.add_argument("--from-shipped", action="store_true", help="go on from the weights in assets/garden")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add_seed(parser, "other walks", LAST_SEED - 2)  # which the starts have
    parser.add_argument("--starts", type=whole(0), default=32, help="of the evaluation; 0 leaves it out")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    args = parser.parse_args(argv)
    try:
        jobs = plan(args.out, args.device, budgets(args.minutes, args.device, args.from_shipped), args.from_shipped, args.seed)
    except ValueError as error:
        parser.error(str(error))
    if args.dry_run:
        for job in jobs:
            print(f"python -m {' '.join(job.arguments)}")
        return 0
    for job in jobs:
        job.run()
    world = write_world(args.out)
    if args.starts:
        reports = [args.out / "shipped.json", args.out / "report.json"]
        common = ("--starts", str(args.starts), "--device", args.device)
        Job("evaluation of what is shipped", ("training.evaluate", "--json", str(reports[0]), "--missing", *common)).run()
        made = ("training.evaluate", "--world", str(world), "--json", str(reports[1]), "--sheet", str(args.out / "sheet.png"))
        Job("evaluation of what was made", (*made, *common)).run()
        print(old_against_new(*(json.loads(path.read_text()) for path in reports)))
    print(f"python play.py --world {world}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
