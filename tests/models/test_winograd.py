"""Convolutions by Winograd's tiles are the plain sums, at every size, and the decoder that takes them is the decoder it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import winograd
from models.vae import VAE, VAEConfig
from models.vae_layers import CausalConv3d


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Frames `[B, 2 + T, H, W, in]` -> `[B, T, H, W, out]` in float64."""
    out = F.conv3d(x.double().permute(0, 4, 1, 2, 3), weight.double(), bias.double(), padding=(0, 1, 1))
    return out.permute(0, 2, 3, 4, 1)


def tiles(x: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """Frames `[B, T, H, W, in]` after ``past`` `[B, 2, H, W, in]` (None: zeros) -> `[B, T, H, W, out]`."""
    height, width = x.shape[2:4]
    whole, inside = winograd.room(2 + x.shape[1], height, width, x)
    inside[:, 2:] = x
    inside[:, :2] = 0 if past is None else past
    return winograd.convolve(whole, winograd.transform(weight), bias, height, width)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (8, 14), (7, 9), (20, 12), (16, 28)])
@torch.no_grad()
def test_tiles_of_every_size(size: tuple[int, int], batch: int) -> None:
    weight, bias = drawn(12, 20, 3, 3, 3) / 23, drawn(12, seed=1)
    past, x = drawn(batch, 2, *size, 20, seed=2), drawn(batch, 3, *size, 20, seed=3)
    exact = plain(torch.cat([past, x], 1), weight, bias)
    ours = tiles(x, past, weight, bias)
    assert ours.shape == exact.shape and ours.dtype == torch.float32
    assert (ours - exact).norm() / exact.norm() < 2e-6 and (ours - exact).abs().max() < 2e-5
    first = tiles(x, None, weight, bias)
    torch.testing.assert_close(first.double(), plain(F.pad(x, (0,) * 6 + (2, 0)), weight, bias), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 40_000, 100_000, 1 << 24])
