"""Chance, as a pure function: every number drawn in a training comes from (seed, purpose, iteration, sample, name).

So a resumed run draws what it would have drawn, and any number of processes draw together what one would have drawn: nothing
about chance has to be saved but the seed and the iteration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.clock import BlockClock
from engine.sampler import SeededNoise


@dataclass(frozen=True)
class Draws:
    """What one process draws in one iteration. ``samples`` are the places of its samples in the whole batch of ``batch``."""

    seed: int
    iteration: int
    samples: range
    batch: int
    purpose: str = "student"
    turn: int = 0  # iterations of this purpose before this one

    def part(self, first: int, count: int) -> Draws:
        """The draws of ``count`` of these samples, from the ``first`` on."""
        return replace(self, samples=self.samples[first : first + count])

    @property
    def counters(self) -> list[int]:
        """How many samples of this purpose the run had before each of these: the position in the data."""
        return [self.turn * self.batch + sample for sample in self.samples]

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal [samples, *shape], float32 on the host."""
        return torch.stack([torch.randn(shape, generator=self.generator(name, sample)) for sample in self.samples])

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform in [0, 1), [samples, *shape]."""
        return torch.stack([torch.rand(shape, generator=self.generator(name, sample)) for sample in self.samples])

    def shared(self, name: str) -> float:
        """One number in [0, 1) that all samples share."""
        return float(torch.rand((), generator=self.generator(name, "all")))

    def shared_whole(self, name: str, low: int, high: int) -> int:
        """One whole number in [low, high] that all samples share."""
        return low + int(torch.randint(high - low + 1, (), generator=self.generator(name, "all")))

    def sessions(self) -> BatchNoise:
        """The noise of the sampler: each sample is a session with a seed of its own."""
        return BatchNoise([self._number("session", sample) >> 1 for sample in self.samples])

    def generator(self, name: str, sample: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(self._number(name, sample) >> 1)

    def _number(self, name: str, sample: int | str) -> int:
        text = f"{self.seed}/{self.purpose}/{self.iteration}/{sample}/{name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"reverie train").digest(), "little")


class BatchNoise:
    """The player's noise (`engine.sampler.SeededNoise`) for several sessions side by side."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.sources = [SeededNoise(seed) for seed in seeds]

    def noise(self, clock: BlockClock, step: int, shape: Sequence[int]) -> Tensor:
        """Noise [sessions, *shape[1:]] where one session would get ``shape`` [1, ...]."""
        return torch.cat([source.noise(clock, step, shape) for source in self.sources])


class FreshNoise:
    """Noise for ``count`` sessions side by side from the device's own stream: nothing has to wait for the host, and nothing comes twice."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self.device = count, device

    def noise(self, clock: BlockClock, step: int, shape: Sequence[int]) -> Tensor:
        """As `BatchNoise.noise`, on the device."""
        return torch.randn(self.count, *shape[1:], device=self.device)
