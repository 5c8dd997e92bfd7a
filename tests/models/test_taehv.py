"""The tiny decoder, against the recording of the published code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.taehv import TAEHV, TRIMMED, TAEHVConfig
from tests.recordings import Recording, recorded_taehv, relative_error


@pytest.fixture(scope="module")
def recorded(fixture_recording: Callable[[str], Recording]) -> tuple[TAEHV, Recording]:
    r = fixture_recording("taehv_small")
    return recorded_taehv(r), r


@torch.inference_mode()
def test_the_recording(recorded: tuple[TAEHV, Recording]) -> None:
    decoder, r = recorded
    latents = r["in.latents"].transpose(1, 2)  # [1, 16, 9, 8, 12]
    frames = decoder.pixels(latents, decoder.new_decoder_cache())
    assert relative_error(frames[None], r["out.frames_untrimmed"]) < 1e-5
    whole = decoder.decode(latents)
    assert whole.shape == (1, 3, 33, 64, 96) and whole.abs().max() == 1
    expected = (r["out.frames_untrimmed"][:, TRIMMED:].transpose(1, 2) * 2 - 1).clamp(-1, 1)
    assert relative_error(whole, expected) < 1e-5


@pytest.mark.parametrize("cuts", [(3, 3, 3), (1, 2, 3, 3), (4, 5)])
@torch.inference_mode()
def test_streamed_is_whole(recorded: tuple[TAEHV, Recording], cuts: tuple[int, ...]) -> None:
    decoder, r = recorded
    latents, cache = r["in.latents"].transpose(1, 2), decoder.new_decoder_cache()
    parts = []
    for part in latents.split(cuts, dim=2):
        decoder.decode_block(torch.randn_like(part), cache, commit=False)  # dropped: leaves no trace
        parts.append(decoder.decode_block(part, cache))
    assert [part.shape[2] for part in parts] == [4 * n - (3 if i == 0 else 0) for i, n in enumerate(cuts)]
    assert relative_error(torch.cat(parts, dim=2), decoder.decode(latents)) < 1e-5


def test_published_size() -> None:
    with torch.device("meta"):
        decoder = TAEHV(TAEHVConfig())
    config = decoder.config
    assert (config.spatial_ratio, config.temporal_ratio, config.growth) == (8, 4, (1, 2, 2))
    assert decoder.decoder[3].conv[0].weight.shape == (256, 512, 3, 3) and decoder.decoder[22].weight.shape == (3, 64, 3, 3)
    assert decoder.decoder[13].conv.weight.shape == (256, 128, 1, 1) and decoder.decoder[7].conv.weight.shape == (256, 256, 1, 1)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="one stream at a time, got 2"):
        TAEHV(TAEHVConfig(widths=(8, 8, 8, 8))).decode(torch.zeros(2, 16, 1, 2, 2))
    with pytest.raises(ValueError, match="one more than the levels"):
        TAEHVConfig(widths=(8,))
