"""The front of the program: finds the command, and turns every failure into one line and an exit status.

Exit status: 0 all well, 2 something asked for cannot be done, 1 something failed on the way, 130 interrupted.
torch comes in with `engine` and takes seconds, so everything beyond arguments is imported where it is needed.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from game.options import Parser

SCREENSHOT_SECONDS = 2.0  # how long the end waits for screenshots still being written
COMMANDS: dict[str, str] = {  # beside playing, which needs no word
    "replay": "play a session file or a script again; --verify compares every frame",
    "render": "make the film of a session again from the session file alone",
    "bench": "how fast is a world here, and where does the time go?",
    "inspect": "what is this weight file? are these two the same?",
    "diagnose": "looks for trouble in a film or a folder of pictures",
}


def _command(name: str) -> ModuleType:
    """The module behind a word of `COMMANDS`, or behind playing."""
    match name:
        case "replay":
            from game.commands import replay as command
        case "render":
            from game.commands import render as command
        case "bench":
            from game.commands import bench as command
        case "diagnose":
            from game.commands import diagnose as command
        case "inspect":
            from game.commands import inspect as command
        case _:
            from game.commands import play as command
    return command


def console() -> NoReturn:
    """The command `reverie`. A thread still deep in the model or in an import is not waited for; a screenshot is, for a while."""
    status = main()
    if any(thread.name.startswith("reverie-") and thread.daemon for thread in threading.enumerate()):
        _await_screenshots()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # Python's own end would pull the ground from under that thread: it can crash
    sys.exit(status)


def _await_screenshots() -> None:
    end = time.monotonic() + SCREENSHOT_SECONDS
    try:
        for thread in threading.enumerate():
            if thread.name == "reverie-screenshot":
                thread.join(max(0.0, end - time.monotonic()))
    except KeyboardInterrupt:
        pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status. Every failure is one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and words[0] in COMMANDS else ""
    args = None
    try:
        command = _command(name)
        args = _parser(name, command).parse_args(words)
        return command.run(args)
    except KeyboardInterrupt as interrupt:  # a command that knows how far it came says so in it
        print(f"reverie: interrupted {interrupt}".rstrip(), file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args is not None and args.traceback:
            traceback.print_exc()
        return _complain(error)


def _complain(error: Exception) -> int:
    """Say what went wrong in one line; the exit status that goes with it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # by name: looking is no reason to import torch
    if kinds & {"UsageError", "WorldError", "ScriptError", "SessionError", "FilmError"}:
        words, status = str(error), 2
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        words, status = f"there can be no file of so long a name: {Path(error.filename).name[:40]}…", 2
    elif "SinkError" in kinds:
        words, status = str(error), 1
    else:
        words, status = f"{type(error).__name__}: {error} (--traceback shows where)", 1
    print(f"reverie: {' '.join(words.split())}", file=sys.stderr)
    return status


def _parser(name: str, command: ModuleType) -> Parser:
    if name:
        parser = Parser(prog=f"reverie {name}", description=command.__doc__, allow_abbrev=False)
    else:
        others = "".join(f"\n  reverie {word:<9} {does}" for word, does in COMMANDS.items())
        parser = Parser(
            prog="reverie", description="Play worlds that are neural networks.", allow_abbrev=False,
            epilog=f"other commands (each has its own --help):{others}" if others else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
    command.add_options(parser)
    parser.add_argument("--traceback", action="store_true", help="show Python's own account of an error")
    return parser
