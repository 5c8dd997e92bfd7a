"""The image encoder: the CLIP ViT-H/14 half of open-clip's xlm-roberta model, read before its last block (SPEC §6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.sizes import check_positive

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the image encoder; the defaults are the published ViT-H/14. Of ``num_layers`` blocks the last one is never run."""

    image_size: int = 224
    patch_size: int = 14
    dim: int = 1280
    mlp_ratio: int = 4
    out_dim: int = 1024
    num_heads: int = 16
    num_layers: int = 32
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_positive(self, "image_size", "patch_size", "dim", "mlp_ratio", "out_dim", "num_heads", "num_layers", "norm_eps")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} does not divide into patches of {self.patch_size}")
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} does not divide into {self.num_heads} heads")

    @property
    def num_tokens(self) -> int:
        """Class token and patches: 257."""
        return 1 + (self.image_size // self.patch_size) ** 2


class VisionEncoder(nn.Module):
    """Keys as in the published file without ``visual.``; its last block, ``post_norm`` and ``head`` are stored but not used."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        self.patch_embedding = nn.Conv2d(3, dim, patch, patch, bias=False)
        self.cls_embedding = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.pos_embedding = nn.Parameter(torch.randn(1, config.num_tokens, dim) * dim**-0.5)
        self.pre_norm = nn.LayerNorm(dim, config.norm_eps)
        self.transformer = nn.Sequential(*(VisionBlock(config) for _ in range(config.num_layers)))
        self.post_norm = nn.LayerNorm(dim, config.norm_eps)
        self.head = nn.Parameter(torch.randn(dim, config.out_dim) * dim**-0.5)

    def forward(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] in [-1, 1], of any size -> tokens [B, 257, 1280], the class token first."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"expected an image [B, 3, H, W], got {list(image.shape)}")
        pixels = clip_pixels(image, self.config.image_size).to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, patches, dim]
        tokens = torch.cat((self.cls_embedding.expand(len(image), -1, -1), patches), dim=1) + self.pos_embedding  # [B, 1 + patches, dim]
        tokens = self.pre_norm(tokens)
        for block in self.transformer[:-1]:
            tokens = block(tokens)
        return tokens


class VisionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, config.norm_eps)
        self.attn = VisionAttention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim, config.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(dim, dim * config.mlp_ratio), nn.GELU(), nn.Linear(dim * config.mlp_ratio, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionAttention(nn.Module):
    """Attention of all tokens among themselves."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, L, head_dim]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


def clip_pixels(image: Tensor, size: int) -> Tensor:
    """Image [B, 3, H, W] in [-1, 1] -> what CLIP sees, [B, 3, size, size]: squeezed to a square, bicubic, not clamped, normalised."""
    square = F.interpolate(image.float(), (size, size), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (square / 2 + 0.5 - mean) / std
