"""Causal consistency distillation (Song et al. 2023, "Consistency models"), block by block beside clean truth.

Between neighbouring levels σ > σ' of a teacher's path, the student's guess must not change:

    x_σ = (1 − σ) x₀ + σ ε,   v = (x_σ − x̂_teacher(x_σ))/σ,   x_σ' = x_σ + (σ' − σ) v          (one Euler step)
    L = mean over the latents that count of ‖f(x_σ, σ) − sg(f⁻(x_σ', σ'))‖²,   f(x, 0) = x

f is the student's x̂₀, f⁻ that of its slow average (the target), and the teacher is guided as in `objectives/scores.py`. Each block draws a
level of its own and, as in teacher forcing, sees clean blocks before it; first blocks that nothing told the past (`Objective.counts`) do
not count. A consistency model is played by the same sampler: guess x₀, add noise, guess again. Its paths have the whole noise of every
level: a world whose `sampler.last_noise` is below 1 (the garden's is 0) asks at its last step for what this never taught.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import WorldConfig
from models.flow import TRAIN_STEPS, add_noise
from training.dataset import Data
from training.draws import Draws
from training.objectives.base import Networks, Objective, Report, per_latent
from training.objectives.scores import counted_mean, guided_x0
from training.plan import ConsistencySettings, ForcingSettings, Plan


def euler_step(x: Tensor, x0: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """From x at σ to the lower level along the velocity that points away from x0; levels broadcast against x, σ > 0."""
    return x + (lower - sigma) * (x - x0) / sigma


def consistency_loss(guess: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """‖guess − sg(target)‖² over [B, z, T, h, w]; a mean over the latents that count, [T] or [B, T]."""
    return counted_mean((guess - target.detach()).square(), counts)


class Consistency(Objective):
    """The loss above on the student, with a slow average of it as target."""

    needs_teacher = True
    has_target = True

    def __init__(self, plan: Plan, world: WorldConfig, networks: Networks, data: Data, device: torch.device) -> None:
        super().__init__(plan, world, networks, data, device)
        self.settings = plan.consistency or ConsistencySettings()
        self.context = (plan.forcing or ForcingSettings()).context
        levels = self.settings.levels
        self.timesteps = self.schedule.timesteps([round(TRAIN_STEPS * (1 - k / levels)) for k in range(levels + 1)])  # falling to 0
        self.sigmas = self.schedule.sigma(self.timesteps)
        self.sigmas[-1] = 0  # the table's nearest to timestep 0 is not 0

    def student_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        batch = self.data.batch(draws, self.plan.blocks).to(self.device)
        truth, nets = batch.latents, self.networks
        level = (draws.uniform("level", self.plan.blocks) * self.settings.levels).long().repeat_interleave(self.block, dim=1)  # [B, T]
        high, low = (self.timesteps[level + i].to(self.device) for i in range(2))
        sigma, lower = (per_latent(self.sigmas[level + i].to(self.device)) for i in range(2))
        view = self.view(truth.shape[2], self.context)
        noisy = add_noise(truth, draws.normal("noise", *truth.shape[1:]).to(self.device), sigma)
        with torch.no_grad():
            seen = guided_x0(nets.teacher, view, noisy, high, sigma, batch, self.settings.guidance, truth)
            nearer = euler_step(noisy, seen, sigma, lower)
            target = torch.where(lower > 0, view.x0(nets.target, nearer, low, lower, batch, truth), nearer)
        guess = view.x0(nets.student, noisy, high, sigma, batch, truth)
        return consistency_loss(guess, target, self.counts(batch, self.context)), {}
