"""Encoded clips as training reads them: windows of whole blocks, in an order that (seed, position) alone decides.

A folder holds one safetensors file a clip (`*.clip.safetensors`, written by `training.encode`); a single `clips.safetensors`
is the garden's pool as `training.train_dit` leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.conditioning import StartCondition, Windows
from engine.config import WorldConfig
from models.errors import WorldError, one_line
from training.draws import Draws
from training.latents import FULL_LOOK, Clips, condition_rows

SUFFIX = ".clip.safetensors"


@dataclass
class Batch:
    """T latents of B sessions as the engine would present them, first latents first. ``visual`` are image tokens, or None."""

    latents: Tensor  # [B, z, T, h, w] float32: the truth
    condition: Tensor  # [B, 4 + z, T, h, w]
    rows: Windows  # keyboard [B, T, 12, K], mouse [B, T, 12, 2] or None
    from_start: Tensor  # [B] bool: the window begins with the session
    visual: Tensor | None = None  # [B, L, img_dim]

    def to(self, device: torch.device) -> Batch:
        visual = None if self.visual is None else self.visual.to(device)
        latents, condition = self.latents.to(device), self.condition.to(device)
        return Batch(latents, condition, self.rows.to(device), self.from_start.to(device), visual)

    def without_actions(self, which: Tensor | None = None) -> Batch:
        """The same with the actions of the samples ``which`` [B] (all: None) at zero."""
        kept = (torch.zeros_like(self.from_start) if which is None else ~which).to(self.latents.dtype)[:, None, None, None]
        mouse = None if self.rows.mouse is None else self.rows.mouse * kept
        return Batch(self.latents, self.condition, Windows(self.rows.keyboard * kept, mouse), self.from_start, self.visual)

    def rows_of(self, own: slice) -> Windows:
        """The rows of some of its latents."""
        return Windows(self.rows.keyboard[:, own], None if self.rows.mouse is None else self.rows.mouse[:, own])

    def last(self, latents: int) -> Batch:
        """Its last latents."""
        own = slice(self.latents.shape[2] - latents, None)
        rows = self.rows_of(own)
        from_start = self.from_start & (latents == self.latents.shape[2])
        return Batch(self.latents[:, :, own], self.condition[:, :, own], rows, from_start, self.visual)


@dataclass
class Clip:
    """One clip on the host: latents [z, L, h, w]; encoded start picture [z, C, h, w]; rows [F, K] and [F, 2] in the model's units."""

    latents: Tensor
    condition: Tensor
    keyboard: Tensor
    mouse: Tensor | None
    visual: Tensor | None = None

    def save(self, path: Path, source: str) -> None:
        """Write it in half precision, actions in full. ``source`` is a note."""
        tensors = {"latents": self.latents.half(), "condition": self.condition.half(), "keyboard": self.keyboard.float()}
        tensors |= {} if self.mouse is None else {"mouse": self.mouse.float()}
        tensors |= {} if self.visual is None else {"visual": self.visual.half()}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, {"source": source})


class ClipSource(Protocol):
    """Clips by number."""

    def __len__(self) -> int: ...

    def latents(self, index: int) -> int:
        """How many latents the clip has."""
        ...

    def clip(self, index: int) -> Clip: ...


