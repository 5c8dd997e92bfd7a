"""What the machine can do at best, measured: the ceilings that a block's speed is held against."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from engine.device import synchronize
from engine.exact import processor

SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices
COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
SECONDS = 0.4  # of each measurement


@dataclass(frozen=True)
class Ceiling:
    """A large matrix product and a large copy: the best of several tries."""

    tflops: float  # in the world's dtype
    copy_gb_s: float  # bytes read and written, in 10⁹ a second


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """Measure both on ``device``."""
    side = SIDE.get(device.type, 2048)
    a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    product = _best(partial(torch.mm, a, b, out=out), device, SECONDS)
    nbytes = COPY_BYTES.get(device.type, 1 << 28)
    source, target = (torch.zeros(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    copy = _best(partial(target.copy_, source), device, SECONDS)
    return Ceiling(2 * side**3 / product / 1e12, 2 * nbytes / copy / 1e9)


def describe_machine(device: torch.device) -> dict[str, object]:
    """Hardware and versions, for whoever reads the numbers."""
    found: dict[str, object] = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
    }
    if device.type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpu_memory_gb": round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1),
            "cuda": torch.version.cuda or torch.version.hip or "",
            "cudnn": torch.backends.cudnn.version() or 0,
        }
    return found


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak bytes of this process so far: ``host``, and ``device`` where it has memory of its own."""
    found = {}
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["host"] = peak if sys.platform == "darwin" else peak << 10
    except ImportError:  # Windows
        pass
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device)
    return found


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the quickest of as many tries as fit into ``seconds``, three at least."""
    work()
    synchronize(device)
    best, end, tries = float("inf"), time.perf_counter() + seconds, 0
    while tries < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        synchronize(device)
        best, tries = min(best, time.perf_counter() - began), tries + 1
    return best
