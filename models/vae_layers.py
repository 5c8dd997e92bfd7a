"""Layers of the streaming causal VAE (`models.vae`), over activations ``[B, T, H, W, C]`` (contiguous, channels last).

A 3-tap causal convolution is then a plain 2-D convolution over three frames laid side by side in the channels, which is what a CPU is fast
at (SPEC §8), and every 1x1x1 convolution is a matrix product. In bfloat16 on a CPU that has it one convolution over the volume is quicker
(`as_volume`), in float32 on others tiles are (`models.winograd`). What the layers remember between two calls is a `CausalCache`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import winograd
from models.causal_cache import CausalCache
from models.kernels import onednn_has_bfloat16

VOLUMES: dict[str, tuple[torch.dtype, ...]] = {"cpu": (torch.bfloat16,) if onednn_has_bfloat16() else ()}  # see `as_volume`
HISTORY = 2  # frames a 3-tap causal convolution remembers (`cache_t` in the literature)


def _as_images(x: Tensor) -> Tensor:
    """`[B, T, H, W, C]` -> `[B*T, C, H, W]` in channels-last memory, without a copy."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def _as_video(x: Tensor, batch: int) -> Tensor:
    """`[B*T, C, H, W]` -> `[B, T, H, W, C]`; free when x is channels-last."""
    return x.permute(0, 2, 3, 1).unflatten(0, (batch, -1))


class RMSNorm(nn.Module):
    """x / ||x||_2 * sqrt(C) * gamma over the channels. ``gamma`` keeps the published shape `[C, 1, ...]`."""

    def __init__(self, dim: int, trailing: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * trailing))
        self._root = dim**0.5

    def forward(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """Of x `[..., C]`; written ``into`` memory of that shape, if it is given and nothing is to be differentiated."""
        wide = torch.promote_types(x.dtype, torch.float32)  # squares of half-precision numbers overflow
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).clamp_min(1e-12)
        scale = (self._root / norm).to(x.dtype)
        if into is None:
            scaled = x * scale
        elif torch.compiler.is_dynamo_compiling():  # it knows no `out` with gaps
            scaled = into.copy_(x * scale)
        else:
            scaled = torch.mul(x, scale, out=into)
        return scaled * self.gamma.flatten() if torch.is_grad_enabled() else scaled.mul_(self.gamma.flatten())


