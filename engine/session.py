"""One game: an action in, the next block's frames out, for ever and in constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.actions import IDLE, Action
from engine.clip import check_clip, encode_clip
from engine.conditioning import ConditionRing, StartCondition
from engine.sampler import BlockSampler, NoiseSource, SeededNoise
from models.errors import WorldError

if TYPE_CHECKING:
    from engine.picture import Picture
    from engine.world import World

Past = tuple[tuple[Tensor, Action], ...]  # given blocks: their clean latents [1, z, n, h, w], and what was done meanwhile


class Session:
    """All state of one game in a `World`, at ``clock``: the block that comes next.

    A block is worked out first and committed last, so a step that fails (or is interrupted) leaves the session where
    it was. Same world, seed, start picture and actions give the same bits.
    """

    def __init__(self, world: World, seed: int = 0, start: Picture | None = None, noise: NoiseSource | None = None) -> None:
        self.world = world
        self.seed = seed
        self.clock = world.config.clock
        self.timings: dict[str, float] = {}
        self.precise_timings = False
        self._noise = noise or SeededNoise(seed)
        self._sampler = BlockSampler(world.dit, world.config.sampler.steps, world.config.sampler.shift)
        self._start = world.condition(start)
        self._ring = ConditionRing(world.config.model.action)
        self._cache = world.new_cache(self._start)
        self._decoder = world.vae.new_decoder_cache()
        self._past: Past = ()

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

    @torch.inference_mode()
    def prefill(
        self, clip: np.ndarray, actions: Sequence[Action] = (), progress: Callable[[float], None] | None = None
    ) -> list[np.ndarray]:  # fmt: skip
        """Begin with a given clip: the next block goes on from its end. Returns its blocks as `step` would have, as the world sees them.

        ``clip`` `[F, H, W, 3]` (uint8, or float in [0, 1]) is cut and scaled like a start picture, which its first frame becomes.
        Only whole blocks are used, `check_clip` says how many. ``actions`` are what was done in each; missing ones are idle.
        ``progress`` is called with the part done, 0 to 1. Raises WorldError, and changes nothing, for a session already played,
        a clip that cannot be used, more actions than blocks, or a key the world does not have.
        """
        config = self.world.config
        if self.clock.block:
            raise WorldError(f"a clip can only be given at the beginning, this session stands at block {self.clock.block}; reset it first")
        blocks, _ = check_clip(clip, self.clock)
        if len(actions) > blocks:
            raise WorldError(f"{len(actions)} actions are too many for a clip of {blocks} blocks")
        for action in actions:
            config.actions.check(action.keys)
        report = progress or (lambda part: None)
        start = self.world.condition(clip[0])
        latents = []
        for part in encode_clip(self.world.vae, clip, self.clock, config.height, config.width, self.world.device):
            latents.append(part)
            report(len(latents) / blocks / 2)
        past = tuple(zip(latents, [*actions, *[IDLE] * (blocks - len(actions))], strict=True))
        return self._live_through(start, past, lambda done: report(0.5 + done / blocks / 2))

    @torch.inference_mode()
    def _live_through(self, start: StartCondition, past: Past, report: Callable[[int], None] = lambda done: None) -> list[np.ndarray]:
        """Commit clean latents block by block, at block 0, into all caches and the decoder's; all of it or nothing."""
        clock, cache = self.clock, self._cache
        ring, decoder = ConditionRing(self._ring.config), self.world.vae.new_decoder_cache()
        images = [layer.image for layer in cache.layers]
        pictures = []
        try:
            self.world.dit.precompute_context(start.visual_context, cache)
            for latents, action in past:
                rows = ring.hold(clock, *self.world.config.actions.to_model(action))
                windows = ring.windows(clock, rows).to(self.world.device)
                self._sampler.commit(clock, cache, start.block(clock), windows, latents)
                pictures.append(to_uint8(self.world.vae.decode_block(latents, decoder)))
                ring.commit(clock, rows)
                clock = clock.next()
                report(len(pictures))
        except BaseException:
            for layer, image in zip(cache.layers, images, strict=True):
                layer.image = image
            cache.clear()  # at block 0 nothing in it counts
            raise
        self._start, self._past, self._ring, self._decoder, self.clock = start, past, ring, decoder, clock
        return pictures

    def reset(self, seed: int | None = None, start: Picture | None = None) -> None:
        """Begin again in the next epoch, with the same seed and start picture (or clip, after it) unless others are given.

        Raises WorldError, and changes nothing, when the start picture cannot be used.
        """
        if start is not None:
            condition = self.world.condition(start)
            self._cache, self._start, self._past = self.world.new_cache(condition), condition, ()
        if seed is not None:
            self.seed, self._noise = seed, SeededNoise(seed)
        self._cache.clear()
        self._ring.reset()
        self._decoder = self.world.vae.new_decoder_cache()
        self.clock = self.clock.restarted()
        self.timings = {}
        if self._past:
            self._live_through(self._start, self._past)


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
        elif self.device is not None and self.device.type == "mps":
            torch.mps.synchronize()
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def finish(self) -> dict[str, float]:
        return {**self.laps, "total": time.perf_counter() - self.begun}
