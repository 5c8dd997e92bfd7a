"""A `Game` at which a test sits: turn by turn, keys posted by hand, and a tape of what was shown."""

import time
from collections.abc import Callable

import pygame

from game.player import Game
from game.sinks import Block, Origin
from game.window import Window
from tests.game.fake import FakeSession

BACKSPACE, F2, F4 = pygame.K_BACKSPACE, pygame.K_F2, pygame.K_F4


class Table:
    """Plays a `Game` turn by turn."""

    def __init__(self, window: Window, session: FakeSession, **options) -> None:
        self.session = session
        self.game = Game(window, session.config, lambda report: session, **options)
        self.game.world.start()

    def until(self, true: Callable[[], object], seconds: float = 10.0) -> None:
        end = time.perf_counter() + seconds
        while not true():
            self.game._turn()
            assert time.perf_counter() < end, "it never happened"

    def for_(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        self.until(lambda: time.perf_counter() > end)

    def key(self, key: int, scancode: int = 0, up: bool = False, unicode: str = "") -> None:
        kind = pygame.KEYUP if up else pygame.KEYDOWN
        pygame.event.post(pygame.event.Event(kind, key=key, scancode=scancode, mod=0, unicode=unicode))
        self.game._turn()

    def playing(self) -> None:
        self.until(lambda: self.game.presenter.frame is not None)


class Tape:
    """A sink that remembers what was shown."""

    def __init__(self) -> None:
        self.sink, self.error, self.frames, self.dropped = self, None, 0, 0
        self.blocks: list[Block] = []

    def open(self, config) -> None: ...
    def write(self, block: Block) -> None:
        self.blocks.append(block)

    def close(self, *_) -> None: ...

    @property
    def origins(self) -> dict[int, Origin]:
        return {block.epoch: block.origin for block in self.blocks if block.origin is not None}

    def check(self) -> None:
        """Every epoch begins with its origin, and goes on without a hole."""
        for before, after in zip([None, *self.blocks], self.blocks, strict=False):
            assert (after.origin is not None) == (before is None or before.epoch != after.epoch)
            if after.origin is not None:
                assert after.index == after.origin.block
            else:
                assert after.index == before.index + 1


def tape(play: Table) -> Tape:
    return play.game._sinks[0]


def told(play: Table, words: str) -> bool:
    return any(words in toast for toast in play.game.window.toasts())


def press(play: Table, key: int, mod: int = 0, scancode: int = 0) -> None:
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key, scancode=scancode, mod=mod, unicode=""))


def lift(play: Table, key: int) -> None:
    pygame.event.post(pygame.event.Event(pygame.KEYUP, key=key, scancode=0, mod=0, unicode=""))


def shown(play: Table, block: int) -> bool:
    current = play.game.presenter.block
    return current is not None and current.index >= block


def picture(play: Table) -> int:
    """The number of the frame on screen."""
    return int(play.game.presenter.frame[0, 0, 0])