class ClipFolder:
    """A folder of encoded clips, or one such file. Raises WorldError for a folder without any, or with one of another world."""

    def __init__(self, path: Path, config: WorldConfig) -> None:
        self.files = [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))
        if not self.files:
            raise WorldError(f"there is no *{SUFFIX} in {one_line(path, 200)}; python -m training.encode writes them")
        self.lengths = [self._check(file, config) for file in self.files]
        self._read = lru_cache(maxsize=64)(self._load)

    def __len__(self) -> int:
        return len(self.files)

    def latents(self, index: int) -> int:
        return self.lengths[index]

    def clip(self, index: int) -> Clip:
        return self._read(index)

    def _load(self, index: int) -> Clip:
        with safe_open(self.files[index], "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
        return Clip(tensors["latents"], tensors["condition"], tensors["keyboard"], tensors.get("mouse"), tensors.get("visual"))

    def _check(self, path: Path, config: WorldConfig) -> int:
        """The clip's length in latents, from the file's table alone."""
        model, ratio = config.model, config.vae.spatial_ratio
        try:
            with safe_open(path, "pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WorldError(f"{one_line(path, 200)} cannot be read: {one_line(error, 120)}; encode it again") from None
        place, mouse = [config.height // ratio, config.width // ratio], bool(model.action.mouse_dim)
        wanted = {"latents", "condition", "keyboard"} | ({"mouse"} if mouse else set()) | ({"visual"} if model.img_dim else set())
        if set(shapes) != wanted:
            raise WorldError(f"{path.name} holds {', '.join(sorted(shapes))}; clips of {config.name} hold {', '.join(sorted(wanted))}")
        length = shapes["latents"][1]
        frames = 1 + config.vae.temporal_ratio * (length - 1)
        rows = {"keyboard": [frames, model.action.keyboard_dim], "mouse": [frames, 2], "visual": [None, model.img_dim]}
        known = {"latents": [model.out_dim, length, *place], "condition": [model.out_dim, None, *place], **rows}
        for name, shape in shapes.items():
            if len(shape) != len(known[name]) or any(want not in (None, have) for want, have in zip(known[name], shape, strict=True)):
                raise WorldError(f"{path.name}: {name} is {shape}, {config.name} takes {known[name]}; encode it again for this world")
        return length


class GardenPool:
    """The pool of clips that the garden's trainers leave in their folder."""

    def __init__(self, path: Path, config: WorldConfig) -> None:
        self.clips = Clips.load(path)
        model, ratio = config.model, config.vae.spatial_ratio
        have = [self.clips.latents.shape[1], *self.clips.latents.shape[3:], self.clips.keyboard.shape[2], self.clips.mouse.shape[2]]
        wanted = [model.out_dim, config.height // ratio, config.width // ratio, model.action.keyboard_dim, model.action.mouse_dim]
        if have != wanted:
            raise WorldError(f"{one_line(path, 200)}: channels, height, width, keys and mouse are {have}, {config.name} takes {wanted}")

    def __len__(self) -> int:
        return len(self.clips)

    def latents(self, index: int) -> int:
        return self.clips.latents.shape[2]

    def clip(self, index: int) -> Clip:
        clips = self.clips
        condition = torch.cat([clips.condition[index].float(), clips.settled[:, None].float()], dim=1)  # later ones are the settled one
        return Clip(clips.latents[index].float(), condition, clips.keyboard[index].float(), FULL_LOOK * clips.mouse[index].float())


def open_clips(path: Path, config: WorldConfig) -> ClipSource:
    """The clips at ``path``: a folder, an encoded clip, or the garden's `clips.safetensors`. Raises WorldError."""
    if path.is_file() and not path.name.endswith(SUFFIX):
        return GardenPool(path, config)
    return ClipFolder(path, config)


class Data:
    """Windows of whole blocks out of clips. Every clip is seen once before any is seen again.

    ``most_blocks``: windows of so many blocks can be cut from every clip.
    """

    def __init__(self, source: ClipSource, config: WorldConfig, seed: int) -> None:
        self.source, self.config, self.seed = source, config, seed
        self.block = config.model.num_frame_per_block
        self._take(range(len(source)))

    def __len__(self) -> int:
        return len(self.used)

    def keep(self, blocks: int) -> int:
        """From now on only clips of at least ``blocks`` blocks; the number of others. Raises WorldError where none would be left.

        Recordings end where they end: what is left over after whole clips is short.
        """
        long = [index for index in self.used if self.source.latents(index) // self.block >= blocks]
        if not long:
            longest = max(self.source.latents(index) for index in self.used) // self.block
            raise WorldError(f"the longest clip has {longest} blocks, the plan asks for {blocks}: encode longer ones")
        short = len(self) - len(long)
        self._take(long)
        return short

    def _take(self, indices: Sequence[int]) -> None:
        self.used = list(indices)
        self.most_blocks = min(self.source.latents(index) for index in self.used) // self.block
        self._order.cache_clear()

    def batch(self, draws: Draws, blocks: int, start_share: float = 0.35, together: bool = False) -> Batch:
        """A window of ``blocks`` blocks for each of the drawn samples; about ``start_share`` of them begin with their session.

        ``together``: either all or none do, and all where the shortest clip is no longer than the window. Else only those that are
        cut from such a clip must.
        """
        places = draws.uniform("place", 2).tolist()
        shared = draws.shared("from start")
        windows = []
        for counter, (start, place) in zip(draws.counters, places, strict=True):
            index = self._order(draws.purpose, counter // len(self))[counter % len(self)]
            latest = self.source.latents(index) // self.block - blocks
            from_start = (shared if together else start) < start_share or (self.most_blocks == blocks if together else latest == 0)
            offset = 0 if from_start else 1 + int(place * latest)
            windows.append(self.window(index, self.block * offset, self.block * blocks))
        return join(windows)

    def window(self, index: int, first: int, length: int) -> Batch:
        """Latents [first, first + length) of one clip."""
        clip, offset = self.source.clip(index), torch.tensor([first])
        channels = StartCondition(clip.condition[None], self.config.vae.temporal_ratio).channels
        known = torch.arange(first, first + length).clamp_max(channels.shape[2] - 1)
        mouse = None if clip.mouse is None else condition_rows(clip.mouse[None], offset, length)
        return Batch(
            latents=clip.latents[None, :, first : first + length],
            condition=channels[:, :, known],
            rows=Windows(condition_rows(clip.keyboard[None], offset, length), mouse),
            from_start=offset == 0,
            visual=None if clip.visual is None else clip.visual[None],
        )

    @lru_cache(maxsize=4)  # noqa: B019 (a run has one of these)
    def _order(self, purpose: str, epoch: int) -> list[int]:
        generator = Draws(self.seed, epoch, range(1), 1, purpose).generator("order", "all")
        return [self.used[place] for place in torch.randperm(len(self), generator=generator).tolist()]


def join(windows: list[Batch]) -> Batch:
    """Windows of equal length side by side."""
    mouse = None if windows[0].rows.mouse is None else torch.cat([w.rows.mouse for w in windows])
    return Batch(
        latents=torch.cat([w.latents for w in windows]),
        condition=torch.cat([w.condition for w in windows]),
        rows=Windows(torch.cat([w.rows.keyboard for w in windows]), mouse),
        from_start=torch.cat([w.from_start for w in windows]),
        visual=None if windows[0].visual is None else torch.cat([w.visual for w in windows]),
    )
