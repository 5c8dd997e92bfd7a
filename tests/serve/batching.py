"""`python -m tests.serve.batching`: what two sessions of the garden cost one after the other, and as one batch of two. One thread.

Both stand at the same block, which is the best case: sessions of a server seldom do. A round plays one block both ways, in turns
first, and the ratio of a round is that of two measurements made within a second, so that other programs on the machine count little.
Seconds are the thread's own. That the batch makes what the single sessions make is checked in every round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from engine import Action, World
from engine.clock import BlockClock
from engine.conditioning import ConditionRing, Windows
from engine.sampler import BlockSampler, SeededNoise
from models.causal_cache import CausalCache
from models.kv_cache import DiTCache

SEEDS = (1, 2)
KEYS = ("w", "wl")  # what the two players hold
TOLERANCE = 2e-3  # of latents and pictures, which are of the order of 1: kernels add up in another order for another shape


class BothNoise:
    """Noise of several sessions, one after the other in the batch."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._sources = [SeededNoise(seed) for seed in seeds]

    def noise(self, clock: BlockClock, step: int, shape: Sequence[int]) -> Tensor:
        return torch.cat([source.noise(clock, step, shape) for source in self._sources])


class Game:
    """``players`` sessions side by side, as a batch; of the session's own parts, without history and frames."""

    def __init__(self, world: World, players: Sequence[int]) -> None:
        self.world, self.players = world, players
        config = world.config
        ratio, (_, down, right) = config.vae.spatial_ratio, config.model.patch_size
        self.start = world.condition(None)
        size = config.height // ratio // down, config.width // ratio // right
        self.cache: DiTCache = world.dit.new_cache(len(players), *size, world.device, world.dtype)
        context = self.start.visual_context
        world.dit.precompute_context(None if context is None else context.repeat(len(players), 1, 1), self.cache)
        self.decoder: CausalCache = world.decoder.new_decoder_cache()
        self.rings = [ConditionRing(config.model.action) for _ in players]
        self.sampler = BlockSampler.of(world.dit, config.sampler)
        self.noise = BothNoise([SEEDS[player] for player in players])
        self.clock = config.clock

    def block(self) -> tuple[Tensor, Tensor, float, float]:
        """Latents [B, z, n, h, w], pictures [B, 3, F, H, W] in [-1, 1], and the thread's seconds in transformer and decoder."""
        actions = self.world.config.actions
        played = [actions.to_model(Action(frozenset(KEYS[player]))) for player in self.players]
        rows = [ring.hold(self.clock, *action) for ring, action in zip(self.rings, played, strict=True)]
        views = [ring.windows(self.clock, own) for ring, own in zip(self.rings, rows, strict=True)]
        mouse = None if views[0].mouse is None else torch.cat([view.mouse for view in views])
        windows = Windows(torch.cat([view.keyboard for view in views]), mouse)
        condition = self.start.block(self.clock).repeat(len(self.players), 1, 1, 1, 1)
        begun = time.thread_time()
        *_, latents = self.sampler.denoise(self.clock, self.cache, condition, windows, self.noise)
        self.sampler.commit(self.clock, self.cache, condition, windows, latents)
        made = time.thread_time()
        pictures = self.world.decoder.decode_block(latents, self.decoder)
        end = time.thread_time()
        for ring, own in zip(self.rings, rows, strict=True):
            ring.commit(self.clock, own)
        self.clock = self.clock.next()
        return latents, pictures, made - begun, end - made


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="garden")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    world = World.load(args.world)
    alone, both = [Game(world, [0]), Game(world, [1])], Game(world, [0, 1])
    full = -(-world.config.model.local_attn_size // world.config.clock.n)  # blocks until the rings are full
    ratios: dict[str, list[float]] = {"transformer": [], "decoder": [], "together": []}
    seconds: list[float] = []
    worst = 0.0
    for number in range(full + 1 + args.rounds):
        if number % 2:
            one, other, batch = alone[0].block(), alone[1].block(), both.block()
        else:
            batch, one, other = both.block(), alone[0].block(), alone[1].block()
        for part in (0, 1):
            worst = max(worst, float((torch.cat([one[part], other[part]]).float() - batch[part].float()).abs().max()))
        assert worst < TOLERANCE, f"block {number}: the batch differs by {worst}"
        assert (one[1] - other[1]).abs().max() > 100 * TOLERANCE, "these are two different games"
        if number <= full:
            continue
        apart = [one[part] + other[part] for part in (2, 3)]
        for name, single, joint in zip(ratios, (*apart, sum(apart)), (batch[2], batch[3], batch[2] + batch[3]), strict=True):
            ratios[name].append(joint / single)
        seconds.append(sum(apart) / 2)
    print(f"{args.world}, {platform.machine()}, one thread, {args.rounds} rounds, window full; the largest difference is {worst:.1e}")
    print(f"a block of one session alone takes {1000 * statistics.median(seconds):.0f} ms of the processor")
    for name, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:12} batch of two / two alone: median {middle:.3f}, half of the rounds within {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
