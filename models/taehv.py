"""The tiny decoder (TAEHV for Wan 2.1): latents to pictures at a hundredth of the VAE's work, and of somewhat lesser quality (SPEC §9).

Convolutions are 2-D; what a frame takes from the past is the frame before it, at nine places, the memory blocks. Names and shapes are
those of the decoder in the published ``taew2_1.pth``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.causal_cache import CausalCache, CompiledPixels, make_pixels
from models.recorded import Recordings
from models.sizes import check_positive

TRIMMED = 3  # frames of the very first latent that are thrown away: T latents give 4T - 3


@dataclass(frozen=True)
class TAEHVConfig:
    """Sizes of the decoder; the defaults are the published ones."""

    z_dim: int = 16
    widths: tuple[int, ...] = (256, 128, 64, 64)
    time_upscale: tuple[bool, ...] = (True, True)  # whether the last levels double the frames; those before them do not

    def __post_init__(self) -> None:
        check_positive(self, "z_dim", "widths")
        if len(self.widths) < 2 or len(self.time_upscale) > len(self.widths) - 1:
            raise ValueError(f"widths {self.widths} must be one more than the levels, of which {len(self.time_upscale)} double the frames")

    @property
    def growth(self) -> tuple[int, ...]:
        """Frames that each level makes of one: 1, 2, 2."""
        levels = len(self.widths) - 1
        return (1,) * (levels - len(self.time_upscale)) + tuple(2 if grows else 1 for grows in self.time_upscale)

    @property
    def temporal_ratio(self) -> int:
        ratio = 1
        for grows in self.growth:
            ratio *= grows
        return ratio

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.widths) - 1)


class MemoryBlock(nn.Module):
    """conv-ReLU-conv-ReLU-conv over (its input, the input of the frame before), added to its input, then ReLU."""

    def __init__(self, width: int, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        """x [T, C, H, W], frames in order."""
        past = cache.read(self.slot)
        before = torch.zeros_like(x[:1]) if past is None else past
        cache.write(self.slot, x[-1:])
        return F.relu(self.conv(torch.cat([x, torch.cat([before, x[:-1]])], dim=1)) + x)


class TimeGrow(nn.Module):
    """A 1x1 convolution that makes ``factor`` frames of each: their channels lie one after the other, frame by frame."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * factor, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grown = self.conv(x).unflatten(1, (-1, x.shape[1])).flatten(0, 1)  # [T, factor x C, H, W] -> [T x factor, C, H, W]
        return grown.contiguous(memory_format=torch.channels_last)


class TAEHV(nn.Module):
    """Decodes a stream of latents as `VAE.decode_block` does, at a batch of one."""

    def __init__(self, config: TAEHVConfig) -> None:
        super().__init__()
        self.config = config
        first = config.widths[0]
        layers: list[nn.Module] = [nn.Identity(), nn.Conv2d(config.z_dim, first, 3, padding=1), nn.ReLU()]  # place 0: the clamp
        slot = 0
        for width, narrower, factor in zip(config.widths, config.widths[1:], config.growth, strict=False):
            layers += [MemoryBlock(width, slot + i) for i in range(3)]
            slot += 3
            layers += [nn.Upsample(scale_factor=2), TimeGrow(width, factor), nn.Conv2d(width, narrower, 3, padding=1, bias=False)]
        layers += [nn.ReLU(), nn.Conv2d(config.widths[-1], 3, 3, padding=1)]
        self.decoder = nn.ModuleList(layers)
        self.compiled: CompiledPixels | None = None
        self.recordings: Recordings | None = None  # see `record`

    def new_decoder_cache(self) -> CausalCache:
        return CausalCache()

    def decode_block(self, latents: Tensor, cache: CausalCache | None, commit: bool = True) -> Tensor:
        """The next latents `[1, z, n, h, w]` (normalised, as the transformer makes them) -> frames `[1, 3, F, H, W]` in [-1, 1].

        4n - 3 frames at first, 4n later. Advances ``cache``, or without ``commit`` leaves that to a later `CausalCache.commit`. Raises
        ``ValueError`` for more than one stream at a time.
        """
        cache = self.new_decoder_cache() if cache is None else cache
        started = cache.started
        pictures = make_pixels(self, latents, cache)
        if commit:
            cache.commit()
        return ((pictures if started else pictures[TRIMMED:]) * 2 - 1).clamp(-1, 1).transpose(0, 1)[None]

    def pixels(self, latents: Tensor, cache: CausalCache) -> Tensor:
        """Latents `[1, z, n, h, w]` -> frames `[4n, 3, H, W]` in about [0, 1], those of the very first latent included, not clamped."""
        if latents.shape[0] != 1:
            raise ValueError(f"the tiny decoder takes one stream at a time, got {latents.shape[0]}")
        x = latents[0].transpose(0, 1).to(self.decoder[1].weight.dtype)  # [n, z, h, w]
        x = (torch.tanh(x / 3) * 3).contiguous(memory_format=torch.channels_last)
        for layer in self.decoder:
            x = layer(x, cache) if isinstance(layer, MemoryBlock) else layer(x)
        return x

    def record(self) -> None:
        """As `models.vae.VAE.record`."""
        self.recordings = Recordings()

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        if self.recordings is not None:
            self.recordings.clear()
        return super()._apply(*args, **kwargs)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a whole clip; equal to streaming it."""
        return self.decode_block(latents, None)

    def lay_out(self) -> None:
        """Bring frozen weights into channels last. Names, shapes and values stay."""
        self.to(memory_format=torch.channels_last)
