"""Rings of keys and values, one slot a latent, overwritten in place at positions known on the host.

Keys are rotated before they are stored, so the order of the slots does not matter to attention and nothing is ever
rolled: latent t lives in slot t % window. A block [start, start + n) is written over the oldest slots, which leaves
exactly the last `window` latents counted to the block's end. Slots not written yet take no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models import kernels
from models.attention import Attend, KeyValue

if TYPE_CHECKING:
    from models.graphs import GraphedPasses


@dataclass(frozen=True)
class Block:
    """The slots of one pass over latents [start, start + n): plain numbers, worked out once for all layers."""

    window: int
    first: int  # oldest latent seen
    start: int
    n: int

    @property
    def full(self) -> bool:
        """Whether every slot of the rings is seen."""
        return self.start + self.n - self.first == self.window

    @cached_property
    def writes(self) -> list[tuple[int, int, int]]:
        """(slot, first latent of the block, count) of each unbroken run of slots to write: one, or two around the ring's end."""
        slot = self.start % self.window
        head = min(self.n, self.window - slot)
        runs = [(slot, 0, head), (0, head, self.n - head)]
        return [run for run in runs if run[2]]

    def slots(self, first: int, end: int) -> list[tuple[int, int]]:
        """Slot ranges [a, b) that hold latents [first, end), in slot order."""
        if end - first >= self.window:
            return [(0, self.window)]
        a, b = first % self.window, end % self.window
        if first == end:
            return []
        return [(a, b or self.window)] if a < (b or self.window) else [(0, b), (a, self.window)]


