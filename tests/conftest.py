"""Fixtures for all tests: where the recordings are."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recordings import FIXTURES, Recording, read_recording


def keep_to_own_cores() -> None:
    """Two test processes on two cores get one each: threads that share cores wait for each other, and timings stray."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    own = cores[int(worker.removeprefix("gw")) :: count]
    if own:
        os.sched_setaffinity(0, own)  # children inherit it
        torch.set_num_threads(len(own))


def read_films_quietly() -> None:
    """imageio reads a film's size from a line in which ffmpeg's "Press [q] to stop" may land; with ``-nostdin`` it says no such thing."""
    try:
        import imageio_ffmpeg
    except ImportError:  # the machines with a GPU have none, and read no films
        return
    read_frames = imageio_ffmpeg.read_frames

    def quietly(path: str, *formats: Any, input_params: list[str] | None = None, **options: Any) -> Iterator[Any]:
        return read_frames(path, *formats, input_params=["-nostdin", *(input_params or [])], **options)

    imageio_ffmpeg.read_frames = quietly


keep_to_own_cores()
read_films_quietly()
os.environ["REVERIE_CACHE"] = tempfile.mkdtemp(prefix="reverie-test-cache-")  # never the cache of whoever runs the tests
atexit.register(shutil.rmtree, os.environ["REVERIE_CACHE"], ignore_errors=True)
REFERENCE = Path(os.environ.get("REVERIE_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Some of what is tested pins the number of threads for its whole process: here that ends with the test."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the recordings of the published code. Tests that need it are skipped where it is missing."""
    if not REFERENCE.is_dir():
        pytest.skip(f"no recordings at {REFERENCE} (set REVERIE_REFERENCE)")
    return REFERENCE


@pytest.fixture(scope="session")
def recording(reference: Path) -> Callable[[str], Recording]:
    """Read a recording by name."""
    return lambda name: read_recording(reference / f"{name}.safetensors")


@pytest.fixture(scope="session")
def manifest() -> dict[str, dict[str, list[int]]]:
    """The published checkpoints: of each, the shape of every tensor by name."""
    return json.loads((FIXTURES / "full_size_manifest.json").read_text())


@pytest.fixture(scope="session")
def fixture_recording() -> Callable[[str], Recording]:
    """Read a small recording that travels with the project."""
    return lambda name: read_recording(FIXTURES / f"{name}.safetensors")
