"""Fixtures for tests of the window: SDL's dummy driver, and tables to play at."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import game.rewinder
from game.window import Window
from tests.game.fake import FakeConfig, FakeSession
from tests.game.table import Table, Tape


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Window]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)
    window = Window("test")
    yield window
    window.close()


@pytest.fixture
def taped(window: Window, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Table]]:
    """Tables with a `Tape` each, which rewind fast."""
    monkeypatch.setattr(game.rewinder, "BLOCK_SECONDS", 0.03)
    tables: list[Table] = []

    def make(session: FakeSession | None = None, **options) -> Table:
        tables.append(Table(window, session or FakeSession(FakeConfig(fps=200)), sinks=[Tape()], **options))
        return tables[-1]

    yield make
    for table in tables:
        assert table.game.world.stop() and table.game.world.error is None
