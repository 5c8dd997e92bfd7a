"""What `play`, `replay` and `render` share: the options that tell a world, and what is made of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from game.options import UsageError, folder, is_clip, listed, size, whole

if TYPE_CHECKING:
    import numpy as np

    from engine import Action, Session, WorldConfig
    from game.sessionheader import Header

ATTENTION = ("auto", "cudnn", "flash", "efficient", "math")  # as in the engine, which takes seconds to import
DTYPES = ("auto", "float32", "bfloat16", "float16")
PARTS = {"dit": "world model", "vae": "picture decoder", "vision": "image encoder", "taehv": "tiny decoder"}  # of the weights, in words


def add_world_options(group: argparse._ArgumentGroup) -> None:
    """What tells a world and where it runs."""
    group.add_argument("--world", metavar="NAME", help="a bundled world or a yaml file of your own (garden)")
    group.add_argument("--weights", type=folder, metavar="DIR", help="folder with the world's weights, if they are not bundled")
    group.add_argument("--start", type=Path, metavar="FILE", help="start picture (the world's own), or a clip (mp4, …) to go on from")
    group.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or mps (cpu)")
    group.add_argument("--decode-device", metavar="NAME", help="where pictures are decoded, such as cuda:1 (where the world is)")
    group.add_argument("--compile", action="store_true", help="compile the model: for GPUs; takes a while the first time")
    group.add_argument("--no-graphs", action="store_true", help="on a GPU: ask for every kernel instead of replaying CUDA graphs")
    group.add_argument("--attention", choices=ATTENTION, default="auto", help="the attention kernel to prefer (auto: the device's best)")
    group.add_argument(
        "--dtype", choices=DTYPES, help="numbers of model and picture decoder (the world's, else auto: what the device is fast at)"
    )


def add_change_options(group: argparse._ArgumentGroup) -> None:
    """What may differ from the world's yaml; `world_config` reads it."""
    group.add_argument("--steps", type=listed(0, 1000), metavar="N,N,…", help="denoising steps, falling, such as 1000,666,333")
    group.add_argument("--window", type=whole(1, 15), metavar="N", help="latents of local attention, 1 to 15, at least a block's three")
    group.add_argument("--fps", type=whole(1, 240), metavar="N", help="native frames a second")
    group.add_argument("--decoder", choices=["vae", "taehv"], help="what makes the pictures; taehv is tiny and quick, and not the same")
    group.add_argument("--context", choices=["clean", "last"], help="keys of a clean pass, or (quicker, not the same) of the last step")
    group.add_argument("--linears", choices=["exact", "float8"], help="products in float8: quicker on a GPU that has it, and not the same")
    group.add_argument(
        "--hold-still",
        action=argparse.BooleanOptionalAction,
        help="remember nothing while one stands still, so that pictures stay (the world's)",
    )
    group.add_argument("--size", type=size, metavar="WxH", help="resolution, such as 640x352; sides are multiples of 16")


def place_of(args: argparse.Namespace) -> dict[str, Any]:
    """Where and in which way a world is computed, as `World.load` and `World.untrained` take it."""
    place = {"device": args.device, "dtype": args.dtype, "decode_device": args.decode_device, "attention": args.attention}
    return place | {"graphs": not args.no_graphs}


def world_config(args: argparse.Namespace, name: str | None = None) -> WorldConfig:
    """The world asked for (or that of ``name``), with what the command line changes in it."""
    from engine import load_config

    width, height = args.size or (None, None)
    changes = {"sampler.steps": args.steps, "model.local_attn_size": args.window, "fps": args.fps, "width": width, "height": height}
    changes |= {"decoder": args.decoder, "sampler.context": args.context, "sampler.hold_still": args.hold_still, "linears": args.linears}
    return load_config(name or args.world, {setting: value for setting, value in changes.items() if value is not None})


def weights_here(config: WorldConfig, weights: Path | None = None) -> bool:
    """Whether all weight files of a world are in ``weights``, or where they belong without one."""
    return all(any(path.is_file() for path in places) for places in _places(config, weights))


def weight_files(config: WorldConfig, weights: Path | None = None) -> list[Path]:
    """The weight files of a world that are here, wherever they may be read from."""
    return [path for places in _places(config, weights) for path in places if path.is_file()]


