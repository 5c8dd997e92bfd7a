"""Recordings of the published code as the tests read them: without pytest, which a machine with a GPU may not have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

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


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, after checking that the shapes agree."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
