"""What a run tells: a line per report in `log.jsonl`, TensorBoard files where asked for, a progress bar, pictures."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.errors import WorldError


def summary_writer() -> Any:
    """TensorBoard's writer, a class. Raises WorldError where the extra is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise WorldError("--tensorboard needs a package that is missing: pip install 'reverie[tensorboard]'") from None
    return SummaryWriter


class Journal:
    """The main process's. ``tensorboard`` needs the extra of that name; a progress bar is drawn where tqdm and a terminal are."""

    def __init__(self, folder: Path, begun: int, iterations: int, tensorboard: bool) -> None:
        self.folder = folder
        self.log = folder / "log.jsonl"
        self._forget_after(begun)
        self._board: Any = None
        if tensorboard:
            self._board = summary_writer()(str(folder / "tensorboard"), purge_step=begun + 1)  # from that step on
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm

                self._bar = tqdm(total=iterations, initial=begun, unit="it", dynamic_ncols=True)
            except ImportError:
                pass

    def advance(self) -> None:
        """One iteration more."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, seconds: float, numbers: dict[str, float]) -> None:
        """Write down the means since the last report."""
        line = {"step": step, "minutes": round(seconds / 60, 3), **numbers}
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()})
        else:
            words = "  ".join(f"{name} {value:.5g}" for name, value in numbers.items())
            print(f"step {step:6d}  {seconds / 60:7.1f} min  {words}", flush=True)

    def sheet(self, step: int, picture: np.ndarray) -> None:
        """Keep a contact sheet `[H, W, 3]` uint8 as `sheets/000100.png`."""
        folder = self.folder / "sheets"
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{step:06d}.png")
        if self._board is not None:
            self._board.add_image("played, below the truth", picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.close()

    def _forget_after(self, step: int) -> None:
        """Take back the lines of iterations that will be done again (a killed run had gone further than its last checkpoint)."""
        if not self.log.exists():
            return
        whole = [line for line in self.log.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        temporary = self.log.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.log)
