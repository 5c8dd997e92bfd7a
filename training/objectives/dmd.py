"""Distribution matching distillation (Yin et al. 2024, DMD and DMD2; on rollouts as in Self-Forcing).

    g = (x̂_fake − x̂_real) / mean|x − x̂_real|,      L = ½ ‖x − sg(x − g)‖²

where x is what the student played and x̂ are the clean latents that critic (fake) and teacher (real) see in one noised copy of it
(`objectives/scores.py`). The value of L is ½ ‖g‖²; its gradient by x is g: towards what the teacher finds likely, away from what
the student makes too often. Nothing flows through the two scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import WorldConfig
from training.dataset import Batch, Data
from training.draws import Draws
from training.objectives.base import Networks, Report
from training.objectives.critic import critic_loss
from training.objectives.regression import Rolling
from training.objectives.rollout import Generated
from training.objectives.scores import Scores, counted_mean, mean_distance
from training.plan import Plan, ScoreSettings


def dmd_loss(x: Tensor, fake: Tensor, real: Tensor, counts: Tensor) -> Tensor:
    """The loss above over [B, z, T, h, w], the norm as a mean over the latents that count, [T] or [B, T]."""
    with torch.no_grad():
        g = torch.nan_to_num((fake - real) / mean_distance(x, real))
        goal = x - g
    return 0.5 * counted_mean((x - goal).square(), counts)


class Matching(Rolling):
    """Base of the objectives with two scores, on rollouts."""

    needs_teacher = True
    has_critic = True

    def __init__(self, plan: Plan, world: WorldConfig, networks: Networks, data: Data, device: torch.device) -> None:
        super().__init__(plan, world, networks, data, device)
        self.score = plan.score or ScoreSettings()
        self.scores = Scores(networks.teacher, networks.critic, self.score)

    def seen(self, made: Generated, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """What the scores look at: the last latents, no more than have a gradient at most. Also which count, and their conditions."""
        length = min(made.latents.shape[2], max(self.settings.gradient_latents // self.block, 1) * self.block)
        return made.latents[:, :, -length:], made.counts[-length:], batch.last(length)

    def critic_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        with torch.no_grad():
            made, batch = self.generate(draws, gradient=False)
        x, _, batch = self.seen(made, batch)
        return critic_loss(self.scores, x, draws, self.view(x.shape[2], self.score.context), batch), {}


class DMD(Matching):
    """The loss of `dmd_loss` on the student's rollout."""

    def student_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        made, batch = self.generate(draws, gradient=True)
        x, counts, batch = self.seen(made, batch)
        with torch.no_grad():
            fake, real = self.scores.both(x.detach(), draws, self.view(x.shape[2], self.score.context), batch)
        return dmd_loss(x, fake, real, counts), {"distance": mean_distance(x.detach(), real).mean()}
