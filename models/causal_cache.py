"""What a decoder remembers of the frames before, and the same decoder compiled or recorded, which reads and writes that memory.

Both decoders stream through it: `models.vae` and `models.taehv`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from models.compiled import compiled
from models.recorded import Recordings, play, recordable


class CausalCache:
    """What the causal convolutions remember between two calls: per convolution the last frames it saw.

    Two buffers per convolution: a call reads one and writes the other, and only `commit` exchanges them. A call that
    fails half-way therefore leaves the remembered past untouched.
    """

    def __init__(self) -> None:
        self.started = False
        self._now: dict[int, Tensor] = {}
        self._next: dict[int, Tensor] = {}  # written since the last commit
        self._spare: dict[int, Tensor] = {}  # memory to write into

    @property
    def slots(self) -> frozenset[int]:
        """The convolutions that have seen something."""
        return frozenset(self._now)

    def read(self, slot: int) -> Tensor | None:
        """Frames remembered by convolution ``slot`` `[B, <=2, H, W, C]`, or None when it has seen nothing yet."""
        return self._now.get(slot)

    def write(self, slot: int, frames: Tensor) -> None:
        buffer = self._next.get(slot, self._spare.pop(slot, None))
        if buffer is None or buffer.shape != frames.shape or buffer.dtype != frames.dtype:
            buffer = torch.empty_like(frames)
        self._next[slot] = buffer.copy_(frames)

    def commit(self) -> None:
        """Make what the last call wrote the remembered past."""
        self._spare |= {slot: self._now[slot] for slot in self._next if slot in self._now}
        self._now |= self._next
        self._next = {}
        self.started = True

    def buffers(self, strides: dict[int, tuple[int, ...]] | None = None) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """What is remembered, and memory of the same shapes for what a call is to remember instead; `commit` exchanges them.

        All in memory of these ``strides``, by slot (None: as it lies): what was loaded, or an uncompiled call wrote, may lie otherwise.
        """
        strides = {slot: frames.stride() for slot, frames in sorted(self._now.items())} if strides is None else strides
        for slot, stride in strides.items():
            now = self._now[slot]
            if now.stride() != stride:
                self._now[slot] = now.new_empty_strided(now.shape, stride).copy_(now)
            coming = self._next.get(slot, self._spare.pop(slot, None))
            self._next[slot] = coming if coming is not None and coming.stride() == stride else now.new_empty_strided(now.shape, stride)
        return {slot: self._now[slot] for slot in strides}, {slot: self._next[slot] for slot in strides}

    def tensors(self) -> dict[str, Tensor]:
        """The remembered frames by name: with `started`, the whole state."""
        return {str(slot): frames for slot, frames in sorted(self._now.items())}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Become a copy of the state that `tensors` gave (an empty dict: nothing seen yet)."""
        self._now = {int(slot): frames.clone() for slot, frames in tensors.items()}
        self._next, self._spare = {}, {}
        self.started = bool(tensors)

    def clone(self) -> CausalCache:
        other = CausalCache()
        other.load(self.tensors())
        return other


class LentCache:
    """A `CausalCache` in the middle of its stream, lent to a compiler: tensors that are read, and others that are written over."""

    started = True

    def __init__(self, past: dict[int, Tensor], coming: dict[int, Tensor]) -> None:
        self._past, self._coming = past, coming

    def read(self, slot: int) -> Tensor | None:
        return self._past.get(slot)

    def write(self, slot: int, frames: Tensor) -> None:
        self._coming[slot].copy_(frames)


class Decoding(Protocol):
    """A decoder as far as `make_pixels` knows it."""

    compiled: CompiledPixels | None
    recordings: Recordings | None

    def pixels(self, z: Tensor, cache: CausalCache | None, /) -> Tensor: ...


def make_pixels(model: Decoding, z: Tensor, cache: CausalCache | None) -> Tensor:
    """``model.pixels(z, cache)``: after a stream's first block compiled or recorded, where that is wanted and possible."""
    if model.compiled is not None and model.compiled.fits(z, cache):
        return model.compiled(z, cache)
    if model.recordings is None or cache is None or not cache.started or not recordable(z):
        return model.pixels(z, cache)
    past, coming = cache.buffers()
    slots = tuple(past)

    def run(z: Tensor, *memory: Tensor) -> Tensor:
        halves = memory[: len(slots)], memory[len(slots) :]
        return model.pixels(z, LentCache(*(dict(zip(slots, half, strict=True)) for half in halves)))

    given = [z, *past.values(), *coming.values()]
    calls = model.recordings.find(slots, run, given)
    return model.pixels(z, cache) if calls is None else play(calls, given)


def _pixels_body(model: Decoding, z: Tensor, past: dict[int, Tensor], coming: dict[int, Tensor]) -> Tensor:
    return model.pixels(z, LentCache(past, coming))


class CompiledPixels:
    """``model.pixels`` compiled (`torch.compile`, without a graph break) for the blocks of a stream after its first.

    All those have one shape: latents ``shape``, and the memory that ``cache`` has after a first block. The first call makes the compiler
    work.
    """

    def __init__(self, model: Decoding, shape: torch.Size, cache: CausalCache, **options: Any) -> None:
        self._model, self._shape = model, shape
        self._strides = {int(slot): _strides(frames) for slot, frames in cache.tensors().items()}
        self._body: Callable[..., Tensor] = compiled(_pixels_body, **options)

    def fits(self, z: Tensor, cache: CausalCache | None) -> bool:
        return cache is not None and cache.started and z.shape == self._shape and cache.slots == self._strides.keys()

    def __call__(self, z: Tensor, cache: CausalCache) -> Tensor:
        """As ``model.pixels(z, cache)`` where it `fits`."""
        return self._body(self._model, z.contiguous(), *cache.buffers(self._strides))  # what is compiled holds for its strides only


def _strides(frames: Tensor) -> tuple[int, ...]:
    """Channels last: of `[B, T, H, W, C]` as they come, of `[T, C, H, W]` as torch means it. Also where a side of 1 leaves a choice."""
    layout = torch.channels_last if frames.dim() == 4 else torch.contiguous_format
    return torch.empty(frames.shape, device="meta", memory_format=layout).stride()
