"""One game: an action in, the next block's frames out, for ever and in constant memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.actions import IDLE, Action
from engine.clock import BlockClock
from engine.conditioning import ConditionRing, StartCondition
from engine.sampler import BlockSampler, NoiseSource, SeededNoise

if TYPE_CHECKING:
    from engine.picture import Picture
    from engine.world import World


class Session:
    """All state of one game in a `World`, at ``clock``: the block that comes next.

    A block is worked out first and committed last, so a step that fails (or is interrupted) leaves the session where
    it was. Same world, seed, start picture and actions give the same bits.
    """

    def __init__(
        self, world: World, seed: int = 0, start: Picture | StartCondition | None = None, noise: NoiseSource | None = None
    ) -> None:
        self.world = world
        self.seed = seed
        model, action = world.config.model, world.config.model.action
        self.clock = BlockClock(n=model.num_frame_per_block, r=action.vae_time_ratio)
        self.timings: dict[str, float] = {}
        self.precise_timings = False
        self._noise = noise or SeededNoise(seed)
        self._sampler = BlockSampler(world.dit, world.config.sampler.steps, world.config.sampler.shift)
        self._start = world.condition(start)
        self._ring = ConditionRing(action)
        self._cache = world.new_cache(self._start)
        self._decoder = world.vae.new_decoder_cache()

    @torch.inference_mode()
    def step(self, action: Action = IDLE) -> np.ndarray:
        """Play one block: uint8 RGB frames `[9, H, W, 3]` for the first block, `[12, H, W, 3]` afterwards.

        Afterwards `timings` holds the seconds of every stage. Raises WorldError for a key the world does not have.
        """
        watch = _Stopwatch(self.world.device if self.precise_timings else None)
        clock, ring = self.clock, self._ring
        rows = ring.hold(clock, *self.world.config.actions.to_model(action))
        windows = ring.windows(clock, rows).to(self.world.device)
        condition = self._start.block(clock)
        watch.lap("conditioning")

        for count, x0 in enumerate(self._sampler.denoise(clock, self._cache, condition, windows, self._noise), 1):
            latents = x0  # [1, z, n, h, w]
            watch.lap(f"denoise {count}")
        self._sampler.commit(clock, self._cache, condition, windows, latents)
        watch.lap("commit")
        frames = self.world.vae.decode_block(latents, self._decoder, commit=False)  # [1, 3, F, H, W] in [-1, 1]
        watch.lap("decode")
        pictures = to_uint8(frames)
        watch.lap("transfer")

        self._decoder.commit()  # from here on nothing can fail
        ring.commit(clock, rows)
        self.clock = clock.next()
        self.timings = watch.finish()
        return pictures

    def reset(self, seed: int | None = None, start: Picture | None = None) -> None:
        """Begin again at block 0 of the next epoch, with the same seed and start picture unless others are given.

        Raises WorldError, and changes nothing, when the start picture cannot be used.
        """
        if start is not None:
            condition = self.world.condition(start)
            self._cache, self._start = self.world.new_cache(condition), condition
        if seed is not None:
            self.seed, self._noise = seed, SeededNoise(seed)
        self._cache.clear()
        self._ring.reset()
        self._decoder = self.world.vae.new_decoder_cache()
        self.clock = self.clock.restarted()
        self.timings = {}


def to_uint8(frames: Tensor) -> np.ndarray:
    """Frames `[1, 3, F, H, W]` in [-1, 1] -> uint8 `[F, H, W, 3]` on the host: round((x + 1) 127.5)."""
    pictures = frames[0].permute(1, 2, 3, 0).float().add(1).mul(127.5).round_().clamp_(0, 255)
    return pictures.to(torch.uint8).contiguous().cpu().numpy()


class _Stopwatch:
    """Seconds of each stage. With a device, waits for it at each lap, so that a stage pays for its own work."""

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self.laps: dict[str, float] = {}
        self.begun = self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def finish(self) -> dict[str, float]:
        return {**self.laps, "total": time.perf_counter() - self.begun}
