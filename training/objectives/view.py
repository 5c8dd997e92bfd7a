"""One pass over a whole window: what `DiT.forward_parallel` is given, and x0 out of what it says."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.attention import MaskPlan
from models.dit import DiT
from models.flow import x0_from_output
from training.dataset import Batch
from training.masks import block_causal, teacher_forcing


class View:
    """Who sees whom in a window of T latents: "clean" truth beside each block, the "noisy" past itself, or "all".

    "clean" puts the window there twice, the clean half (without its last block) first, both under the same positions, conditions and
    actions: what a pass of play does one block at a time, with a loss on every block at once.
    """

    def __init__(self, latents: int, block: int, window: int, context: Literal["clean", "noisy", "all"], device: torch.device) -> None:
        masks = {
            "clean": lambda: teacher_forcing(latents, block, window),
            "noisy": lambda: block_causal(latents, block, window),
            "all": lambda: torch.ones(latents, latents, dtype=torch.bool),
        }
        mask = masks[context]()
        self.known = mask.shape[0] - latents  # clean latents
        self.plan = MaskPlan.from_mask(mask)
        self.mask = mask.to(device)
        self.positions = torch.cat([torch.arange(self.known), torch.arange(latents)])

    def x0(
        self, dit: DiT, noisy: Tensor, timestep: Tensor, sigma: Tensor, batch: Batch, clean: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """The clean latents that ``dit`` sees in ``noisy`` [B, z, T, h, w], float32.

        ``timestep`` [B, T] in 0..1000 and ``sigma`` [B, 1, T, 1, 1] are those of ``noisy``; ``clean`` [B, z, T, h, w] is read by the
        view "clean" only, at timestep 0.
        """
        x = torch.cat([noisy, batch.condition], dim=1)
        keyboard, mouse = batch.rows.keyboard, batch.rows.mouse
        if self.known:
            own = slice(self.known)
            x = torch.cat([torch.cat([clean[:, :, own], batch.condition[:, :, own]], dim=1), x], dim=2)
            timestep = torch.cat([torch.zeros_like(timestep[:, own]), timestep], dim=1)
            keyboard = torch.cat([keyboard[:, own], keyboard], dim=1)
            mouse = None if mouse is None else torch.cat([mouse[:, own], mouse], dim=1)
        output = dit.forward_parallel(x, timestep, keyboard, mouse, self.positions, self.mask, batch.visual, self.plan)
        return x0_from_output(noisy, output[:, :, self.known :].float(), sigma, dit.config.prediction)
