"""Self-Forcing: the model plays, block after block, through the sampler and the rings that play (Huang et al. 2025, "Self Forcing").

Of each block's denoising passes one is the exit: its x̂₀ is the block, and the only pass with a gradient. Passes before it, and the
clean pass that leaves the block in the rings, have none; what a block sees of the past is taken as it is. Exits are drawn once for
all blocks or for each of them. With ``finish`` the passes after the exit are made too, without a gradient, and the rings get their x̂₀.

With exit "last" this is what a player sees (`tests/training/test_rollout.py`), with the world's `last_noise` too, but for two settings that
it does not know: with `sampler.hold_still` a player commits two idle blocks in a row and no third (which takes no place in the rings,
however often it is imagined), where a rollout commits all; with `sampler.context: last` it saves the clean pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.clock import BlockClock
from engine.conditioning import Windows
from engine.sampler import BlockSampler, NoiseSource
from models.dit import DiT
from models.flow import add_noise
from training.dataset import Batch
from training.draws import Draws
from training.plan import RolloutSettings


@dataclass
class Generated:
    """Latents [B, z, T, h, w] that a model made, and how many of the first have no gradient (given ones included)."""

    latents: Tensor
    without_gradient: int

    @property
    def counts(self) -> Tensor:
        """[T]: 1 where there is a gradient."""
        return (torch.arange(self.latents.shape[2], device=self.latents.device) >= self.without_gradient).float()


def half_precision(device: torch.device) -> AbstractContextManager:
    """bfloat16 by autocast, without its cache: no weight cast in a pass without gradient may serve one that has it."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


class Rollout:
    """Plays batches of windows with a gradient, in ``dtype`` (bfloat16: by autocast; the rings have it too).

    ``cloned``: keep the rings of every block as they were, for a model whose layers are computed again in the backward pass.
    """

    def __init__(
        self, dit: DiT, steps: tuple[int, ...], shift: float, settings: RolloutSettings, dtype: torch.dtype = torch.float32,
        cloned: bool = False, last_noise: float = 1.0,
    ) -> None:  # fmt: skip
        self.dit, self.settings, self.dtype, self.cloned = dit, settings, dtype, cloned
        self.sampler = BlockSampler(dit, steps, shift, last_noise)

    def exits(self, draws: Draws, blocks: int) -> list[int]:
        """The pass of each block that has the gradient, from 0."""
        last = len(self.sampler.timesteps) - 1
        if self.settings.exit == "last":
            return [last] * blocks
        if self.settings.exit_shared:
            return [draws.shared_whole("exit", 0, last)] * blocks
        return [draws.shared_whole(f"exit {block}", 0, last) for block in range(blocks)]

    def play(
        self, batch: Batch, exits: list[int], noise: NoiseSource, given: int = 0, gradient: bool = True, draws: Draws | None = None
    ) -> Iterator[tuple[BlockClock, Tensor]]:
        """Yield each block's clock and latents [B, z, n, h, w], with a graph where it has a gradient, before it is committed.

        The first ``given`` blocks are the truth and only committed; ``draws`` give the noise of the clean pass, where there is any.
        """
        model = self.dit.config
        blocks, n = len(exits), model.num_frame_per_block
        first_with = self._first_with_gradient(n * blocks)
        height, width = (batch.latents.shape[3 + i] // model.patch_size[1 + i] for i in range(2))
        cache = self.dit.new_cache(batch.latents.shape[0], height, width, batch.latents.device, self.dtype)
        with torch.set_grad_enabled(gradient):
            self.dit.precompute_context(batch.visual, cache)
        clock = BlockClock(n=n, r=model.action.vae_time_ratio)
        for block, last in enumerate(exits):
            own = slice(clock.start, clock.start + n)
            condition = batch.condition[:, :, own]
            rows = batch.rows_of(own)
            if block < given:
                x0 = batch.latents[:, :, own]
            else:
                learning = gradient and clock.start >= first_with
                rings = cache.clone() if self.cloned and learning else cache
                passes = self.sampler.denoise(clock, rings, condition, rows, noise)
                for step in range(last + 1):
                    with torch.set_grad_enabled(learning and step == last), self._half(batch.latents.device):
                        x0 = next(passes)
            yield clock, x0
            if block + 1 < blocks:
                with torch.no_grad(), self._half(batch.latents.device):
                    if self.settings.finish and block >= given:
                        *_, x0 = x0, *passes
                    self._commit(clock, cache, condition, rows, x0.detach(), draws)
            clock = clock.next()

    def __call__(self, batch: Batch, draws: Draws, given: int = 0, gradient: bool = True) -> Generated:
        """The whole rollout over ``batch``'s window, as long as that is."""
        n = self.dit.config.num_frame_per_block
        exits = self.exits(draws, batch.latents.shape[2] // n)
        parts = [x0 for _, x0 in self.play(batch, exits, draws.sessions(), given, gradient, draws)]
        return Generated(torch.cat(parts, dim=2), max(given * n, self._first_with_gradient(n * len(exits))))

    def _first_with_gradient(self, latents: int) -> int:
        """The first latent of the first block that lies wholly within the last N; the last block always has a gradient."""
        n = self.dit.config.num_frame_per_block
        return min(-(-max(0, latents - self.settings.gradient_latents) // n) * n, latents - n)

    def _half(self, device: torch.device) -> AbstractContextManager:
        return half_precision(device) if self.dtype == torch.bfloat16 else nullcontext()

    def _commit(self, clock: BlockClock, cache: object, condition: Tensor, rows: Windows, x0: Tensor, draws: Draws | None) -> None:
        timestep = self.settings.context_noise
        if timestep and draws is not None:
            fresh = draws.normal(f"context {clock.block}", *x0.shape[1:]).to(x0.device)
            x0 = add_noise(x0, fresh, float(self.sampler.schedule.sigma(timestep)))
        self.sampler.commit(clock, cache, condition, rows, x0, timestep)
