"""Flow matching: x_sigma = (1 - sigma) x0 + sigma noise, velocity = noise - x0 (Lipman et al. 2022; schedule of SPEC §4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # kinds of devices
TRAIN_STEPS = 1000  # length of the table the published models were trained with


class FlowSchedule:
    """The table of noise levels, shifted towards noise: sigma = shift s / (1 + (shift - 1) s) for s from 1 down to 1/1000."""

    def __init__(self, shift: float = 5.0) -> None:
        if not shift > 0:
            raise ValueError(f"shift must be positive, got {shift}")
        s = torch.linspace(1, 0, TRAIN_STEPS + 1, dtype=torch.float32)[:-1]
        self.sigmas = shift * s / (1 + (shift - 1) * s)  # [1000] float32 on the host, falling
        self.table = self.sigmas * TRAIN_STEPS  # [1000] their timesteps

    def timesteps(self, steps: Sequence[int] = (1000, 666, 333)) -> Tensor:
        """Warped timesteps of the listed steps, float32 ``[len(steps)]`` on the host: step t means index 1000 - t, and 0 stays 0.

        Raises ``ValueError`` unless the steps are whole numbers in [0, 1000], falling.
        """
        falling = all(a > b for a, b in pairwise(steps))
        if not steps or not falling or any(int(t) != t or not 0 <= t <= TRAIN_STEPS for t in steps):
            raise ValueError(f"denoising steps must be whole numbers falling within 0..{TRAIN_STEPS}, got {list(steps)}")
        warped = torch.cat([self.table, torch.zeros(1)])
        return warped[[TRAIN_STEPS - int(t) for t in steps]]

    def sigma(self, timestep: Tensor | float) -> Tensor:
        """Noise level, float32, of the table's nearest timestep; same shape and device as ``timestep``.

        Timestep 0 (clean) is not in the table and gets its smallest level, as in the published code.
        """
        timestep = torch.as_tensor(timestep, dtype=torch.float32)
        table = self.table.to(timestep.device)
        nearest = (table - timestep[..., None]).abs().argmin(-1)
        return self.sigmas.to(timestep.device)[nearest]


def x0_from_velocity(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """x0 = x - sigma velocity, computed in float64 (where there is none, in float32), returned in x's dtype.

    ``sigma`` is one number or broadcasts against x.
    """
    wide = torch.float32 if x.device.type in WITHOUT_FLOAT64 else torch.float64
    sigma = sigma if isinstance(sigma, float) else torch.as_tensor(sigma, dtype=wide, device=x.device)  # a number needs no copy
    return (x.to(wide) - sigma * velocity.to(wide)).to(x.dtype)


def x0_from_output(x: Tensor, output: Tensor, sigma: Tensor | float, prediction: str) -> Tensor:
    """x0 from what the model put out: its velocity, or x0 itself (`DiTConfig.prediction`)."""
    if prediction == "velocity":
        return x0_from_velocity(x, output, sigma)
    if prediction == "x0":
        return output.to(x.dtype)
    raise ValueError(f"prediction must be 'velocity' or 'x0', got {prediction!r}")


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """(1 - sigma) x0 + sigma noise, in x0's dtype. ``sigma`` is one number or broadcasts against x0."""
    sigma = sigma if isinstance(sigma, float) else torch.as_tensor(sigma, dtype=x0.dtype, device=x0.device)
    return (1 - sigma) * x0 + sigma * noise
