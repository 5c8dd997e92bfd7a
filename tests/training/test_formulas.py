"""The losses of the objectives, worked out again plainly on random tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.tiny import SHAPE, randn, wide
from training.draws import Draws
from training.objectives.consistency import consistency_loss, euler_step
from training.objectives.dmd import dmd_loss
from training.objectives.forcing import forcing_loss
from training.objectives.regression import regression_loss
from training.objectives.scores import Scores
from training.objectives.sid import sid_loss
from training.plan import ScoreSettings


@pytest.mark.parametrize("space", ["x0", "velocity", "noise"])
@pytest.mark.parametrize("weighting", ["uniform", "bell", "min_snr"])
def test_forcing_is_flow_matching_in_any_space(space: str, weighting: str) -> None:
    x0, noise, guess = randn(1), randn(2), randn(3)
    sigma = 0.1 + 0.8 * torch.rand(SHAPE[0], SHAPE[2], generator=torch.Generator().manual_seed(4))
    counts = torch.ones(SHAPE[0], SHAPE[2])
    counts[1, :3] = 0
    a, e, g, s, c = wide(x0, noise, guess, sigma, counts)
    total = 0.0
    for b in range(SHAPE[0]):
        kept = []
        for t in range(SHAPE[2]):
            level = s[b, t]
            x = (1 - level) * a[b, :, t] + level * e[b, :, t]
            truth = {"x0": a[b, :, t], "velocity": e[b, :, t] - a[b, :, t], "noise": e[b, :, t]}[space]
            said = {"x0": g[b, :, t], "velocity": (x - g[b, :, t]) / level, "noise": (x - (1 - level) * g[b, :, t]) / level}[space]
            weight = {"uniform": 1.0, "bell": np.exp(-2 * (level - 0.5) ** 2), "min_snr": min(((1 - level) / level) ** 2, 5.0)}[weighting]
            if c[b, t]:
                kept.append(weight * np.mean((said - truth) ** 2))
        total += np.mean(kept) / SHAPE[0]
    assert float(forcing_loss(guess, x0, sigma, space, weighting, counts)) == pytest.approx(total, rel=1e-6)


def test_a_robust_loss_counts_decibels() -> None:
    x0, guess = randn(1)[:2], randn(2)[:2]
    guess = x0 + torch.tensor([0.01, 3.0]).view(2, 1, 1, 1, 1) * (guess - x0)  # one sample is nearly right
    sigma, counts = torch.ones(2, SHAPE[2]), torch.ones(2, SHAPE[2])
    counts[0, :3] = 0
    a, g = wide(x0, guess)
    errors = ((g - a) ** 2).mean((1, 3, 4)).reshape(2, -1, 3).mean(-1)
    terms = 0.03 * np.log(1 + errors / 0.03)
    expected = (terms[0, 1:].mean() + terms[1].mean()) / 2
    assert float(forcing_loss(guess, x0, sigma, "x0", "uniform", counts, 0.03, 3)) == pytest.approx(expected, rel=1e-6)
    slopes = []
    for sample in range(2):
        near = guess[sample : sample + 1].clone().requires_grad_()
        forcing_loss(near, x0[sample : sample + 1], sigma[:1], "x0", "uniform", None, 0.03, 3).backward()
        slopes.append(float((near.grad * (near.detach() - x0[sample])).sum()))
    assert slopes[0] == pytest.approx(2 * errors[0].mean(), rel=0.01), "small errors count as they are"
    assert slopes[1] == pytest.approx(2 * 0.03, rel=0.02), "of large ones only the ratio counts"


def test_dmd_is_its_formula_and_so_is_its_gradient() -> None:
    x, fake, real = randn(1).requires_grad_(), randn(2), randn(3)
    counts = torch.tensor([0.0, 0, 0, 1, 1, 1])
    a, f, r = wide(x, fake, real)
    g = np.stack([(f[b] - r[b]) / np.abs(a[b] - r[b]).mean() for b in range(SHAPE[0])])
    loss = dmd_loss(x, fake, real, counts)
    assert loss.item() == pytest.approx(0.5 * (g[:, :, 3:] ** 2).mean(), rel=1e-6)
    loss.backward()
    expected = np.concatenate([np.zeros_like(g[:, :, :3]), g[:, :, 3:]], axis=2) / g[:, :, 3:].size
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-4, atol=1e-9)
    assert not x.grad[:, :, :3].any()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_is_the_papers_two_terms(alpha: float) -> None:
    x, fake, real = randn(1), randn(2), randn(3)
    a, f, r = wide(x, fake, real)
    terms = ((1 - alpha) * (r - f) ** 2 + (r - f) * (f - a)) / np.abs(a - r).mean((1, 2, 3, 4), keepdims=True)
    assert float(sid_loss(x, fake, real, alpha, torch.ones(6))) == pytest.approx(terms.mean(), rel=1e-6, abs=1e-7)


def test_regression_counts_what_has_a_gradient() -> None:
    x, truth, counts = randn(1), randn(2), torch.tensor([0.0, 0, 0, 1, 1, 1])
    a, b = wide(x, truth)
    assert float(regression_loss(x, truth, counts)) == pytest.approx(((a - b)[:, :, 3:] ** 2).mean(), rel=1e-6)


def test_consistency_compares_neighbours_on_a_path() -> None:
    x0, noise, guess, target = randn(1), randn(2), randn(3), randn(4)
    a, e, g, t = wide(x0, noise, guess, target)
    counts = torch.ones(SHAPE[0], SHAPE[2])
    counts[1, :3] = 0
    expected = np.mean([((g[b] - t[b])[:, 3 * (b == 1) :] ** 2).mean() for b in range(SHAPE[0])])
    assert float(consistency_loss(guess, target, counts)) == pytest.approx(expected, rel=1e-6)
    high, low = torch.tensor(0.8), torch.tensor(0.3)
    stepped = euler_step(0.2 * x0 + 0.8 * noise, x0, high, low)  # a teacher that sees x0 leads along the straight line
    np.testing.assert_allclose(stepped.numpy(), 0.7 * a + 0.3 * e, atol=1e-6)


@pytest.mark.parametrize("shift", [5.0, 1.0])
def test_the_scores_times_are_uniform_and_then_shifted(shift: float) -> None:
    """t uniform in the range, σ = s t/(1 + (s − 1) t), the same for all latents of a window."""
    draws = Draws(5, 0, range(2000), 2000)
    low, high = 0.05, 1.0
    drawn = Scores(None, None, ScoreSettings(shift=shift, range=(low, high))).timestep(draws, 6)
    assert drawn.shape == (2000, 6) and torch.equal(drawn, drawn[:, :1].expand(-1, 6))
    sigma = drawn[:, 0].double() / 1000
    t = low + (high - low) * draws.uniform("time", 1)[:, 0].double()
    expected = shift * t / (1 + (shift - 1) * t)
    torch.testing.assert_close(sigma, expected, atol=shift * 1.1e-3, rtol=0)  # the table's steps are 1/1000 of t
    back = (sigma / (shift - (shift - 1) * sigma)).sort().values
    even = low + (high - low) * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    assert (back - even).abs().max() < 0.05
    assert (shift == 1) == torch.allclose(sigma, t, atol=0.01), "without the shift they would be others"
    kept = Scores(None, None, ScoreSettings(shift=5.0, range=(0.1, 0.9))).timestep(draws, 1)
    assert kept.max() == 900 and kept.min() > 350, "of a shifted range what lies beyond the range itself is kept at its ends"
