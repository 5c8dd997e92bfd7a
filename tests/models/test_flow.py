from __future__ import annotations

import pytest
import torch

from models.flow import FlowSchedule, add_noise, x0_from_output, x0_from_velocity


def test_warped_timesteps() -> None:
    schedule = FlowSchedule(5.0)
    torch.testing.assert_close(schedule.timesteps([1000, 666, 333]), torch.tensor([1000.0, 908.84271, 713.9794]), rtol=1e-6, atol=0)
    four_steps = torch.tensor([1000, 937.5, 833.33333, 625, 0])
    torch.testing.assert_close(schedule.timesteps([1000, 750, 500, 250, 0]), four_steps, rtol=1e-6, atol=0)


def test_sigma_is_the_nearest_of_the_table() -> None:
    schedule = FlowSchedule(5.0)
    assert schedule.sigma(1000.0) == 1
    assert schedule.sigma(0.0) == schedule.sigmas[-1]
    timesteps = schedule.timesteps([1000, 666, 333])
    torch.testing.assert_close(schedule.sigma(timesteps), timesteps / 1000)
    assert schedule.sigma(timesteps.expand(2, 3)).shape == (2, 3)
    assert schedule.sigma(timesteps[1] + 0.01) == schedule.sigma(timesteps[1])


def test_velocity_and_noise_are_each_others_inverse() -> None:
    x0, noise = torch.randn(2, 1, 16, 3, 4, 6)
    x = add_noise(x0, noise, torch.tensor(0.71))
    torch.testing.assert_close(x0_from_velocity(x, noise - x0, 0.71), x0)
    torch.testing.assert_close(x0_from_output(x, noise - x0, 0.71, "velocity"), x0)
    torch.testing.assert_close(x0_from_output(x, x0, 0.71, "x0"), x0)
    assert x0_from_velocity(x.half(), noise - x0, 0.71).dtype == torch.float16


@pytest.mark.parametrize("steps", [[], [333, 666], [1001], [1000, -1], [1000, 500.5], [5, 5]])
def test_bad_steps_are_refused(steps: list[int]) -> None:
    with pytest.raises(ValueError, match="denoising steps"):
        FlowSchedule().timesteps(steps)


def test_bad_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="'noise'"):
        x0_from_output(torch.zeros(1), torch.zeros(1), 1.0, "noise")
