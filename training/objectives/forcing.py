"""Diffusion forcing and teacher forcing: flow matching on windows whose blocks each have a noise level of their own.

With x_σ = (1 − σ) x₀ + σ ε (Lipman et al. 2023, "Flow matching for generative modeling") the network's x̂₀ is compared in one of
three spaces; as v = ε − x₀ = (x_σ − x₀)/σ and ε = (x_σ − (1 − σ) x₀)/σ they differ by a factor of the squared error only:

    x0: ‖x̂₀ − x₀‖²      velocity: ‖v̂ − v‖² = ‖x̂₀ − x₀‖²/σ²      noise: ‖ε̂ − ε‖² = ‖x̂₀ − x₀‖² (1 − σ)²/σ²

What the network itself puts out is the world's (`DiTConfig.prediction`); noise is no choice there, since at σ = 1, where play
begins, it says nothing about x₀. A level per block under a block-causal mask is diffusion forcing (Chen et al. 2024, "Diffusion forcing");
with clean blocks beside the noisy ones it is teacher forcing, as in MAR and CausVid's first stage. The clean blocks may be what the model
makes of them (`objectives/resampling.py`).

Every level is learned with all of its noise, the sampler's last one too. Where a world's `sampler.last_noise` is below 1, play asks at its
last step for what this never taught, and a resampled past is played as play does. `training.train_dit`, which made the garden's weights
(`last_noise: 0`), learns that level with half of its noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.flow import add_noise
from training.dataset import Batch
from training.draws import Draws
from training.objectives.base import Objective, Report, draw_timesteps, per_latent
from training.objectives.resampling import Resampler
from training.plan import ForcingSettings

GAMMA = 5.0  # of min-SNR


def space_factor(sigma: Tensor, space: str) -> Tensor:
    """What the squared error of x₀ is multiplied with to be that of the velocity or the noise."""
    if space == "velocity":
        return 1 / sigma.square()
    if space == "noise":
        return ((1 - sigma) / sigma).square()
    return torch.ones_like(sigma)


def level_weight(sigma: Tensor, weighting: str) -> Tensor:
    """How much a noise level counts. ``bell``: exp(−2 (σ − ½)²), the middle most; ``min_snr``: min(((1 − σ)/σ)², 5) (Hang et al. 2023), the
    factor on x₀'s error, so for space "x0"; it is 0 at σ = 1."""
    if weighting == "bell":
        return torch.exp(-2 * (sigma - 0.5).square())
    if weighting == "min_snr":
        return ((1 - sigma) / sigma).square().clamp_max(GAMMA)
    return torch.ones_like(sigma)


def robust(error: Tensor, scale: float) -> Tensor:
    """s log(1 + e/s) of mean square errors e >= 0 (Cauchy's loss; Barron 2019, "A general and adaptive robust loss function").

    As e where e ≪ s; beyond, a tenth less of an error counts the same wherever one stands, as it does in decibels: what can be told exactly
    is not drowned by what cannot be known.
    """
    return scale * torch.log1p(error / scale)


def forcing_loss(
    guess: Tensor, x0: Tensor, sigma: Tensor, space: str, weighting: str, counts: Tensor | None = None, scale: float = 0.0, block: int = 1
) -> Tensor:  # fmt: skip
    """mean over samples of Σ w(σ) c(σ) ‖x̂₀ − x₀‖² counts / Σ counts, the norms as means over a latent.

    guess, x0 [B, z, T, h, w]; sigma [B, T] in (0, 1]; counts [B, T], each row with something in it. With a ``scale`` the weighted error of
    each ``block`` latents, as a mean, counts as `robust` says.
    """
    error = (guess - x0).square().mean((1, 3, 4)) * space_factor(sigma, space) * level_weight(sigma, weighting)  # [B, T]
    if scale:
        error = robust(error.unflatten(1, (-1, block)).mean(-1), scale).repeat_interleave(block, dim=1)
    if counts is None:
        return error.mean()
    return ((error * counts).sum(1) / counts.sum(1)).mean()


class Forcing(Objective):
    """The loss of `forcing_loss` on the student."""

    _resampler: Resampler | None = None  # made when it is first wanted: it is as large as the student

    def student_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        settings = self.plan.forcing or ForcingSettings()
        batch = self.data.batch(draws, self.plan.blocks).to(self.device)
        if settings.drop_actions:
            batch = batch.without_actions((draws.uniform("drop") < settings.drop_actions).to(self.device))
        counts = self.counts(batch, settings.context)
        steps = self.schedule.timesteps(self.world.sampler.steps)
        timestep = draw_timesteps(self.schedule, steps, settings, draws, self.plan.blocks, self.block).to(self.device)
        sigma = self.schedule.sigma(timestep)
        x0 = batch.latents
        noisy = add_noise(x0, draws.normal("noise", *x0.shape[1:]).to(self.device), per_latent(sigma))
        clean = self._resampled(batch, draws) if draws.shared("resampling") < settings.resampling else x0
        if settings.context_noise:
            amount = settings.context_noise * draws.uniform("drift", self.plan.blocks).square().repeat_interleave(self.block, dim=1)
            clean = clean + per_latent(amount.to(self.device)) * draws.normal("context", *x0.shape[1:]).to(self.device)
        guess = self.view(x0.shape[2], settings.context).x0(self.networks.student, noisy, timestep, per_latent(sigma), batch, clean)
        return forcing_loss(guess, x0, sigma, settings.space, settings.weighting, counts, settings.robust, self.block), {}

    def _resampled(self, batch: Batch, draws: Draws) -> Tensor:
        """The window as the model plays it, but its last block, which nobody sees as past."""
        settings, sampler = self.plan.forcing or ForcingSettings(), self.world.sampler
        if self._resampler is None:
            dtype = self.plan.dtype(self.device)
            self._resampler = Resampler(self.networks.student, sampler.steps, sampler.shift, dtype, sampler.last_noise)
        weights = torch.tensor(settings.begin_weights or [1.0] * len(sampler.steps))
        generator = draws.generator("begins", "all")
        begins = torch.multinomial(weights, self.plan.blocks - 1, replacement=True, generator=generator).tolist()
        return self._resampler(batch, begins, draws.sessions())
