"""Write a world's files at full size with random weights, load them in a process of its own, play, and say what it took.

    python -m tests.full_size FOLDER [--world universal] [--dtype bfloat16] [--device cpu] [--blocks 1] [--keep]

Needs about 12 GB in FOLDER, which must be new or empty and is emptied again (unless --keep), and as much again of page cache
to be quick. The first loading rewrites the `.pth` files (another 3 GB); a second process only loads. Prints JSON: seconds and peak
memory of each phase, the memory of a phase counted from its beginning; and each phase as it ends on stderr. Linux, because
peaks are read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from engine import Action, World, WorldConfig, load_config
from models.checkpoint import build_empty, shapes_of
from models.dit import DiT
from models.filecache import write_safetensors
from models.vae import VAE
from models.vision import VisionEncoder
from tests.published import CLIP_FILE, VAE_FILE, age

TEXT_PARAMETERS = 560_000_000  # of the text half that comes with the published image encoder; never used
ROOT = Path(__file__).parents[1]


def write(folder: Path, config: WorldConfig, text_parameters: int = TEXT_PARAMETERS) -> None:
    """Random weights in float32 under the published names: each matrix keeps the size of what passes through it."""
    generator = torch.Generator().manual_seed(0)

    def random(shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape)
        return torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5

    (name,) = config.weights.dit
    shapes = {f"model.{key}": tuple(shape) for key, shape in shapes_of(build_empty(DiT, config.model)).items()}
    if not write_safetensors(folder / name, {key: ("F32", shape) for key, shape in shapes.items()}, lambda key: random(shapes[key])):
        raise SystemExit(f"tests.full_size: {folder / name} cannot be written; is there room?")
    torch.save({key: random(tuple(shape)) for key, shape in shapes_of(build_empty(VAE, config.vae)).items()}, folder / VAE_FILE)
    vision = {f"visual.{key}": random(tuple(shape)) for key, shape in shapes_of(build_empty(VisionEncoder, config.vision)).items()}
    torch.save({**vision, "textual.token_embedding.weight": torch.zeros(text_parameters)}, folder / CLIP_FILE)
    for file in (folder / name, folder / VAE_FILE, folder / CLIP_FILE):
        age(file)


def measure(config: WorldConfig, folder: Path, device: str, dtype: str, blocks: int) -> dict[str, object]:
    """Load, encode a start picture, play: seconds and peak memory (bytes) of each. Best in a process that has done nothing else.

    Without ``blocks`` it only loads, and says what the weights' hashes take.
    """
    found: dict[str, object] = {"world": config.name, "device": device, "dtype": dtype, "threads": torch.get_num_threads()}
    with _phase(found, "load", device):
        world = World.load(config, weights=folder, device=device, dtype=dtype)
    weights = [tensor for module in (world.dit, world.vae) for tensor in module.state_dict().values()]
    found["weights_bytes"] = sum(tensor.nbytes for tensor in weights)
    if blocks:
        picture = np.random.default_rng(0).integers(0, 256, (config.height, config.width, 3), dtype=np.uint8)
        with _phase(found, "start", device):
            session = world.session(start=picture)
        frames = []
        with _phase(found, "blocks", device):
            for _ in range(blocks):
                frames.append(session.step(Action(frozenset(config.actions.keys[:1]))).shape)
        found["frames"] = [list(shape) for shape in frames[:2]]
        found["block_count"] = len(frames)
    with _phase(found, "hashes", device):
        world.weight_hashes()
    return found


@contextmanager
def _phase(found: dict[str, object], name: str, device: str) -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = _memory("VmRSS"), time.perf_counter()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    yield
    # What was there at first counts: the kernel notes a peak when memory is given back, and not every page of it.
    seconds, peak = time.perf_counter() - began, max(before, _memory("VmHWM"))
    found[name] = {"seconds": round(seconds, 2), "rss_before_bytes": before, "rss_peak_bytes": peak, "rss_after_bytes": _memory("VmRSS")}
    if device != "cpu":
        found[name]["device_peak_bytes"] = torch.cuda.max_memory_allocated()  # type: ignore[index]
    print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)  # a run takes an hour on a processor: what is known is kept


def _memory(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.full_size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--world", default="universal", help="a published world, or a yaml like one")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--text", type=int, default=TEXT_PARAMETERS, help="parameters of the unused text half")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    config = load_config(args.world)
    if args.child:
        print(json.dumps(measure(config, args.folder, args.device, args.dtype, args.blocks)))
        return 0
    if args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        began = time.perf_counter()
        write(args.folder, config, args.text)
        report: dict[str, object] = {"write_seconds": round(time.perf_counter() - began, 2)}
        report["file_bytes"] = {str(file.relative_to(args.folder)): file.stat().st_size for file in sorted(args.folder.rglob("*.*"))}
        world = str(Path(args.world).absolute()) if args.world.endswith((".yaml", ".yml")) else args.world
        command = [sys.executable, "-m", "tests.full_size", str(args.folder.absolute()), "--world", world, "--child"]
        command += ["--dtype", args.dtype, "--device", args.device]
        environment = {**os.environ, "REVERIE_CACHE": str(args.folder.absolute() / "cache")}
        for which, blocks in (("first", args.blocks), ("second", 0)):  # the second finds the `.pth` files rewritten and the hashes kept
            done = subprocess.run([*command, "--blocks", str(blocks)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
            report[which] = json.loads(done.stdout) if done.returncode == 0 else f"failed with status {done.returncode}"
        print(json.dumps(report, indent=2))
        return 0 if all(isinstance(report[which], dict) for which in ("first", "second")) else 1
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
