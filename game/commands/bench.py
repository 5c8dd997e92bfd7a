"""Measure how fast a world is here: every stage of a block, the whole of it, and what part of the machine that uses."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from game.options import ConsoleProgress, UsageError, is_clip, whole

if TYPE_CHECKING:
    from engine import Action, Session, WorldConfig
    from game.script import Script

BLOCKS, MAX_BLOCKS = 20, 1_000_000


def add_options(parser: argparse.ArgumentParser) -> None:
    from game.worldoptions import add_change_options, add_world_options

    add_world_options(parser.add_argument_group("the world"))
    add_change_options(parser.add_argument_group("another way than the world's own"))
    measure = parser.add_argument_group("measuring")
    blocks = f"measured blocks, after some to warm up ({BLOCKS})"
    measure.add_argument("--blocks", type=whole(1, MAX_BLOCKS), default=BLOCKS, metavar="N", help=blocks)
    measure.add_argument("--random", action="store_true", help="random weights of the world's shapes: no files are needed")
    measure.add_argument("--replay", type=Path, metavar="FILE", help="the actions of a session file or a script (each key in turn)")
    measure.add_argument("--seed", type=whole(0, 2**63 - 1), metavar="N", help="of the noise (the world's, else 0)")
    measure.add_argument("--overlap", action="store_true", help="decoder and transformer side by side, as play --headless --overlap")
    measure.add_argument(
        "--compare",
        choices=["baseline"],
        help="play a plainly written variant of the same model in turn with this one, and print the ratio",
    )
    measure.add_argument("--part", choices=["all", "transformer", "decoder"], default="all", help="with --compare: of each block only this")
    measure.add_argument("--json", action="store_true", help="numbers as JSON")


def run_for_play(args: argparse.Namespace) -> int:
    """`python play.py --bench`: the same as `reverie bench`, with those of play's options that make sense; --script is its --replay."""
    return run(argparse.Namespace(**vars(args) | dict(blocks=args.blocks or BLOCKS, random=False, compare=None, part="all")))


def run(args: argparse.Namespace) -> int:
    """Measure, and print the report."""
    args.world = args.world or "garden"
    _check(args)
    begun = time.perf_counter()
    import engine

    startup = {"import": time.perf_counter() - begun}
    from game.worldoptions import world_config

    config = world_config(args)
    choose = _actions(args, config)
    session = _open(args, config, startup)
    if args.compare is not None:
        plain = engine.Baseline(session.world, session.seed, session.start)
        found = engine.compare(session, plain, args.blocks, choose, part=args.part)
        print(json.dumps(found.to_dict(), indent=2) if args.json else found.to_text())
        return 0
    warmup = engine.SETTLE if args.blocks > 1 else 1
    begun = time.perf_counter()
    session.step()
    startup["first frame"] += time.perf_counter() - begun
    report = engine.benchmark(session, args.blocks, choose, warmup, startup, engine.ceiling_of(session), args.overlap)
    report = replace(report, **_present(session))
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.to_text())
    return 0


def _present(session: Session) -> dict[str, object]:
    """The stage that belongs to the window: its times, or why there are none. Machines without pygame measure all others."""
    import engine
    from game.presenting import NotPresented, present_seconds

    try:
        seconds, where = present_seconds(session.world.config, session.last_frame)
    except NotPresented as problem:
        return {"presented": f"not measured: {problem}"}
    return {"present": engine.stage_time(seconds), "presented": where}


def _actions(args: argparse.Namespace, config: WorldConfig) -> Callable[[int], Action] | None:
    if getattr(args, "script", None) is None:  # of play's command line only
        return None if args.replay is None else actions_of(args.replay, config)
    from game.script import read_script

    return _over_and_over(read_script(args.script, config.actions.keys))


def _over_and_over(script: Script) -> Callable[[int], Action]:
    return lambda block: script.at(block % len(script))


def actions_of(path: Path, config: WorldConfig) -> Callable[[int], Action]:
    """Block -> its action, from a session file or a script, again from the beginning when it is over. Refuses a file without any."""
    from game.script import read_script
    from game.sessionfile import looks_like_session, read_session

    if looks_like_session(path):
        actions = [block.action for block in read_session(path).blocks]
        if not actions:
            raise UsageError(f"--replay {path}: not one block was played in it")
        for action in actions:
            config.actions.check(action.keys)
        return lambda block: actions[block % len(actions)]
    return _over_and_over(read_script(str(path), config.actions.keys))


def _check(args: argparse.Namespace) -> None:
    """Whatever can be refused without loading anything."""
    if args.replay is not None and not args.replay.is_file():
        raise UsageError(f"--replay {args.replay}: {'is a folder' if args.replay.is_dir() else 'no such file'}")
    if args.start is not None and not args.start.is_file():
        raise UsageError(f"--start {args.start}: {'is a folder, not a picture' if args.start.is_dir() else 'no such file'}")
    if args.start is not None and is_clip(args.start):
        raise UsageError(f"--start {args.start}: is a clip; what is measured begins with a picture")
    if args.compare is not None and (args.decoder == "taehv" or args.context == "last" or args.linears == "float8"):
        raise UsageError("--compare holds the exact model against the exact model: leave --decoder, --context and --linears out")
    if args.part != "all" and args.compare is None:
        raise UsageError("--part goes with --compare: the report has every stage")
    if args.overlap and args.compare is not None:
        raise UsageError("--compare takes turns, --overlap does not: give one of them")
    if args.random and args.weights is not None:
        raise UsageError("--random makes the weights itself: leave --weights out")


def _open(args: argparse.Namespace, config: WorldConfig, startup: dict[str, float]) -> Session:
    """A session to measure; what each step of getting there took goes into ``startup``, in seconds."""
    from engine import World, load_picture, share_threads
    from game.worldoptions import PARTS, place_of

    progress = ConsoleProgress(config.name)
    if args.start is not None:
        load_picture(args.start, config.height, config.width)
    elif config.start is None and not args.random:
        raise UsageError(config.start_missing())
    place = place_of(args)
    begun = time.perf_counter()
    if args.random:
        world = World.untrained(config, **place)
    else:
        world = World.load(config, args.weights, progress=lambda part, done: progress(PARTS.get(part, part), done), **place)
    startup["load"] = time.perf_counter() - begun
    if args.overlap:
        share_threads(world)
    begun = time.perf_counter()
    world.warm_up(play=args.part == "all", live=True)
    startup["warm-up"] = time.perf_counter() - begun
    if args.compile:
        begun = time.perf_counter()
        world.compile(progress)
        startup["compile"] = time.perf_counter() - begun
    begun = time.perf_counter()
    random_start = args.random and args.start is None
    session = world.session(args.seed, world.random_start() if random_start else args.start, rewind_mb=0)
    startup["first frame"] = time.perf_counter() - begun
    return session
