"""Linear layers, as they are trained and as they are played: on a CPU in bfloat16 by oneDNN's own call, of weights laid out beforehand.

A plain weight is laid out anew in every call, which costs a tenth of a product of 84 rows, and more where the weight comes from far away
in memory (docs/PERFORMANCE.md). The sums are the same, bit for bit. What is packed has no storage that torch could look into, so that it
can be no constant of a recording (`models.recorded`): a recording is given it as it is given its tensors (`standing_in`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.kernels import onednn_has_bfloat16, plays

MOST = 64 << 20  # bytes of a model whose weights are kept twice; of a larger one memory is worth more, see `worth_packing`
_DOUBLE = 2 * math.sqrt(2 / math.pi)
_POINTWISE = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if onednn_has_bfloat16() else None
_REORDER = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
_standing = threading.local()  # .weights: {Packed: Tensor}, while a recording is made in this thread


class Packed:
    """A frozen weight [out, in] as oneDNN multiplies it."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return Packed(self.weight.clone())


class Linear(nn.Linear):
    """`torch.nn.Linear`, which `pack` has keep its weight a second time, as it is multiplied. Moving the layer ends that."""

    packed: Packed | None = None

    def pack(self) -> None:
        """Call once the weight changes no more."""
        self.packed = pack(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias, self.packed)

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self.packed = None
        return super()._apply(*args, **kwargs)


def pack(weight: Tensor) -> Packed | None:
    """``weight`` [out, in], which changes no more, as it is multiplied; None where `worth_packing` says no."""
    if not worth_packing(weight.nbytes, weight.dtype, weight.device):
        return None
    with torch.inference_mode(False):  # a recording is made outside of it
        return Packed(_REORDER(weight.detach()))


def worth_packing(size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights of so many bytes, a model's in all, are kept a second time there."""
    return _POINTWISE is not None and _REORDER is not None and dtype == torch.bfloat16 and device.type == "cpu" and size <= MOST


def product(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed | None) -> Tensor:
    """x [..., in] times ``weight`` [out, in], plus ``bias``; of ``packed`` where there is one and x is played."""
    if packed is None or not plays(x, torch.bfloat16):
        return F.linear(x, weight, bias)
    return _pointwise(x, _stands_for(packed), bias, gelu=False)


def linear_gelu(x: Tensor, linear: nn.Module) -> Tensor:
    """GELU (tanh) of a linear layer. In bfloat16 on a CPU oneDNN does both at once: torch's own GELU takes as long as the product.

    In float32 torch's takes half as long as the product, four fifths of that for the tanh: by way of the logistic function it is half that.
    """
    if _POINTWISE is not None and plays(x, torch.bfloat16) and isinstance(linear, nn.Linear) and linear.weight.dtype == x.dtype:
        packed = getattr(linear, "packed", None)
        return _pointwise(x, linear.weight if packed is None else _stands_for(packed), linear.bias, gelu=True)
    hidden = linear(x)  # under autocast of another dtype than x, and differentiable where the weights are
    return _gelu_in_place(hidden) if plays(hidden, torch.float32) else F.gelu(hidden, approximate="tanh")


@contextmanager
def standing_in(packed: Sequence[Packed], weights: Sequence[Tensor]) -> Iterator[None]:
    """In this thread ``weights`` stand for what is ``packed``: the inputs of a recording in the making for what they were made of."""
    _standing.weights = dict(zip(packed, weights, strict=True))
    try:
        yield
    finally:
        _standing.weights = {}


def _stands_for(packed: Packed) -> Tensor:
    return getattr(_standing, "weights", {}).get(packed, packed.weight)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    if torch.jit.is_tracing():
        calls = _written_out()
        return calls.gelu(x, weight, bias) if gelu else calls.plain(x, weight, bias)
    return _POINTWISE(x, weight, bias, "gelu" if gelu else "none", [], "tanh" if gelu else "")


@cache
def _written_out() -> torch.jit.CompilationUnit:
    """The calls for a recording: what is traced cannot have an empty list of numbers in it, what is written in its language can."""
    return torch.jit.CompilationUnit(
        """
def plain(x, weight, bias : Optional[Tensor]):
    none : List[Optional[number]] = []
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", none, "")

def gelu(x, weight, bias : Optional[Tensor]):
    none : List[Optional[number]] = []
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", none, "tanh")
"""
    )


def _gelu_in_place(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(z)) is x / (1 + exp(-2z)), z = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return x.square().mul_(_DOUBLE * 0.044715).add_(_DOUBLE).mul_(x).sigmoid_().mul_(x)
