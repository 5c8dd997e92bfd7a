"""Give a denoiser more layers, which change nothing until they have learned something (Net2Net: Chen et al. 2016, arXiv:1511.05641).

    python -m training.deepen runs/a --after 6 --copies 6 7 --out runs/deeper.pt     # then --start-from runs/deeper.pt

Each new layer is a copy of one that is there, but silent: what its attention and its feed-forward add to the tokens is multiplied by
zeros, so that the network computes what it computed before. These zeros have gradients, and the rest of the copy, which is fit for
what passes there, has one as soon as they are none. A world's yaml must say ``num_layers`` accordingly.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.arguments import in_a_line, new_folder
from training.average import check_files, keep, read

LAYER = re.compile(r"blocks\.(\d+)\.(.+)")
OUTPUTS = ("self_attn.o.", "cross_attn.o.", "ffn.2.")  # what a layer adds to the tokens goes through these


def deepened(weights: Mapping[str, Tensor], after: int, copies: Sequence[int]) -> dict[str, Tensor]:
    """The weights of a deeper network: silent copies of the layers ``copies`` follow the layer ``after``; what came then, comes later.

    Raises ``ValueError`` for layers that are not there, and where layers that hear actions would be copied or moved: a config names those
    by their numbers.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    deeper = {}
    for name, tensor in weights.items():
        if found := LAYER.fullmatch(name):
            layers.setdefault(int(found[1]), {})[found[2]] = tensor
        else:
            deeper[name] = tensor
    strange = [i for i in (after, *copies) if i not in layers]
    if strange:
        raise ValueError(f"layer {strange[0]} is not there: the network has layers 0 to {len(layers) - 1}")
    hearing = [i for i, layer in layers.items() if any(name.startswith("action_model.") for name in layer)]
    if any(i in hearing for i in copies) or after < max(hearing, default=-1):
        raise ValueError(f"layers {', '.join(map(str, hearing))} hear actions: copy and move only what comes after them")
    order = [(i, False) for i in range(after + 1)] + [(i, True) for i in copies] + [(i, False) for i in range(after + 1, len(layers))]
    for i, (source, silent) in enumerate(order):
        for name, tensor in layers[source].items():
            deeper[f"blocks.{i}.{name}"] = torch.zeros_like(tensor) if silent and name.startswith(OUTPUTS) else tensor.clone()
    return deeper


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, its last.pt, or exported safetensors")
    parser.add_argument("--after", type=int, required=True, help="the layer that the new ones follow")
    parser.add_argument("--copies", type=int, nargs="+", required=True, help="layers that are copied, in the order of the new ones")
    parser.add_argument("--out", type=Path, required=True, help="a file that is not there yet")
    args = parser.parse_args()
    (path,) = check_files(parser, [args.run], args.out)
    try:
        state = read(path)
        deeper = {name: deepened(state[name], args.after, args.copies) for name in ("model", "averaged")}
    except ValueError as error:
        parser.error(str(error))
    helper = {"helper": state["helper"]} if "helper" in state else {}
    new_folder(args.out.parent)
    keep({"step": state["step"], "seconds": state["seconds"], **deeper, **helper}, args.out)


if __name__ == "__main__":
    sys.exit(main())
