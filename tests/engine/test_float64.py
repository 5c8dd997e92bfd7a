"""Devices without float64 (Apple's MPS). None is here, so the meta device stands for one: every tensor that is made on it is looked at."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import engine.session
import engine.world
from engine import Action, World, load_config
from engine.conditioning import encode_start
from engine.sampler import BlockSampler
from engine.world import choose_dtype
from models.dit import DiT
from models.flow import add_noise, x0_from_velocity
from models.vae import VAE
from models.vision import VisionConfig, VisionEncoder
from tests.tiny_world import write_tiny_world


class NoFloat64(TorchDispatchMode):
    """Fails on any float64 tensor of the meta device, going into an operation or coming out of it."""

    seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self.seen += 1
                assert tensor.dtype not in (torch.float64, torch.complex128), f"{function} handles {tensor.dtype} on the device"
        return result


def on_meta(module: nn.Module) -> Any:
    return module.to("meta").requires_grad_(False).eval()


@pytest.mark.parametrize(("prediction", "dtype"), [("velocity", torch.bfloat16), ("x0", torch.float32)])
def test_no_float64_reaches_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prediction: str, dtype: torch.dtype) -> None:
    """Start picture, image tokens, clip, blocks: all that a session does between the host's numbers and the host's pictures."""

    def change(settings: dict[str, Any]) -> None:
        settings["vision"] = {"image_size": 28, "patch_size": 14, "dim": 16, "num_heads": 2, "num_layers": 2}
        settings["model"].update(img_dim=16, prediction=prediction, local_attn_size=4)
        settings["weights"]["vision"] = ["clip.pth"]

    config = load_config(write_tiny_world(tmp_path, change=change))
    monkeypatch.setattr("models.flow.WITHOUT_FLOAT64", {"meta"})
    monkeypatch.setattr(engine.world, "encode_start", partial(encode_start, latents=4))  # the watch is slow
    monkeypatch.setattr(engine.session, "to_uint8", lambda frames: np.zeros((frames.shape[2], 16, 32, 3), np.uint8))
    vision = on_meta(VisionEncoder(config.vision))
    monkeypatch.setattr(World, "_visual_context", lambda self, picture: vision(picture[:, :, 0]).to(self.dtype))
    world = World(config, on_meta(DiT(config.model).to(dtype)), on_meta(VAE(config.vae)), {}, torch.device("meta"), dtype)
    with NoFloat64() as watch, torch.inference_mode():
        session = world.session(start=np.zeros((16, 32, 3), np.uint8), rewind_mb=0)  # what is kept to rewind lies on the host
        for _ in range(3):  # past the window's end
            session.step(Action(frozenset("wl")))
        session = world.session(start=np.zeros((21, 16, 32, 3), np.uint8), rewind_mb=0)
        session.step()
        session.reset()
    assert session.clock.block == 2 and watch.seen > 1000


def test_the_watch_sees_float64() -> None:
    with NoFloat64(), pytest.raises(AssertionError, match=r"handles torch\.float64"):
        torch.zeros(3, device="meta").double()


def test_the_published_image_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        encoder = VisionEncoder(VisionConfig(num_layers=2)).requires_grad_(False)
    with NoFloat64(), torch.inference_mode():
        assert encoder(torch.zeros(1, 3, 352, 640, device="meta")).shape == (1, 257, 1280)


def test_without_float64_the_numbers_are_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, velocity = torch.randn(2, 1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = x0_from_velocity(x, velocity, 0.9088)
    monkeypatch.setattr("models.flow.WITHOUT_FLOAT64", {"cpu"})
    torch.testing.assert_close(x0_from_velocity(x, velocity, 0.9088), exact, rtol=1e-5, atol=1e-6)
    assert add_noise(x, velocity, 0.5).dtype == torch.float32


def test_timesteps_stay_on_the_host(tiny_world: World) -> None:
    assert all(isinstance(value, float) for value in BlockSampler(tiny_world.dit).timesteps)


def test_auto_takes_half_precision_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, kind in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("engine.world._cpu_has_bfloat16", lambda native=native: native)
        assert choose_dtype("auto", torch.device("cpu")) == kind
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True, native=native: native)
        assert choose_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float16)
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_decodes_but_never_encodes(tiny_yaml: Path, dtype: str) -> None:
    world, kind = World.load(tiny_yaml, dtype=dtype), getattr(torch, dtype)
    assert {p.dtype for p in world.vae.decoder.parameters()} == {kind} == {world.vae.conv2.weight.dtype}
    assert {p.dtype for p in (*world.vae.encoder.parameters(), *world.vae.conv1.parameters())} == {torch.float32}
    session, exact = world.session(), World.load(tiny_yaml).session()
    assert torch.equal(session._start.channels, exact._start.channels)
    assert np.abs(session.step().astype(float) - exact.step()).mean() < 6
