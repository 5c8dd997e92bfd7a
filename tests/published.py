"""Files as they are published (SPEC §7), of any size: folders, names, `model.` and `visual.` in front, `.pth` where the original is one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from engine import World, WorldConfig, load_config
from engine.worldfile import config_folder
from models.checkpoint import build_empty, shapes_of
from models.dit import DiT
from models.vae import VAE
from models.vision import VisionEncoder
from tests.recordings import Recording

VAE_FILE = "Wan2.1_VAE.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
Tensors = Mapping[str, Tensor]


def write_world(folder: Path, world: str = "universal", **sizes: dict[str, Any]) -> WorldConfig:
    """A yaml like the bundled ``world`` with other sizes (``model``, ``vae``, ``vision``), 64 x 96 pixels, in float32."""
    settings = yaml.safe_load((config_folder() / f"{world}.yaml").read_text())
    settings.update(height=64, width=96, dtype="float32")
    settings.pop("start", None)
    for part, given in sizes.items():
        values = dict(given)
        action = {**(settings[part] or {}).get("action", {}), **values.pop("action", {})}
        settings[part] = {**(settings[part] or {}), **values, **({"action": action} if action else {})}
    path = folder / f"small_{world}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_config(path)


def write_published(
    folder: Path, config: WorldConfig, dit: Tensors | None = None, vae: Tensors | None = None, vision: Tensors | None = None
) -> None:
    """All files of the world into ``folder``; tensors that are not given are small random numbers. The files look a minute old."""
    generator = torch.Generator().manual_seed(0)

    def whole(kind: type, sizes: object, given: Tensors | None) -> dict[str, Tensor]:
        shapes = shapes_of(build_empty(kind, sizes))
        assert set(given or {}) <= set(shapes)
        return {name: (given or {}).get(name, torch.randn(shape, generator=generator) / 20).contiguous() for name, shape in shapes.items()}

    (weights,) = config.weights.dit
    (folder / weights).parent.mkdir(parents=True, exist_ok=True)
    save_file({f"model.{name}": tensor for name, tensor in whole(DiT, config.model, dit).items()}, folder / weights)
    torch.save(whole(VAE, config.vae, vae), folder / VAE_FILE)
    tensors = {f"visual.{name}": tensor for name, tensor in whole(VisionEncoder, config.vision, vision).items()}
    torch.save({**tensors, "textual.embedding.weight": torch.zeros(100, 8), "log_scale": torch.zeros(())}, folder / CLIP_FILE)
    for file in (folder / weights, folder / VAE_FILE, folder / CLIP_FILE):
        age(file)


def age(file: Path, seconds: float = 60) -> None:
    """Make a file look as if it had been here for a while: what is younger than two seconds is not trusted to stay as it is."""
    os.utime(file, (time.time() - seconds,) * 2)


def load_recorded(recording: Recording, folder: Path, clip: Recording | None = None) -> World:
    """The recorded weights, written as published files, loaded as a world. What was not recorded is random."""
    c = recording.config
    sizes: dict[str, dict[str, Any]] = {"vae": {"dim": 8}}
    dit = recording.part("w.model.") or None
    if dit is not None:
        action = {
            "blocks": c["action_blocks"], "heads": c["action_heads"], "keyboard_hidden": c["action_hidden_size"],
            "hidden": c["action_heads"] * dit["blocks.0.action_model.key_attn_q_norm.weight"].shape[0],
        }  # fmt: skip
        model = {name: c[name] for name in ("dim", "ffn_dim", "num_heads", "num_layers", "local_attn_size")}
        sizes["model"] = {**model, "freq_dim": c.get("freq_dim", 256), "img_dim": c.get("img_dim", 1280), "action": action}
    else:
        action = {"blocks": [0], "heads": 2, "keyboard_hidden": 4, "hidden": 16, "rope_dim": 8}
        sizes["model"] = {"dim": 32, "ffn_dim": 32, "num_heads": 2, "num_layers": 1, "img_dim": 1280, "action": action}
    if clip is not None:
        names = ("image_size", "patch_size", "dim", "mlp_ratio", "num_heads", "num_layers", "norm_eps")
        sizes["vision"] = {**{name: clip.config[name] for name in names}, "out_dim": clip["w.visual.head"].shape[1]}
        sizes["model"]["img_dim"] = clip.config["dim"]
    else:
        width = sizes["model"]["img_dim"]
        sizes["vision"] = {"image_size": 28, "dim": width, "mlp_ratio": 1, "out_dim": 8, "num_heads": 2, "num_layers": 1}
    config = write_world(folder, c.get("mode", "universal"), **sizes)
    if not (folder / "published").exists():
        write_published(folder / "published", config, dit, recording.part("vae."), None if clip is None else clip.part("w.visual."))
    return World.load(config, weights=folder / "published")
