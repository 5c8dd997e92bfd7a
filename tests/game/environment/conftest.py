from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'reverie[gym]'")

from engine import World
from game.environment import WorldEnv
from tests.tiny_world import write_tiny_world


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="package")
def kept(tiny: Path) -> Iterator[World]:
    """The world of `tiny`, so that no test but the one about it loads it again."""
    env = WorldEnv(tiny)
    yield env.world
    env.close()


@pytest.fixture
def make(tiny: Path, kept: World) -> Iterator[Callable[..., WorldEnv]]:
    made: list[WorldEnv] = []

    def one(**settings: Any) -> WorldEnv:
        made.append(WorldEnv(tiny, **settings))
        return made[-1]

    yield one
    for env in made:
        env.close()
