"""Play a session file (or a script of actions) again: in the window, headless, or to compare every frame with its hash."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from game.names import film_beside, session_beside
from game.options import ConsoleProgress, Parser, UsageError, check_new, check_record, refuse_given, refuse_inputs, whole
from game.worldoptions import DTYPES, PARTS, add_change_options, add_world_options, place_of, world_config

if TYPE_CHECKING:
    from engine import World, WorldConfig
    from game.replay import Check, Plan, ReplaySession
    from game.sessionfile import SessionFile
    from game.sessionheader import Header
    from game.sinks import Background


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a session (walk.session.jsonl) or a script (walk.txt)")
    parser.add_argument("--verify", action="store_true", help="no window: compute every frame again and compare hashes, block by block")
    parser.add_argument("--headless", action="store_true", help="no window, as fast as it goes")
    parser.add_argument("--record", type=Path, metavar="FILE.mp4", help="film it, and write FILE.session.jsonl beside it")
    parser.add_argument("--record-hud", action="store_true", help="with --record: keys, look and block number in the film")
    parser.add_argument("--export", type=Path, metavar="FILE.txt", help="only write the session's actions as a script")
    parser.add_argument(
        "--film", type=Path, metavar="FILE.mp4", help="the session's film, to say how far pictures are apart (the one beside it)"
    )
    add_snapshot_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="let --record and --export replace what is there")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), metavar="N", help="for a script; a session has its own (0)")
    add_world_options(parser.add_argument_group("the world (a session names its own)"))
    add_change_options(parser.add_argument_group("as it was changed when the session was played"))


def add_snapshot_option(parser: argparse.ArgumentParser) -> None:
    text = "a snapshot that was loaded in the session; as often as needed"
    parser.add_argument("--snapshot", type=Path, action="append", default=[], metavar="FILE", help=text)


def run(args: argparse.Namespace) -> int:
    """What the options ask for; the exit status: 1 if a frame differs from what was recorded."""
    from game.sessionfile import looks_like_session, read_session

    if not args.file.is_file():
        raise UsageError(f"{args.file}: {'is a folder, not a session or a script' if args.file.is_dir() else 'no such file'}")
    if not looks_like_session(args.file):
        return _run_script(args)
    if args.seed is not None:
        raise UsageError("--seed goes with a script: a session has its own")
    spare_inputs(args, {"--export": args.export, "--record": args.record})
    if args.export is not None:
        refuse_given("--export only writes the script: leave {} out", {"--verify": args.verify, "--record": args.record})
        check_new("--export", args.export, args.overwrite)
        return _export(args.export, read_session(args.file))
    if args.record_hud and args.record is None:
        raise UsageError("--record-hud goes with --record")
    if args.verify and args.record is not None:
        raise UsageError("--verify writes nothing; --headless --record compares as well")
    if args.record is not None:
        check_record(args.record, args.overwrite, session_beside(args.record))
    return _replay(args, read_session(args.file))


def spare_inputs(args: argparse.Namespace, outputs: dict[str, Path | None]) -> None:
    """Refuse to write over what is read: by one of the ``outputs`` or the session file beside a film of --record."""
    inputs = {"the session": args.file, "--start": args.start, "--film": getattr(args, "film", None)}
    inputs |= {"--world": args.world if (args.world or "").endswith((".yaml", ".yml")) else None}  # else a name
    film = outputs.get("--record")
    outputs = outputs | {"--record, whose session file is": film and session_beside(film)}
    for snapshot in (None, *args.snapshot):
        refuse_inputs(outputs, inputs | {"--snapshot": snapshot})


def run_for_play(args: argparse.Namespace) -> int:
    """`python play.py --replay FILE`: the same as `reverie replay FILE`, with those of play's options that make sense."""
    from game.commands import serve

    others = {"--script": args.script, "--blocks": args.blocks, "--seed": args.seed, "--session": args.session, "--dump": args.dump}
    others |= {"--bench": args.bench, "--list": args.list, "--json": args.json, "--fetch": args.fetch, "--load": args.load}
    others |= {"--actions": args.actions, "--serve": args.serve, "--overlap": args.overlap, "--rewind-mb": args.rewind_mb}
    refuse_given("--replay does not go with {}", others | serve.own_options(args))
    return run(argparse.Namespace(**vars(args) | dict(file=args.replay, verify=False, export=None, film=None, snapshot=[], seed=None)))


