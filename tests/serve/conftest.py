from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the browser's server needs aiohttp: pip install 'reverie[serve]'")

from game.serve.worlds import Worlds
from tests.serve.table import tiny_worlds
from tests.tiny_world import write_tiny_world


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def change(settings: dict[str, Any]) -> None:
        settings["fps"] = 48  # a block in a quarter of a second

    return write_tiny_world(tmp_path_factory.mktemp("served"), change=change)


@pytest.fixture(scope="session")
def worlds(tiny: Path) -> Worlds:
    return tiny_worlds(tiny)
