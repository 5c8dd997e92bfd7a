"""The worlds a server offers: which there are, their start pictures, and their weights, loaded once for all sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import World, WorldConfig, free_bytes, session_bytes, weights_bytes

ROOM = 0.85  # part of the free memory that sessions may take


@dataclass
class Offer:
    """A world that can be played here. ``starts`` are picture files of the server's own; an empty one has none."""

    config: WorldConfig
    starts: list[Path]
    weights: Path | None
    world: World | None = None
    session_bytes: int = 0
    weights_bytes: int = 0


class Worlds:
    """Loads each world when it is first asked for. `load` may be called by any thread."""

    def __init__(
        self, offers: list[Offer], device: str, dtype: str | None, rewind_mb: float, free: Callable[[str], int | None] = free_bytes,
        attention: str = "auto", decode_device: str | None = None, graphs: bool = True,
    ) -> None:  # fmt: skip
        """``offers``: the one that is played unless another is chosen comes first. ``decode_device``, ``graphs`` as in `World.load`."""
        self.offers = offers
        self.device, self.dtype, self.rewind_mb, self.attention = device, dtype, rewind_mb, attention
        self.decode_device, self.graphs = decode_device, graphs
        self._free = free
        self._lock = threading.Lock()
        self._budget: int | None = None

    def load(self, number: int, report: Callable[[str, float], None]) -> World:
        """The world of an offer. Raises WorldError."""
        offer = self.offers[number]
        with self._lock:
            if offer.world is None:
                place = {"device": self.device, "decode_device": self.decode_device, "attention": self.attention, "graphs": self.graphs}
                world = World.load(offer.config, offer.weights, dtype=self.dtype, progress=report, **place)
                world.weight_hashes()  # reads every file: once, and in no session's time
                offer.session_bytes = session_bytes(world)
                offer.world = world
        return offer.world

    def warm_up(self, number: int) -> None:
        """What a world does before its first session. Called where the model may be used."""
        self.offers[number].world.warm_up(live=True)

    def room_for(self, number: int, playing: list[int]) -> str | None:
        """Why there is no memory for another session of that world, beside those of the worlds ``playing``; None if there is.

        Promised memory counts, not what is in use by now: a history for rewinding grows for a while.
        """
        free = self._free(self.device)
        if free is None:
            return None
        taken = sum(self._cost(other) for other in playing)
        if self._budget is None:
            self._budget = int(ROOM * free)
        need = self._cost(number)
        if taken + need > self._budget:
            return f"a session takes {need / 1e6:.0f} MB, and {max(0, self._budget - taken) / 1e6:.0f} MB are left for them"
        now = self.offers[number].session_bytes or self._weight_bytes(number)
        if now > free:
            return f"it takes {now / 1e6:.0f} MB at once, and {free / 1e6:.0f} MB are free"
        return None

    def _cost(self, number: int) -> int:
        """Bytes promised to a session; of a world not loaded yet its weights too."""
        offer = self.offers[number]
        rewind = 0 if self.device.startswith("cuda") else int(self.rewind_mb * 1_000_000)  # the history lies in the host's memory
        return offer.session_bytes + rewind + (0 if offer.world is not None else self._weight_bytes(number))

    def _weight_bytes(self, number: int) -> int:
        offer = self.offers[number]
        offer.weights_bytes = offer.weights_bytes or weights_bytes(offer.config, self.device, self.dtype, self.decode_device)
        return offer.weights_bytes

    def cards(self) -> list[dict[str, Any]]:
        """What a page shows to choose from."""
        return [
            {
                "title": offer.config.title,
                "about": offer.config.about,
                "width": offer.config.width,
                "height": offer.config.height,
                "fps": offer.config.fps,
                "starts": len(offer.starts),
                "seed": offer.config.seed,
            }
            for offer in self.offers
        ]


def world_card(config: WorldConfig) -> dict[str, Any]:
    """What a page needs to know of a world."""
    space = config.actions
    look = None
    if space.has_look:
        look = {"vertical": bool(space.look_scale[0]), "keys": {entry.key: entry.direction for entry in space.look}}
    card = {"name": config.name, "title": config.title, "about": config.about, "fps": config.fps, "width": config.width}
    return card | {"height": config.height, "keys": [list(pair) for pair in space.help], "look": look}


def weight_paths(config: WorldConfig, weights: Path | None) -> list[Path] | None:
    """Where a world's weight files lie; None unless all are there."""
    found = []
    for part in ("dit", "vae", "vision"):
        for name in getattr(config.weights, part):
            places = [path for folder in config.weight_folders(part, weights) for path in (folder / name, folder / Path(name).name)]
            path = next((path for path in places if path.is_file()), None)
            if path is None:
                return None
            found.append(path)
    return found


def start_pictures(config: WorldConfig, given: Path | None) -> list[Path]:
    """The start picture given, the world's own, and those that lie beside its own under the same name with another number."""
    found = [given] if given is not None else []
    own = config.start_file
    if own is not None and own.is_file():
        stem = own.stem.rstrip("0123456789")
        beside = sorted(own.parent.glob(f"{stem}*{own.suffix}")) if stem != own.stem else []
        numbered = [path for path in beside if path.stem.removeprefix(stem).isdecimal()]
        found += [own, *(path for path in numbered if path != own)]
    return found