def silu(fresh: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else holds: in its own memory, unless it is to be differentiated."""
    return F.silu(fresh, inplace=not torch.is_grad_enabled())


class CausalConv3d(nn.Module):
    """Convolution over (time, height, width) that never looks ahead; kernel (3,k,k) or (1,1,1), same size out.

    ``slot`` numbers the convolution within its model: its place in the `CausalCache`.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel: tuple[int, int, int], slot: int = -1) -> None:
        super().__init__()
        self.kernel, self.slot = kernel, slot
        conv = nn.Conv3d(in_dim, out_dim, kernel)  # for its initialisation
        self.weight, self.bias = conv.weight, conv.bias
        self._stacked: Tensor | None = None
        self._tiled: Tensor | None = None

    def with_history(self, x: Tensor, cache: CausalCache | None) -> Tensor:
        """x preceded by the two frames before it (zeros where there were none): `[B, T+2, H, W, C]`."""
        past = cache.read(self.slot) if cache is not None else None
        if past is None:
            extended = F.pad(x, (0, 0, 0, 0, 0, 0, HISTORY, 0))
        else:
            extended = torch.cat([past.to(x.dtype), x], dim=1)
        if cache is not None:
            cache.write(self.slot, extended[:, -HISTORY:])
        return extended

    def forward(self, x: Tensor, cache: CausalCache | None = None) -> Tensor:
        out_dim = self.weight.shape[0]
        if self.kernel[0] == 1:
            return F.linear(x, self.weight.view(out_dim, -1), self.bias)
        if self._tiled is not None and winograd.takes(x):
            return self._in_tiles(x, self._tiled, cache, lambda inside: inside.copy_(x))
        return self.without_history(self.with_history(x, cache))

    def without_history(self, x: Tensor) -> Tensor:
        """The sums themselves: `[B, T+2, H, W, C]` -> `[B, T, H, W, out]`."""
        batch, frames, side = x.shape[0], x.shape[1] - HISTORY, self.kernel[1] // 2
        if side and x.dtype in as_volume(x.device):
            weight = self.weight.to(memory_format=torch.channels_last_3d)  # free after `lay_out`
            return F.conv3d(x.permute(0, 4, 1, 2, 3), weight, self.bias, padding=(0, side, side)).permute(0, 2, 3, 4, 1)
        x = torch.cat([x[:, :frames], x[:, 1 : frames + 1], x[:, 2:]], dim=-1)  # [B, T, H, W, 3*C]
        weight = self._stacked if self._stacked is not None else self._stack()
        if side == 0:
            return F.linear(x, weight.flatten(1), self.bias)
        return _as_video(F.conv2d(_as_images(x), weight, self.bias, padding=side), batch)

    @property
    def tiled(self) -> bool:
        """Whether it goes by `models.winograd`, where that can be."""
        return self._tiled is not None

    def of_active(self, norm: RMSNorm, x: Tensor, cache: CausalCache | None) -> Tensor:
        """Of SiLU(``norm``(x)), which goes straight to where it is wanted."""
        if self._tiled is not None and winograd.takes(x) and not torch.is_grad_enabled():
            return self._in_tiles(x, self._tiled, cache, lambda inside: silu(norm(x, inside)))
        return self(silu(norm(x)), cache)

    def _in_tiles(self, x: Tensor, weights: Tensor, cache: CausalCache | None, write: Callable[[Tensor], Tensor]) -> Tensor:
        """As `forward` does otherwise, by `models.winograd`, of what ``write`` makes of x in memory given to it."""
        frames, height, width = map(int, x.shape[1:4])
        past = cache.read(self.slot) if cache is not None else None
        extended, inside = winograd.room(HISTORY + frames, height, width, x)
        if past is not None and past.shape[0] != x.shape[0]:
            raise ValueError(f"the cache remembers {past.shape[0]} streams, and {x.shape[0]} go on")
        inside[:, :HISTORY] = 0 if past is None else past
        write(inside[:, HISTORY:])
        if cache is not None:
            cache.write(self.slot, inside[:, -HISTORY:])
        return winograd.convolve(extended, weights, self.bias, height, width)

    def _stack(self) -> Tensor:
        """The weight over three frames side by side in the channels: `[out, 3*C, k, k]`, channels last."""
        return self.weight.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)

    def lay_out(self) -> None:
        """Bring the frozen weight into the layout it is multiplied in, from now on; names, shapes and values stay."""
        if self.kernel[0] == 1:
            return
        if self.kernel[1] > 1 and self.weight.dtype in as_volume(self.weight.device):
            self.weight = nn.Parameter(self.weight.detach().contiguous(memory_format=torch.channels_last_3d), requires_grad=False)
        elif winograd.quicker(self.weight):
            self._tiled = winograd.transform(self.weight.detach())
        else:
            self._stacked = self._stack().detach()

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self._stacked = self._tiled = None
        return super()._apply(*args, **kwargs)


def as_volume(device: torch.device) -> tuple[torch.dtype, ...]:
    """Dtypes in which causal convolutions are quicker as one `conv3d` over [T+2, H, W] than as a `conv2d` over stacked frames.

    On a CPU that is bfloat16 (oneDNN: 230 against 220 GFLOP/s on one core, and nothing to stack); in float32 it falls to a sixth, and where
    oneDNN has no bfloat16 to a fourteenth.
    """
    return VOLUMES.get(device.type, ())


class ResidualBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, slot: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(in_dim),
                "2": CausalConv3d(in_dim, out_dim, (3, 3, 3), slot),
                "3": RMSNorm(out_dim),
                "6": CausalConv3d(out_dim, out_dim, (3, 3, 3), slot + 1),
            }
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, (1, 1, 1)) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, cache: CausalCache | None = None) -> Tensor:
        norm1, conv1, norm2, conv2 = self.residual.values()
        h = conv1.of_active(norm1, x, cache)
        h = conv2.of_active(norm2, h, cache)
        return h + self.shortcut(x) if torch.is_grad_enabled() else h.add_(self.shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head attention among the places of one frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, trailing=2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, cache: CausalCache | None = None) -> Tensor:
        qkv = F.linear(self.norm(x), self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        q, k, v = qkv.flatten(2, 3).unsqueeze(2).chunk(3, dim=-1)  # [B, T, 1, H*W, C] each
        h = F.scaled_dot_product_attention(q, k, v).view(x.shape)
        return x + F.linear(h, self.proj.weight.flatten(1), self.proj.bias)


class Downsample(nn.Module):
    """Halve height and width; with ``temporal`` then also time (frame 0 stays alone)."""

    def __init__(self, dim: int, temporal: bool, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim, 3, stride=2)})
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: CausalCache | None = None) -> Tensor:
        conv = self.resample["1"]
        x = F.pad(x, (0, 0, 0, 1, 0, 1))  # one column right, one row below
        x = _as_video(F.conv2d(_as_images(x), conv.weight.to(memory_format=torch.channels_last), conv.bias, stride=2), x.shape[0])
        if self.time_conv is None:
            return x
        last = cache.read(self.slot) if cache is not None else None
        if cache is not None:
            cache.write(self.slot, x[:, -1:])
        if last is None:  # the very first frame passes through; the others follow it two by two
            return torch.cat([x[:, :1], self.halve_time(x)], dim=1) if x.shape[1] > 1 else x
        return self.halve_time(torch.cat([last.to(x.dtype), x], dim=1))

    def halve_time(self, x: Tensor) -> Tensor:
        """`[B, 1+2m, H, W, C]` -> `[B, m, H, W, C]`: outputs see frames (0,1,2), (2,3,4), ..."""
        if x.shape[1] % 2 == 0:
            raise ValueError(f"the encoder takes 1 frame first and then whole groups of frames; got an odd rest of {x.shape[1]} here")
        stacked = torch.cat([x[:, 0:-2:2], x[:, 1:-1:2], x[:, 2::2]], dim=-1)
        weight = self.time_conv.weight.transpose(1, 2).flatten(1)  # [out, 3*C]
        return F.linear(stacked, weight, self.time_conv.bias)


