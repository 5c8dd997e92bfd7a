"""The program in processes of its own, as fresh as a new one, without each of them importing torch: for tests that kill it.

`spawn` forks from a server that has imported everything and computed nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path

import engine  # noqa: F401  so that the server has it
import game.commands.play
import game.commands.replay
import game.player  # noqa: F401
from game import cli


def spawn(folder: Path, *arguments: object, **environment: str) -> BaseProcess:
    """`reverie ARGUMENTS` in ``folder``; what it says goes to said.txt there. Its exit code is the exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.child"])
    words = [str(argument) for argument in arguments]
    process = context.Process(target=_run, args=(folder, words, {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"} | environment))
    process.start()
    return process


def _run(folder: Path, words: list[str], environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    with open("said.txt", "a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.argv = ["reverie", *words]
    cli.console()


def kill_tree(process: BaseProcess) -> None:
    """SIGKILL to the process and everything it has started, as a dying machine would."""
    doomed = [process.pid, *_children(process.pid)]
    for pid in doomed:
        os.kill(pid, signal.SIGSTOP)  # nobody sees another one die
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    process.join()


def _children(pid: int) -> Iterable[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from _children(child)
