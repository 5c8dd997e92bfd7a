"""Which of torch's attention kernels a world is played with: chosen outright, tried out, and told as it is.

The switch is torch's own (`torch.nn.attention.sdpa_kernel`) and holds for the whole process, the decoder's one attention included: the
world that was loaded last has chosen. A kernel that is asked for by name comes first, and must be there for the transformer's tokens;
the attentions that it cannot do (over time at each place, the decoder's wide head) are left to those after it.
"""

from __future__ import annotations

import atexit
import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import kernels
from models.errors import WorldError, one_line

if TYPE_CHECKING:
    from engine.config import WorldConfig

AUTO = "auto"
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
PLAIN = "plain products"  # `models.kernels.attend`, on a CPU
SPELLED_OUT = "spelled out for the compiler"  # the same, on a GPU
UNKNOWN = "not told"
_in_force = contextlib.ExitStack()  # of torch's switch; closed, torch is as it came
atexit.register(_in_force.close)


@dataclass(frozen=True)
class Choice:
    """What was asked for, and the kernels that may be used because of it, the preferred one first. Nothing: torch's own way."""

    name: str = AUTO
    order: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"torch sdpa ({' '.join(self.order)})" if self.order else "torch sdpa"


_chosen = Choice()


def choose_attention(name: str, device: torch.device, dtype: torch.dtype, config: WorldConfig) -> Choice:
    """Switch the process to the kernel ``name`` (auto, cudnn, flash, efficient or math), for the attentions of a world.

    "auto" leaves everything as torch and `models.kernels` have it on a CPU; on a GPU it is cuDNN first from Hopper on (compute
    capability 9), Flash first on an older one, then Flash, efficient, math; without those that take one of the world's attentions and
    then fail at it. Raises WorldError, and leaves the switch as it was, for a kernel that is unknown, or not there.
    """
    head_dim = config.model.head_dim
    if name != AUTO and name not in KERNELS:
        raise WorldError(f"attention is one of {AUTO}, {', '.join(KERNELS)}; got {one_line(name, 80)!r}")
    if name != AUTO and not is_there(name, device, dtype, head_dim):
        there = [other for other in KERNELS if is_there(other, device, dtype, head_dim)]
        what = f"{str(dtype).removeprefix('torch.')} and heads of {head_dim} on {device.type}"
        raise WorldError(f"torch has no {name} attention for {what}; choose {' or '.join([AUTO, *there])}")
    order = _order(name, device)
    choice = Choice(name, _without_failing(name, order, config, device, dtype) if device.type == "cuda" else order)
    global _chosen
    if choice != _chosen:  # another session may be playing with this one
        _in_force.close()
        kernels.use_plain_products(name == AUTO)
        if choice.order:
            _in_force.enter_context(sdpa_kernel([KERNELS[kernel] for kernel in choice.order], set_priority=True))
        _chosen = choice
    return choice


