"""Attention of the denoiser's tokens among themselves and to the image, and how a layer reaches its keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import kernels
from models.float8 import Float8Linear
from models.linear import Linear, Packed, pack, product
from models.rope import Rotary, apply_rotary

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, heads, tokens, head_dim] -> [B, heads, query tokens, head_dim]
KeyValue = tuple[Tensor, Tensor]
PLAIN_KEYS = 512  # up to here the fused CPU kernel's backward pass takes 2 to 10 times as long as the plain formula (torch 2.13)


@dataclass(frozen=True)
class Attend:
    """The attentions of one layer: through rings when playing (`kv_cache`), under a mask when training."""

    tokens: Attention
    mouse: Attention | None
    keyboard: Attention | None
    image: KeyValue | None  # keys and values of the image tokens, each [B, heads, L, head_dim]


@dataclass(frozen=True)
class MaskPlan:
    """A mask over latents cut into chunks that are wholly seen or wholly unseen, so that unseen ones cost nothing.

    Made on the host; under ``torch.compile`` it is a constant. ``sizes`` are the latents of each chunk, ``sees`` the chunks each looks at.
    """

    sizes: tuple[int, ...]
    sees: tuple[tuple[int, ...], ...]

    @classmethod
    def from_mask(cls, mask: Tensor) -> MaskPlan:
        """Plan of a bool mask [T, T] (query, key). Raises ``ValueError`` where a latent would see nothing."""
        rows = [list(map(bool, row)) for row in mask.tolist()]
        if not all(map(any, rows)):
            raise ValueError("every latent must see at least one latent: the mask has an empty row")
        columns = list(zip(*rows, strict=True))
        starts = [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1] or columns[i] != columns[i - 1]]
        sizes = tuple(b - a for a, b in zip(starts, [*starts[1:], len(rows)], strict=True))
        return cls(sizes, tuple(tuple(j for j, key in enumerate(starts) if rows[query][key]) for query in starts))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all latents, each [B, heads, T x S, head_dim], chunk by chunk."""
        places = q.shape[2] // sum(self.sizes)
        qs, ks, vs = (a.split([n * places for n in self.sizes], dim=2) for a in (q, k, v))
        outs = [
            attention(query, torch.cat([ks[j] for j in seen], 2), torch.cat([vs[j] for j in seen], 2))
            for query, seen in zip(qs, self.sees, strict=True)
        ]
        return torch.cat(outs, dim=2)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, under a bool mask [query tokens, key tokens] if there is one."""
    if q.is_cpu and q.requires_grad and k.shape[2] <= PLAIN_KEYS:
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5  # [B, heads, query tokens, key tokens]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class SelfAttention(nn.Module):
    """Attention among the tokens of all latents in view."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim), Linear(dim, dim)
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)  # over the whole width, before heads are split
        self._qkv: Joined | Float8Linear | None = None
        self.packed: Packed | None = None  # the joined weight, see `models.linear`
        self._norms: Tensor | None = None

    def fuse(self) -> None:
        """Make queries, keys and values one product from now on. Weights keep their names; they become parts of one tensor."""
        self._qkv = join(self.q, self.k, self.v)
        self._norms = torch.stack([self.norm_q.weight, self.norm_k.weight]).detach().float()

    def pack(self) -> None:
        """Call `fuse` first."""
        self.packed = None if isinstance(self._qkv, Float8Linear) else pack(self._qkv[0])

    def to_float8(self) -> None:
        """Make the products in float8 from now on, for good: the weights themselves are given up. Call `fuse` first."""
        self._qkv = Float8Linear(*self._qkv)
        self.o = Float8Linear.of(self.o)
        self.q = self.k = self.v = None

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self._qkv = self._norms = self.packed = None  # moved weights are no longer parts of one tensor
        return super()._apply(*args, **kwargs)

    def forward(self, x: Tensor, grid: Rotary, attend: Attend) -> Tensor:
        """x [B, T, S, dim] -> [B, T, S, dim]; ``grid`` has one row per token (`rope.rotary_grid`)."""
        if self._qkv is None:
            v = self.v(x)
            q, k = (self._turned(a, norm, grid, v.dtype) for a, norm in ((self.q(x), self.norm_q), (self.k(x), self.norm_k)))
        else:
            qkv = self._qkv(x) if isinstance(self._qkv, Float8Linear) else product(x, *self._qkv, self.packed)
            qkv = qkv.unflatten(-1, (3, -1))  # [B, T, S, 3, dim]
            v = qkv[..., 2, :]
            both = kernels.rms_norm(qkv[..., :2, :].float(), self._norms, self.norm_q.eps)
            both = apply_rotary(_heads_apart(both.flatten(3), 2 * self.num_heads), grid).to(v.dtype)  # [B, T x S, 2 x heads, head_dim]
            q, k = both.transpose(1, 2).chunk(2, dim=1)
        out = attend.tokens(q, k, _heads_apart(v, self.num_heads).transpose(1, 2))  # [B, heads, T x S, head_dim]
        return self.o(out.transpose(1, 2).reshape(x.shape))

    def keys_values(self, x: Tensor, grid: Rotary) -> KeyValue:
        """What `forward` would put into the ring: keys and values, each [B, heads, T x S, head_dim]."""
        dim = x.shape[-1]
        if isinstance(self._qkv, Float8Linear):
            k, v = self._qkv(x, first=dim).chunk(2, dim=-1)
        else:
            k, v = (self.k(x), self.v(x)) if self._qkv is None else F.linear(x, *(part[dim:] for part in self._qkv)).chunk(2, dim=-1)
        return self._turned(k, self.norm_k, grid, v.dtype), _heads_apart(v, self.num_heads).transpose(1, 2)

    def _turned(self, x: Tensor, norm: nn.RMSNorm, grid: Rotary, dtype: torch.dtype) -> Tensor:
        """Normalised over the whole width, then rotated: [B, T, S, dim] -> [B, heads, T x S, head_dim]."""
        return apply_rotary(_heads_apart(_normed(norm, x), self.num_heads), grid).to(dtype).transpose(1, 2)


