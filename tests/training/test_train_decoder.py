"""The decoder's trainer: what it shows the decoder is what the denoiser makes in play, one block at a time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from models.flow import add_noise
from tests.training.test_trainers import random_clips, small_dit
from training import train_decoder
from training.latents import cut_windows
from training.train_decoder import Imagination
from training.train_dit import BLOCK

GARDEN = Path(__file__).parents[2] / "assets" / "garden"


def test_weights_of_no_denoiser_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    vae = str(GARDEN / "vae.safetensors")
    monkeypatch.setattr("sys.argv", ["x", "--vae", vae, "--dit", vae, "--out", str(tmp_path), "--device", "cpu"])
    assert train_decoder.main() == 2
    says = r"vae\.safetensors holds .*which this network does not have.*: --dit takes weights of this.*\n"
    assert re.search(says, capsys.readouterr().err)


def test_all_blocks_at_once_are_each_block_by_itself(monkeypatch) -> None:
    """With the same noise: three passes beside the clean past through the view, and through the rings of play."""
    blocks = 3
    dit = small_dit().eval()
    windows = cut_windows(random_clips(2), torch.tensor([0, 1]), torch.tensor([0, 0]), BLOCK * blocks)
    noise = [torch.randn_like(windows.latents) for _ in range(3)]
    drawn = iter(noise)
    monkeypatch.setattr(torch, "randn_like", lambda like: next(drawn))
    imagine = Imagination(dit, BLOCK * blocks, torch.device("cpu"))
    with torch.autocast("cpu", enabled=False):
        together = imagine(windows)
    monkeypatch.undo()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = dit.new_cache(2, 2, 3)
        for block in range(blocks):
            own = slice(BLOCK * block, BLOCK * (block + 1))
            rows = windows.keyboard[:, own], windows.mouse[:, own]
            x0 = torch.zeros_like(windows.latents[:, :, own])
            for step in range(3):
                part = imagine.last_noise if step == 2 else 1.0
                x = add_noise(x0, part * noise[step][:, :, own], float(imagine.sigmas[step]))
                times = imagine.timesteps[step].expand(2, BLOCK)
                x0 = dit(torch.cat([x, windows.condition[:, :, own]], 1), times, *rows, cache, BLOCK * block).float()
            assert (x0 - together[:, :, own]).abs().max() < 0.05 * x0.abs().max()
            clean = torch.cat([windows.latents[:, :, own], windows.condition[:, :, own]], 1)
            dit(clean, torch.zeros(2, BLOCK), *rows, cache, BLOCK * block)
