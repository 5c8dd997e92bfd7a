"""The one place that counts: which latents, frames, rows, slots and noise belong to a block (SPEC §1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BlockClock:
    """One block of a session. Everything else about time is a pure function of it.

    ``epoch`` is raised by every reset or load, so that frames of an older life can be told apart; it takes no part in
    what is computed. ``n`` is latents per block, ``r`` frames per latent (latent 0 is a single frame). ``still`` counts the
    blocks before this one that were shown and not remembered (`Session` holds still): the transformer's place lags by them.
    """

    epoch: int = 0
    block: int = 0
    n: int = 3
    r: int = 4
    still: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.block < 0 or self.n < 1 or self.r < 1:
            raise ValueError(f"a clock needs epoch >= 0, block >= 0, n >= 1 and r >= 1; got {self}")
        if not 0 <= self.still <= max(0, self.block - 1):  # block 0, a frame short, is always remembered
            raise ValueError(f"of {self.block} blocks, 0 to {max(0, self.block - 1)} can have been held still; got {self.still}")

    @property
    def place(self) -> int:
        """The block's number as the transformer counts: blocks remembered before it."""
        return self.block - self.still

    @property
    def start(self) -> int:
        """First latent of the block: its RoPE position and the origin of its cache slots."""
        return self.n * self.place

    @property
    def latents(self) -> range:
        """Latents of the block, `[3p, 3p+3)` at place p."""
        return range(self.start, self.start + self.n)

    @property
    def frames(self) -> range:
        """Frames the block puts out: `[0, 9)`, then `[12k-3, 12k+9)`. Condition rows have the same numbers."""
        first = self.n * self.block
        return range(self._frames_before(first), self._frames_before(first + self.n))

    @property
    def first_row(self) -> int:
        """Number of the block's first condition row: a row a frame, of the blocks that are remembered."""
        return self._frames_before(self.start)

    @property
    def rows(self) -> int:
        """Condition rows known once the block's action is: `1 + r (start + n - 1)`."""
        return self._frames_before(self.start + self.n)

    @property
    def is_first(self) -> bool:
        """Whether this is the first decode of the session (its latent 0 is one frame, not ``r``)."""
        return self.block == 0

    def slots(self, window: int) -> tuple[int, ...]:
        """Places of the block's latents in a cache ring of ``window`` latents."""
        if window < self.n:
            raise ValueError(f"a window of {window} latents cannot hold a block of {self.n}")
        return tuple(latent % window for latent in self.latents)

    def filled(self, window: int) -> int:
        """Latents that take part in attention in such a ring, this block's included."""
        return min(self.start + self.n, window)

    def noise_seed(self, seed: int, step: int) -> int:
        """64 well mixed bits for the noise before denoising step ``step`` of this block, whatever the epoch.

        torch's generator on the CPU takes only the lower 32 of them: two draws are alike with a chance of 2⁻³². Every bit of
        ``seed`` counts, for it goes through the digest.
        """
        digest = hashlib.blake2b(f"{seed}/{self.block}/{step}".encode(), digest_size=8, person=b"reverie noise")
        return int.from_bytes(digest.digest(), "little")

    def next(self) -> BlockClock:
        """The block after this one."""
        return replace(self, block=self.block + 1)

    def held(self) -> BlockClock:
        """The block after this one at the same place: this one was shown and is not remembered."""
        return replace(self, block=self.block + 1, still=self.still + 1)

    def restarted(self) -> BlockClock:
        """Block 0 of the next epoch."""
        return replace(self, epoch=self.epoch + 1, block=0, still=0)

    def _frames_before(self, latent: int) -> int:
        return 0 if latent == 0 else 1 + self.r * (latent - 1)
