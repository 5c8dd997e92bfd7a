"""How long each stage of a block takes."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from engine.device import synchronize


class Stopwatch:
    """Seconds of each stage. It waits for ``devices`` at each lap, so that a stage pays for its own work."""

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self.devices = tuple(devices)
        self.laps: dict[str, float] = {}
        self.begun = self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        for device in self.devices:
            synchronize(device)
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def skip(self) -> None:
        """What has been done since the last lap belongs to no stage of this block."""
        self.last = time.perf_counter()

    def finish(self) -> dict[str, float]:
        return {**self.laps, "total": time.perf_counter() - self.begun}
