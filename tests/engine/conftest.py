from __future__ import annotations

from pathlib import Path

import pytest

from engine import World
from tests.tiny_world import write_tiny_world


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The yaml of a tiny world with its weights beside it. Shared: do not change its files."""
    return write_tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_world(tiny_yaml: Path) -> World:
    return World.load(tiny_yaml)
