"""Parts of a network whose calls are recorded once and then made without Python: the same calls, so the same bits.

A layer is a hundred calls into torch. Some compute for no longer than Python takes to make them, and where transformer and decoder work
side by side each waits for Python's lock while the other makes its calls. `torch.jit.trace` writes the calls down, with the frozen weights
in them, and its interpreter makes them, here with every optimisation off: nothing is fused or left out. Torch calls it deprecated, and has
nothing else that does this much and no more; where it is missing or refuses, everything is played as it is. On a CPU only.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from models import kernels

Calls = Callable[..., Tensor]
PATIENCE = 12
KEPT = 256  # recordings: layers times shapes
_tracing = threading.Lock()


def recordable(x: Tensor) -> bool:
    """Whether calls on ``x`` may be recorded and made again: on a CPU, nothing to be differentiated, nobody else taking notes."""
    plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return x.is_cpu and plain and not torch.compiler.is_dynamo_compiling() and not torch.jit.is_tracing()


def record(function: Calls, inputs: Sequence[Tensor]) -> Calls | None:
    """``function``, of tensors of these shapes, as it was once called on copies of ``inputs``; None where that is impossible."""
    with _tracing, torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and a shape that becomes a number is meant to
        try:
            return torch.jit.trace(function, tuple(tensor.clone() for tensor in inputs), check_trace=False)
        except Exception:  # of many kinds; whatever is wrong with the network itself is met again when it is played as it is
            return None


def play(calls: Calls, inputs: Sequence[Tensor]) -> Tensor:
    """Make the calls of a recording, just as they are."""
    with torch.jit.optimized_execution(False):  # of this thread
        return calls(*inputs)


class Recordings:
    """The recordings of one network: by whom and for which shapes. Weights that are moved or laid out anew end them: `clear`.

    A recording takes as long as what it saves in a dozen blocks or two, so that ``patience`` calls are made as they are first.
    """

    def __init__(self) -> None:
        self.patience = PATIENCE
        self._known: dict[Hashable, Calls | None] = {}
        self._asked: dict[Hashable, int] = {}

    def find(self, key: Hashable, function: Calls, inputs: Sequence[Tensor], telling: Sequence[Tensor] | None = None) -> Calls | None:
        """The recording of ``function`` for ``key`` and tensors shaped as ``inputs``; None while there is none yet, or can be none.

        ``telling`` are those of the inputs that say, together with ``key``, how all of them are shaped: to look at each takes time.
        """
        told = inputs if telling is None else telling
        key = (key, kernels.plain_products(), *((tensor.shape, tensor.dtype) for tensor in told))
        if key in self._known:
            return self._known[key]
        if len(self._known) + len(self._asked) >= KEPT:
            self.clear()
        asked = self._asked.get(key, 0)
        if asked < self.patience:
            self._asked[key] = asked + 1
            return None
        self._asked.pop(key, None)
        self._known[key] = record(function, inputs)
        return self._known[key]

    def clear(self) -> None:
        self._known.clear()
        self._asked.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Recordings:
        return Recordings()  # they have the weights of the first one
