"""Measure the shipped garden against the simulator: obedience, faithfulness, stability, speed.

    python -m training.evaluate                       # everything, as a table; more than an hour on two cores
    python -m training.evaluate --only faithful --starts 8
    python -m training.evaluate --only stable --sheet docs/garden_sheet.png

The measures are in `training/measures.py`. With `--json` the tables go to a file that says which weights and which sampler they are of;
measures that were left out stay in it as they were, if they are of the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from engine import World, load_config
from engine.config import DTYPES
from models.errors import WorldError, one_line
from training import measures
from training.arguments import check_file, count, in_a_line, positive, whole
from training.pictures import compare_sheet, contact_sheet, film


def read_tables(path: Path) -> measures.Table:
    """What an evaluation wrote at ``path``; nothing if it is not there. Raises WorldError for what no evaluation wrote."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError):
        found = None
    if not (isinstance(found, dict) and {"weights", "sampler", "dtype"} <= set(found)):
        raise WorldError(f"--json {one_line(path, 200)} is there and is no evaluation: name another file")
    return found


def check_world(world: World) -> None:
    """Raises WorldError for a world that the simulator does not show: of another size or rate, or with other keys."""
    config, garden = world.config, load_config("garden")
    ours, theirs = ((c.width, c.height, c.fps, c.actions) for c in (config, garden))
    if ours != theirs:
        size = f"{config.width}x{config.height} at {config.fps} frames a second"
        raise WorldError(f"{config.name} is no garden ({size}, or its keys): what is measured is a world against the garden's simulator")


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="garden")
    parser.add_argument("--weights", help="folder of other weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="numbers to compute in; auto: bfloat16 where that is native")
    parser.add_argument("--starts", type=count, default=64)
    parser.add_argument("--choose", type=int, metavar="SEED", help="faithful on other starts, to choose weights by: 900000 to 989000")
    parser.add_argument("--minutes", type=positive, nargs="+", default=[10, 30], help="walks whose second half is looked at")
    parser.add_argument("--other-walks", type=whole(0), default=2, help="as long as the first: what one passes decides its sharpness")
    parser.add_argument("--quiet-minutes", type=positive, default=2, help="how long to stand still")
    parser.add_argument("--only", choices=("fast", "faithful", "many", "obedient", "turning", "quiet", "stable", "none"), action="append")
    parser.add_argument("--missing", action="store_true", help="with --json: only what is not in it yet")
    parser.add_argument("--sheet", type=Path, help="contact sheet of the stability walk: ten seconds, a minute, all of it")
    parser.add_argument("--compare-sheet", type=Path, help="contact sheet of walks, simulator above world")
    parser.add_argument("--film", type=Path, help="animated GIF of a walk")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.choose is not None and not 900_000 <= args.choose <= 989_000:
        parser.error(f"--choose {args.choose}: 900000 to 989000; trainers and the evaluation have the seeds below and above")
    if args.choose is not None and (args.json or args.only != ["faithful"]):
        parser.error("--choose goes with --only faithful, and without --json, which is of the starts that nothing was chosen by")
    check_file("--json", args.json, ".json")
    for option, path in (("--sheet", args.sheet), ("--compare-sheet", args.compare_sheet)):
        check_file(option, path, ".png")
    check_file("--film", args.film, ".gif")
    before = {} if args.json is None else read_tables(args.json)
    world = World.load(args.world, weights=args.weights, device=args.device, dtype=args.dtype)
    check_world(world)

    def stable() -> measures.Table:
        tables, kept = measures.stable(world, args.minutes)
        if args.sheet:
            contact_sheet(kept, 8, args.sheet)
        found: measures.Table = {"minutes": args.minutes[0], **tables[0]}
        for number in range(1 + args.other_walks):
            walk = f"walk {number + 1}" if number else ""
            tables = measures.stable(world, args.minutes, number)[0] if number else tables
            names = (walk, *(f"{walk} after {m:g} min".strip() for m in args.minutes[1:]))
            for name, table in zip(names, tables, strict=True):
                if name:  # of the first walk the first table is there already
                    found[name] = {part: ratio["ratio"] for part, ratio in table.items()}
        return found

    def quiet() -> measures.Table:
        table = {"starts": args.starts, **measures.quiet(world, args.starts, args.quiet_minutes)}
        if not world.config.sampler.hold_still:
            return table
        config, few = load_config(args.world, {"sampler.hold_still": False}), max(1, args.starts // 8)
        free = measures.quiet(World.load(config, weights=args.weights, device=args.device, dtype=args.dtype), few, args.quiet_minutes)
        return table | {f"{name}_if_remembered": value for name, value in ({"starts": few} | free).items()}

    parts: dict[str, Callable[[], measures.Table]] = {
        "fast": lambda: measures.fast(world),
        "faithful": lambda: {"starts": args.starts, **measures.faithful(world, args.starts, seed=args.choose or measures.SEED)},
        "many": lambda: measures.many(world, args.starts),
        "obedient": lambda: {"starts": args.starts, **measures.obedient(world, args.starts)},
        "turning": lambda: {"starts": args.starts, **measures.turning(world, args.starts)},
        "quiet": quiet,
        "stable": stable,
    }
    played = {"weights": world.weight_hashes(), "sampler": asdict(world.config.sampler), "dtype": str(world.dtype).removeprefix("torch.")}
    played = json.loads(json.dumps(played))  # tuples become lists
    result: dict[str, object] = dict(played)
    if before:
        result |= before if all(before.get(name) == value for name, value in played.items()) else {}
    for name, measure in parts.items():
        if (args.only and name not in args.only) or (args.missing and name in result):
            continue
        begun = time.monotonic()
        table = result[name] = measure()
        print(f"\n{name}  ({time.monotonic() - begun:.0f} s)")
        for key, value in table.items():
            print(f"  {key:24s} {value}", flush=True)
        if args.json:
            part = args.json.with_suffix(".part")
            part.write_text(json.dumps(result, indent=1) + "\n")
            os.replace(part, args.json)
    if args.compare_sheet:
        compare_sheet(world, args.compare_sheet)
    if args.film:
        film(world, args.film)


if __name__ == "__main__":
    sys.exit(main())