class CrossAttention(nn.Module):
    """Attention from every token to the image tokens, which have no position."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim), Linear(dim, dim)
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)

    def to_float8(self) -> None:
        """Make what is asked of every token in float8 from now on; the image's keys and values, once a session, stay as they are."""
        self.q, self.o = Float8Linear.of(self.q), Float8Linear.of(self.o)

    def keys_values(self, context: Tensor) -> KeyValue:
        """Keys and values of the projected image tokens [B, L, dim], each [B, heads, L, head_dim]: they depend on nothing else."""
        v = self.v(context)
        k = _normed(self.norm_k, self.k(context)).to(v.dtype)
        k, v = (a.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).contiguous() for a in (k, v))
        return k, v

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """x [B, T, S, dim] -> [B, T, S, dim]."""
        k, v = attend.image
        q = _heads_apart(_normed(self.norm_q, self.q(x)), self.num_heads).to(v.dtype).transpose(1, 2)  # [B, heads, T x S, head_dim]
        out = kernels.attend(q, k, v)
        return self.o(out.transpose(1, 2).reshape(x.shape))


Joined = tuple[Tensor, Tensor]  # weight and bias of linear layers with the same input, one below the other


def join(*linears: nn.Linear) -> Joined:
    """One weight and one bias for several linear layers, whose own become parts of them: nothing is held twice."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = torch.cat([linear.bias.detach() for linear in linears])
    sizes = [linear.weight.shape[0] for linear in linears]
    for linear, w, b in zip(linears, weight.split(sizes), bias.split(sizes), strict=True):
        linear.weight = nn.Parameter(w, requires_grad=False)
        linear.bias = nn.Parameter(b, requires_grad=False)
    return weight, bias


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """RMS norm over the whole width with weight, in float32."""
    return kernels.rms_norm(x.float(), norm.weight.float(), norm.eps)


def _heads_apart(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, S, dim] -> [B, T x S, heads, head_dim]."""
    return x.flatten(1, 2).unflatten(-1, (num_heads, -1))
