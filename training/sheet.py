"""Contact sheets: what the model plays, below what the world showed."""

from __future__ import annotations

import numpy as np
import torch

from engine.frames import to_uint8
from models.vae import VAE
from training.dataset import Data, join
from training.draws import BatchNoise
from training.objectives.rollout import Rollout

CLIPS = 4  # of a sheet, each two rows


@torch.no_grad()
def contact_sheet(rollout: Rollout, data: Data, vae: VAE | None, blocks: int, device: torch.device, main: bool) -> np.ndarray | None:
    """The last picture of each block, `[2 x clips x H, blocks x W, 3]`: truth above, play below. All processes must take part.

    None on those that have no ``vae`` to see with.
    """
    count = min(CLIPS, len(data))
    n = data.block
    batch = join([data.window(i, 0, n * blocks) for i in data.used[:count]]).to(device)
    exits = [len(rollout.sampler.timesteps) - 1] * blocks
    played = torch.cat([x0 for _, x0 in rollout.play(batch, exits, BatchNoise(range(count)), gradient=False)], dim=2)
    if vae is None or not main:
        return None
    rows = []
    for clip in range(count):
        for latents in (batch.latents, played):
            cache, pictures = vae.new_decoder_cache(), []
            for block in range(blocks):
                frames = vae.decode_block(latents[clip : clip + 1, :, n * block : n * (block + 1)].float(), cache)
                pictures.append(to_uint8(frames)[-1])
            rows.append(np.concatenate(pictures, axis=1))
    return np.concatenate(rows)
