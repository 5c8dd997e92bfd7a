"""The VAE against the published code's recording, and streamed against whole.

The fixture holds the published tensors of `shared/reference/vae_dim8.safetensors`, its video cut to 9 frames (the VAE is causal).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from models import winograd
from models.vae import VAE, VAEConfig
from models.vae_layers import CausalConv3d
from tests.conftest import REFERENCE
from tests.recordings import FIXTURES, Recording, read_recording, recorded_vae, relative_error

FIXTURE = FIXTURES / "vae_dim8.safetensors"


@pytest.fixture(scope="module")
def recording() -> Recording:
    return read_recording(REFERENCE / FIXTURE.name if (REFERENCE / FIXTURE.name).is_file() else FIXTURE)


@pytest.fixture(scope="module", params=["as loaded", "laid out", "in tiles"])
def vae(recording: Recording, request: pytest.FixtureRequest) -> VAE:
    """Laid out as for play, and so that every 3x3x3 convolution goes by `models.winograd`, wherever the tests run."""
    vae = recorded_vae(recording)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in tiles":
            patch.setattr(winograd, "MEASURED", (torch.backends.cpu.get_cpu_capability(),))
            patch.setattr(winograd, "MIN_CHANNELS", 1)
        if request.param != "as loaded":
            vae.lay_out()
    tiled = sum(module.tiled for module in vae.modules() if isinstance(module, CausalConv3d))
    assert tiled == 52 if request.param == "in tiles" else tiled < 30
    return vae


@pytest.fixture(autouse=True)
def as_in_play() -> Iterator[None]:
    """Nothing is to be differentiated, so that layers write in place as they do in play."""
    with torch.inference_mode():
        yield


def streamed(vae: VAE, latents: Tensor, sizes: list[int]) -> Tensor:
    cache = vae.new_decoder_cache()
    return torch.cat([vae.decode_block(part, cache) for part in latents.split(sizes, dim=2)], dim=2)


def test_encoder_equals_the_recording(vae: VAE, recording: Recording) -> None:
    assert relative_error(vae.encode(recording["in.video"]), recording["out.video_latent"]) < 1e-5


def test_picture_then_grey_equals_the_recording(vae: VAE, recording: Recording) -> None:
    picture = recording["in.image"]
    video = torch.cat([picture, torch.zeros(1, 3, 60, *picture.shape[-2:])], dim=2)
    assert relative_error(vae.encode(video), recording["out.image_zeros_latent"]) < 1e-5


def test_decoder_equals_the_recording(vae: VAE, recording: Recording) -> None:
    """The recording is not clamped to [-1, 1]; our decoder is."""
    theirs = recording["out.video_decoded"]
    latents = recording["out.video_latent"]
    mean, std = vae._scale(latents)
    raw = vae.pixels(latents.permute(0, 2, 3, 4, 1) * std + mean)
    assert relative_error(raw, theirs) < 1e-5
    assert relative_error(vae.decode(latents), theirs.clamp(-1, 1)) < 1e-5


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 3, 1], [2, 4, 1], [1, 3, 3]])
def test_decoding_in_blocks_equals_the_whole(vae: VAE, sizes: list[int]) -> None:
    latents = torch.randn(2, 16, 7, 4, 6, generator=torch.Generator().manual_seed(0))
    assert relative_error(streamed(vae, latents, sizes), vae.decode(latents)) < 1e-5


@pytest.mark.parametrize("groups", [[1, 4, 4, 4, 4], [1, 8, 8], [1, 16], [9, 8], [5, 12]])
def test_encoding_in_groups_equals_the_whole(vae: VAE, groups: list[int]) -> None:
    video = torch.rand(1, 3, 17, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    cache = vae.new_encoder_cache()
    parts = [vae.encode_frames(part, cache) for part in video.split(groups, dim=2)]
    assert relative_error(torch.cat(parts, dim=2), vae.encode(video)) < 1e-5


def test_a_lone_first_latent_is_the_first_frame(vae: VAE) -> None:
    latents = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    assert relative_error(vae.decode(latents[:, :, :1]), vae.decode(latents)[:, :, :1]) < 1e-5


def test_the_future_does_not_reach_the_past(vae: VAE) -> None:
    video = torch.rand(1, 3, 13, 32, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1
    changed = video.clone()
    changed[:, :, 9:] = -changed[:, :, 9:]
    torch.testing.assert_close(vae.encode(video)[:, :, :3], vae.encode(changed)[:, :, :3], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(vae.encode(video)[:, :, 3], vae.encode(changed)[:, :, 3])


def test_the_condition_settles_at_latent_29(vae: VAE) -> None:
    """SPEC §2: from latent 29 on, the latent of (picture, then grey) is constant and forgets the picture."""
    vae = copy.deepcopy(vae).double()
    picture = torch.rand(2, 3, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    grey = torch.zeros(2, 3, 4 * 31, 16, 16, dtype=torch.float64)
    latents = vae.encode(torch.cat([picture, grey], dim=2))
    torch.testing.assert_close(latents[:, :, 29], latents[:, :, 31], rtol=0, atol=1e-6)
    torch.testing.assert_close(latents[0, :, 29], latents[1, :, 29], rtol=0, atol=1e-6)
    assert not torch.allclose(latents[0, :, 5], latents[1, :, 5], atol=1e-6)


def test_state_can_be_kept_and_taken_up_again(vae: VAE) -> None:
    latents = torch.randn(1, 16, 9, 4, 6, generator=torch.Generator().manual_seed(5))
    cache = vae.new_decoder_cache()
    vae.decode_block(latents[:, :, :3], cache)
    kept = cache.clone()
    first = vae.decode_block(latents[:, :, 3:6], cache)
    vae.decode_block(latents[:, :, 6:], cache)
    assert torch.equal(vae.decode_block(latents[:, :, 3:6], kept), first)


def test_a_failing_call_leaves_the_past_untouched(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(1, 16, 6, 4, 6, generator=torch.Generator().manual_seed(6))
    cache = vae.new_decoder_cache()
    vae.decode_block(latents[:, :, :3], cache)
    expected = vae.decode_block(latents[:, :, 3:], cache.clone())
    with monkeypatch.context() as patch:
        patch.setattr(vae.decoder.head["0"], "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError):
            vae.decode_block(latents[:, :, 3:], cache)
    assert torch.equal(vae.decode_block(latents[:, :, 3:], cache), expected)


def test_the_cache_does_not_grow(vae: VAE) -> None:
    cache = vae.new_decoder_cache()
    sizes = []
    for _ in range(4):
        vae.decode_block(torch.randn(1, 16, 3, 4, 6), cache)
        sizes.append(sum(t.numel() for t in cache.tensors().values()))
    assert sizes[1] == sizes[2] == sizes[3]


def test_pixel_unshuffle_and_other_shapes() -> None:
    """The garden's kind of VAE: patches of two pixels, three levels, both of them halving time."""
    scale = dict(latents_mean=(0,) * 4, latents_std=(1,) * 4)
    config = VAEConfig(dim=8, z_dim=4, dim_mult=(1, 2, 3), temporal_downsample=(True, True), patch_size=2, **scale)
    assert (config.spatial_ratio, config.temporal_ratio) == (8, 4)
    vae = VAE(config).eval().requires_grad_(False)
    latents = vae.encode(torch.rand(1, 3, 9, 16, 32) * 2 - 1)
    assert latents.shape == (1, 4, 3, 2, 4)
    assert vae.decode(latents).shape == (1, 3, 9, 16, 32)
    assert relative_error(streamed(vae, latents, [1, 2]), vae.decode(latents)) < 1e-5


def test_clear_refusals(vae: VAE) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        vae.encode(torch.zeros(1, 3, 1, 20, 32))
    with pytest.raises(ValueError, match="1 frame first"):
        vae.encode(torch.zeros(1, 3, 4, 16, 16))
    with pytest.raises(ValueError, match="latents_mean"):
        VAEConfig(z_dim=4)
    with pytest.raises(ValueError, match="temporal_downsample"):
        VAEConfig(temporal_downsample=(True,))


def test_published_names_and_shapes(manifest: dict[str, dict[str, list[int]]]) -> None:
    with torch.device("meta"):
        ours = {key: list(tensor.shape) for key, tensor in VAE(VAEConfig()).state_dict().items()}
    assert ours == manifest["Wan2.1_VAE.pth"]
