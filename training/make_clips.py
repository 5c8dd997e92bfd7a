"""Draw walks and encode them, shard after shard, beside a training that reads them.

    python -m training.make_clips --vae assets/garden/vae.safetensors --out runs/feed --minutes 60 --seed 1
    python -m training.train_dit --feed runs/feed …        # on the other core, at the same time or afterwards

A walk seen often is known by heart, and what a denoiser can tell of a walk it has not seen is bounded by how many it has (docs/GARDEN.md).
Encoding costs about as much as learning from what is encoded, once: so one core draws and the other learns, and neither waits.
Several makers may fill one folder, under different seeds. A shard is whole as soon as it has its name. The same command again goes on until
its minutes are full.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

from training.arguments import add_device, add_seed, count, in_a_line, new_folder, positive, share
from training.latents import CLIP_BLOCKS, WALKS_PER_START, ClipMaker, Clips
from training.train_vae import load_garden_vae


class ClipFeed:
    """The shards of a folder, each of them once, in the order in which they came."""

    def __init__(self, folder: Path, blocks: int | None = None) -> None:
        self.folder, self.blocks = folder, blocks
        self._read: set[str] = set()

    def new(self) -> list[Clips]:
        """What has come since the last call. Raises WorldError for a shard without clips, or with others than of ``blocks`` blocks, and
        FileNotFoundError if the folder is not there."""
        shards = [path for path in self.folder.iterdir() if path.suffix == ".safetensors" and path.name not in self._read]
        self._read.update(path.name for path in shards)
        return [Clips.load(path, self.blocks) for path in sorted(shards, key=lambda path: (path.stat().st_mtime_ns, path.name))]


def open_feed(parser: argparse.ArgumentParser, option: str, folder: Path, blocks: int = CLIP_BLOCKS) -> ClipFeed:
    """The folder that ``option`` of a command names; one without shards is refused, or with clips of another length. Raises WorldError."""
    if not (folder.is_dir() and any(folder.glob("*.safetensors"))):
        parser.error(f"{option} {folder} has no shards yet: fill it with python -m training.make_clips --out {folder}")
    for shard in folder.glob("*.safetensors"):
        Clips.check(shard, blocks)
    return ClipFeed(folder, blocks)


def next_number(folder: Path, seed: int) -> int:
    """One more than the highest number among the seed's shards: some of them may have been taken away."""
    found = (re.fullmatch(rf"{seed}_(\d+)\.safetensors", path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in found if match), default=-1) + 1


def write_shard(clips: Clips, folder: Path, seed: int) -> Path:
    """Put ``clips`` into the folder under the seed's next number."""
    number = next_number(folder, seed)
    path, temporary = folder / f"{seed}_{number:05d}.safetensors", folder / f"{seed}_{number:05d}.part"
    clips.save(temporary)
    os.replace(temporary, path)
    return path


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="exported weights (safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--minutes", type=positive, default=60)
    parser.add_argument("--shard", type=count, default=40, help="clips in each, or a few more")
    parser.add_argument("--draw", type=count, default=2, help="start pictures at a time: more for a GPU")
    parser.add_argument("--idle", type=share, default=1 / 16, help="share of the clips in which one stands still")
    parser.add_argument("--turning", type=share, default=0.0, help="share of the clips in which one turns all the time")
    parser.add_argument("--backing", type=share, default=0.0, help="share of the clips in which one walks backward where others walk ahead")
    parser.add_argument("--near", type=share, default=0.0, help="share of the starts that are beside a trunk or pillar and have it in view")
    parser.add_argument("--blocks", type=count, default=CLIP_BLOCKS, help="of each clip: 1 for --starts of training.train_dit")
    parser.add_argument("--walks", type=count, default=WALKS_PER_START, help="clips of each start picture")
    add_seed(parser, "other walks; a folder's next shards, too, are other walks")
    add_device(parser)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    new_folder(args.out)
    before, spent = next_number(args.out, args.seed), args.out / f"{args.seed}_seconds.txt"
    try:
        seconds = float(spent.read_text()) if spent.exists() else 0.0
    except ValueError:
        parser.error(f"{spent} tells no number of seconds: remove it, and the minutes begin anew")
    seed = 6000 + 10_000 * args.seed + before  # before: a maker that goes on draws what it has not drawn
    device = args.device
    vae = load_garden_vae(args.vae).to(device)
    maker = ClipMaker(vae, seed, device, not args.no_compile, args.idle, args.blocks, args.walks, args.turning, args.near, args.backing)
    begun, made = time.monotonic() - seconds, 0
    while time.monotonic() - begun < 60 * args.minutes:
        clips = maker.make(args.draw)
        while len(clips) < args.shard:
            clips = clips.append(maker.make(args.draw))
        write_shard(clips, args.out, args.seed)
        spent.write_text(f"{time.monotonic() - begun:.1f}\n")
        made += len(clips)
        print(f"\r{made} clips", end="", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main())
