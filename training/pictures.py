"""Pictures of the garden to be looked at: contact sheets and a moving one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine import Action, World
from training.measures import FPS, SEED, play, random_walk, simulate, starts

WALK_BLOCKS = 6  # 69 frames: past four seconds


def contact_sheet(pictures: np.ndarray, columns: int, path: Path, zoom: int = 2) -> None:
    """Pictures uint8 `[N, H, W, 3]` in rows of ``columns``, as a PNG."""
    from PIL import Image

    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * (height + 2), i % columns * (width + 2)
        canvas[y : y + height, x : x + width] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).resize((canvas.shape[1] * zoom, canvas.shape[0] * zoom), 0).save(path)


def compare_sheet(world: World, path: Path, count: int = 5) -> None:
    """Rows in pairs, simulator above world: one random walk each, every sixth frame."""
    rows = []
    for i, (pose, picture) in enumerate(starts(count, SEED + 3)):
        actions = random_walk(WALK_BLOCKS, np.random.default_rng(SEED + 30 + i))
        rows += [simulate(world, pose, actions)[::7], play(world, picture, actions, seed=i)[::7]]
    contact_sheet(np.concatenate(rows), len(rows[0]), path)


def film(world: World, path: Path, script: str = "wlljjwlldd", zoom: int = 3) -> None:
    """An animated GIF of a walk, at the world's rate, one key a block."""
    from PIL import Image

    frames = play(world, None, [Action(frozenset(key)) for key in script], seed=3)[::2]
    pictures = [Image.fromarray(f).resize((f.shape[1] * zoom, f.shape[0] * zoom), Image.Resampling.BICUBIC) for f in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(2000 / FPS), loop=0)
