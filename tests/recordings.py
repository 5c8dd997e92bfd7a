"""Recordings of the published code as the tests read them: without pytest, which a machine with a GPU may not have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from engine.clock import BlockClock
from models.taehv import TAEHV, TAEHVConfig
from models.vae import VAE, VAEConfig

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Recording:
    """A safetensors file: its metadata key ``config``, and its tensors in float32."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name begins with ``prefix``, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def to(self, device: torch.device) -> Recording:
        return Recording(self.config, {name: tensor.to(device) for name, tensor in self.tensors.items()})


def read_recording(path: Path) -> Recording:
    with safe_open(path, "pt") as file:
        return Recording(json.loads(file.metadata()["config"]), {name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118


class RecordedNoise:
    """The noise of a recording, for the sampler. ``given`` blocks of a clip came before the first that it has noise for."""

    def __init__(self, recording: Recording, given: int = 0) -> None:
        self.recording, self.given = recording, given

    def noise(self, clock: BlockClock, step: int, shape: Sequence[int]) -> Tensor:
        block = clock.block - self.given
        if step == 0:
            return self.recording["in.noise"][:, :, clock.n * block : clock.n * (block + 1)]
        return self.recording["in.renoise"][block, step - 1].transpose(0, 1)[None]


def recorded_vae(r: Recording) -> VAE:
    """The VAE of a recording, on its device, for inference."""
    vae = VAE(VAEConfig(dim=r.config["dim"], latents_mean=tuple(r.config["mean"]), latents_std=tuple(r.config["std"])))
    weights = r.part("vae.")
    vae.load_state_dict(weights)
    return vae.eval().requires_grad_(False).to(next(iter(weights.values())).device)


def recorded_taehv(r: Recording) -> TAEHV:
    """The tiny decoder of a recording, on its device, laid out for play."""
    tiny = TAEHV(TAEHVConfig(widths=tuple(r.config["widths"]), time_upscale=tuple(r.config["time_upscale"])))
    tiny.load_state_dict({name: tensor for name, tensor in r.tensors.items() if name.startswith("decoder.")})
    tiny.requires_grad_(False).to(r["in.latents"].device).lay_out()
    return tiny


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, after checking that the shapes agree."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
