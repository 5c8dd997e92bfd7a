"""Write trained weights the way they are shipped: averaged, half precision, safetensors, with the latents' scale.

python -m training.export vae runs/vae/last.pt runs/vae.safetensors     # measures mean and std of the latents
python -m training.export dit runs/dit/last.pt assets/garden/dit.safetensors
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.errors import one_line
from models.vae import VAE
from training.arguments import check_file, in_a_line, new_folder
from training.average import read
from training.common import load_weights
from training.train_vae import garden_vae, read_scale, sample_clips

SHARD_BYTES = 16 << 20


@torch.no_grad()
def latents_scale(vae: VAE, clips: int = 12, frames: int = 33) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over random walks."""
    generator = torch.Generator().manual_seed(11)
    z = torch.cat([vae.mean(sample_clips(1, frames, generator, torch.device("cpu"))) for _ in range(clips)]).flatten(0, -2)
    return [round(v, 4) for v in z.mean(0).tolist()], [round(v, 4) for v in z.std(0).tolist()]


def write(weights: dict[str, Tensor], path: Path, metadata: dict[str, str], limit: int = SHARD_BYTES) -> list[Path]:
    """``weights`` in half precision at ``path``, or in shards beside it (``dit-00001-of-00002.safetensors``) if they are more than
    ``limit`` bytes. Each has all the metadata. A world's yaml lists them. Returns what was written; other files of that name go."""
    new_folder(path.parent, "the target")
    half = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in weights.items()}
    shards: list[dict[str, Tensor]] = [{}]
    room = limit - (1 << 14) - 200 * len(half)  # of the header
    for name, tensor in half.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > room:
            shards.append({})
        shards[-1][name] = tensor
    one = len(shards) == 1
    paths = [path if one else path.with_stem(f"{path.stem}-{i:05}-of-{len(shards):05}") for i in range(1, len(shards) + 1)]
    for shard, target in zip(shards, paths, strict=True):
        part = target.with_suffix(".part")
        part.touch()
        mode = part.stat().st_mode  # of any new file; safetensors writes for its user alone, and weights are for others too
        save_file(shard, part, metadata)
        part.chmod(mode)
        os.replace(part, target)
        print(f"{target}: {len(shard)} tensors, {target.stat().st_size / 1e6:.2f} MB")
    before = re.compile(re.escape(path.stem) + r"(-\d{5}-of-\d{5})?" + re.escape(path.suffix))
    for old in path.parent.iterdir():  # what was there under this name, in more files or fewer
        if before.fullmatch(old.name) and old not in paths:
            old.unlink()
    return paths


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("vae", "dit"))
    parser.add_argument("source", type=Path, help="a run's folder or its last.pt")
    parser.add_argument("target", type=Path, help="the safetensors to write")
    parser.add_argument("--one-file", action="store_true", help="no shards, however large it is: for what is committed")
    parser.add_argument("--keep-scale", type=Path, help="an exported VAE whose latents' scale stays valid (its encoder is unchanged)")
    args = parser.parse_args()
    check_file("the target", args.target, ".safetensors")
    try:
        state = read(args.source / "last.pt" if args.source.is_dir() else args.source)
    except ValueError as error:
        parser.error(str(error))
    metadata = {"step": str(state["step"]), "training_minutes": f"{state['seconds'] / 60:.1f}"}
    weights = dict(state["averaged"])
    if args.kind == "vae":
        vae = garden_vae()
        load_weights(vae, weights, args.source, "a VAE is exported from a run of training.train_vae or train_decoder")
        half = {k: v.half().float() for k, v in weights.items()}
        vae.load_state_dict(half)  # measured on the weights that are shipped
        if args.keep_scale:
            mean, std = read_scale(args.keep_scale, "--keep-scale")
        else:
            mean, std = latents_scale(vae)
        metadata |= {"latents_mean": json.dumps(mean), "latents_std": json.dumps(std)}
        print("latents_mean:", mean, "\nlatents_std:", std)
    else:
        if "patch_embedding.weight" not in weights:
            parser.error(f"{one_line(args.source, 200)} is no denoiser's: name a run of train_dit, finetune or training.train")
        weights |= {k: v for k, v in state["model"].items() if k not in weights}
    write(weights, args.target, metadata, sys.maxsize if args.one_file else SHARD_BYTES)


if __name__ == "__main__":
    sys.exit(main())
