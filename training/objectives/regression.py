"""Self-Forcing against the truth: what the model plays is compared with what the world (its simulator, or a recording) showed.

    L = mean over the latents with a gradient of ‖x − x₀‖²

where x is the rollout (`objectives/rollout.py`) and x₀ the clip's latents under the same actions. It meets its own mistakes and learns
to come back from them. Only where the world is deterministic given start and actions is its optimum sharp: elsewhere it is the mean
of what may happen, and the objectives that match distributions are the ones to use.

A rollout does not hold still as the garden's player does (`sampler.hold_still`): an idle block is one as any other here, committed and
compared with a truth in which time goes on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import WorldConfig
from training.dataset import Batch, Data
from training.draws import Draws
from training.objectives.base import Networks, Objective, Report
from training.objectives.rollout import Generated, Rollout
from training.plan import Plan, RolloutSettings


def regression_loss(x: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """Mean over samples of Σ counts ‖x − x₀‖² / Σ counts, the norm as a mean over a latent; [B, z, T, h, w], counts [T]."""
    error = (x - truth).square().mean((1, 3, 4))  # [B, T]
    return ((error * counts).sum(1) / counts.sum()).mean()


class Rolling(Objective):
    """Base of the objectives whose latents come from a rollout."""

    def __init__(self, plan: Plan, world: WorldConfig, networks: Networks, data: Data, device: torch.device) -> None:
        super().__init__(plan, world, networks, data, device)
        self.settings = plan.rollout or RolloutSettings()
        dtype, sampler = plan.dtype(device), world.sampler
        self.rollout = Rollout(networks.student, sampler.steps, sampler.shift, self.settings, dtype, plan.checkpointing, sampler.last_noise)

    @property
    def longest(self) -> int:
        return self.settings.horizon[1]

    def generate(self, draws: Draws, gradient: bool) -> tuple[Generated, Batch]:
        """A rollout of as many blocks as the iteration drew, and the window it began in. One that begins in the middle of a session is
        given its first block."""
        blocks = draws.shared_whole("horizon", *self.settings.horizon)
        share = self.settings.start_share if blocks > 1 else 1.0
        batch = self.data.batch(draws, blocks, share, together=True)
        given = 0 if bool(batch.from_start.all()) or blocks == 1 else 1
        batch = batch.to(self.device)
        return self.rollout(batch, draws, given, gradient), batch


class Regression(Rolling):
    """The loss of `regression_loss` on the student's rollout."""

    def student_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        made, batch = self.generate(draws, gradient=True)
        blocks = torch.tensor(batch.latents.shape[2] / self.block)
        return regression_loss(made.latents, batch.latents, made.counts), {"blocks": blocks}