@pytest.mark.parametrize("strips", [1, 2, 3])
@torch.no_grad()
def test_however_it_is_cut_into_strips(strips: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "STRIPS", strips)
    monkeypatch.setattr(winograd, "AT_ONCE", at_once)
    weight, bias, x = drawn(8, 8, 3, 3, 3) / 15, drawn(8, seed=1), drawn(1, 4, 27, 10, 8, seed=2)
    ours = tiles(x[:, 2:], x[:, :2], weight, bias)
    torch.testing.assert_close(ours.double(), plain(x, weight, bias), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_rounding_stays_near_that_of_plain_sums() -> None:
    """At the channels and the size of the garden's last level, beside a convolution over stacked frames."""
    weight, bias, x = drawn(32, 32, 3, 3, 3) / 29, drawn(32, seed=1), drawn(1, 5, 32, 56, 32, seed=2)
    exact = plain(x, weight, bias)
    once = CausalConv3d(32, 32, (3, 3, 3))
    once.weight.copy_(weight), once.bias.copy_(bias)
    ours = tiles(x[:, 2:], x[:, :2], weight, bias)
    assert (ours - exact).norm() < 5 * (once.without_history(x) - exact).norm()


def tiled(vae: VAE) -> int:
    return sum(module.tiled for module in vae.modules() if isinstance(module, CausalConv3d))


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor on which it was measured to be quicker, and for narrow layers too."""
    monkeypatch.setattr(winograd, "MEASURED", (torch.backends.cpu.get_cpu_capability(),))
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 4)


def small() -> VAE:
    torch.manual_seed(0)
    sizes = VAEConfig(
        dim=8, z_dim=4, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,), latents_mean=(0,) * 4, latents_std=(1,) * 4
    )
    return VAE(sizes).eval().requires_grad_(False)


@torch.inference_mode()
def test_a_decoder_in_tiles_streams_what_it_was(everywhere: None) -> None:
    vae, z = small(), drawn(2, 4, 7, 5, 6)
    before, cache = vae.decode(z), vae.new_decoder_cache()
    vae.lay_out()
    assert tiled(vae) > 4
    torch.testing.assert_close(vae.decode(z), before, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat([vae.decode_block(part, cache) for part in z.split(3, 2)], 2), before, atol=1e-5, rtol=1e-4)
    state = {slot: frames.clone() for slot, frames in cache.tensors().items()}
    again = vae.new_decoder_cache()
    again.load(state)
    assert torch.equal(vae.decode_block(z, cache), vae.decode_block(z, again))
    video = drawn(1, 3, 9, 12, 8).tanh()
    torch.testing.assert_close(vae.encode(video), small().encode(video), atol=1e-5, rtol=1e-4)


def test_only_where_it_was_measured_and_for_frozen_float32(everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = CausalConv3d(8, 8, (3, 3, 3)).requires_grad_(False)
    x = drawn(1, 2, 8, 8, 8)
    exact = plain(F.pad(x, (0,) * 6 + (2, 0)), conv.weight, conv.bias)
    conv.lay_out()
    assert conv._tiled is not None
    torch.testing.assert_close(conv(x).double(), exact, atol=1e-5, rtol=1e-4)
    wanted = x.clone().requires_grad_()
    conv(wanted).sum().backward()
    assert wanted.grad.abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(conv(x).double(), exact, atol=0.05, rtol=0.05)
    conv.double()
    assert conv._tiled is None
    conv.lay_out()
    assert conv._tiled is None
    for name, value in (("MIN_CHANNELS", 9), ("MEASURED", ())):
        conv = CausalConv3d(8, 8, (3, 3, 3)).requires_grad_(False)
        with monkeypatch.context() as other:
            other.setattr(winograd, name, value)
            conv.lay_out()
            assert conv._tiled is None and conv._stacked is not None
    time = CausalConv3d(8, 8, (3, 1, 1)).requires_grad_(False)
    time.lay_out()
    assert time._tiled is None


@pytest.mark.parametrize("offset", [0, 24])
@torch.inference_mode()
def test_where_in_memory_the_strips_begin(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told outright: a compiler loses the offset of a view (inductor of torch 2.13 then reads elsewhere)."""
    begun, as_strided = [], Tensor.as_strided
    monkeypatch.setattr(winograd, "AT_ONCE", 1)
    monkeypatch.setattr(Tensor, "as_strided", lambda *given: (begun.append(given[3]), as_strided(*given))[1])
    x = drawn(2, 2, offset + 4, 4, 8)
    tiles(x, None, drawn(8, 8, 3, 3, 3), drawn(8))
    rows = offset // 4 + 1
    assert len(begun) == 2 * (rows // 2 + rows % 2) and begun[0] == 0 and begun == sorted(begun)


@torch.inference_mode()
def test_recorded_it_gives_the_same_bits(everywhere: None) -> None:
    vae, other = small(), small()
    vae.lay_out(), other.lay_out()
    vae.record()
    vae.recordings.patience = 0
    one, two = vae.new_decoder_cache(), other.new_decoder_cache()
    for seed in range(4):
        z = drawn(1, 4, 3, 5, 6, seed=seed)
        assert torch.equal(vae.decode_block(z, one), other.decode_block(z, two))
    assert [calls is not None for calls in vae.recordings._known.values()] == [True]


@torch.inference_mode()
def test_another_number_of_streams_is_refused(everywhere: None) -> None:
    vae = small()
    vae.lay_out()
    cache = vae.new_decoder_cache()
    vae.decode_block(drawn(1, 4, 1, 5, 6), cache)
    with pytest.raises(ValueError, match="remembers 1 streams, and 2 go on"):
        vae.decode_block(drawn(2, 4, 1, 5, 6), cache)


@torch.inference_mode()
def test_a_compiler_takes_it_too(everywhere: None) -> None:
    """Traced by dynamo without a break, and run as traced; the whole compiler takes minutes and was tried by hand."""
    vae, z = small(), drawn(1, 4, 3, 5, 6)
    vae.lay_out()
    run = torch.compile(vae.pixels, backend="eager", fullgraph=True, dynamic=False)
    z = z.permute(0, 2, 3, 4, 1).contiguous()
    torch.testing.assert_close(run(z), vae.pixels(z))
