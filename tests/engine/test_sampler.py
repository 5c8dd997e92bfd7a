from __future__ import annotations

import pytest
import torch

from engine import World
from engine.clock import BlockClock
from engine.conditioning import ConditionRing, Windows
from engine.sampler import BlockSampler, SeededNoise

SHAPE = (1, 4, 3, 2, 4)


def test_noise_depends_on_seed_block_and_step_alone() -> None:
    clock = BlockClock(block=5)
    base = SeededNoise(1).noise(clock, 0, SHAPE)
    torch.manual_seed(123)  # the global generator has no say
    assert torch.equal(base, SeededNoise(1).noise(BlockClock(epoch=9, block=5), 0, SHAPE))
    others = [SeededNoise(2).noise(clock, 0, SHAPE), SeededNoise(1).noise(clock, 1, SHAPE), SeededNoise(1).noise(clock.next(), 0, SHAPE)]
    assert all(not torch.allclose(base, other) for other in others)
    assert base.dtype == torch.float32 and base.device.type == "cpu"


def test_noise_is_standard_normal_and_uncorrelated() -> None:
    clock, blocks = BlockClock(), []
    for _ in range(200):
        blocks.append(SeededNoise(0).noise(clock, 0, SHAPE).flatten())
        clock = clock.next()
    noise = torch.stack(blocks)
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.5


@torch.inference_mode()
def test_passes_before_the_commit_touch_only_the_blocks_own_slots(tiny_world: World) -> None:
    sampler = BlockSampler(tiny_world.dit)
    start = tiny_world.condition(None)
    cache, ring, clock = tiny_world.new_cache(start), ConditionRing(tiny_world.config.model.action), BlockClock()
    for _ in range(9):  # beyond the window
        rows = ring.hold(clock, torch.full((4,), float(clock.block)), torch.full((2,), 0.1 * clock.block + 0.1))
        windows, condition = ring.windows(clock, rows), start.block(clock)
        before = {name: buffer.clone() for name, buffer in cache.tensors().items()}
        *_, x0 = sampler.denoise(clock, cache, condition, windows, SeededNoise(0))
        own = list(clock.slots(cache.window))
        for name, buffer in cache.tensors().items():
            kept = [slot for slot in range(cache.window) if slot not in own]
            assert torch.equal(buffer[:, :, kept], before[name][:, :, kept]), name
            assert "keyboard" in name or not torch.equal(buffer[:, :, own], before[name][:, :, own]), name
        again = list(sampler.denoise(clock, cache, condition, windows, SeededNoise(0)))[-1]
        assert torch.equal(x0, again)  # whatever the first try left in the slots
        sampler.commit(clock, cache, condition, windows, x0)
        ring.commit(clock, rows)
        clock = clock.next()


class Echo:
    """A transformer that always sees the same x0, and notes what it was given. Predicts x0."""

    def __init__(self, world: World) -> None:
        self.config, self.fused, self.given = world.dit.config, False, []
        self.x0 = torch.full((1, self.config.out_dim, 3, 2, 4), 0.25)

    def __call__(self, inputs: torch.Tensor, *_: object) -> torch.Tensor:
        self.given.append(inputs[:, : self.config.out_dim])
        return self.x0


@pytest.mark.parametrize("steps", [(1000, 666, 333), (1000, 500), (1000,)])
@pytest.mark.parametrize("last_noise", [1.0, 0.5, 0.0])
def test_how_much_noise_each_step_begins_with(tiny_world: World, steps: tuple[int, ...], last_noise: float) -> None:
    dit = Echo(tiny_world)
    sampler, clock, source = BlockSampler(dit, steps, 5.0, last_noise), BlockClock(block=2), SeededNoise(4)
    windows = Windows(torch.zeros(1, 3, 12, 4), torch.zeros(1, 3, 12, 2))
    list(sampler.denoise(clock, None, torch.zeros(1, 8, 3, 2, 4), windows, source))
    fresh = [source.noise(clock, step, dit.x0.shape) for step in range(len(steps))]
    assert torch.equal(dit.given[0], fresh[0]), "the first step begins from noise alone"
    for step in range(1, len(steps)):
        sigma = sampler.sigmas[step]
        strength = last_noise if step == len(steps) - 1 else 1.0
        torch.testing.assert_close(dit.given[step], (1 - sigma) * dit.x0 + sigma * strength * fresh[step])


def test_timesteps_are_the_warped_ones(tiny_world: World) -> None:
    assert BlockSampler(tiny_world.dit).timesteps == pytest.approx([1000, 908.84271, 713.98], abs=1e-2)
    assert BlockSampler(tiny_world.dit, (1000, 750, 500, 250)).timesteps == pytest.approx([1000, 937.5, 833.33, 625], abs=1e-2)
