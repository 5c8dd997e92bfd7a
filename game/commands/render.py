"""Make the film of a session again from the session file alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from game.options import ConsoleProgress, check_record
from game.worldoptions import add_change_options, add_world_options


def add_options(parser: argparse.ArgumentParser) -> None:
    from game.commands.replay import add_snapshot_option

    parser.add_argument("file", type=Path, metavar="FILE", help="the session file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.mp4", help="the film")
    parser.add_argument("--overwrite", action="store_true", help="let --out replace what is there")
    parser.add_argument("--hud", action="store_true", help="keys, look and block number in the film, enlarged if need be")
    add_snapshot_option(parser)
    add_world_options(parser.add_argument_group("the world (a session names its own)"))
    add_change_options(parser.add_argument_group("as it was changed when the session was played"))


def run(args: argparse.Namespace) -> int:
    """The film, and whether its frames are those that were played: exit status 1 if not."""
    from game.commands.play import tell_written
    from game.commands.replay import open_replay, play_plan, spare_inputs, tell, tell_machine, world_of
    from game.recorder import film_recorder
    from game.replay import Check, Plan
    from game.sessionfile import read_session
    from game.sinks import Background

    spare_inputs(args, {"--out": args.out})
    check_record(args.out, args.overwrite, option="--out")
    file = read_session(args.file)
    plan = Plan(file)
    config = world_of(args, file)
    session = open_replay(args, plan, config, ConsoleProgress(config.name))
    best_effort = tell_machine(file, session.world)
    check = Check(plan)
    film = film_recorder(args.out, args.overwrite, lambda: file.identity, args.hud)
    sinks = [Background(check, wait=True), Background(film, wait=True)]
    interrupted = play_plan(session, config, plan, sinks)
    tell_written(sinks)
    return tell(check, file, best_effort, interrupted)
