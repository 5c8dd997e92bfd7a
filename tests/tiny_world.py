"""A world with random weights whose blocks take milliseconds: the same code, the smallest numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from engine import load_config
from models.dit import DiT
from models.vae import VAE

SETTINGS: dict[str, Any] = {
    "title": "Tiny",
    "fps": 16,
    "height": 16,
    "width": 32,
    "start": "start.png",
    "dtype": "float32",
    "actions": {
        "keyboard": [
            {"key": "w", "does": "walk forward"},
            {"key": "s", "does": "walk back"},
            {"key": "a", "does": "step left"},
            {"key": "d", "does": "step right"},
        ],
        "opposites": [["w", "s"], ["a", "d"]],
        "look": [
            {"key": "i", "direction": "up", "does": "look up"},
            {"key": "k", "direction": "down", "does": "look down"},
            {"key": "j", "direction": "left", "does": "turn left"},
            {"key": "l", "direction": "right", "does": "turn right"},
        ],
        "look_scale": [0.1, 0.1],
    },
    "model": {
        "dim": 32, "ffn_dim": 32, "freq_dim": 8, "num_heads": 2, "num_layers": 1, "in_dim": 12, "out_dim": 4, "img_dim": 0,
        "prediction": "x0", "local_attn_size": 15,
        "action": {"blocks": [0], "hidden": 16, "heads": 2, "keyboard_hidden": 4, "rope_dim": 8},
    },
    "vae": {
        "dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temporal_downsample": [True, True], "patch_size": 2,
        "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4,
    },
    "weights": {"dit": ["dit.safetensors"], "vae": ["vae.safetensors"]},
}  # fmt: skip


def with_image(settings: dict[str, Any]) -> None:
    """A change: image tokens, velocities, a window of two blocks, a layer without actions."""
    settings["vision"] = {"image_size": 28, "patch_size": 14, "dim": 16, "num_heads": 2, "num_layers": 2}
    settings["weights"]["vision"] = ["clip.pth"]
    settings["model"].update(img_dim=16, prediction="velocity", local_attn_size=6, num_layers=3)
    settings["model"]["action"]["blocks"] = [0, 1]


def write_tiny_world(folder: Path, name: str = "tiny", change: Callable[[dict[str, Any]], None] | None = None, seed: int = 0) -> Path:
    """Write yaml, random weights and a start picture into ``folder``; ``World.load(path)`` plays it. Returns the yaml's path.

    ``change`` may edit the settings before they are written.
    """
    settings = yaml.safe_load(yaml.safe_dump(SETTINGS))
    if change is not None:
        change(settings)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    ramp = torch.linspace(0, 255, 48).to(torch.uint8)
    picture = torch.stack(torch.broadcast_tensors(ramp[:32, None], ramp[None], torch.tensor(90, dtype=torch.uint8)), dim=-1)
    Image.fromarray(picture.numpy()).save(folder / "start.png")
    config = load_config(path)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # modules draw their start values from torch's own generator
        torch.manual_seed(seed)
        save_file(random_weights(DiT(config.model), generator), folder / settings["weights"]["dit"][0])
        save_file(random_weights(VAE(config.vae), generator), folder / settings["weights"]["vae"][0])
    return path


def random_weights(module: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The module's own start values, shaken so that nothing is zero or one and every part speaks."""
    return {
        name: (tensor + 0.1 * torch.randn(tensor.shape, generator=generator)).contiguous() for name, tensor in module.state_dict().items()
    }
