"""The denoiser's passes over a full window as CUDA graphs: one call of the host's where there were thousands.

A layer of the published size works for half a millisecond on a large GPU, and it takes the host two to ask for it: the checks before a
compiled function and some twenty kernels, each asked for on its own. So a pass is captured once, with the addresses of a cache's rings and
of what it reads, and from then on only replayed. The kernels are those that would have been asked for, and so are the bits.

What a pass reads lies at addresses of its own: before a block's first pass the block's tables and rows are copied there and what they give
every action module is worked out, by a graph too; before each pass its latents.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.errors import one_line
from models.layers import Given

if TYPE_CHECKING:
    from models.dit import DiT
    from models.kv_cache import DiTCache

Capture = Callable[[Callable[[], Any]], "tuple[Callable[[], None], Any]"]  # what is to be run -> (replay, what it returned)


class CudaCapture:
    """Captures what a function asks of the device, without doing it; ``replay`` does it, again and again, into the same outputs.

    Graphs of one `CudaCapture` share their memory, and are replayed one after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = _stream(device)

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            # Of this thread's calls only: another one may be decoding, and may ask for memory.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                made = run()
            except BaseException:
                with suppress(Exception):  # of a capture that is broken already: what broke it is to be told
                    graph.capture_end()
                raise
            graph.capture_end()
        outer.wait_stream(self._stream)
        return graph.replay, made


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one that everything is captured on: cuBLAS keeps memory for every stream it has seen."""
    return torch.cuda.Stream(device)


class NotCaptured(Exception):
    """A pass that could not become a graph, and why. It has not been run."""


@dataclass
class _Pass:
    replay: Callable[[], None]
    output: Tensor | None
    kept: object  # what the graph reads by its address


class GraphedPasses:
    """The passes of ``dit`` over full windows of one cache. Not for two threads at once.

    A pass is known by its ``name``: what it does and at which timestep. Its latents ``x`` are [B, in_dim, n, h, w], its output [B, out_dim,
    n, h, w], or none. Rings, and nothing else of the caller's, are written.
    """

    def __init__(self, dit: DiT, cache: DiTCache, capture: Capture) -> None:
        self._body, self._layout, self._addresses, self._capture = dit.body, dit.layout, _addresses(cache), capture
        self._passes: dict[object, _Pass | None] = {}
        self._x: Tensor | None = None
        self._given: Given | None = None  # at addresses of its own
        self._steer: Callable[[], None] | None = None
        self._loaded: Given | None = None  # whose copy that is
        self._refused = False

    @property
    def replaying(self) -> bool:
        """Whether a pass has become a graph."""
        return any(found is not None for found in self._passes.values())

    def fits(self, dit: DiT, cache: DiTCache) -> bool:
        """Whether layers, weights and rings still are those that were captured."""
        return self._body is dit.body and self._layout is dit.layout and self._addresses == _addresses(cache)

    def run(
        self, name: object, run: Callable[..., Tensor | None], dit: DiT, x: Tensor, timestep: Tensor, given: Given, cache: DiTCache
    ) -> Tensor | None:  # fmt: skip
        """What ``run(x, timestep, given, cache)`` would do and return. The first pass of a name is run as it is: libraries and the
        compiler do things at their first call that no graph can hold. The second is captured; where that fails, a warning says so, once,
        and every pass is run as it is from then on.
        """
        if not self._refused and name in self._passes:
            try:
                return self._replayed(name, run, dit, x, timestep, given, cache)
            except NotCaptured as problem:
                warnings.warn(f"played without CUDA graphs, {problem}", stacklevel=2)
                self._refused = True
                self._passes.clear()
        # Steered as a graph is: of rows the compiler would make other layers, and these in the middle of the capture.
        made = run(x, timestep, replace(given, steerings=dit.steerings(*given.rows, given.time)), cache)
        self._passes.setdefault(name)  # now that it has gone well
        return made

    def _replayed(
        self, name: object, run: Callable[..., Tensor | None], dit: DiT, x: Tensor, timestep: Tensor, given: Given, cache: DiTCache
    ) -> Tensor | None:  # fmt: skip
        """The pass as a graph, captured if it is none yet; its output a new tensor. Raises NotCaptured, and has done nothing then."""
        self._load(dit, given)
        if self._x is None:
            self._x = x.clone()
        if (found := self._passes[name]) is None:
            kept = dit.keep_time(timestep)  # worked out now: it comes from the host
            found = _Pass(*self._captured(lambda: run(self._x, timestep, self._given, cache)), kept)
            self._passes[name] = found
        self._x.copy_(x)
        found.replay()
        return None if found.output is None else found.output.clone()

    def _load(self, dit: DiT, given: Given) -> None:
        """Put a block's tables and rows where the graphs read them, unless they are there."""
        if self._loaded is given:
            return
        self._loaded = None
        if self._given is None:
            own = given.mapped(torch.clone)
            self._steer, steerings = self._captured(lambda: dit.steerings(*own.rows, own.time))
            self._given = replace(own, steerings=steerings)
        for mine, theirs in zip(self._given.tensors(), given.tensors(), strict=True):
            mine.copy_(theirs)
        self._given = replace(self._given, start=given.start)
        self._steer()
        self._loaded = given

    def _captured(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        try:
            return self._capture(run)
        except Exception as error:  # of many kinds: of the driver's, of a library's that asks the device something meanwhile
            raise NotCaptured(f"which cannot be captured here: {one_line(error, 200)}") from error


def _addresses(cache: DiTCache) -> list[int]:
    return [buffer.data_ptr() for buffer in cache.tensors().values()]
