"""Networks with their weights, for training: from a world's own files, from a run, or fresh."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from engine.config import WorldConfig
from models.checkpoint import build_empty, check_weights, load_in_turn, load_into, read_weights, shapes_of
from models.dit import DiT
from models.errors import WorldError, one_line
from models.vae import VAE
from models.vision import VisionEncoder
from training.common import starting_weights
from training.sharded import load_whole

OWN = "world"  # instead of a file: the world's own weights


def weight_files(config: WorldConfig, part: str, weights: Path | None) -> list[Path]:
    """The files of a part, where they are first found. Raises WorldError when one is missing."""
    names = getattr(config.weights, part)
    folders = config.weight_folders(part, weights)
    files = []
    for name in names:
        found = [folder / name for folder in folders if (folder / name).is_file()]
        if not found:
            raise WorldError(f"there is no {name} in {one_line(folders[0], 200)}; give the folder that holds it with --weights")
        files.append(found[0])
    return files


def make_dit(config: WorldConfig, source: str | Path | None, weights: Path | None = None, seed: int = 0) -> DiT:
    """A denoiser in float32, ready to learn: fresh (None), with the world's own weights ("world"), or with those of a run's folder, its
    `last.pt` (the averaged ones) or a safetensors file. Raises WorldError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dit = DiT(config.model)
    if source is None:
        return dit
    if source == OWN:
        dit.load_state_dict(read_weights(weight_files(config, "dit", weights), shapes_of(dit)))
        return dit
    path = Path(source)
    try:
        found, _ = starting_weights(path)
    except Exception as error:  # torch and safetensors name many: no such file, another kind of file, one that would run code
        raise WorldError(f"no weights can be read from {one_line(path, 200)}: {one_line(error, 160)}") from None
    try:
        load_whole(dit, found)
    except WorldError as error:
        raise WorldError(f"{one_line(path, 200)}: {error}") from None
    return dit


def check_vae(config: WorldConfig, weights: Path | None) -> None:
    """Raises what `make_vae` would, as far as files, names and shapes tell: numbers are not read."""
    check_weights(build_empty(VAE, config.vae), weight_files(config, "vae", weights))


def make_vae(config: WorldConfig, weights: Path | None, device: torch.device) -> VAE:
    """The world's VAE, frozen, in float32. Raises WorldError."""
    vae = build_empty(VAE, config.vae)
    load_into(vae, weight_files(config, "vae", weights), torch.float32, device)
    return vae.eval()


@torch.inference_mode()
def image_tokens(config: WorldConfig, weights: Path | None, picture: Tensor) -> Tensor | None:
    """Image tokens [1, L, img_dim] of a picture [1, 3, 1, H, W], None in a world without them. The encoder is in memory piece by piece."""
    if config.vision is None:
        return None
    encoder = build_empty(VisionEncoder, config.vision)
    blocks = [f"transformer.{i}" for i in range(config.vision.num_layers)]
    load_in_turn(encoder, blocks, weight_files(config, "vision", weights), torch.float32, picture.device, "visual.", only=True)
    return encoder.eval()(picture[:, :, 0])