class Upsample(nn.Module):
    """Double height and width (halving the channels); with ``temporal`` first double time (latent 0 excepted)."""

    def __init__(self, dim: int, temporal: bool, slot: int) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1), slot) if temporal else None
        self._folded: Tensor | None = None

    def forward(self, x: Tensor, cache: CausalCache | None = None) -> Tensor:
        if self.time_conv is not None:
            if cache is not None and cache.started:
                x = self.double_time(x, cache)
            elif x.shape[1] > 1:  # latent 0 neither is doubled nor enters the history
                x = torch.cat([x[:, :1], self.double_time(x[:, 1:], cache)], dim=1)
        return self.double_space(x)

    def double_space(self, x: Tensor) -> Tensor:
        """Nearest x2, then the 3x3 convolution: `[B, T, H, W, C]` -> `[B, T, 2H, 2W, C/2]`.

        Each new pixel sees only 2x2 old ones, so with the weights that fall on the same old pixel added up beforehand the sums
        are four 2x2 convolutions over the small picture: 4/9 of the work, the same numbers.
        """
        conv = self.resample["1"]
        if self._folded is None:
            images = F.interpolate(_as_images(x), scale_factor=2.0, mode="nearest-exact")
            return _as_video(F.conv2d(images, conv.weight.to(memory_format=torch.channels_last), conv.bias, padding=1), x.shape[0])
        height, width = x.shape[2:4]
        quarters = F.conv2d(_as_images(x), self._folded, padding=1).unflatten(1, (2, 2, -1))  # [B*T, row, column, C/2, H+1, W+1]
        out = x.new_empty(*x.shape[:2], height, 2, width, 2, quarters.shape[3])
        for row in (0, 1):
            for column in (0, 1):
                quarter = quarters[:, row, column, :, row : row + height, column : column + width]
                places = out[:, :, :, row, :, column]
                if torch.compiler.is_dynamo_compiling():  # it knows no `out` with gaps, and makes one call of these two itself
                    places.copy_(_as_video(quarter, x.shape[0]) + conv.bias)
                else:
                    torch.add(_as_video(quarter, x.shape[0]), conv.bias, out=places)
        return out.flatten(4, 5).flatten(2, 3)

    def fold(self) -> None:
        """Add up, once, the frozen weights that fall on the same old pixel."""
        weight = self.resample["1"].weight.detach().float()  # [out, in, 3, 3]
        # an even pixel's neighbours are old pixels (-1, 0, 0), an odd one's (0, 0, +1)
        rows = [torch.stack([weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]], 2)]
        rows += [torch.stack([weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]], 2)]
        parts = [
            torch.stack([first, second], 3)  # [out, in, 2, 2]
            for row in rows
            for first, second in ((row[..., 0], row[..., 1] + row[..., 2]), (row[..., 0] + row[..., 1], row[..., 2]))
        ]
        self._folded = torch.cat(parts).to(self.resample["1"].weight.dtype).contiguous(memory_format=torch.channels_last)

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self._folded = None
        return super()._apply(*args, **kwargs)

    def double_time(self, x: Tensor, cache: CausalCache | None) -> Tensor:
        """`[B, T, H, W, C]` -> `[B, 2T, H, W, C]`: the first C channels are the even frame, the last C the odd."""
        batch, frames, height, width, dim = x.shape
        pairs = self.time_conv(x, cache).view(batch, frames, height, width, 2, dim)
        return pairs.permute(0, 1, 4, 2, 3, 5).reshape(batch, 2 * frames, height, width, dim)
