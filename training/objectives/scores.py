"""Two scores of a noised window: the teacher's, of the world as it is, and the critic's, of what the student makes of it.

A score is told by the clean latents a denoiser sees: with x_t = (1 − σ) x + σ ε, ∇ log p(x_t) = ((1 − σ) x̂₀(x_t) − x_t)/σ², so that
differences of scores are differences of x̂₀ times a number. The teacher may be guided (Ho & Salimans 2022): x̂₀ = u + w (c − u), where u is
its guess without actions (all at zero; it should have been trained with `forcing.drop_actions`).
"""

from __future__ import annotations

from torch import Tensor

from models.dit import DiT
from models.flow import FlowSchedule, add_noise
from training.dataset import Batch
from training.draws import Draws
from training.objectives.base import per_latent
from training.objectives.view import View
from training.plan import ScoreSettings


def guided_x0(
    teacher: DiT, view: View, noisy: Tensor, timestep: Tensor, sigma: Tensor, batch: Batch, guidance: float, clean: Tensor | None = None
) -> Tensor:  # fmt: skip
    """The teacher's x̂₀, guided; arguments as those of `View.x0`."""
    told = view.x0(teacher, noisy, timestep, sigma, batch, clean)
    if guidance == 1:
        return told
    untold = view.x0(teacher, noisy, timestep, sigma, batch.without_actions(), clean)
    return untold + guidance * (told - untold)


class Scores:
    """Noise levels, and what teacher and critic see at them."""

    def __init__(self, teacher: DiT, critic: DiT, settings: ScoreSettings) -> None:
        self.teacher, self.critic, self.settings = teacher, critic, settings
        self.schedule = FlowSchedule(settings.shift)

    def timestep(self, draws: Draws, latents: int) -> Tensor:
        """One shifted timestep a sample for all its latents, [B, T]: t uniform, then shifted, then kept in ``range`` x 1000."""
        low, high = self.settings.range
        table = self.schedule.table
        index = (len(table) * (1 - low - (high - low) * draws.uniform("time", 1))).long().clamp_max(len(table) - 1)
        return table[index].clamp(1000 * low, 1000 * high).expand(-1, latents)

    def noised(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t, its timesteps [B, T], σ [B, T] and noise, for latents x [B, z, T, h, w]."""
        timestep = self.timestep(draws, x.shape[2]).to(x.device)
        sigma = self.schedule.sigma(timestep)
        noise = draws.normal("noise", *x.shape[1:]).to(x.device)
        return add_noise(x, noise, per_latent(sigma)), timestep, sigma, noise

    def both(self, x: Tensor, draws: Draws, view: View, batch: Batch) -> tuple[Tensor, Tensor]:
        """(x̂₀ of the critic: fake, x̂₀ of the teacher: real), of one and the same noised x."""
        noisy, timestep, sigma, _ = self.noised(x, draws)
        fake = view.x0(self.critic, noisy, timestep, per_latent(sigma), batch)
        real = guided_x0(self.teacher, view, noisy, timestep, per_latent(sigma), batch, self.settings.guidance)
        return fake, real


def mean_distance(x: Tensor, real: Tensor) -> Tensor:
    """mean |x − real| of each sample, [B, 1, 1, 1, 1]; what both losses are divided by (Yin et al. 2024, DMD)."""
    return (x - real).abs().mean((1, 2, 3, 4), keepdim=True)


def counted_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean over samples of Σ counts v / Σ counts, v the mean over a latent of [B, z, T, h, w]; counts [T] or [B, T], none of them all 0."""
    values = values.mean((1, 3, 4))  # [B, T]
    return ((values * counts).sum(1) / counts.sum(-1)).mean()
