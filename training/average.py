"""Average the weights of several runs that began with the same ones (Wortsman et al. 2022, "Model soups").

    python -m training.average runs/a runs/b --out runs/both.pt

Runs with other walks and other noise stray from their common beginning in different directions; their mean has less of that. Two runs side
by side use two cores without waiting for each other. The file serves wherever a run does: to begin with (`--start-from`), to export, to
be looked at (`training.heldout`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from models.errors import one_line
from models.weightfile import load_pickle
from training.arguments import in_a_line, new_folder, share


def mean_of(weights: Sequence[Mapping[str, Tensor]], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The mean of each tensor, as float32. ``shares`` sum up to 1; else all count alike. Raises ``ValueError`` where networks differ."""
    first = weights[0]
    for other in weights[1:]:
        strange = [name for name in {**first, **other} if name not in first or name not in other or first[name].shape != other[name].shape]
        if strange:
            raise ValueError(f"{len(strange)} tensors are not of one network, {strange[0]} among them: average runs that began together")
    if shares is None:
        return {name: torch.stack([part[name].float() for part in weights]).mean(0) for name in first}
    return {name: sum(share * part[name].float() for share, part in zip(shares, weights, strict=True)) for name in first}


def read(path: Path) -> dict:
    """A run's state, or exported weights as one. Raises ``ValueError`` if it is neither."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                told, weights = file.metadata() or {}, {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            spent = {"step": int(told.get("step", 0)), "seconds": 60 * float(told.get("training_minutes", 0))}
            return {**spent, "model": weights, "averaged": weights}
        state = load_pickle(path, mapped=False)
    except Exception as error:  # torch and safetensors name many
        raise ValueError(f"no weights can be read from {one_line(path, 200)}: {one_line(error, 160)}") from None
    if not isinstance(state, dict) or not {"step", "seconds", "model", "averaged"} <= set(state):
        raise ValueError(f"{path} is no run's last.pt: it lacks the run's step and time")
    parts = [state["model"], state["averaged"], state.get("helper", {})]
    numbers = isinstance(state["step"], int) and isinstance(state["seconds"], int | float)
    if not (numbers and state["averaged"] and all(isinstance(part, dict) for part in parts)):
        raise ValueError(f"{path} is no run's last.pt: its step, time or weights are something else")
    if not all(isinstance(tensor, Tensor) for part in parts for tensor in part.values()):
        raise ValueError(f"{path} is no run's last.pt: some of its weights are no tensors")
    return state


def keep(state: dict, path: Path) -> None:
    """Write ``state`` at ``path``, which is there as a whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def average(states: Sequence[dict], shares: Sequence[float] | None = None) -> dict:
    """One state for several, as `training.common.TrainingRun` saves them: what was averaged in each, the helpers, all time that went in."""
    helpers = [state["helper"] for state in states if "helper" in state]
    return {
        "step": sum(state["step"] for state in states),
        "seconds": sum(state["seconds"] for state in states),
        "model": mean_of([state["model"] for state in states], shares),
        "averaged": mean_of([state["averaged"] for state in states], shares),
        **({"helper": mean_of(helpers, shares)} if len(helpers) == len(states) else {}),
    }


def check_files(parser: argparse.ArgumentParser, runs: Sequence[Path], out: Path) -> list[Path]:
    """The file of each run that a command names; refuses one that is not there, and an ``--out`` that is."""
    paths = [run / "last.pt" if run.is_dir() else run for run in runs]
    for path in paths:
        if not path.is_file():
            parser.error(f"{path} is not there: name a run's folder or its last.pt")
    if out.suffix != ".pt" or out.exists():
        parser.error(f"--out {out}: name a .pt file that is not there yet")
    return paths


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, their last.pt, or exported safetensors")
    parser.add_argument("--out", type=Path, required=True, help="a file that is not there yet")
    parser.add_argument("--shares", type=share, nargs="+", help="how much of each run, summing up to 1; else all count alike")
    args = parser.parse_args()
    if args.shares and (len(args.shares) != len(args.runs) or abs(sum(args.shares) - 1) > 1e-6):
        parser.error(f"--shares {' '.join(map(str, args.shares))}: name one for each of the {len(args.runs)} runs, summing up to 1")
    paths = check_files(parser, args.runs, args.out)
    try:
        state = average([read(path) for path in paths], args.shares)
    except ValueError as error:
        parser.error(str(error))
    new_folder(args.out.parent)
    keep(state, args.out)


if __name__ == "__main__":
    sys.exit(main())
