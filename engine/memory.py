"""How much memory a session takes, and how much there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from engine.snapshot import layout
from engine.world import choose_dtype
from models import linear, winograd
from models.checkpoint import build_empty
from models.dit import DiT
from models.taehv import TAEHV
from models.vae import VAE

if TYPE_CHECKING:
    from engine.config import WorldConfig
    from engine.world import World

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def session_bytes(world: World) -> int:
    """Of one session's state: rings, the decoder's memory, start picture. Its history for rewinding comes on top.

    The decoder keeps what its convolutions remember twice (`models/vae.py`); twice of all is taken, the rest is for a block in the making.
    """
    return 2 * sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in layout(world, 4).values())


def weights_bytes(config: WorldConfig, device: str = "cpu", dtype: str | None = None, decode_device: str | None = None) -> int:
    """What a world's weights take at most, loaded as `World.load` would: more than their files, which are in half precision.

    The VAE's convolutions keep theirs a second time, as they are multiplied, and as tiles they are four times as large
    (`models.winograd`). So does a small denoiser in bfloat16 (`models.linear`). Encoders compute in float32; the one for image tokens is in
    memory piece by piece only.
    """
    kind = choose_dtype(dtype or config.dtype, torch.device(device))
    tiles = torch.device(decode_device or device).type == "cpu" and torch.backends.cpu.get_cpu_capability() in winograd.MEASURED
    copies = 1 + (winograd.TAPS // 9 if tiles else 1)
    dit = kind.itemsize * _numbers(build_empty(DiT, config.model))
    packed = dit if linear.worth_packing(dit, kind, torch.device(device)) else 0
    found = dit + packed + 4 * copies * _numbers(build_empty(VAE, config.vae))
    return found + (kind.itemsize * _numbers(build_empty(TAEHV, config.taehv)) if config.decoder == "taehv" else 0)


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def free_bytes(device: str) -> int | None:
    """Memory that is free on ``device`` ("cpu", "cuda" …); of a container as much as it may still have. None where nobody tells."""
    if device.startswith("cuda"):
        place = torch.device(device)
        free, _ = torch.cuda.mem_get_info(place)
        number = torch.cuda.current_device() if place.index is None else place.index
        kept = [part for part in torch.cuda.memory_snapshot() if part["device"] == number]
        # What graphs keep for themselves serves nobody else.
        return free + sum(part["total_size"] - part["allocated_size"] for part in kept if tuple(part["segment_pool_id"]) == (0, 0))
    found = [free for free in (_meminfo(), _cgroup()) if free is not None]
    return min(found, default=None)


def _meminfo() -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _cgroup() -> int | None:
    """Version 2; "max" is no number, then there is no limit."""
    try:
        return int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
