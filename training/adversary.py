"""A critic of pictures: it tells the simulator's from the decoder's, and says how the decoder's would have to change to be taken for them.

Where an edge's place is not certain, the picture with the least error is a blur, whatever the decoder: so nearness alone cannot make it
sharp. The critic compares what may be with what may be. It sees patches of about twenty pixels of three frames in a row, so that it
judges texture, edges and how they move, and not the place. Its loss is the relativistic one (Jolicoeur-Martineau 2019; paired, as in
Huang et al. 2024, "The GAN is dead; long live the GAN!"), over patches of the same place of the same walk:

    critic:  softplus(C(ours) − C(truth)) + λ [(C(x + σ ε) − C(x))² for x in ours, truth]        decoder:  softplus(C(truth) − C(ours))

The second term stands for the gradient penalties R1 and R2 without a second derivative (Lin et al. 2025, "Diffusion adversarial
post-training"). The critic is trained, saved with the run, and never exported.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAMES = 3  # in a row
NUDGE = 0.05  # σ; pictures are in [-1, 1]
CALM = 20.0  # λ


class Critic(nn.Module):
    """Frames [N, 9, H, W] -> scores [N, 1, H/4, W/4]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [(3 * FRAMES, width, 3, 1), (width, 2 * width, 4, 2), (2 * width, 4 * width, 4, 2), (4 * width, 4 * width, 3, 1)]
        layers: list[nn.Module] = []
        for before, after, kernel, stride in sizes:
            layers += [nn.Conv2d(before, after, kernel, stride, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 1)).to(memory_format=torch.channels_last)

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames.contiguous(memory_format=torch.channels_last)).float()


def in_rows(video: Tensor, first: int) -> Tensor:
    """Video [B, 3, F, H, W] as frames in rows of three from frame ``first`` on, without the rest: [N, 9, H, W]."""
    rows = (video.shape[2] - first) // FRAMES
    kept = video[:, :, first : first + FRAMES * rows].unflatten(2, (rows, FRAMES))  # [B, 3, rows, 3, H, W]
    return kept.permute(0, 2, 3, 1, 4, 5).flatten(0, 1).flatten(1, 2)


class Adversary:
    """A critic in training. `pull` is one step of it."""

    def __init__(self, device: torch.device, lr: float = 3e-4) -> None:
        self.critic = Critic().to(device)
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), lr=lr, betas=(0.0, 0.99), weight_decay=0.0)
        self.device = device

    def score(self, frames: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.critic(frames)

    def pull(self, ours: Tensor, truth: Tensor, first: int) -> tuple[Tensor, float]:
        """The gradient of the decoder's loss by ``ours``, [B, 3, F, H, W] both, from frame ``first`` on; and how far apart the scores are.

        Then the critic learns from the same pictures.
        """
        ours = ours.detach().requires_grad_(True)
        fake, real = in_rows(ours, first), in_rows(truth, first)
        with torch.no_grad():
            known = self.score(real)
        told = self.score(fake)
        (gradient,) = torch.autograd.grad(F.softplus(known - told).mean(), ours)
        fake = fake.detach()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(fake, real).backward()
        self.optimizer.step()
        return gradient, float((known - told.detach()).mean())

    def loss(self, fake: Tensor, real: Tensor) -> Tensor:
        """The critic's, of frames in rows [N, 9, H, W]."""
        both = torch.cat([fake, real])
        told, nudged = self.score(both), self.score(both + NUDGE * torch.randn_like(both))
        ours, truth = told.chunk(2)
        return F.softplus(ours - truth).mean() + CALM * (nudged - told).square().mean()

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp")
        torch.save({"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])


def together(nearness: Tensor, pull: Tensor, share: float) -> Tensor:
    """Both gradients by the pictures as one: the critic's counts ``share`` of the other, whatever the size of either loss."""
    return nearness + share * nearness.norm() / pull.norm().clamp_min(1e-12) * pull
