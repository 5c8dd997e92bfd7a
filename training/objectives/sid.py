"""Score identity distillation (Zhou et al. 2024, SiD), on rollouts as in Self-Forcing.

    L = mean[(x̂_real − x̂_fake) · ((x̂_real − x) − α (x̂_real − x̂_fake))] / mean|x − x̂_real|

The paper's loss (1 − α) ‖f_real − f_fake‖² + (f_real − f_fake)ᵀ(f_fake − x) with the terms gathered, and DMD's normaliser, without a
gradient, as weight. Unlike in DMD the gradient flows through both scores to x. On its way it would leave gradients in their weights, where
these ask for any; the trainer sees to it that no optimiser takes them (`Trainer._others_fixed`, `Learner.forget`). α = 1 is their default.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.draws import Draws
from training.objectives.base import Report
from training.objectives.dmd import Matching
from training.objectives.scores import counted_mean, mean_distance


def sid_loss(x: Tensor, fake: Tensor, real: Tensor, alpha: float, counts: Tensor) -> Tensor:
    """The loss above over [B, z, T, h, w]; a mean over the latents that count, [T] or [B, T]."""
    gap = real - fake
    with torch.no_grad():
        distance = mean_distance(x, real)
    return counted_mean(torch.nan_to_num(gap * ((real - x) - alpha * gap) / distance), counts)


class SiD(Matching):
    """The loss of `sid_loss` on the student's rollout."""

    def student_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        made, batch = self.generate(draws, gradient=True)
        x, counts, batch = self.seen(made, batch)
        fake, real = self.scores.both(x, draws, self.view(x.shape[2], self.score.context), batch)
        distance = mean_distance(x.detach(), real.detach()).mean()
        return sid_loss(x, fake, real, self.score.alpha, counts), {"distance": distance}
