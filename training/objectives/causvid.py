"""CausVid's distillation (Yin et al. 2025, "From slow bidirectional to fast autoregressive video diffusion models"): DMD without rollout.

The student sees the truth noised, each block at one of its own steps (`forcing` with context "noisy"; "clean" gives it the truth beside
them), and all blocks are denoised in one pass. Its x̂₀ is what the two scores compare, by the loss of `objectives/dmd.py`. Cheaper than a
rollout by the number of passes, and blind to the mistakes that a rollout makes. First blocks that nothing told the past
(`Objective.counts`) are no part of the student's loss; the scores see them beside the others, so the critic learns them too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import WorldConfig
from models.flow import add_noise
from training.dataset import Batch, Data
from training.draws import Draws
from training.objectives.base import Networks, Objective, Report, draw_timesteps, per_latent
from training.objectives.critic import critic_loss
from training.objectives.dmd import dmd_loss
from training.objectives.scores import Scores, mean_distance
from training.plan import ForcingSettings, Plan, ScoreSettings


class CausVid(Objective):
    """The loss of `dmd.dmd_loss` on the student's one-pass guesses."""

    needs_teacher = True
    has_critic = True

    def __init__(self, plan: Plan, world: WorldConfig, networks: Networks, data: Data, device: torch.device) -> None:
        super().__init__(plan, world, networks, data, device)
        self.forcing = plan.forcing or ForcingSettings(context="noisy")
        self.score = plan.score or ScoreSettings()
        self.scores = Scores(networks.teacher, networks.critic, self.score)

    def generate(self, draws: Draws) -> tuple[Tensor, Batch]:
        """x̂₀ [B, z, T, h, w] of the noised truth."""
        batch = self.data.batch(draws, self.plan.blocks).to(self.device)
        steps = self.schedule.timesteps(self.world.sampler.steps)
        timestep = draw_timesteps(self.schedule, steps, self.forcing, draws, self.plan.blocks, self.block).to(self.device)
        sigma = per_latent(self.schedule.sigma(timestep))
        truth = batch.latents
        noisy = add_noise(truth, draws.normal("given noise", *truth.shape[1:]).to(self.device), sigma)
        view = self.view(truth.shape[2], self.forcing.context)
        return view.x0(self.networks.student, noisy, timestep, sigma, batch, truth), batch

    def student_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        x, batch = self.generate(draws)
        with torch.no_grad():
            fake, real = self.scores.both(x.detach(), draws, self.view(x.shape[2], self.score.context), batch)
        return dmd_loss(x, fake, real, self.counts(batch, self.forcing.context)), {"distance": mean_distance(x.detach(), real).mean()}

    def critic_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        with torch.no_grad():
            x, batch = self.generate(draws)
        return critic_loss(self.scores, x, draws, self.view(x.shape[2], self.score.context), batch), {}
