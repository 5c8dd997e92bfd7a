"""What an objective is to the trainer: a loss of the student, and perhaps one of a critic, from drawn numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import WorldConfig
from models.dit import DiT
from models.flow import FlowSchedule
from training.dataset import Batch, Data
from training.draws import Draws
from training.objectives.view import View
from training.plan import ForcingSettings, Plan

Report = dict[str, Tensor]  # numbers to log, detached


@dataclass
class Networks:
    """``student`` learns to play; ``teacher`` never changes; ``critic`` follows the student; ``target`` is its own slow average."""

    student: DiT
    teacher: DiT | None = None
    critic: DiT | None = None
    target: DiT | None = None


class Objective:
    """Base of all. The class says which networks it needs beside the student."""

    needs_teacher = False
    has_critic = False
    has_target = False

    def __init__(self, plan: Plan, world: WorldConfig, networks: Networks, data: Data, device: torch.device) -> None:
        self.plan, self.world, self.networks, self.data, self.device = plan, world, networks, data, device
        self.block, self.window = world.model.num_frame_per_block, world.model.local_attn_size
        self.schedule = FlowSchedule(world.sampler.shift)
        self._views: dict[tuple[int, str], View] = {}

    @property
    def longest(self) -> int:
        """The most blocks it asks of a clip."""
        return self.plan.blocks

    def student_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        """The student's loss over the drawn samples, their mean."""
        raise NotImplementedError

    def critic_loss(self, draws: Draws) -> tuple[Tensor, Report]:
        """The critic's. The student gets no gradient of it."""
        raise NotImplementedError

    def counts(self, batch: Batch, context: str) -> Tensor:
        """[B, T] on the device: 1 for latents that count, 0 for first blocks of windows cut from the middle of a session.

        Under a causal mask nothing told these the past. Under "all" the rest of the window does, and a window of one block is all there is.
        """
        later = torch.arange(batch.latents.shape[2], device=self.device) >= self.block
        return (later | batch.from_start[:, None] | (context == "all" or self.plan.blocks == 1)).float()

    def view(self, latents: int, context: str) -> View:
        """The view of that many latents; made once."""
        if (latents, context) not in self._views:
            self._views[latents, context] = View(latents, self.block, self.window, context, self.device)
        return self._views[latents, context]


def draw_timesteps(schedule: FlowSchedule, steps: Tensor, settings: ForcingSettings, draws: Draws, blocks: int, block: int) -> Tensor:
    """Timesteps [B, T] in 0..1000 of noised windows, equal within a block; ``steps`` are the sampler's, as in `FlowSchedule.timesteps`."""
    uniform = draws.uniform("level", 1 if settings.shared else blocks)
    if settings.levels == "steps":
        weights = torch.tensor(settings.step_weights or [1.0] * len(steps), dtype=torch.float64)
        edges = (weights / weights.sum()).cumsum(0)
        chosen = steps[torch.searchsorted(edges, uniform.double(), right=True).clamp_max(len(steps) - 1)]
    else:
        low, high = settings.range
        index = (len(schedule.table) * (1 - low - (high - low) * uniform)).long().clamp_max(len(schedule.table) - 1)
        chosen = schedule.table[index]
    return chosen.expand(-1, blocks).repeat_interleave(block, dim=1)


def per_latent(values: Tensor) -> Tensor:
    """[B, T] -> [B, 1, T, 1, 1], beside latents."""
    return values[:, None, :, None, None]
