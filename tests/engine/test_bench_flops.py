"""The arithmetic of a block: worked out from sizes, held against what torch counts and against the published figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine import load_config
from engine.bench_flops import block_work, decode_flops, pass_flops
from models.checkpoint import build_empty
from models.dit import DiT, DiTConfig


def counted(config: DiTConfig, height: int, width: int, image: int) -> int:
    """What torch counts in a pass over a full window, on the meta device."""
    dit = build_empty(DiT, config).requires_grad_(False)
    cache = dit.new_cache(1, height // 2, width // 2, "meta")
    if config.img_dim:
        dit.precompute_context(torch.empty(1, image, config.img_dim, device="meta"), cache)
    x = torch.empty(1, config.in_dim, 3, height, width, device="meta")
    keyboard = torch.empty(1, 3, 12, config.action.keyboard_dim, device="meta")
    mouse = torch.empty(1, 3, 12, 2, device="meta") if config.action.mouse_dim else None
    with torch.inference_mode():
        for start in range(0, 15, 3):
            dit(x, torch.zeros(1, 3), keyboard, mouse, cache, start)
        with FlopCounterMode(display=False) as counter:
            dit(x, torch.zeros(1, 3), keyboard, mouse, cache, 15)
    return counter.get_total_flops()


@pytest.mark.parametrize("mode", ["universal", "templerun"])
def test_a_pass_is_what_torch_counts(mode: str) -> None:
    published = DiTConfig.from_name(mode)
    config = replace(published, num_layers=3, action=replace(published.action, blocks=(0, 1)))
    assert pass_flops(config, 4 * 6, 3, 15, 257) == pytest.approx(counted(config, 8, 12, 257), rel=0.02)


@pytest.mark.parametrize(("window", "tera"), [(6, 40), (15, 56)])
def test_a_block_of_the_published_size(window: int, tera: int) -> None:
    """SPEC §8: 40 and 56 TFLOP for four whole passes, 22.9 for the decode."""
    config = load_config("universal", {"model.local_attn_size": window})
    work = block_work(config, torch.bfloat16)
    assert 4 * work.denoise_pass / 1e12 == pytest.approx(tera, rel=0.05)
    assert work.decode / 1e12 == pytest.approx(22.9, rel=0.05)
    assert 0.9 < work.commit / work.denoise_pass < 1 and work.transformer == 3 * work.denoise_pass + work.commit
    assert work.dit_bytes == pytest.approx(2 * 1.619e9, rel=0.01)


def test_decoding_grows_with_the_picture() -> None:
    config = load_config("garden").vae
    assert decode_flops(config, 3, 16, 14) / decode_flops(config, 3, 8, 14) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("mode", ["universal", "templerun"])
def test_weights_in_float8_are_a_byte_each(mode: str) -> None:
    config = load_config(mode, {"linears": "float8", "model.num_layers": 16})
    model, exact = config.model, load_config(mode, {"model.num_layers": 16})
    rounded = 16 * model.dim * (4 * model.dim + 2 * model.ffn_dim + 2 * model.dim)  # attention, feed-forward, and the picture's
    saved = block_work(exact, torch.bfloat16).dit_bytes - block_work(config, torch.bfloat16).dit_bytes
    assert saved == rounded - 16 * 4 * (7 * model.dim + model.ffn_dim)  # less the scales, one of four bytes for each output
