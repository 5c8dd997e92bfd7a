"""Play a world: in a window, or headless; also `--list` and `--bench`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from game import __version__
from game.commands import serve
from game.names import DUMPED_ACTIONS, free_name, is_dumped, session_beside
from game.options import (
    ConsoleProgress,
    UsageError,
    absolute,
    check_new,
    check_place,
    check_record,
    folder,
    is_clip,
    refuse_given,
    refuse_inputs,
    tell_recovered,
    whole,
)
from game.worldoptions import (
    add_change_options,
    add_world_options,
    check_beginning,
    fetch_weights,
    open_session,
    weight_files,
    weights_here,
    world_config,
)

if TYPE_CHECKING:
    from engine import Compiled, Session, World, WorldConfig
    from game.player import Report
    from game.script import Script
    from game.sessionheader import Header
    from game.sinks import Background
    from game.window import Window

MAX_BLOCKS = 100_000_000
REWIND_MB = 512  # as in the engine, which takes seconds to import


def add_options(parser: argparse.ArgumentParser) -> None:
    world = parser.add_argument_group("the world")
    add_world_options(world)
    world.add_argument("--fetch", action="store_true", help="download the world's weights first, as far as they are not here yet")
    world.add_argument("--actions", type=Path, metavar="FILE", help="what was done in a clip to start from: a script, one action a block")
    world.add_argument("--load", type=Path, metavar="FILE", help="go on from a saved game, with its start picture and seed")
    world.add_argument("--seed", type=whole(0, 2**63 - 1), metavar="N", help="same seed and actions, same dream (the world's, else 0)")
    add_change_options(parser.add_argument_group("another way than the world's own"))
    play = parser.add_argument_group("playing")
    play.add_argument("--blocks", type=whole(1, MAX_BLOCKS), metavar="N", help="end after N blocks")
    play.add_argument("--script", metavar="WORDS", help='actions instead of the keyboard, as words or a file of them: "w*3 w+l*2 idle j*4"')
    play.add_argument("--rewind-mb", type=whole(0, 10**6), metavar="N", help=f"memory to rewind with ({REWIND_MB}; headless 0)")
    play.add_argument("--replay", type=Path, metavar="FILE", help="a session that was recorded, once more (see reverie replay --help)")
    play.add_argument("--overlap", action="store_true", help="with --headless or --bench: decode beside the next block, for more frames")
    play.add_argument("--headless", action="store_true", help="no window, as fast as it goes; plays a demo walk unless there is a script")
    serve.add_options(parser.add_argument_group("in the browser"))
    out = parser.add_argument_group("keeping it")
    out.add_argument("--record", type=Path, metavar="FILE.mp4", help="film what is played, and write FILE.session.jsonl beside it")
    out.add_argument("--record-hud", action="store_true", help="with --record: keys, look and block number in the film")
    out.add_argument("--session", type=Path, metavar="FILE", help="the session file alone, or under another name")
    out.add_argument("--dump", type=folder, metavar="DIR", help="every frame as PNG, and the actions in actions.jsonl")
    out.add_argument("--overwrite", action="store_true", help="let --record, --session and --dump replace what is there")
    other = parser.add_argument_group("instead of playing")
    other.add_argument("--list", action="store_true", help="the bundled worlds, and whether their weights are here")
    other.add_argument("--bench", action="store_true", help="measure as reverie bench does, over --blocks blocks (20)")
    other.add_argument("--json", action="store_true", help="with --bench: numbers as JSON")
    other.add_argument("--version", action="version", version=f"reverie {__version__}")


def run(args: argparse.Namespace) -> int:
    """What the options ask for; the exit status."""
    if args.replay is not None:
        from game.commands import replay

        return replay.run_for_play(args)
    if args.list:
        refuse_given("--list shows every bundled world: leave {} out", {"--world": args.world})
    args.world = args.world or "garden"
    serve.check(args)
    if args.rewind_mb is None and not args.bench:
        args.rewind_mb = 0 if args.headless else REWIND_MB  # without a window nobody goes back, and memory stays flat at once
    _check(args)
    if args.list:
        return _list(args)
    if args.fetch:
        if not args.serve:  # there a player may bring one
            check_beginning(args, world_config(args))
        args.weights = fetch_weights(args)
    if args.serve:
        return serve.run(args)
    if args.bench:
        from game.commands import bench

        return bench.run_for_play(args)
    if args.headless:
        return _play_headless(args)
    from game.window import NoDisplay

    try:
        return _play_window(args)
    except NoDisplay as problem:
        return _play_without_display(args, str(problem))


def _check(args: argparse.Namespace) -> None:
    """Whatever can be refused without loading anything."""
    if args.overlap and not args.bench and (not args.headless or args.rewind_mb):
        raise UsageError("--overlap goes with --headless or --bench, and without --rewind-mb: a window begins a block as late as can be")
    if args.json and not args.bench:
        raise UsageError("--json goes with --bench")
    if args.bench:
        others = {"--record": args.record, "--session": args.session, "--dump": args.dump, "--load": args.load, "--actions": args.actions}
        refuse_given("--bench measures without {}", others | {"--rewind-mb": args.rewind_mb})
    if args.fetch and args.weights is not None:
        raise UsageError("--fetch keeps the weights in huggingface's cache; leave --weights out")
    if args.start is not None and not args.start.is_file():
        raise UsageError(f"--start {args.start}: {'is a folder, not a picture' if args.start.is_dir() else 'no such file'}")
    if args.actions is not None:
        if args.start is None or not is_clip(args.start):
            raise UsageError("--actions goes with a clip: --start FILE.mp4")
        if not args.actions.is_file():
            raise UsageError(f"--actions {args.actions}: no such file")
    if args.load is not None:
        if args.start is not None:
            raise UsageError("--load goes on from a saved game, --start begins another: give one of them")
        if args.seed is not None:
            raise UsageError("--load takes the seed of the saved game: leave --seed away")
        if not args.load.is_file():
            raise UsageError(f"--load {args.load}: {'is a folder, not a saved game' if args.load.is_dir() else 'no such file'}")
    if args.record_hud and args.record is None:
        raise UsageError("--record-hud goes with --record")
    _spare_inputs(args)
    if args.record is not None and not args.serve:
        if args.session is not None:
            check_place("--session", args.session)
            if absolute(args.session) == absolute(args.record):
                raise UsageError(f"--session {args.session}: is the film of --record; name another file")
        args.session = args.session or session_beside(args.record)
        check_record(args.record, args.overwrite, args.session)
    elif args.session is not None:
        check_new("--session", args.session, args.overwrite)
    if args.dump is not None:
        if args.dump.exists() and not args.dump.is_dir():
            raise UsageError(f"--dump {args.dump}: is not a folder")
        if args.dump.is_dir() and any(args.dump.iterdir()) and not args.overwrite:
            raise UsageError(f"--dump {args.dump}: is not empty; choose another folder or add --overwrite")
        whole_path = absolute(args.dump)
        place = next(path for path in (whole_path, *whole_path.parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise UsageError(f"--dump {args.dump}: nothing can be written into {place}")
        for option, path in {"--session": args.session, "--record": None if args.serve else args.record}.items():
            if path is not None and absolute(path).parent == whole_path and is_dumped(path.name):
                raise UsageError(f"{option} {path}: is what --dump calls a file of its own; choose another name")


def _spare_inputs(args: argparse.Namespace) -> None:
    """Refuse to write over what is read."""
    world = args.world if args.world.endswith((".yaml", ".yml")) else None  # else a name
    inputs = {"--world": world, "--start": args.start, "--actions": args.actions, "--load": args.load, "--script": args.script}
    record = None if args.serve else args.record  # there every film gets a name of its own
    session = args.session or (record and session_beside(record))
    refuse_inputs({"--record": record, "--record, whose session file is" if args.session is None else "--session": session}, inputs)
    if args.dump is not None:  # replaces what a dump would be called, and nothing else of the folder
        names = {DUMPED_ACTIONS, *(Path(os.path.realpath(source)).name for source in inputs.values() if source is not None)}
        for name in sorted(filter(is_dumped, names)):
            refuse_inputs({"--dump": args.dump / name}, inputs)


def _spare_world(args: argparse.Namespace, config: WorldConfig) -> None:
    """Refuse to write over what the world's yaml names: its start picture and weights."""
    outputs = {"--session": args.session, "--record": None if args.serve else args.record}
    refuse_inputs(outputs, {"the world's start picture": config.start_file})
    for file in weight_files(config, args.weights):
        refuse_inputs(outputs, {"a file of the world's weights": file})


