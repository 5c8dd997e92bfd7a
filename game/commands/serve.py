"""`play.py --serve`: the same worlds, played from a page in the browser."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import signal
import socket
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from game.options import ConsoleProgress, UsageError, check_record, is_clip, refuse_given, whole
from game.worldoptions import place_of

if TYPE_CHECKING:
    from game.serve.worlds import Offer, Worlds

HOST, PORT = "127.0.0.1", 8765
SESSIONS = 4
FRAMES = ("jpeg", "webp", "h264")
REWIND_MB = 128  # of each session: half a minute of the garden
ANYWHERE = {"0.0.0.0": "every address of this machine", "::": "every address of this machine"}


def add_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--serve", action="store_true", help="play from a page in the browser; prints its link (docs/SERVE.md)")
    group.add_argument("--host", metavar="NAME", help=f"address to listen on ({HOST}); one that others can reach takes a token")
    group.add_argument("--port", type=whole(0, 65535), metavar="N", help=f"({PORT}; 0: any that is free)")
    group.add_argument("--max-sessions", type=whole(1, 64), metavar="N", help=f"players at once, each with an own session ({SESSIONS})")
    group.add_argument("--allow-host", action="append", metavar="NAME", help="a name the server goes by, such as that of a proxy in front")
    group.add_argument("--frames", choices=FRAMES, help=f"how pictures travel to a page that reads them so ({FRAMES[0]})")
    group.add_argument("--exact", action="store_true", help="compute every session by itself (so far it is always so)")


def own_options(args: argparse.Namespace) -> dict[str, object]:
    """The options that mean something with --serve alone, and their values."""
    own = {"--host": args.host, "--port": args.port, "--max-sessions": args.max_sessions, "--exact": args.exact}
    return own | {"--allow-host": args.allow_host, "--frames": args.frames}


def check(args: argparse.Namespace) -> None:
    """Whatever can be refused without loading anything."""
    if not args.serve:
        refuse_given("{} goes with --serve", own_options(args))
        return
    others = {"--script": args.script, "--blocks": args.blocks, "--load": args.load, "--actions": args.actions, "--session": args.session}
    others |= {"--dump": args.dump, "--headless": args.headless, "--bench": args.bench, "--list": args.list}
    others |= {"--record-hud": args.record_hud, "--compile": args.compile}
    refuse_given("--serve does not go with {}", others)
    if args.start is not None and is_clip(args.start):
        raise UsageError(f"--start {args.start}: --serve begins with a picture, not with a clip")
    for name in args.allow_host or ():
        if not 0 < len(name) <= 253 or any(letter in name for letter in "/: "):
            raise UsageError(f"--allow-host {name[:60]}: must be a name such as play.example.org, without port and slashes")
    if args.record is not None:
        check_record(args.record, overwrite=True)  # each session takes a name of its own: walk.mp4, walk-2.mp4 …
    if find_spec("aiohttp") is None:
        raise UsageError("--serve needs aiohttp: pip install 'reverie[serve]'")
    if args.frames == "h264":
        from game.serve.video import problem

        if (trouble := problem()) is not None:
            raise UsageError(f"--frames h264 {trouble}")
    if args.rewind_mb is None:
        args.rewind_mb = REWIND_MB
    args.host, args.port = args.host or HOST, PORT if args.port is None else args.port


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C; the exit status."""
    from game.serve.worlds import Worlds

    offers = _offers(args)
    worlds = Worlds(offers, rewind_mb=args.rewind_mb, **place_of(args))
    if not offers[0].starts:
        print(f"reverie: {offers[0].config.start_missing()}; or everybody sends one", file=sys.stderr)
    worlds.load(0, _progress(offers[0]))
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("reverie.serve").setLevel(logging.INFO)
    asyncio.run(_serve(args, worlds))
    return 0


async def _serve(args: argparse.Namespace, worlds: Worlds) -> None:
    from game.serve.guard import Guard, is_loopback
    from game.serve.house import House
    from game.serve.limits import Limits
    from game.serve.server import Server

    stop = asyncio.Event()
    if sys.platform != "win32":  # there Ctrl-C ends it less politely
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    house = House(worlds, Limits(sessions=args.max_sessions or SESSIONS), args.seed, args.record, args.frames or FRAMES[0])
    here = is_loopback(args.host)
    names = tuple(name.lower() for name in (*(args.allow_host or ()), *(() if here else (socket.gethostname(),))))
    token = None if here and not args.allow_host else secrets.token_urlsafe(24)
    server = Server(house, Guard(args.host, token, names))
    try:
        try:
            port = await server.listen(HOST if args.host == "localhost" else args.host, args.port)
        except OSError as error:
            where = f"{args.host}:{args.port}"
            raise UsageError(f"cannot listen on {where}: {error.strerror or error}; choose another --host or --port") from None
        await asyncio.to_thread(house.model.take, lambda: worlds.warm_up(0), 0.0)
        name = socket.gethostname() if args.host in ANYWHERE else f"[{args.host}]" if ":" in args.host else args.host
        print(f"{worlds.offers[0].config.title} is at  http://{name}:{port}/{'' if token is None else f'?token={token}'}", flush=True)
        if token is not None:
            where = f"listening on {ANYWHERE.get(args.host, args.host)}, without encryption"
            print(f"reverie: {where}: who sees the link, or the traffic, can play. TLS belongs to a proxy in front.", file=sys.stderr)
        await stop.wait()
        print("reverie: ending the sessions", file=sys.stderr)
    finally:
        await server.close()


def _offers(args: argparse.Namespace) -> list[Offer]:
    """The world asked for, then the bundled ones whose weights are here."""
    from engine import WorldError, list_worlds, load_config, load_picture
    from game.serve.worlds import Offer, start_pictures, weight_paths
    from game.worldoptions import world_config

    config = world_config(args)
    if args.start is not None:
        load_picture(args.start, config.height, config.width)
    offers = [Offer(config, start_pictures(config, args.start), args.weights)]
    for name in list_worlds():
        if name == config.name:
            continue
        try:
            other = load_config(name)
        except WorldError:
            continue  # a broken yaml is told where that world is asked for
        for folder in dict.fromkeys((args.weights, None)):
            if weight_paths(other, folder) is not None:
                offers.append(Offer(other, start_pictures(other, None), folder))
                break
    return offers


def _progress(offer: Offer):
    from game.worldoptions import PARTS

    console = ConsoleProgress(offer.config.name)
    return lambda what, part: console(PARTS.get(what, what), part)
