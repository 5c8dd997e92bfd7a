"""The measure of unseen walks."""

from __future__ import annotations

import torch

from tests.training.test_trainers import random_clips
from training import heldout
from training.latents import sample_windows


def test_errors_of_blocks() -> None:
    """Of a player that strays by a block's number: its square, for every walk and block."""
    windows = sample_windows(random_clips(), 2, heldout.BLOCKS, torch.Generator().manual_seed(1))
    number = torch.arange(heldout.BLOCKS).repeat_interleave(heldout.BLOCK).view(1, 1, -1, 1, 1)
    found = heldout.block_errors(lambda batch, begins, noise: batch.latents + number, windows, [0] * heldout.BLOCKS)
    torch.testing.assert_close(found, (torch.arange(heldout.BLOCKS).float() ** 2).expand(2, -1), rtol=1e-3, atol=1e-4)