def _run_script(args: argparse.Namespace) -> int:
    """A script is played by playing."""
    from game.commands import play

    if args.verify or args.export or args.snapshot or args.film:
        raise UsageError(f"{args.file}: is no session file: there is nothing to verify or to export in a script")
    parser = Parser(allow_abbrev=False)
    play.add_options(parser)
    unasked = vars(parser.parse_args([]))
    same = {option: value for option, value in vars(args).items() if option in unasked}  # what both have; none can be forgotten here
    return play.run(argparse.Namespace(**unasked | same | {"script": str(args.file), "replay": None}))


def _export(path: Path, file: SessionFile) -> int:
    """The line of play that led to the session's end, as a script; what was rewound is not in it."""
    from game.script import write_script

    line = file.lineage(file.blocks[-1].epoch) if file.blocks else []
    if not line:
        raise UsageError(f"{file.path}: not one block was played in it")
    comments = [f"from {file.path.name}: world {ascii(file.header['world'])[:60]}, seed {file.header['seed']}"]
    if line[0].index:
        comments.append(f"began from a snapshot, at block {line[0].index}")
    path.write_text(write_script((block.action for block in line), comments), encoding="utf-8")
    print(f"written: {path} ({len(line)} blocks)")
    return 0


def _replay(args: argparse.Namespace, file: SessionFile) -> int:
    from game.replay import Check, Plan
    from game.sessionheader import Header
    from game.sinks import Background

    plan = Plan(file)
    config = world_of(args, file)
    header = Header()
    check = Check(plan, film_of(args.film, file))
    sinks = [Background(check, wait=True), *_recording(args, plan, header)]
    if args.verify or args.headless:
        session = open_replay(args, plan, config, ConsoleProgress(config.name), header)
        best_effort = tell_machine(file, session.world)
        if args.verify and not best_effort:  # the first different block says it all
            check.stop = True
        interrupted = play_plan(session, config, plan, sinks)
    else:
        best_effort, interrupted = _watch(args, plan, config, header, sinks)
    from game.commands.play import tell_written

    tell_written(sinks[1:])
    return tell(check, file, best_effort, interrupted)


def _recording(args: argparse.Namespace, plan: Plan, header: Header) -> list[Background]:
    from game.recorder import film_recorder
    from game.sessionsink import SessionSink
    from game.sinks import Background

    if args.record is None:
        return []
    session = SessionSink(session_beside(args.record), header.get, args.overwrite, plan.original)
    film = Background(film_recorder(args.record, args.overwrite, header.identity, args.record_hud), wait=True)
    return [Background(session, wait=True), film]


def _watch(args: argparse.Namespace, plan: Plan, config: WorldConfig, header: Header, sinks: list[Background]) -> tuple[bool, bool]:
    """Play it in the window; whether another machine recorded it, and whether Ctrl-C ended it."""
    from game.player import Game
    from game.window import NoDisplay, Window

    try:
        window = Window("Reverie")
    except NoDisplay as problem:
        raise UsageError(f"no display ({problem}): use --verify, or --headless --record FILE.mp4") from None
    console = ConsoleProgress(config.name)
    machines: list[bool] = []
    interrupted = False

    def open_session(report) -> ReplaySession:
        session = open_replay(args, plan, config, lambda what, part: (console(what, part), report(what, part)), header)
        machines.append(tell_machine(plan.file, session.world))
        return session

    try:
        Game(window, config, open_session, plan, len(plan), sinks, replay=True).run()
    except KeyboardInterrupt:  # the sinks are closed all the same
        interrupted = True
    finally:
        window.close()
    return any(machines), interrupted


# ---- what `render` uses too


def world_of(args: argparse.Namespace, file: SessionFile) -> WorldConfig:
    """The world to play the session in: the one the user names, or the bundled one of the session's name."""
    from engine import list_worlds
    from game.sessionheader import check_settings

    name = file.header["world"]
    if args.world is None and name not in list_worlds():  # a name out of a file is compared, never opened
        raise UsageError(f"{file.path}: its world {ascii(name)[:60]} is not a bundled one; give the world's yaml with --world FILE")
    config = world_config(args, args.world or name)
    check_settings(file, config)
    return config


def film_of(given: Path | None, file: SessionFile) -> Path | None:
    """The session's film: the one given, or the one beside it if it says that it is."""
    from game.film import inspect_film

    if given is not None and not given.is_file():
        raise UsageError(f"--film {given}: no such file")
    path = given or film_beside(file.path)
    if not path.is_file():
        return None
    film = inspect_film(path)
    if film.identity == file.identity and not film.hud:
        return path
    if given is not None and film.identity == file.identity:
        raise UsageError(f"--film {given}: has the HUD in it (--record-hud): nothing to compare pictures with")
    if given is not None:
        raise UsageError(f"--film {given}: is not the film of {file.path}")
    return None