def _places(config: WorldConfig, weights: Path | None) -> list[list[Path]]:
    """Of each weight file the paths where it may be."""
    return [
        [path for folder in config.weight_folders(part, weights) for path in (folder / name, folder / Path(name).name)]
        for part in _needed(config)
        for name in getattr(config.weights, part)
    ]


def _needed(config: WorldConfig) -> list[str]:
    """The parts of the weights that the world is played with."""
    return [part for part in PARTS if part != "taehv" or config.decoder == "taehv"]


def fetch_weights(args: argparse.Namespace) -> Path:
    """The folder with the world's weights, downloaded where they were not here."""
    from game.fetch import fetch, repository

    config = world_config(args)
    repo = repository(config.weights.source)
    if repo is None:
        here = "come with it" if config.weights.source is None else f"are not on huggingface.co but: {config.weights.source}"
        raise UsageError(f"--fetch: the weights of the world {config.name} {here}; play without --fetch")
    names = {name: part for part in _needed(config) for name in getattr(config.weights, part)}
    own = {  # what a yaml puts in the place of a published file lies beside it
        name
        for name, part in names.items()
        if part in config.weights.added and any((folder / name).is_file() for folder in config.weight_folders(part))
    }
    return fetch(repo, [name for name in names if name not in own])


def check_beginning(args: argparse.Namespace, config: WorldConfig) -> None:
    """Look at start picture or saved game before gigabytes of weights are read, or fetched.

    Raises UsageError where there is none, WorldError for one that is none.
    """
    from engine import Snapshot, load_picture

    if args.load is not None:
        Snapshot.check_name(args.load, config)
    elif args.start is None and config.start is None:
        raise UsageError(config.start_missing())
    elif args.start is not None and not is_clip(args.start):
        load_picture(args.start, config.height, config.width)


def open_session(
    args: argparse.Namespace, config: WorldConfig, progress, header: Header | None = None, compile_first: bool = True, live: bool = False
) -> Session:  # fmt: skip
    """Load the world and begin: from the start picture, a clip or a saved game. ``progress`` is called with (what, part done).

    ``header`` gets what the session file is to say. Without ``compile_first`` it is not for here to compile; ``live`` is `World.warm_up`'s.
    Raises WorldError for what cannot be played, UsageError without a start picture.
    """
    from engine import Snapshot, World, share_threads
    from game.sessionheader import build_header

    start, actions = args.start, []
    if start is not None and is_clip(start):
        start, actions = _clip(args, config)
    elif config.start is not None or args.weights is not None or start is not None or args.load is not None:
        check_beginning(args, config)  # without picture and weights it is the weights that are told of, below

    def named(part: str, done: float) -> None:
        progress(PARTS.get(part, part), done)

    world = World.load(config, weights=args.weights, progress=named, **place_of(args))
    if getattr(args, "overlap", False):
        share_threads(world)
    if args.compile and compile_first:
        world.compile(named)
    what = "saved game" if args.load is not None else "start picture" if start is args.start else "start clip"
    progress(what, 0.0)
    world.warm_up(live=live)
    if args.load is None:
        session = world.session(seed=args.seed, start=start, actions=actions, rewind_mb=args.rewind_mb)
    else:
        session = world.resume(Snapshot.load(args.load, world), rewind_mb=args.rewind_mb)
    progress(what, 1.0)
    if header is not None and args.session is not None:
        progress("hashes", 0.0)
        header.fields = build_header(world, session, args.start, None if start is args.start else start, actions)
        progress("hashes", 1.0)
    return session


def _clip(args: argparse.Namespace, config: WorldConfig) -> tuple[np.ndarray, list[Action]]:
    """Frames of the clip to start from and what was done in it; says what of it is not used, or will look different."""
    from engine import check_clip, clip_limit
    from game.clip import actions_of, read_clip

    clip = read_clip(args.start, config.height, config.width, clip_limit(config.clock))
    blocks, used = check_clip(clip.frames, config.clock)
    rest = len(clip.frames) - used
    print(
        f"{args.start}: going on from {blocks} blocks, {used} frames{f'; the last {rest} make no whole block and are cut' if rest else ''}"
    )
    if clip.damage is not None:
        print(f"{args.start} is damaged; so much of it could be read (ffmpeg: {clip.damage})")
    if clip.fps is not None and abs(clip.fps - config.fps) > 0.5:
        print(f"{args.start} has {clip.fps:g} frames a second; this world takes them for {config.fps} a second")
    return clip.frames, [] if args.actions is None else actions_of(args.actions, config.actions, blocks)
