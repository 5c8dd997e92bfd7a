"""The critic learns what the student makes: flow matching on generated latents (DMD2, Yin et al. 2024; the fake score).

    L = E_t,ε ‖F(x_t, t) − F(x)‖², x_t = (1 − σ_t) x + σ_t ε, x = sg(generated)

with F the velocity ε − x unless the plan says otherwise: `forcing.forcing_loss` with one noise level for the window. Nothing of it
reaches the student: its latents are made without a gradient.
"""

from __future__ import annotations

from torch import Tensor

from training.dataset import Batch
from training.draws import Draws
from training.objectives.base import per_latent
from training.objectives.forcing import forcing_loss
from training.objectives.scores import Scores
from training.objectives.view import View


def critic_loss(scores: Scores, x: Tensor, draws: Draws, view: View, batch: Batch) -> Tensor:
    """The critic's loss on generated latents x [B, z, T, h, w], which are taken as they are."""
    x = x.detach()
    noisy, timestep, sigma, _ = scores.noised(x, draws)
    guess = view.x0(scores.critic, noisy, timestep, per_latent(sigma), batch)
    return forcing_loss(guess, x, sigma, scores.settings.critic_space, scores.settings.critic_weighting)