@dataclass(frozen=True)
class KVRing:
    """Keys and values of one attention: two buffers ``[B, heads, window, tokens of a latent, head_dim]``."""

    k: Tensor
    v: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], device: torch.device | str, dtype: torch.dtype) -> KVRing:
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def clone(self) -> KVRing:
        return KVRing(self.k.clone(), self.v.clone())

    def attend(self, block: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the block's k, v ``[B, heads, n x tokens, head_dim]`` into its slots, then let q see the window."""
        return kernels.attend(q, self._seen(self.k, block, k).to(q.dtype), self._seen(self.v, block, v).to(q.dtype))

    def attend_full(self, slots: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend` once the ring is full, in one shape for ever: ``slots`` `[n]`, on the ring's device, are those to write into."""
        self.write_full(slots, k, v)
        return kernels.attend(q, self.k.flatten(2, 3).to(q.dtype), self.v.flatten(2, 3).to(q.dtype))

    def write(self, block: Block, k: Tensor, v: Tensor) -> None:
        """Only write the block's k, v into its slots: for a pass whose output nobody needs."""
        for ring, new in ((self.k, k), (self.v, v)):
            latents = new.unflatten(2, (block.n, ring.shape[3]))
            for slot, i, count in block.writes:
                ring[:, :, slot : slot + count].copy_(latents[:, :, i : i + count])

    def write_full(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """`write` into ``slots`` `[n]` on the ring's device."""
        for ring, new in ((self.k, k), (self.v, v)):
            ring.index_copy_(2, slots, new.unflatten(2, (-1, ring.shape[3])).to(ring.dtype))

    @staticmethod
    def _seen(ring: Tensor, block: Block, new: Tensor) -> Tensor:
        latents = new.unflatten(2, (block.n, ring.shape[3]))  # [B, heads, n, tokens, head_dim]
        if new.requires_grad:  # the ring keeps values only; the gradient goes through a copy that no later pass overwrites
            old = [ring[:, :, a:b] for a, b in block.slots(block.first, block.start)]
            seen = torch.cat([*old, latents.to(ring.dtype)], dim=2)
        for slot, i, count in block.writes:
            ring[:, :, slot : slot + count].copy_(latents[:, :, i : i + count].detach())
        if not new.requires_grad:
            runs = [ring[:, :, a:b] for a, b in block.slots(block.first, block.start + block.n)]
            seen = runs[0] if len(runs) == 1 else torch.cat(runs, dim=2)  # two runs only before the ring is full, after an odd start
        return seen.flatten(2, 3)  # [B, heads, latents seen x tokens, head_dim]


@dataclass
class LayerCache:
    """One layer's memory. ``mouse`` and ``keyboard`` are None in layers without that part, ``image`` until it is computed."""

    tokens: KVRing
    mouse: KVRing | None
    keyboard: KVRing | None
    image: KeyValue | None = None

    def attend(self, block: Block) -> Attend:
        """The attentions of a pass over ``block``."""
        mouse, keyboard = (None if ring is None else partial(ring.attend, block) for ring in (self.mouse, self.keyboard))
        return Attend(partial(self.tokens.attend, block), mouse, keyboard, self.image)

    def attend_full(self, slots: Tensor) -> Attend:
        """The attentions of any pass over a full ring (`KVRing.attend_full`)."""
        mouse, keyboard = (None if ring is None else partial(ring.attend_full, slots) for ring in (self.mouse, self.keyboard))
        return Attend(partial(self.tokens.attend_full, slots), mouse, keyboard, self.image)

    def clone(self) -> LayerCache:
        mouse, keyboard = (None if ring is None else ring.clone() for ring in (self.mouse, self.keyboard))
        image = None if self.image is None else (self.image[0].clone(), self.image[1].clone())
        return LayerCache(self.tokens.clone(), mouse, keyboard, image)


class DiTCache:
    """All rings of one batch of sessions. It holds latents [first, written); both are host integers.

    Passes over the same block overwrite the same slots and leave the same state. Writing an earlier block again rewinds: what lay
    after it is forgotten (and what the ring has overwritten stays lost). Block 0 always begins anew.
    """

    def __init__(self, layers: list[LayerCache], window: int) -> None:
        self.layers = layers
        self.window = window
        self.first = 0
        self.written = 0
        self.graphs: GraphedPasses | None = None  # of passes over these rings, see `models.graphs`

    @property
    def graphed(self) -> bool:
        """Whether passes over these rings are replayed as graphs."""
        return self.graphs is not None and self.graphs.replaying

    def open(self, start: int, n: int) -> Block:
        """Enter latents [start, start + n) into the books, for a pass that writes all rings.

        Raises ``ValueError`` if that would leave a hole, or if the latents before ``start`` are no longer held.
        """
        if not 1 <= n <= self.window:
            raise ValueError(f"a block of {n} latents does not fit a window of {self.window}: use 1..{self.window}")
        if start < 0:
            raise ValueError(f"latents count from 0, got start {start}")
        if start == 0 or self.written == self.first:
            self.first = start
        elif not self.first <= start <= self.written:
            raise ValueError(
                f"latent {start} cannot follow a cache that holds latents {self.first}..{self.written - 1}: "
                f"go on at {self.written}, rewind within it, or take a new cache"
            )
        self.written = start + n
        self.first = max(self.first, self.written - self.window)
        return Block(self.window, self.first, start, n)

    def clear(self) -> None:
        """Forget all latents; the image's keys stay."""
        self.first = self.written = 0

    def views(self, first: int, end: int) -> list[Tensor]:
        """Where every ring keeps latents [first, end), at most a window of them: views ``[B, heads, 1.., tokens, head_dim]``, always in
        the same order. What lies there may be older."""
        runs = Block(self.window, first, first, end - first).slots(first, end)
        rings = (ring for layer in self.layers for ring in (layer.tokens, layer.mouse, layer.keyboard) if ring is not None)
        return [buffer[:, :, a:b] for ring in rings for buffer in (ring.k, ring.v) for a, b in runs]

    def tensors(self) -> dict[str, Tensor]:
        """Every buffer by name, not copied. With ``first`` and ``written`` it is the whole state."""
        found: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            for name in ("tokens", "mouse", "keyboard"):
                ring = getattr(layer, name)
                if ring is not None:
                    found[f"layers.{i}.{name}.k"], found[f"layers.{i}.{name}.v"] = ring.k, ring.v
            if layer.image is not None:
                found[f"layers.{i}.image.k"], found[f"layers.{i}.image.v"] = layer.image
        return found

    def load(self, tensors: dict[str, Tensor], first: int, written: int) -> None:
        """Take over a saved state. Raises ``ValueError`` if names, shapes or the range of latents do not fit this cache."""
        own = self.tensors()
        if own.keys() != tensors.keys():
            raise ValueError(f"saved cache does not fit: differs in {sorted(own.keys() ^ tensors.keys())[:3]}")
        if not 0 <= first <= written <= first + self.window:
            raise ValueError(f"saved cache claims latents {first}..{written} in a window of {self.window}")
        for name, buffer in own.items():
            if buffer.shape != tensors[name].shape:
                raise ValueError(f"saved cache does not fit: {name} is {list(tensors[name].shape)}, expected {list(buffer.shape)}")
        for name, buffer in own.items():
            buffer.copy_(tensors[name])
        self.first, self.written = first, written

    def clone(self) -> DiTCache:
        """An independent copy."""
        twin = DiTCache([layer.clone() for layer in self.layers], self.window)
        twin.first, twin.written = self.first, self.written
        return twin
