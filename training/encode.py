"""Encode recordings into clips that the trainers read.

    python play.py --record walks/one.mp4                                  # film and session file
    python -m training.encode walks/*.mp4 --out clips/                     # latents and rows, a file a clip
    python -m training.encode --walks 200 --out clips/                     # the garden: walks of the simulator instead

Every unbroken stretch of a film is cut into clips of whole blocks; each begins, as a session does, with its first frame as start picture.
Clips have the film's name. What is there already is never written over: a film whose clips are in the folder is refused.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from engine.clip import encode_clip, whole_blocks
from engine.conditioning import encode_start
from engine.config import WorldConfig, load_config
from engine.picture import to_video
from models.errors import WorldError, one_line
from models.vae import VAE
from training.arguments import add_device, in_a_line, new_folder, whole
from training.dataset import SUFFIX, Clip
from training.latents import FULL_LOOK
from training.parts import image_tokens, make_vae
from training.sessions import Film, read_stretches, session_of
from training.simulator import random_actions, random_poses, rollout


@torch.inference_mode()
def encode(
    config: WorldConfig, vae: VAE, frames: np.ndarray, keyboard: np.ndarray, mouse: np.ndarray | None, device: torch.device,
    weights: Path | None = None,
) -> Clip:  # fmt: skip
    """A clip of the whole blocks in ``frames`` [F, H, W, 3] uint8 and the rows [F, K], [F, 2] under which they were made.

    The frames are put through the encoder as the engine does it with a clip to go on from; row i leads from frame i to the next.
    """
    used = whole_blocks(len(frames), config.clock)[1]
    latents = torch.cat(list(encode_clip(vae, frames, config.clock, config.height, config.width, device)), dim=2)
    picture = to_video(frames[:1]).to(device)
    return Clip(
        latents=latents[0],
        condition=encode_start(vae, picture)[0],
        keyboard=torch.from_numpy(keyboard[:used].astype(np.float32)),
        mouse=None if mouse is None else torch.from_numpy(mouse[:used].astype(np.float32)),
        visual=None if config.vision is None else image_tokens(config, weights, picture)[0],
    )


def film_clips(film: Path, config: WorldConfig, blocks: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """(frames, keyboard, mouse) of every clip of at most ``blocks`` blocks, at least two. Raises WorldError."""
    stretches = read_stretches(session_of(film))
    pictures = Film(film)
    if (pictures.size[0], pictures.size[1]) != (config.width, config.height):
        have, want = "x".join(map(str, pictures.size)), f"{config.width}x{config.height}"
        raise WorldError(f"{one_line(film, 200)} is {have}, {config.name} is {want}; training.convert makes it fit")
    frames = iter(pictures)
    most = config.clock.frames.stop + (blocks - 1) * len(config.clock.next().frames)
    for stretch in stretches:
        keyboard, mouse = stretch.rows(config.actions)
        for first in range(0, len(keyboard), most):
            own = slice(first, first + most)
            seen = list(islice(frames, len(keyboard[own])))  # a film that broke off has fewer
            if whole_blocks(len(seen), config.clock)[0] >= 2:
                yield np.stack(seen), keyboard[own][: len(seen)], None if mouse is None else mouse[own][: len(seen)]


def walk_clips(count: int, seed: int, blocks: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same of ``count`` random walks through the simulated garden."""
    generator = torch.Generator().manual_seed(seed)
    frames = 9 + 12 * (blocks - 1)
    for _ in range(count):
        pose = random_poses(1, generator)
        keyboard, mouse = random_actions(1, frames, generator)
        pictures, _ = rollout(pose, keyboard, mouse)
        yield pictures[0, :frames].permute(0, 2, 3, 1).numpy(), keyboard[0].numpy(), FULL_LOOK * mouse[0].numpy()


def check_targets(names: Sequence[str], folder: Path) -> None:
    """Raises WorldError where clips of one source would take the place of another's, or of what an earlier run has left."""
    for name in names:
        if names.count(name) > 1:
            raise WorldError(f"two sources are named {one_line(name, 80)}, and so would be their clips: rename one (and its session file)")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        own = re.compile(rf"{re.escape(name)}-\d{{5,}}{re.escape(SUFFIX)}")
        if old := [file for file in there if own.fullmatch(file)]:
            raise WorldError(
                f"{one_line(folder, 200)} has {len(old)} clips of {one_line(name, 80)} already ({one_line(old[0], 80)}): "
                "leave it out, or remove them to encode it again"
            )


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", type=Path, nargs="*", help=".mp4 with a .session.jsonl beside each")
    parser.add_argument("--out", type=Path, required=True, help="folder of clips")
    parser.add_argument("--world", default="garden", help="a name or a yaml: whose VAE, size and keys")
    parser.add_argument("--weights", type=Path, help="folder of the world's weights, where they are not bundled")
    parser.add_argument("--blocks", type=whole(2), default=9, help="the longest clip, in blocks")
    parser.add_argument("--walks", type=whole(0), default=0, help="this many walks of the garden's simulator")
    parser.add_argument("--seed", type=whole(0, 899_999), default=0, help="of the walks, below 900000; the evaluation's are above")
    add_device(parser)
    args = parser.parse_args()
    if not (args.films or args.walks):
        raise WorldError("nothing to encode: give films, or --walks N")
    config = load_config(args.world)
    if args.walks and config.name != "garden":
        raise WorldError(f"--walks are the garden's, not {config.name}'s; record some instead")
    names = [film.stem for film in args.films] + ([f"walk-{args.seed}"] if args.walks else [])
    check_targets(names, args.out)
    vae = make_vae(config, args.weights, args.device)
    new_folder(args.out)
    sources = [film_clips(film, config, args.blocks) for film in args.films]
    sources += [walk_clips(args.walks, args.seed, args.blocks)] if args.walks else []
    for name, clips in zip(names, sources, strict=True):
        count = 0
        for count, clip in enumerate(clips, 1):
            encode(config, vae, *clip, args.device, args.weights).save(args.out / f"{name}-{count:05d}{SUFFIX}", name)
        print(f"{name}: {count} clips", flush=True)


if __name__ == "__main__":
    sys.exit(main())
