from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.vision import VisionConfig, VisionEncoder
from tests.recordings import Recording, relative_error


@torch.inference_mode()
def test_recorded_tokens(fixture_recording: Callable[[str], Recording]) -> None:
    r = fixture_recording("clip_vit_small")
    sizes = {name: r.config[name] for name in ("image_size", "patch_size", "dim", "mlp_ratio", "num_heads", "num_layers", "norm_eps")}
    encoder = VisionEncoder(VisionConfig(**sizes, out_dim=r["w.visual.head"].shape[1]))
    encoder.load_state_dict(r.part("w.visual."))
    assert relative_error(encoder(r["in.image"][:, :, 0]), r["out.tokens"]) < 1e-5


def test_published_keys_and_shapes(manifest: dict[str, dict[str, list[int]]]) -> None:
    with torch.device("meta"):
        encoder = VisionEncoder(VisionConfig())
    assert {f"visual.{name}": list(tensor.shape) for name, tensor in encoder.state_dict().items()} == manifest["clip_visual"]


def test_any_image_size_and_batch() -> None:
    encoder = VisionEncoder(VisionConfig(image_size=28, dim=16, num_heads=2, num_layers=2, out_dim=8))
    assert encoder(torch.rand(3, 3, 9, 50)).shape == (3, 5, 16)


@pytest.mark.parametrize("sizes", [{"image_size": 30}, {"dim": 15, "num_heads": 2}])
def test_bad_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        VisionConfig(**sizes)


def test_bad_image_is_refused() -> None:
    encoder = VisionEncoder(VisionConfig(image_size=14, dim=16, num_heads=2, num_layers=1, out_dim=8))
    with pytest.raises(ValueError, match=r"\[3, 9, 9\]"):
        encoder(torch.rand(3, 9, 9))
