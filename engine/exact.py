"""What makes two runs give the same bits, and what tells two machines apart on which they need not.

Everything here is process-wide, as torch's own switches are.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.kernels import FLOAT32_CALLS, HALF, HALF_CALLS

if TYPE_CHECKING:
    from engine.config import WorldConfig
    from engine.world import World

NOISE = "blake2b(seed/block/step) to torch.randn on the cpu, float32; 1"  # raise the number when any of it changes
# Settings that change no number, or are told elsewhere.
_SPOKEN = {"name", "file", "title", "about", "does", "start", "seed", "weights", "dtype"}

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

_on_gpu = False
Plain = str | int | float | bool | None | list["Plain"] | dict[str, "Plain"]


def make_exact(*devices: torch.device) -> None:
    """Choose kernels that give the same bits every time on these ``devices``, and pin the number of threads torch computes with.

    Where there is only a kernel that does not, torch warns and goes on: a world that plays is worth more than one that
    refuses. Choosing kernels by trying them out is off, for the trial's winner depends on what else the machine does.
    On a GPU torch's general switch stays off: nothing that is played needs it (the rings' slots are written once each), and with it
    `index_copy_` becomes a sort, outside of what the compiler makes. `compiler_options` say the same to the compiler. Float32 is float32
    there: start pictures are encoded in it, and cuDNN would round them to 10 bits.
    """
    global _on_gpu
    _on_gpu = _on_gpu or any(device.type == "cuda" for device in devices)  # one world on a GPU is enough: it may be playing
    torch.set_deterministic_debug_mode("default" if _on_gpu else "warn")  # `use_deterministic_algorithms` would import torch's compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over every new tensor, and nothing reads them unwritten
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    keep_memory()
    torch.set_num_threads(torch.get_num_threads())  # told outright, MKL no longer takes fewer threads when it sees fit


def pin_workspace() -> None:
    """Give cuBLAS memory of one size for each stream: without it sums may be cut otherwise. Only before its first product; ours to set
    where nobody has.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def compiler_options() -> dict[str, object]:
    """Options of torch's compiler for a GPU: sums are cut by rule, not by trial, where it knows how to (2.10 does)."""
    return {"deterministic": True} if "deterministic" in torch._inductor.list_options() else {}


def keep_memory() -> None:
    """Tell the C library to keep what is freed between two blocks: glibc hands large pieces back, and getting them again costs page faults.

    Changes no number. Elsewhere than with glibc it does nothing.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 512 << 20)
    except (OSError, AttributeError):
        pass


def pin_threads(count: int) -> None:
    """Compute with ``count`` threads from now on: sums are cut among threads, so their number can show in the last bits."""
    torch.set_num_threads(count)


def threads_in_use() -> int:
    """How many threads the calling thread computes with."""
    return torch.get_num_threads()


def fingerprint(world: World) -> dict[str, Plain]:
    """What the same bits may depend on besides world, weights and actions: torch, device, processor, threads, kernels."""
    device = world.device
    found: dict[str, Plain] = {
        "torch": torch.__version__,
        "device": device.type,
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "attention": str(world.attention),
        "deterministic": _deterministic(world),
        "float32": torch.get_float32_matmul_precision(),
        "compile": world.compiled,
    }
    on_cpu = "cpu" in (device.type, world.decode_device.type)
    if (world.dtype == torch.float32 and on_cpu) or world.vae.tiled:  # start pictures are encoded in float32 in every world
        found["calls"] = FLOAT32_CALLS
    if world.dtype in HALF and on_cpu:
        found["half calls"] = HALF_CALLS
    if device.type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda or torch.version.hip or "",
            "cudnn": torch.backends.cudnn.version() or 0,
            "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
        }
    return found


def _deterministic(world: World) -> bool:
    """Whether what `make_exact` chose for the world is in force."""
    on_gpu = "cuda" in (world.device.type, world.decode_device.type)
    return (on_gpu or torch.get_deterministic_debug_mode() > 0) and torch.backends.cudnn.deterministic


def settings(config: WorldConfig) -> dict[str, Plain]:
    """Every setting of a world that can show in its pictures, flat, by its path in the yaml: ``model.dim``, ``sampler.steps`` …"""
    return dict(sorted(_flat(without_unused(asdict(config), config))))


def without_unused(plain: dict[str, Any], config: WorldConfig) -> dict[str, Any]:
    """``plain``, the settings of ``config`` as tables, without those that came later and stand where they change nothing.

    So what was saved before they came still belongs to the same world.
    """
    if config.decoder == "vae":
        plain = {key: value for key, value in plain.items() if key not in ("decoder", "taehv")}
    if config.linears == "exact":
        plain = {key: value for key, value in plain.items() if key != "linears"}
    later = {"context": "clean", "hold_still": False, "last_noise": 1.0}
    plain["sampler"] = {key: value for key, value in plain["sampler"].items() if key not in later or value != later[key]}
    return plain


def processor() -> str:
    """The processor's model, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Plain]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name not in _SPOKEN:
                yield from _flat(item, f"{path}.{name}" if path else name)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        for i, item in enumerate(value):
            yield from _flat(item, f"{path}[{i}]")
    else:
        yield path, json.loads(json.dumps(value))  # tuples become lists, as they are when read back
