"""Resampled forcing: the past is what play makes of it, the loss is teacher forcing's beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.clock import BlockClock
from engine.config import WorldConfig
from models.dit import DiT
from models.flow import FlowSchedule, add_noise
from tests.training.tiny import networks_for, objective_of, tiny_config, tiny_data, tiny_dit, tiny_plan
from training.dataset import Batch
from training.draws import BatchNoise, Draws
from training.objectives.base import draw_timesteps, per_latent
from training.objectives.forcing import forcing_loss
from training.objectives.resampling import Resampler
from training.objectives.rollout import Rollout
from training.plan import ForcingSettings, RolloutSettings

BLOCKS = 3
DRAWS = Draws(5, 2, range(2), 2)


@pytest.fixture
def config(tmp_path: Path) -> WorldConfig:
    return tiny_config(tmp_path)


@pytest.fixture
def batch(tmp_path: Path, config: WorldConfig) -> Batch:
    found = tiny_data(tmp_path, config, BLOCKS).batch(DRAWS, BLOCKS)
    return replace(found, from_start=torch.tensor([True, True]))


def resampler(dit: DiT, config: WorldConfig) -> Resampler:
    return Resampler(dit, config.sampler.steps, config.sampler.shift)


def test_begun_at_the_first_pass_it_is_a_rollout(config: WorldConfig, batch: Batch) -> None:
    """After the weights have changed, too: nothing of the older ones may be kept."""
    dit = tiny_dit(config, 1)
    played = resampler(dit, config)
    rollout = Rollout(dit, config.sampler.steps, config.sampler.shift, RolloutSettings(exit="last"))
    for _ in range(2):
        latents = torch.cat([x0 for _, x0 in rollout.play(batch, [2] * BLOCKS, BatchNoise([3, 4]), gradient=False)], dim=2)
        found = played(batch, [0] * BLOCKS, BatchNoise([3, 4]))
        torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for weight in dit.parameters():
                weight.mul_(1.1)
    assert not played(batch, [0] * BLOCKS, BatchNoise([3, 4])).allclose(found, atol=1e-3)


def test_begun_at_the_last_pass_it_keeps_what_the_noise_leaves(config: WorldConfig, batch: Batch) -> None:
    dit, noise = tiny_dit(config, 1), BatchNoise([3, 4])
    found = resampler(dit, config)(batch, [2], noise)[:, :, :3]
    schedule = FlowSchedule(config.sampler.shift)
    timestep = schedule.timesteps(config.sampler.steps)[2:]
    own = slice(3)
    fresh = noise.noise(BlockClock(n=3, r=config.model.action.vae_time_ratio), 2, (1, *batch.latents[:1, :, own].shape[1:]))
    x = add_noise(batch.latents[:, :, own], fresh, float(schedule.sigma(timestep)))
    rows = batch.rows.keyboard[:, own], batch.rows.mouse[:, own]
    cache = dit.new_cache(2, x.shape[3] // 2, x.shape[4] // 2)
    with torch.no_grad():
        plain = dit(torch.cat([x, batch.condition[:, :, own]], dim=1), timestep.expand(1, 3), *rows, cache, 0)  # the world predicts x0
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_what_is_not_to_be_played_stays(config: WorldConfig, batch: Batch) -> None:
    middle = replace(batch, from_start=torch.tensor([True, False]))
    found = resampler(tiny_dit(config, 1), config)(middle, [0, None, 1], BatchNoise([3, 4]))
    truth = batch.latents
    assert not torch.equal(found[0, :, :3], truth[0, :, :3])
    assert torch.equal(found[1, :, :3], truth[1, :, :3]), "nothing told the model what came before this window"
    assert torch.equal(found[:, :, 3:6], truth[:, :, 3:6])
    assert not found[:, :, 6:].allclose(truth[:, :, 6:])


def test_the_loss_is_teacher_forcing_beside_the_played_past(tmp_path: Path, config: WorldConfig) -> None:
    settings = ForcingSettings(resampling=1.0, begin_weights=(0.0, 1.0, 0.0))
    plan, networks = tiny_plan("forcing", blocks=BLOCKS, forcing=settings), networks_for("forcing", config)
    data = tiny_data(tmp_path, config, BLOCKS)
    objective = objective_of(plan, config, networks, data)
    loss, _ = objective.student_loss(DRAWS)
    loss.backward()
    assert networks.student.head.head.weight.grad.any()
    batch, student = data.batch(DRAWS, BLOCKS), networks.student
    clean = resampler(student, config)(batch, [1, 1], DRAWS.sessions())
    assert torch.equal(clean[:, :, 6:], batch.latents[:, :, 6:])
    schedule = FlowSchedule(config.sampler.shift)
    timestep = draw_timesteps(schedule, schedule.timesteps(config.sampler.steps), settings, DRAWS, BLOCKS, 3)
    sigma = schedule.sigma(timestep)
    noisy = add_noise(batch.latents, DRAWS.normal("noise", *batch.latents.shape[1:]), per_latent(sigma))
    guess = objective.view(9, "clean").x0(student, noisy, timestep, per_latent(sigma), batch, clean)
    counts = ((torch.arange(9) >= 3) | batch.from_start[:, None]).float()
    expected = forcing_loss(guess, batch.latents, sigma, "x0", "uniform", counts)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    truth = objective.view(9, "clean").x0(student, noisy, timestep, per_latent(sigma), batch, batch.latents)
    assert not truth.allclose(guess, atol=1e-4), "the past makes a difference"


def test_it_has_no_place_where_there_is_no_clean_past() -> None:
    with pytest.raises(ValueError, match="resampling makes a clean context, and context is 'noisy'"):
        ForcingSettings(context="noisy", resampling=0.5)
    with pytest.raises(ValueError, match="resampling must lie in"):
        ForcingSettings(resampling=1.5)