def _play_without_display(args: argparse.Namespace, problem: str) -> int:
    if os.environ.get("SDL_VIDEODRIVER"):
        raise UsageError(f"no display: SDL_VIDEODRIVER={os.environ['SDL_VIDEODRIVER']} does not work ({problem})")
    if args.record is None:
        tell_recovered(absolute(Path()))
        args.record = free_name("reverie-demo")
        args.session = args.session or session_beside(args.record)
        check_record(args.record, overwrite=False, session=args.session)
    what = "the demo walk" if args.script is None else "the script"
    print(f"reverie: no display ({problem}), so {what} is played into {args.record} instead", file=sys.stderr)
    return _play_headless(args)


def _play_headless(args: argparse.Namespace) -> int:
    from game.headless import play_headless
    from game.script import demo_script
    from game.sessionheader import Header

    config = world_config(args)
    _spare_world(args, config)
    script = _script(args, config) or demo_script(config.actions.keys)
    header = Header()
    session = open_session(args, config, ConsoleProgress(config.name), header)
    sinks, blocks = _sinks(args, header, wait=True), args.blocks or len(script)
    tally = play_headless(session, config, script, blocks, sinks, overlap=args.overlap)
    speed = f"{tally.fps:.1f} fps ({tally.fps / config.fps:.2f} x the native {config.fps})"
    print(f"{config.name}: {tally.blocks} blocks, {tally.frames} frames in {tally.seconds:.2f} s = {speed}")
    tell_written(sinks)
    if tally.interrupted:
        raise KeyboardInterrupt(f"after {tally.blocks} of {blocks} blocks{'; what is written ends there' if sinks else ''}")
    return 0


