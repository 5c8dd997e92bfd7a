"""Resampled forcing: teacher forcing whose past is what the model makes of it (Guo et al. 2025, "Resampling Forcing").

The past of a window is played again without a gradient, block after block through the sampler and the rings that play; it does not hold
still (`objectives/rollout.py`). Block b begins at one of the sampler's passes s_b, from x = (1 − σ_s) x₀ + σ_s ε (the last with the world's
`last_noise` of that ε), and sees what came of the blocks before it. Then, as in teacher forcing,

    L = mean ‖x̂₀(x_σ, past so made) − x₀‖²      with x_σ = (1 − σ) x₀ + σ ε

on all blocks at once. A pass later than the first leaves something of the truth in every block, so that the past has the model's faults and
stays where the truth is; the noisy block is made from the truth, so that later passes learn to sharpen what is there, not to guess the mean
of what may be (which is what regression on a rollout teaches, `objectives/regression.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.clock import BlockClock
from engine.sampler import BlockSampler, NoiseSource
from models.dit import DiT
from training.dataset import Batch
from training.sharded import gathered_state


class Resampler:
    """Plays the past of windows with a copy of ``dit`` that is laid out for playing, in ``dtype``."""

    def __init__(self, dit: DiT, steps: Sequence[int], shift: float, dtype: torch.dtype = torch.float32, last_noise: float = 1.0) -> None:
        self.dit, self.dtype = dit, dtype
        self._player = DiT(dit.config).to(next(dit.parameters()).device, dtype).eval().requires_grad_(False)
        self._player.fuse()
        self._sampling = steps, shift, last_noise

    @torch.no_grad()
    def __call__(self, batch: Batch, begins: Sequence[int | None], noise: NoiseSource) -> Tensor:
        """The window [B, z, T, h, w] float32 with its first ``len(begins)`` blocks as they are played, the rest as they are.

        ``begins``: the pass, from 0, at which each block begins; None leaves it as it is. The first block of a window cut from the
        middle of a session is left as it is too: nothing told the model what came before it.
        """
        player, model = self._player, self.dit.config
        player.load_state_dict(gathered_state(self.dit))
        sampler = BlockSampler(player, *self._sampling)
        height, width = (batch.latents.shape[3 + i] // model.patch_size[1 + i] for i in range(2))
        cache = player.new_cache(batch.latents.shape[0], height, width, batch.latents.device, self.dtype)
        player.precompute_context(batch.visual, cache)
        n, made = model.num_frame_per_block, []
        clock = BlockClock(n=n, r=model.action.vae_time_ratio)
        for first in begins:
            own = slice(clock.start, clock.start + n)
            condition, rows, x0 = batch.condition[:, :, own], batch.rows_of(own), batch.latents[:, :, own]
            if first is not None:
                *_, played = sampler.denoise(clock, cache, condition, rows, noise, first, x0)
                told = batch.from_start | (clock.start > 0)
                x0 = torch.where(told[:, None, None, None, None], played, x0)
            made.append(x0)
            if len(made) < len(begins):
                sampler.commit(clock, cache, condition, rows, x0)
            clock = clock.next()
        return torch.cat([*made, batch.latents[:, :, clock.start :]], dim=2)
