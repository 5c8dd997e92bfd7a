"""What tiles (`models.winograd`) are worth on this processor, in float32: beside convolutions over stacked frames, in turn, in one process.

    python -m tests.tiles [--threads 1] [--rounds 20] [--frames 60]
    THP_MEM_ALLOC_ENABLE=1 python -m tests.tiles --published 320x176 --threads 2 --rounds 2

Prints milliseconds (medians): single layers, a decoded block of the garden (or of the published decoder with random weights, at that
size), GELU of a layer both ways; and how far the garden's frames are from each other in so many blocks. Where tiles are not used yet, its
numbers say whether `winograd.MEASURED` should name the processor's kind.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from engine import Action, World
from engine.exact import keep_memory
from models import winograd
from models.linear import linear_gelu
from models.vae import VAE, VAEConfig
from models.vae_layers import CausalConv3d

LAYERS = [(3, 8, 14, 96, 96), (6, 16, 28, 64, 64), (12, 32, 56, 32, 32), (12, 32, 56, 32, 12), (4, 60, 104, 192, 192)]


def in_turn(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, after one unmeasured round."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            spent[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def lay_out(module: VAE | CausalConv3d, tiled: bool) -> None:
    """Anew, with tiles wherever there can be some, or nowhere."""
    kept = winograd.MEASURED, winograd.MIN_CHANNELS
    winograd.MEASURED = (torch.backends.cpu.get_cpu_capability(),) if tiled else ()
    winograd.MIN_CHANNELS = kept[1] if isinstance(module, VAE) else 1
    try:
        module.double().float()  # forgets how it was laid out
        module.lay_out()
    finally:
        winograd.MEASURED, winograd.MIN_CHANNELS = kept


def both_ways(make: Callable[[], VAE | CausalConv3d]) -> dict[str, VAE | CausalConv3d]:
    found = {}
    for name in ("stacked", "tiles"):
        torch.manual_seed(0)
        found[name] = make().requires_grad_(False)
        lay_out(found[name], name == "tiles")
    return found


def tell(what: str, times: dict[str, float]) -> None:
    print(f"{what:<44}" + "   ".join(f"{name} {ms:9.2f} ms" for name, ms in times.items()), flush=True)


def decoding(vae: VAE, z: torch.Tensor) -> Callable[[], object]:
    cache = vae.new_decoder_cache()
    vae.decode_block(z, cache)
    return lambda: vae.decode_block(z, cache)


def garden_frames(blocks: int) -> None:
    """PSNR of the frames of ``blocks`` blocks with tiles to those without, first tenth, all, last tenth."""
    pictures = {}
    for name in ("stacked", "tiles"):
        world = World.load("garden", dtype="float32")
        lay_out(world.vae, name == "tiles")
        session = world.session(seed=5, rewind_mb=0)
        keys = ("w", "wl", "l", "", "a", "wj", "s", "d")
        pictures[name] = torch.cat([torch.from_numpy(session.step(Action(frozenset(keys[i % 8])))).double() for i in range(blocks)])
    error = (pictures["stacked"] - pictures["tiles"]).square()
    tenth = len(error) // 10
    parts = {"first tenth": error[:tenth], "all": error, "last tenth": error[-tenth:]}
    told = (f"{name} {10 * math.log10(255**2 / max(part.mean().item(), 1e-12)):.0f} dB" for name, part in parts.items())
    print(f"frames of {blocks} blocks, tiles against stacked: {', '.join(told)}; largest difference {error.max().sqrt().item():.0f} of 255")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--frames", type=int, default=0, help="blocks of the garden to compare")
    parser.add_argument("--published", metavar="WxH", help="only the published decoder, at this size")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    print(f"{torch.backends.cpu.get_cpu_capability()}, {args.threads} threads, torch {torch.__version__}, float32")
    if args.published:
        width, height = map(int, args.published.split("x"))
        z = torch.randn(1, 16, 3, height // 8, width // 8)
        ways = {name: decoding(vae, z) for name, vae in both_ways(lambda: VAE(VAEConfig())).items()}
        tell(f"published decoder, a block at {args.published}", in_turn(ways, args.rounds))
        return
    for frames, height, width, dim, out in LAYERS:
        x = torch.randn(1, frames, height, width, dim)
        convs = both_ways(lambda dim=dim, out=out: CausalConv3d(dim, out, (3, 3, 3)))
        ways = {name: lambda conv=conv, x=x: conv(x) for name, conv in convs.items()}
        tell(f"{frames} frames of {height}x{width}, {dim} -> {out} channels", in_turn(ways, args.rounds))
    world = World.load("garden", dtype="float32")
    ways = {}
    for name in ("stacked", "tiles"):
        vae = VAE(world.config.vae).requires_grad_(False)
        vae.load_state_dict(world.vae.state_dict())
        lay_out(vae, name == "tiles")
        ways[name] = decoding(vae, torch.randn(1, 16, 3, 8, 14))
    tell("the garden's decoder, a block", in_turn(ways, args.rounds))
    linear, x = torch.nn.Linear(256, 1024).requires_grad_(False), torch.randn(84, 256)
    ways = {
        "torch": lambda: F.gelu(linear(x), approximate="tanh"),
        "ours": lambda: linear_gelu(x, linear),
        "no GELU": lambda: linear(x),
    }
    tell("linear 256 -> 1024 and GELU, 84 tokens", in_turn(ways, 20 * args.rounds))
    if args.frames:
        garden_frames(args.frames)


if __name__ == "__main__":
    main()
