"""`python -m tests.presses`: from the press of a key to the picture, in a window that nobody sees, with the real threads.

The window is SDL's dummy. A key is pressed and let go at uneven moments of the blocks; each counts until the first picture of the block
that it reached is on screen. Prints the distribution beside what is aimed at: in the mean no more than half a block, what a block takes,
and a frame; its status is 1 where it is more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ["SDL_VIDEODRIVER"] = "dummy"

import pygame

from engine import World, load_config
from game.player import Game
from game.sinks import Block
from game.window import Window

GOLDEN = 0.618034  # of it multiples fall evenly into every part of a block
FIRST = 8  # blocks that are played before the first press: until then the estimate of what a block takes settles


class Typist(Game):
    """A game at which somebody presses W, and lets it go, at most once a block."""

    def __init__(self, window: Window, world: World, presses: int) -> None:
        super().__init__(window, world.config, lambda report: world.session())
        self.waited: list[float] = []
        self.made: list[float] = []
        self.sampled: list[float] = []
        self._left = self._all = 2 * presses
        self._phase, self._next = 0.0, 0.0

    def _on_block(self, block: Block) -> None:
        if block.index >= FIRST:
            self.made.append(block.finished_at - block.sample.sampled_at)
            self.sampled.append(time.perf_counter() - block.sample.sampled_at)
            if block.sample.input_at is not None:
                self.waited.append(time.perf_counter() - block.sample.input_at)
        super()._on_block(block)

    def _turn(self) -> None:
        now, block = time.perf_counter(), self.presenter.block
        if self._left and block is not None and block.index >= FIRST and now >= self._next:
            kind = pygame.KEYUP if self._left % 2 else pygame.KEYDOWN
            pygame.event.post(pygame.event.Event(kind, key=pygame.K_w, scancode=pygame.KSCAN_W, mod=0, unicode="w"))
            self._left -= 1
            self._phase = (self._phase + GOLDEN) % 1
            self._next = now + (1 + self._phase) * len(block.frames) / self.config.fps
        super()._turn()
        self._over |= len(self.waited) == self._all or (not self._left and now > self._next + 2)  # two fell into one block


def told(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    parts = ", ".join(f"{part} % {1000 * ordered[min(len(ordered) - 1, len(ordered) * part // 100)]:.0f}" for part in (50, 90, 99))
    return f"mean {1000 * statistics.mean(seconds):.0f}, {parts}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="garden")
    parser.add_argument("--presses", type=int, default=50)
    args = parser.parse_args()
    world = World.load(load_config(args.world))
    world.warm_up(live=True)
    game = Typist(Window("presses"), world, args.presses)
    game.run()
    fps, frames = world.config.fps, world.config.block_frames[1]
    half, takes, frame = frames / fps / 2, statistics.mean(game.made), 1 / fps
    mean, aim = statistics.mean(game.waited), half + takes + frame
    print(f"{len(game.waited)} presses and releases, ms to the picture: {told(game.waited)}")
    print(f"from taking the action, of all {len(game.sampled)} blocks: {told(game.sampled)}; until it is made: {told(game.made)}")
    terms = f"half a block {1000 * half:.0f}, to make one {1000 * takes:.0f}, a frame {1000 * frame:.0f}"
    print(f"aim, in the mean: {1000 * aim:.0f} = {terms}")
    print(f"late blocks: {game.presenter.shown.underruns} of {game.presenter.block.index}; load of the machine {os.getloadavg()[0]:.1f}")
    return int(mean > aim)


if __name__ == "__main__":
    raise SystemExit(main())