def open_replay(args: argparse.Namespace, plan: Plan, config: WorldConfig, progress: Any, header: Header | None = None) -> ReplaySession:
    """Load the world, check that it is the session's, and begin."""
    from engine import Snapshot, World
    from game.replay import ReplaySession
    from game.sessionfile import SessionError, past_of
    from game.sessionheader import check_weights, replay_header, start_of

    pin_as_recorded(plan.file)
    world = World.load(
        config,
        weights=args.weights,
        progress=lambda part, done: progress(PARTS.get(part, part), done),
        **place_of(args) | {"dtype": args.dtype or _dtype_of(plan.file)},
    )
    if args.compile:
        world.compile(progress)
    progress("hashes", 0.0)
    check_weights(plan.file, world)
    progress("start picture", 0.0)
    start, past = start_of(plan.file, world, args.start), past_of(plan.file.header)
    snapshots = {snapshot.sha256: snapshot for snapshot in (Snapshot.load(path, world) for path in args.snapshot)}
    begun = plan.file.header["start"].get("snapshot")
    if begun is None:
        session = world.session(plan.file.header["seed"], start, past)
    elif begun in snapshots:
        session = world.resume(snapshots[begun])
    else:
        raise SessionError(f"{plan.file.path}: goes on from a snapshot (sha256 {begun[:12]}…); give its file with --snapshot FILE")
    if header is not None:
        header.fields = replay_header(plan.file, world)
    progress("start picture", 1.0)
    return ReplaySession(session, plan, start, snapshots, past)


def _dtype_of(file: SessionFile) -> str | None:
    """The dtype the session was played in, if this program knows it."""
    return file.header["dtype"] if file.header["dtype"] in DTYPES else None


def pin_as_recorded(file: SessionFile) -> None:
    """Compute with as many threads as the session did, if it was on such a processor."""
    from engine import pin_threads, processor

    there = file.header["fingerprint"]
    threads = there.get("threads")
    if there.get("processor") == processor() and type(threads) is int and 1 <= threads <= 256:
        pin_threads(threads)


def tell_machine(file: SessionFile, world: World) -> bool:
    """Whether another machine recorded the session; if so, that is said."""
    from game.sessionheader import other_machine

    different = other_machine(file, world)
    if different:
        print(f"reverie: best effort, for this machine is another one: {'; '.join(different[:4])}", file=sys.stderr)
    return bool(different)


def play_plan(session: ReplaySession, config: WorldConfig, plan: Plan, sinks: list[Background]) -> bool:
    """Headless, into the sinks, until the plan is over or a check has seen enough; whether Ctrl-C ended it before."""
    from game.headless import play_headless

    tally = play_headless(session, config, plan, len(plan), sinks, stop=lambda: any(getattr(sink.sink, "done", False) for sink in sinks))
    print(f"{config.name}: {tally.blocks} blocks, {tally.frames} frames in {tally.seconds:.2f} s")
    return tally.interrupted


def tell(check: Check, file: SessionFile, best_effort: bool, interrupted: bool) -> int:
    """The outcome of a comparison; the exit status. If it was ``interrupted``, that is raised in the end: how far it came."""
    status = _tell_outcome(check, file, best_effort)
    if interrupted:
        played = check.compared + check.unhashed
        raise KeyboardInterrupt(f"after {played} of {len(check.plan)} blocks; the others were neither compared nor filmed")
    return status


def _tell_outcome(check: Check, file: SessionFile, best_effort: bool) -> int:
    if check.first is None:
        print(f"{file.path}: {_all_alike(check)}{' (it breaks off there)' if file.end is None else ''}")
        return 0
    for number, decibels in check.psnr:
        block = check.plan.blocks[number]
        print(f"  block {block.index} of epoch {block.epoch}: {decibels:.1f} dB")
    how = "best effort" if best_effort else "on the same machine"
    many = f"{check.different} of {check.compared} blocks differ" if not check.stop else "stopped there"
    print(f"{file.path}: the first different block is {check.first}; {many} ({how})")
    return 1


def _all_alike(check: Check) -> str:
    """No block differed: how many were looked at. "Every frame" is for when that were all of them."""
    planned, missed = len(check.plan), len(check.plan) - check.compared - check.unhashed
    if check.compared == planned:
        return f"{planned} block{'s' * (planned != 1)}, every frame as recorded"
    rest = [f"{count} {why}" for count, why in ((check.unhashed, "never hashed"), (missed, "not played")) if count]
    return f"{check.compared} of {planned} blocks compared, those as recorded; {', '.join(rest)}"
