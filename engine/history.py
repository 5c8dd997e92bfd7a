"""How to take blocks back: what each block overwrote, kept once, in host memory under a budget.

A step writes over the oldest slots of every ring; those slots, not the rings, are what is kept. The decoder's state is as
large as the slots of several blocks, so it is kept before every fourth block only; between those it is made again by
decoding the block's latents (a few kilobytes) once more, which gives the same bits: same latents, same state, same kernels.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.clock import BlockClock
from engine.conditioning import ConditionRing
from models.causal_cache import CausalCache
from models.kv_cache import DiTCache
from models.taehv import TAEHV
from models.vae import VAE

if TYPE_CHECKING:
    from collections.abc import Iterable

REWIND_MB = 512  # default budget, in 10⁶ bytes
DECODER_EVERY = 4  # blocks between two kept decoder states: at most three are decoded again by a rewind
OVERHEAD = 4096  # bytes that the objects around a block's tensors cost, roughly


@dataclass
class Undo:
    """How to go back to before the block ``clock``. All tensors are on the host."""

    clock: BlockClock
    held: tuple[int, int]  # latents [a, b) that lay in the slots the block overwrote, as far as anything still needs them
    overwritten: Tensor | None  # flat: their keys and values, in the order of `DiTCache.views`
    decoder: dict[str, Tensor] | None  # the decoder's state before the block; None: decode again from the last one kept
    keyboard: Tensor  # condition rows before the block
    mouse: Tensor | None
    last_frame: np.ndarray | None  # [H, W, 3] uint8, of the block before
    latents: Tensor | None = None  # what the block was decoded from, [1, z, n, h, w]

    @property
    def nbytes(self) -> int:
        tensors = [self.overwritten, self.keyboard, self.mouse, self.latents, *(self.decoder or {}).values()]
        picture = 0 if self.last_frame is None else self.last_frame.nbytes
        return OVERHEAD + picture + sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def put_back(self, cache: DiTCache) -> None:
        """Give the rings' slots their contents from before the block."""
        if self.overwritten is not None:
            views = cache.views(*self.held)
            for view, part in zip(views, self.overwritten.split([view.numel() for view in views]), strict=True):
                view.copy_(part.view(view.shape))


class History:
    """The newest blocks of a session, in order. It never holds more than ``budget`` bytes; the oldest go first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self.needed = 0  # bytes of one block, where they are more than the budget
        self._undos: deque[Undo] = deque()
        self._spent = 0  # leading entries that can no longer be gone back to: their decoder state and latents serve later ones

    def __len__(self) -> int:
        """How many blocks can be taken back."""
        return len(self._undos) - self._spent

    def why_not(self) -> str:
        """Why no more blocks can be taken back than `len`."""
        if self.budget <= 0:
            return "rewinding is turned off (--rewind-mb 0)"
        if self.needed > self.budget:
            return f"one block takes {self.needed / 1e6:.0f} MB to take back, --rewind-mb allows {self.budget / 1e6:.0f}"
        return f"{len(self)} are kept (--rewind-mb {self.budget / 1e6:.0f})"

    def clear(self) -> None:
        self._undos.clear()
        self._spent = self.nbytes = 0

    def before(
        self, clock: BlockClock, cache: DiTCache, decoder: CausalCache, ring: ConditionRing, last_frame: np.ndarray | None
    ) -> Undo | None:  # fmt: skip
        """What the block about to be made will overwrite; None if that is not to be kept. Changes nothing."""
        if self.budget <= 0:
            return None
        held = overwritten_latents(clock, cache.window)
        views = cache.views(*held)
        state = decoder.tensors()
        size = OVERHEAD + sum(tensor.nbytes for tensor in (*views, *state.values()))
        if size > self.budget:
            self.needed = size
            return None
        since = next((i for i, undo in enumerate(reversed(self._undos)) if undo.decoder is not None), None)
        keep = since is None or since + 1 >= DECODER_EVERY
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()} if keep else None
        return Undo(clock, held, _pack(views), copies, ring.keyboard, ring.mouse, last_frame)

    def append(self, undo: Undo | None, latents: Tensor) -> None:
        """The block is made: keep how to undo it. None breaks the chain, and all of it goes."""
        if undo is None:
            self.clear()
            return
        undo.latents = latents.to("cpu", copy=True)
        self._undos.append(undo)
        self.nbytes += undo.nbytes
        self.needed = undo.nbytes if undo.nbytes > self.budget else 0
        while self.nbytes > self.budget:
            self._drop_oldest()

    def back(self, blocks: int) -> Undo:
        """The entry of the block that is ``blocks`` back (1: the newest). Raises IndexError beyond `len`."""
        if not 1 <= blocks <= len(self):
            raise IndexError(blocks)
        return self._undos[-blocks]

    def decoder(self, blocks: int, decoder: VAE | TAEHV, device: torch.device) -> CausalCache:
        """The decoder's state before the block that is ``blocks`` back."""
        target = len(self._undos) - blocks
        start = next(i for i in range(target, -1, -1) if self._undos[i].decoder is not None)
        cache = decoder.new_decoder_cache()
        cache.load({name: tensor.to(device) for name, tensor in self._undos[start].decoder.items()})
        for undo in islice(self._undos, start, target):
            decoder.decode_block(undo.latents.to(device), cache)
        return cache

    def put_back(self, blocks: int, cache: DiTCache) -> None:
        """Give the rings what they held ``blocks`` ago and forget those blocks.

        Of all that was overwritten meanwhile only the first window's worth matters: the rest came to lie in the same slots later.
        Blocks held still write over the same slots again and again; the first of them, put back last, has what lay there.
        """
        target = len(self._undos) - blocks
        clock = self._undos[target].clock
        last = clock.place + -(-cache.window // clock.n)
        for undo in reversed(list(takewhile(lambda undo: undo.clock.place <= last, islice(self._undos, target, None)))):
            undo.put_back(cache)
        for _ in range(blocks):
            self.nbytes -= self._undos.pop().nbytes
        if not len(self):
            self.clear()

    def _drop_oldest(self) -> None:
        """The oldest block can no longer be taken back. Its decoder state stays as long as later ones are decoded from it."""
        undo = self._undos[self._spent]
        self.nbytes -= undo.nbytes
        undo.overwritten = undo.last_frame = None
        self.nbytes += undo.nbytes
        self._spent += 1
        if self._spent == len(self._undos) or self._undos[self._spent].decoder is not None:
            for _ in range(self._spent):
                self.nbytes -= self._undos.popleft().nbytes
            self._spent = 0


def overwritten_latents(clock: BlockClock, window: int) -> tuple[int, int]:
    """Latents [a, b) whose slots a block writes over and which an earlier state would still read.

    No state reads the slots that its own next block writes: of what lies there, only latents that the block before this one
    could see count. Empty (a = b) while the ring is not full.
    """
    first = max(0, clock.start - window)
    return first, max(first, min(clock.start + clock.n - window, clock.start - clock.n))


def _pack(views: Iterable[Tensor]) -> Tensor | None:
    """One flat copy of all of them on the host."""
    views = list(views)
    if not views:
        return None
    device = views[0].device if views[0].is_cuda else "cpu"  # to the host in one piece: a hundred copies would wait a hundred times
    packed = torch.empty(sum(view.numel() for view in views), dtype=views[0].dtype, device=device)
    for part, view in zip(packed.split([view.numel() for view in views]), views, strict=True):
        part.view(view.shape).copy_(view)
    return packed.cpu()
