"""A small VAE with the published order of time-downsampling [no, yes, yes], for tests of what the wrong order looks like.

The garden's own VAE has two levels that both halve time, so its order reversed is the same. This one has three, as the
published one. 600 steps of training leave it blurred, which is enough to tell the orders apart. Run as a script it trains on the
simulator's walks and writes the fixture, minutes on one core:

    python -m tests.order_vae [STEPS]        # tests/fixtures/order_vae.safetensors
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file

from models.vae import VAE, VAEConfig
from tests.recordings import FIXTURES
from training.common import MixedOptimizer, cosine_schedule
from training.train_vae import picture_loss, sample_clips

FILE = FIXTURES / "order_vae.safetensors"
CONFIG = VAEConfig(
    dim=8, dim_mult=(1, 2, 4, 4), num_res_blocks=1, temporal_downsample=(False, True, True),
    latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16,
)  # fmt: skip


def load(temporal_downsample: tuple[bool, ...] = CONFIG.temporal_downsample) -> VAE:
    """The trained VAE, or one of another order with the same weights wherever a name and its shape allow (seeded elsewhere)."""
    torch.manual_seed(0)
    vae = VAE(replace(CONFIG, temporal_downsample=temporal_downsample))
    own, trained = vae.state_dict(), load_file(FILE)
    vae.load_state_dict(
        {name: trained[name].float() for name in own if name in trained and trained[name].shape == own[name].shape}, strict=False
    )
    return vae.eval().requires_grad_(False)


def train(steps: int) -> None:
    torch.manual_seed(0)
    vae, generator = VAE(CONFIG), torch.Generator().manual_seed(1)
    optimizer = MixedOptimizer(vae, 4e-3, 4e-3)
    begun = time.perf_counter()
    for step in range(steps):
        top, left = (int(torch.randint(0, room, (), generator=generator)) for room in (64 - 32, 112 - 48))
        clips = sample_clips(2, 9, generator, torch.device("cpu"))[..., top : top + 32, left : left + 48].contiguous()
        loss = picture_loss(vae.pixels(vae.mean(clips)), clips)
        loss.backward()
        optimizer.step(cosine_schedule(step / steps))
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step}: loss {float(loss.detach()):.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
            save_file({name: tensor.to(torch.bfloat16).contiguous() for name, tensor in vae.state_dict().items()}, FILE)


if __name__ == "__main__":
    train(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
