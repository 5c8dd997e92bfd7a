"""A given clip, to go on from: whole blocks of frames become latents (SPEC §1, prefill)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.clock import BlockClock
from engine.picture import fit_frame, to_video
from models.errors import WorldError
from models.vae import VAE

MAX_BLOCKS = 40  # of a clip: 477 frames, 19 seconds at 25 a second, 320 MB at 352x640


def whole_blocks(frames: int, clock: BlockClock) -> tuple[int, int]:
    """How many whole blocks ``frames`` frames hold from ``clock`` on, and how many frames those are: 25 are 2 blocks of 21 frames."""
    first = clock.frames.start
    blocks = 0
    while clock.frames.stop - first <= frames:
        blocks, clock = blocks + 1, clock.next()
    return blocks, clock.frames.start - first


def clip_limit(clock: BlockClock) -> int:
    """The most frames a clip from ``clock`` on may have, those left over included."""
    return replace(clock, block=clock.block + MAX_BLOCKS).frames.stop - 1 - clock.frames.start


def check_clip(clip: np.ndarray, clock: BlockClock) -> tuple[int, int]:
    """Whole blocks of the clip `[F, H, W, 3]` and their frames; what is left over is not used.

    Raises WorldError when it is no such array (uint8, or float in [0, 1]), shorter than a block or longer than 40.
    """
    if clip.ndim != 4 or clip.shape[3] != 3:
        raise WorldError(f"a clip is an array [frames, height, width, 3], got {list(clip.shape)}")
    blocks, used = whole_blocks(len(clip), clock)
    if blocks == 0:
        raise WorldError(f"the clip has {len(clip)} frames; at least {len(clock.frames)} are needed, a first block")
    if blocks > MAX_BLOCKS:
        raise WorldError(f"the clip is longer than {MAX_BLOCKS} blocks ({clip_limit(clock)} frames); give its last part alone")
    return blocks, used


@torch.inference_mode()
def encode_clip(vae: VAE, clip: np.ndarray, clock: BlockClock, height: int, width: int, device: torch.device) -> Iterator[Tensor]:
    """Latents `[1, z, n, h, w]` of each whole block of the clip, streamed; frames are cut and scaled like a start picture.

    Few frames go through the encoder at a time, which is equal to any other way and needs the least memory.
    """
    cache = vae.new_encoder_cache()
    for _ in range(whole_blocks(len(clip), clock)[0]):
        latents = []
        for latent in clock.latents:
            frames = range(0, 1) if latent == 0 else range(1 + clock.r * (latent - 1), 1 + clock.r * latent)
            fitted = np.stack([fit_frame(clip[frame], height, width) for frame in frames])
            latents.append(vae.encode_frames(to_video(fitted).to(device), cache))
        yield torch.cat(latents, dim=2)
        clock = clock.next()
