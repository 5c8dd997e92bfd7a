"""Streaming causal video VAE (Wan 2.1): 8x smaller in space, 4x in time.

Activations travel as ``[B, T, H, W, C]`` (contiguous, channels last) through the layers of `models.vae_layers`. Parameter names and shapes
are those of the published ``Wan2.1_VAE.pth``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.causal_cache import CausalCache, CompiledPixels, make_pixels
from models.recorded import Recordings
from models.sizes import check_positive
from models.vae_layers import AttentionBlock, CausalConv3d, Downsample, ResidualBlock, RMSNorm, Upsample

WAN_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
WAN_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
           3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the VAE; the defaults are the published Wan 2.1 model.

    ``patch_size`` > 1 moves that many pixels a side into channels at both ends (pixel unshuffle), as Wan 2.2 does.
    ``latents_mean`` and ``latents_std`` (one number per channel) bring the latents to about zero mean, unit variance.
    """

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    patch_size: int = 1
    latents_mean: tuple[float, ...] = WAN_MEAN
    latents_std: tuple[float, ...] = WAN_STD

    def __post_init__(self) -> None:
        check_positive(self, "dim", "z_dim", "dim_mult", "patch_size", "latents_std")
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample needs {len(self.dim_mult) - 1} entries, one less than dim_mult; got {self.temporal_downsample}"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(f"{name} needs z_dim = {self.z_dim} numbers, got {len(getattr(self, name))}")

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent along one side."""
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_ratio(self) -> int:
        """Frames per latent, latent 0 excepted."""
        return 2 ** sum(self.temporal_downsample)


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * m for m in config.dim_mult]
        self.conv1 = CausalConv3d(3 * config.patch_size**2, dims[0], (3, 3, 3), 0)
        layers: list[nn.Module] = []
        slot, width = 1, dims[0]
        for level, dim in enumerate(dims):
            for _ in range(config.num_res_blocks):
                layers.append(ResidualBlock(width, dim, slot))
                slot, width = slot + 2, dim
            if level < len(dims) - 1:
                layers.append(Downsample(dim, config.temporal_downsample[level], slot))
                slot += 1
        self.downsamples = nn.ModuleList(layers)
        self.middle = nn.ModuleList([ResidualBlock(width, width, slot), AttentionBlock(width), ResidualBlock(width, width, slot + 2)])
        self.head = nn.ModuleDict({"0": RMSNorm(width), "2": CausalConv3d(width, 2 * config.z_dim, (3, 3, 3), slot + 4)})

    def forward(self, x: Tensor, cache: CausalCache | None = None) -> Tensor:
        x = self.conv1(x, cache)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, cache)
        return self.head["2"].of_active(self.head["0"], x, cache)


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * m for m in reversed(config.dim_mult)]
        width = dims[0]
        self.conv1 = CausalConv3d(config.z_dim, width, (3, 3, 3), 0)
        self.middle = nn.ModuleList([ResidualBlock(width, width, 1), AttentionBlock(width), ResidualBlock(width, width, 3)])
        layers: list[nn.Module] = []
        slot = 5
        for level, dim in enumerate(dims):
            for _ in range(config.num_res_blocks + 1):
                layers.append(ResidualBlock(width, dim, slot))
                slot, width = slot + 2, dim
            if level < len(dims) - 1:
                layers.append(Upsample(dim, config.temporal_downsample[-1 - level], slot))
                slot, width = slot + 1, dim // 2
        self.upsamples = nn.ModuleList(layers)
        self.head = nn.ModuleDict({"0": RMSNorm(width), "2": CausalConv3d(width, 3 * config.patch_size**2, (3, 3, 3), slot)})

    def forward(self, z: Tensor, cache: CausalCache | None = None) -> Tensor:
        x = self.conv1(z, cache)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, cache)
        return self.head["2"].of_active(self.head["0"], x, cache)


class VAE(nn.Module):
    """Frames <-> latents. Frames are `[B, 3, F, H, W]` in [-1, 1], latents `[B, z_dim, T, h, w]`, T = 1 + (F-1)/4."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self._scales: dict[torch.device, tuple[Tensor, ...]] = {}
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.compiled: CompiledPixels | None = None
        self.recordings: Recordings | None = None  # of the decoder, see `record`

    def lay_out(self, decoder: bool = True) -> None:
        """Bring frozen weights into the layouts they are multiplied in. Names, shapes and values stay what they are; moving undoes it.

        Without ``decoder`` its weights stay as they lie: somebody else decodes.
        """
        for module in (*self.encoder.modules(), *(self.decoder.modules() if decoder else ())):
            if isinstance(module, CausalConv3d):
                module.lay_out()
            elif isinstance(module, Upsample):
                module.fold()

    @property
    def tiled(self) -> bool:
        """Whether any of its convolutions goes by `models.winograd`."""
        return any(isinstance(module, CausalConv3d) and module.tiled for module in self.modules())

    def record(self) -> None:
        """Have the decoder's calls recorded from now on (`models.recorded`), on a CPU, after a stream's first block.

        Of weights that change no more.
        """
        self.recordings = Recordings()

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        if self.recordings is not None:
            self.recordings.clear()
        return super()._apply(*args, **kwargs)

    def new_encoder_cache(self) -> CausalCache:
        return CausalCache()

    def new_decoder_cache(self) -> CausalCache:
        return CausalCache()

    def mean(self, video: Tensor, cache: CausalCache | None = None) -> Tensor:
        """Posterior mean, not normalised: `[B, 3, F, H, W]` -> `[B, T, h, w, z]` (channels last)."""
        p = self.config.patch_size
        batch, _, frames, height, width = video.shape
        if height % self.config.spatial_ratio or width % self.config.spatial_ratio:
            raise ValueError(f"frames of {height}x{width} pixels: both sides must be multiples of {self.config.spatial_ratio}")
        x = video.view(batch, 3, frames, height // p, p, width // p, p)
        x = x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4)  # [B, F, H/p, W/p, 3*p*p]
        return self.conv1(self.encoder(x, cache))[..., : self.config.z_dim]

    def pixels(self, z: Tensor, cache: CausalCache | None = None) -> Tensor:
        """Latents, not normalised, `[B, T, h, w, z]` -> frames `[B, 3, F, H, W]`, not clamped."""
        p = self.config.patch_size
        x = self.decoder(self.conv2(z), cache)
        x = x.unflatten(-1, (3, p, p)).permute(0, 4, 1, 2, 5, 3, 6)  # [B, 3, F, H/p, p, W/p, p]
        return x.flatten(3, 4).flatten(4, 5)

    def _scale(self, like: Tensor) -> tuple[Tensor, ...]:
        """Mean and standard deviation of the latents, made once for a device."""
        if like.device not in self._scales:
            both = (self.config.latents_mean, self.config.latents_std)
            with torch.inference_mode(False):  # a trainer may need them later
                self._scales[like.device] = tuple(torch.tensor(v, dtype=torch.float32, device=like.device) for v in both)
        return self._scales[like.device]

    def encode_frames(self, frames: Tensor, cache: CausalCache | None) -> Tensor:
        """Encode the next frames of a stream; F = 1 + 4m on the first call, 4m on later ones. Advances ``cache``."""
        mean, std = self._scale(frames)
        mu = self.mean(frames.to(self.conv1.weight.dtype), cache)
        if cache is not None:
            cache.commit()
        return ((mu - mean) / std).permute(0, 4, 1, 2, 3).contiguous()  # [B, z, T, h, w]

    def decode_block(self, latents: Tensor, cache: CausalCache | None, commit: bool = True) -> Tensor:
        """Decode the next latents of a stream to frames in [-1, 1]; 1 + 4(n-1) frames first, 4n later.

        Advances ``cache``, or without ``commit`` leaves that to a later `CausalCache.commit`.
        """
        mean, std = self._scale(latents)
        z = latents.permute(0, 2, 3, 4, 1).float() * std + mean  # [B, T, h, w, z]
        z = z.to(self.conv2.weight.dtype)
        frames = make_pixels(self, z, cache)
        if cache is not None and commit:
            cache.commit()
        return frames.clamp(-1, 1)

    def encode(self, video: Tensor) -> Tensor:
        """Encode a whole clip of 1 + 4m frames; equal to streaming it."""
        return self.encode_frames(video, None)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a whole clip; equal to streaming it."""
        return self.decode_block(latents, None)