def _play_window(args: argparse.Namespace) -> int:
    from game.splash import wait_behind
    from game.window import Window

    bundled = (resources.files("configs") / f"{args.world}.yaml").is_file()
    if not bundled or args.script is not None or args.size is not None:  # may be refused: better before a window opens
        _script(args, world_config(args))
    window = Window("Reverie")
    try:
        if not wait_behind(window, lambda: importlib.import_module("engine"), "waking up"):
            return 0
        return _play_in(window, args)
    finally:
        window.close()


def _play_in(window: Window, args: argparse.Namespace) -> int:
    from engine import compile_world
    from game import hud
    from game.events import help_columns
    from game.player import Game
    from game.sessionheader import Header

    config = world_config(args)
    _spare_world(args, config)
    print(f"{config.title}. {config.about}".strip())
    for column in help_columns(config.actions):
        print("  " + ", ".join(f"{key} {does}" for key, does in column))
    console, header = ConsoleProgress(config.name), Header()

    sinks = _sinks(args, header, wait=False)
    beside = args.compile and not sinks  # what is kept is to be played again: there one kind of layers makes every block

    def begin(report) -> Session:
        return open_session(args, config, lambda what, part: (console(what, part), report(what, part)), header, not beside, live=True)

    def compiler(world: World, report: Report) -> Compiled:
        return compile_world(world, lambda what, part: (console(what, part), report(what, part)))

    game = Game(window, config, begin, _script(args, config), args.blocks, sinks, compiler=compiler if beside else None)
    try:
        game.run()
    except KeyboardInterrupt:  # the sinks are closed all the same
        tell_written(sinks)
        raise
    tell_written(sinks)
    inputs = game.presenter.shown.input_latency
    if inputs.count:
        print(f"from key or mouse to the picture, {inputs.count} times: {hud.percentiles(inputs)} ms")
    return 0


def tell_written(sinks: Iterable[Background]) -> None:
    """Name the files this run has left; one that was there before and got nothing new is not among them."""
    for background in sinks:
        if background.sink.frames and (path := getattr(background.sink, "path", None)) is not None:
            lost = f" (without {background.dropped} blocks that came while it was busy)" if background.dropped else ""
            print(f"written: {path}{lost}")


def _script(args: argparse.Namespace, config: WorldConfig) -> Script | None:
    from game.script import read_script

    return None if args.script is None else read_script(args.script, config.actions.keys)


def _sinks(args: argparse.Namespace, header: Header, wait: bool) -> list[Background]:
    from game.recorder import film_recorder
    from game.sessionsink import SessionSink
    from game.sinks import Background, Dump

    sinks: list[Background] = []
    session = None
    if args.session is not None:
        session = SessionSink(args.session, header.get, args.overwrite)
        sinks.append(Background(session, wait, keep_actions=True))
    if args.record is not None:
        film = Background(film_recorder(args.record, args.overwrite, header.identity, args.record_hud), wait)
        film.on_drop = session.gap
        sinks.append(film)
    if args.dump is not None:
        sinks.append(Background(Dump(args.dump, args.overwrite), wait))
    return sinks


def _list(args: argparse.Namespace) -> int:
    from engine import WorldError, list_worlds, load_config

    for name in list_worlds():
        try:
            config = load_config(name)
        except WorldError as error:
            print(f"{name:<12}{error}")
            continue
        here = "here   " if weights_here(config, args.weights) else "missing"
        size = f"{config.width}x{config.height}"
        print(f"{name:<12}{size:>8}{config.fps:>4} fps  weights {here}  {config.title}")
    return 0