def is_there(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel does a small attention there, and no other for it. Only CPUs and GPUs let themselves be asked."""
    if device.type not in ("cpu", "cuda"):
        return False
    tokens = torch.zeros(1, 1, 64, head_dim, device=device, dtype=dtype)
    try:
        with torch.inference_mode(), warnings.catch_warnings(), sdpa_kernel(KERNELS[name]):
            warnings.simplefilter("ignore")  # about every reason why not
            F.scaled_dot_product_attention(tokens, tokens, tokens)
            return _taken(tokens, tokens, tokens) in (name, UNKNOWN)
    except RuntimeError:
        return False


def attentions_of(config: WorldConfig, device: torch.device, dtype: torch.dtype, compiled: bool = False) -> dict[str, str]:
    """The kernel that each attention of a full window takes as things stand: of the tokens, to the image, over mouse and keyboard rows.

    Found out by asking torch about tensors of those shapes; a ``compiled`` layer asks the same.
    """
    found = {}
    for name, (q, k) in _shapes(config).items():
        query, key = _laid_as_played(q, device, dtype), torch.empty(k, device=device, dtype=dtype)
        with torch.inference_mode():
            if compiled and kernels.spelled_out(query, key):
                found[name] = SPELLED_OUT
            else:
                found[name] = PLAIN if kernels.by_hand(query, key) else _taken(query, key, key)
    return found


def _without_failing(name: str, order: tuple[str, ...], config: WorldConfig, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """``order`` without the kernels that fail at what they take. Raises WorldError where the one asked for by ``name`` does."""
    while (failed := _fails(order, config, device, dtype)) is not None:
        culprit, what = failed
        if culprit == name:
            raise WorldError(f"the {name} attention fails in this world ({what}); choose another")
        order = tuple(kernel for kernel in order if kernel != culprit)
    return order


def _fails(order: Sequence[str], config: WorldConfig, device: torch.device, dtype: torch.dtype) -> tuple[str, str] | None:
    """The first kernel that takes an attention of the world, and then fails at it, and how: it may have no plan for what it took.

    Over a full window and over a window's first block, whose keys are a part of the ring.
    """
    n = config.model.num_frame_per_block
    for name, (q, k) in _shapes(config).items():
        query = _laid_as_played(q, device, dtype)
        batch, heads, keys, head_dim = k
        few = keys if name == "image" else n * keys // config.model.local_attn_size
        whole = torch.zeros(batch, heads, keys, head_dim, device=device, dtype=dtype)
        for key in (whole, whole[:, :, :few]):
            with torch.inference_mode(), sdpa_kernel([KERNELS[kernel] for kernel in order], set_priority=True):
                taken = _taken(query, key, key)
                try:
                    F.scaled_dot_product_attention(query, key, key)
                except RuntimeError as error:
                    if len(order) == 1:
                        return None  # nothing is left to be tried instead
                    return taken if taken in order else order[0], f"{name}: {one_line(str(error), 120)}"
    return None


def _laid_as_played(shape: Shape, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros [B, heads, tokens, head_dim] as queries may lie: a part of one product, tokens before heads."""
    batch, heads, tokens, head_dim = shape
    return torch.zeros(batch, tokens, 3, heads, head_dim, device=device, dtype=dtype)[:, :, 0].transpose(1, 2)


def _taken(q: Tensor, k: Tensor, v: Tensor) -> str:
    ask = getattr(torch, "_fused_sdp_choice", None)  # what `scaled_dot_product_attention` itself asks; there is no public way
    if ask is None or q.device.type not in ("cpu", "cuda"):
        return UNKNOWN
    taken = ask(q, k, v)
    return next((name for name, kernel in KERNELS.items() if int(kernel) == taken), UNKNOWN)


def _order(name: str, device: torch.device) -> tuple[str, ...]:
    if device.type == "cuda":
        if name == AUTO:
            name = "cudnn" if torch.cuda.get_device_capability(device) >= (9, 0) else "flash"
        return _with_fallbacks(name, ("flash", "efficient", "math"))
    return () if name == AUTO else _with_fallbacks(name, ("math",))


def _with_fallbacks(name: str, others: Sequence[str]) -> tuple[str, ...]:
    """``math`` alone means it: nothing else is left to be taken."""
    return (name,) if name == "math" else (name, *(other for other in others if other != name))


Shape = tuple[int, int, int, int]


def _shapes(config: WorldConfig) -> dict[str, tuple[Shape, Shape]]:
    """Of queries and keys [B, heads, tokens, head_dim], for each kind of attention the model has."""
    model, ratio = config.model, config.vae.spatial_ratio
    _, down, right = model.patch_size
    places = (config.height // ratio // down) * (config.width // ratio // right)
    n, window, action = model.num_frame_per_block, model.local_attn_size, model.action
    tokens = (1, model.num_heads, n * places, model.head_dim)
    found: dict[str, tuple[Shape, Shape]] = {"tokens": (tokens, (1, model.num_heads, window * places, model.head_dim))}
    if config.vision is not None:
        found["image"] = tokens, (1, model.num_heads, config.vision.num_tokens, model.head_dim)
    if action.blocks and action.mouse_dim:
        found["mouse"] = (1, places * action.heads, n, action.head_dim), (1, places * action.heads, window, action.head_dim)
    if action.blocks:
        found["keyboard"] = (1, action.heads, n * places, action.head_dim), (1, action.heads, window, action.head_dim)
    return found
