"""Noise to latents: denoise a block without advancing anything, then commit it with one clean pass (SPEC §4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.clock import BlockClock
from engine.conditioning import Windows
from engine.config import SamplerConfig
from models.dit import DiT
from models.flow import FlowSchedule, add_noise, x0_from_output
from models.kv_cache import DiTCache
from models.layers import Given
from models.transfer import send

CONTEXT_NOISE = 0.0  # timestep of the clean pass


class NoiseSource(Protocol):
    """Where a block's noise comes from; tests play recorded noise through it."""

    def noise(self, clock: BlockClock, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal noise, float32 on the host, for denoising pass ``step`` (from 0) of a block."""
        ...


class SeededNoise:
    """Noise that depends on (seed, block, step) and nothing else."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def noise(self, clock: BlockClock, step: int, shape: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(clock.noise_seed(self.seed, step))
        return torch.randn(tuple(shape), generator=generator)


class BlockSampler:
    """Drives a DiT through the listed steps. It holds no state but what the passes of the latest block share: all else is the caller's.

    ``last_noise`` in 0..1 is the part of its noise that the last step begins with (`SamplerConfig`).
    """

    def __init__(self, dit: DiT, steps: Sequence[int] = (1000, 666, 333), shift: float = 5.0, last_noise: float = 1.0) -> None:
        self.dit = dit
        self.last_noise = last_noise
        self.schedule = FlowSchedule(shift)
        self.timesteps = self.schedule.timesteps(steps).tolist()
        self.sigmas = self.schedule.sigma(torch.tensor(self.timesteps)).tolist()
        self._shared: tuple[Windows, Given] | None = None

    @classmethod
    def of(cls, dit: DiT, config: SamplerConfig) -> BlockSampler:
        """As a world's settings say."""
        return cls(dit, config.steps, config.shift, config.last_noise)

    def denoise(
        self, clock: BlockClock, cache: DiTCache, condition: Tensor, windows: Windows, noise: NoiseSource, first: int = 0,
        x0: Tensor | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield x0 `[1, z, n, h, w]` float32 after each pass; the last is the block's latents.

        ``condition`` `[1, 4 + z, n, h, w]` is the block's `cond_concat`. Each pass overwrites the same cache slots, so
        the block may be dropped, or begun again, at any point. Only a training begins at a ``first`` pass other than 0, with an
        ``x0`` in place of what the passes before it would have found.
        """
        shape = (1, self.dit.config.out_dim, clock.n, *condition.shape[3:])
        x0 = x0 if first else None
        for step in range(first, len(self.timesteps)):
            timestep, sigma = self.timesteps[step], self.sigmas[step]
            fresh = send(noise.noise(clock, step, shape), condition.device)
            last = step == len(self.timesteps) - 1
            x = fresh if x0 is None else add_noise(x0, self.last_noise * fresh if last else fresh, sigma)
            output = self._run(x, timestep, clock, cache, condition, windows)
            x0 = x0_from_output(x, output.float(), sigma, self.dit.config.prediction)
            yield x0

    def commit(
        self, clock: BlockClock, cache: DiTCache, condition: Tensor, windows: Windows, x0: Tensor, timestep: float = CONTEXT_NOISE
    ) -> None:  # fmt: skip
        """Leave the clean latents' keys and values in the cache.

        Only a training may give another ``timestep``, with latents that have as much noise.
        """
        if not self.dit.fused:
            self._run(x0, timestep, clock, cache, condition, windows)
            return
        x = torch.cat([x0, condition], dim=1)
        self.dit.remember(x, self._same(timestep, clock), self._given(x, clock, windows), cache)

    def _run(self, x: Tensor, timestep: float, clock: BlockClock, cache: DiTCache, condition: Tensor, windows: Windows) -> Tensor:
        inputs = torch.cat([x, condition], dim=1)  # [1, in_dim, n, h, w]
        if not self.dit.fused:  # weights may change: nothing made from them is kept, and the model is called as who trains it expects
            return self.dit(inputs, self._same(timestep, clock), windows.keyboard, windows.mouse, cache, clock.start)
        return self.dit.denoise(inputs, self._same(timestep, clock), self._given(inputs, clock, windows), cache)

    def _same(self, timestep: float, clock: BlockClock) -> Tensor:
        return torch.full((1, clock.n), timestep)  # on the host, where float64 is

    def _given(self, x: Tensor, clock: BlockClock, windows: Windows) -> Given:
        """What the passes of a block share, made at its first."""
        if self._shared is None or self._shared[0] is not windows or self._shared[1].start != clock.start:
            self._shared = windows, self.dit.prepare(x, windows.keyboard, windows.mouse, clock.start)
        return self._shared[1]
