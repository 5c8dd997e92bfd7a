"""`torch.compile` for a world: made ready on whatever thread, taken into use between two blocks.

What comes of it is kept on disk for the next time. Compiled and uncompiled layers differ in the last bits, so `engine.exact.fingerprint`
tells which ones a session is played with.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.clock import BlockClock
from engine.conditioning import ConditionRing, Rows, StartCondition, Windows
from engine.exact import compiler_options
from engine.sampler import BlockSampler, SeededNoise
from models.causal_cache import CompiledPixels
from models.errors import WorldError, one_line
from models.filecache import cache_folder

if TYPE_CHECKING:
    from engine.world import Progress, World


@dataclass(frozen=True)
class Compiled:
    """What `World.adopt` takes into use: the transformer's layers, and the decoder where that was asked for."""

    layers: Callable[..., Tensor]
    pixels: CompiledPixels | None


@torch.inference_mode()
def compile_world(world: World, progress: Progress | None = None, decoder: bool | None = None, **options: Any) -> Compiled:
    """Have the transformer's layers compiled, now, and the decoder (None: on a GPU), for blocks once the window is full.

    It works on copies that share nothing with ``world`` but weights: meanwhile another thread may play, on as many threads of torch's
    as this one. ``options`` are `torch.compile`'s. Raises WorldError where torch cannot compile.
    """
    world.warm_up()
    report = progress or (lambda what, part: None)
    report("compiling", 0.0)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    start = world.random_start()
    try:
        if not options.keys() & {"backend", "mode"} and "cuda" in (world.device.type, world.decode_device.type):
            options["options"] = compiler_options() | (options.get("options") or {})
        layers, latents = _layers(world, start, options)
        if not (world.decode_device.type == "cuda" if decoder is None else decoder):
            pixels = None
        else:
            report("compiling", 0.5)
            pixels = _pixels(world, latents, options)
    except Exception as error:  # of many kinds: no compiler, a wrong one, a full disk
        raise WorldError(f"the layers cannot be compiled here: {one_line(str(error), 200)}; play without --compile") from None
    report("compiling", 1.0)
    return Compiled(layers, pixels)


def _layers(world: World, start: StartCondition, options: dict[str, Any]) -> tuple[Callable[..., Tensor], Tensor]:
    """The compiled layers, after a block with a full window, and its latents `[1, z, n, h, w]`."""
    model = world.config.model
    clock = world.config.clock
    while clock.start < model.local_attn_size:
        clock = clock.next()
    dit, cache = world.dit.twin(), world.new_cache(start)
    dit.compile(**options)
    cache.first, cache.written = clock.start - model.local_attn_size, clock.start
    sampler = BlockSampler.of(dit, world.config.sampler)
    windows = _windows(world, clock)
    for x0 in sampler.denoise(clock, cache, start.block(clock), windows, SeededNoise(0)):
        latents = x0
    sampler.commit(clock, cache, start.block(clock), windows, latents)
    return dit.body, latents


def _windows(world: World, clock: BlockClock) -> Windows:
    """What the model reads of nothing being pressed."""
    action = world.config.model.action
    ring = ConditionRing(action)
    ring.count = clock.first_row
    mouse = None if ring.mouse is None else torch.zeros(len(clock.frames), 2)
    return ring.windows(clock, Rows(torch.zeros(len(clock.frames), action.keyboard_dim), mouse)).to(world.device)


def _pixels(world: World, latents: Tensor, options: dict[str, Any]) -> CompiledPixels:
    """The compiled decoder, after a second block."""
    latents = latents.to(world.decode_device)
    cache = world.decoder.new_decoder_cache()
    world.decoder.decode_block(latents, cache)
    twin = copy.copy(world.decoder)
    shape = latents.shape if world.config.decoder == "taehv" else latents.permute(0, 2, 3, 4, 1).shape
    twin.compiled = CompiledPixels(world.decoder, shape, cache, **options)
    twin.decode_block(latents, cache)
    return twin.compiled
