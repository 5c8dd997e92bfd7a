"""Who sees whom among the latents of a window, as play has it: whole blocks, causally, within the ring's length."""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal(latents: int, block: int, window: int) -> Tensor:
    """[T, T] bool: latent i (row) sees latent j (column) of its own and earlier blocks, at most ``window`` latents back.

    As the ring has it (`models/kv_cache.py`) the window is counted to the end of i's block, so that all latents of a block
    see the same. Raises ValueError unless T is a whole number of blocks and a block fits the window.
    """
    if latents < 1 or block < 1 or latents % block:
        raise ValueError(f"{latents} latents are no whole number of blocks of {block}")
    if window < block:
        raise ValueError(f"a window of {window} latents cannot hold a block of {block}")
    latent = torch.arange(latents)
    end = (latent // block + 1) * block  # of each latent's block
    return (latent[None] < end[:, None]) & (latent[None] >= end[:, None] - window)


def teacher_forcing(latents: int, block: int, window: int) -> Tensor:
    """[2T - block, 2T - block] bool, the clean half first: noisy blocks see the clean ones before them, and themselves.

    Both halves have the same positions. Nobody sees the last block clean: it is left out.
    """
    causal = block_causal(latents, block, window)
    known = latents - block
    of_block = torch.arange(latents) // block
    own = of_block[:, None] == of_block[None]
    clean = torch.cat([causal[:known, :known], torch.zeros(known, latents, dtype=torch.bool)], dim=1)
    noisy = torch.cat([(causal & ~own)[:, :known], own], dim=1)
    return torch.cat([clean, noisy])
