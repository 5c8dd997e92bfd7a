"""The action module of a layer: mouse and keyboard rows steer the tokens by attention over time (SPEC §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attend, KeyValue
from models.kernels import rms_norm
from models.linear import Linear, Packed, pack, product
from models.rope import Rotary, apply_rotary
from models.sizes import check_positive


@dataclass(frozen=True)
class ActionConfig:
    """Sizes of the action modules; the defaults are the published universal mode. ``mouse_dim`` 0 means no mouse."""

    blocks: tuple[int, ...] = tuple(range(15))  # layers that have an action module
    hidden: int = 1024  # width of both attentions
    heads: int = 16
    keyboard_dim: int = 4
    keyboard_hidden: int = 128
    mouse_dim: int = 2
    windows_size: int = 3  # latents of condition rows a latent reads
    vae_time_ratio: int = 4  # condition rows (frames) a latent
    rope_theta: float = 256.0
    rope_dim: int = 8  # numbers of a head that turn with time; the rest belong to row and column, which are 0 here

    def __post_init__(self) -> None:
        check_positive(self, "hidden", "heads", "keyboard_hidden", "windows_size", "vae_time_ratio", "rope_theta")
        if self.hidden % self.heads:
            raise ValueError(f"action hidden {self.hidden} does not divide into {self.heads} heads")
        if self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise ValueError(f"action rope_dim {self.rope_dim} must be even and at most the head's {self.head_dim} numbers")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def rows(self) -> int:
        """Condition rows one latent reads: 12."""
        return self.windows_size * self.vae_time_ratio


@dataclass(frozen=True)
class Steering:
    """What a block's condition rows give one action module, whatever the tokens are."""

    mouse: Tensor | None  # the rows' part of the first mouse layer, [B, T, 1, hidden]
    keys: Tensor  # of the keyboard, each [B, heads, T, head_dim]
    values: Tensor


class ActionModule(nn.Module):
    """Mouse part, then keyboard part; each attends over the latents of the window, at every place of the picture separately."""

    def __init__(self, dim: int, config: ActionConfig) -> None:
        super().__init__()
        self.config = config
        hidden, head_dim = config.hidden, config.head_dim
        self.keyboard_embed = nn.Sequential(
            nn.Linear(config.keyboard_dim, config.keyboard_hidden), nn.SiLU(), nn.Linear(config.keyboard_hidden, config.keyboard_hidden)
        )
        if config.mouse_dim:
            self.mouse_mlp = nn.Sequential(
                nn.Linear(dim + config.rows * config.mouse_dim, hidden), nn.GELU(approximate="tanh"), Linear(hidden, hidden),
                nn.LayerNorm(hidden, eps=1e-5),
            )  # fmt: skip
            self.t_qkv = Linear(hidden, 3 * hidden, bias=False)
            self.img_attn_q_norm, self.img_attn_k_norm = _StoredNorm(head_dim), _StoredNorm(head_dim)
            self.proj_mouse = Linear(hidden, dim, bias=False)
        self.key_attn_q_norm, self.key_attn_k_norm = _StoredNorm(head_dim), _StoredNorm(head_dim)
        self.mouse_attn_q = Linear(dim, hidden, bias=False)  # despite its name, the keyboard's query
        self.keyboard_attn_kv = nn.Linear(config.rows * config.keyboard_hidden, 2 * hidden, bias=False)
        self.proj_keyboard = Linear(hidden, dim, bias=False)

        self._token_weight: Tensor | None = None
        self.packed: Packed | None = None  # the same, see `models.linear`

    def fuse(self) -> None:
        """Lay the mouse weights out as they are multiplied, from now on."""
        if self.config.mouse_dim:
            self._token_weight = self.mouse_mlp[0].weight.detach()[:, : self.proj_mouse.weight.shape[0]].contiguous()

    def pack(self) -> None:
        """Call `fuse` first."""
        self.packed = None if self._token_weight is None else pack(self._token_weight)

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self._token_weight = self.packed = None
        return super()._apply(*args, **kwargs)

    def prepare(self, keyboard: Tensor, mouse: Tensor | None, rotary: Rotary, dtype: torch.dtype) -> Steering:
        """What the rows alone decide: keyboard [B, T, rows, keyboard_dim], mouse [B, T, rows, mouse_dim]. The same for all passes."""
        batch, latents = keyboard.shape[:2]
        heads, head_dim = self.config.heads, self.config.head_dim
        rows = self.keyboard_embed(keyboard.to(dtype)).flatten(2)  # [B, T, rows x keyboard_hidden]
        k, v = self.keyboard_attn_kv(rows).view(batch, latents, 2, heads, head_dim).unbind(2)  # the same for every place
        k = _normed_rotated(k, rotary, v.dtype).transpose(1, 2)  # [B, heads, T, head_dim]
        if not self.config.mouse_dim:
            return Steering(None, k, v.transpose(1, 2))
        joint = self.mouse_mlp[0]  # reads (token, rows): both halves apart, so that rows are not copied to places
        tokens = self.proj_mouse.weight.shape[0]
        steer = F.linear(mouse.flatten(2).to(dtype), joint.weight[:, tokens:], joint.bias)[:, :, None]  # [B, T, 1, hidden]
        return Steering(steer, k, v.transpose(1, 2))

    def forward(self, x: Tensor, steering: Steering, rotary: Rotary, attend: Attend) -> Tensor:
        """x [B, T, S, dim] -> x [B, T, S, dim]. ``rotary`` has one row per latent (`rope.rotary_time`)."""
        if self.config.mouse_dim:
            q, k, v = self._mouse_qkv(x, steering, rotary)
            out = attend.mouse(q, k, v)  # [B, S x heads, T, head_dim]
            x = x + self.proj_mouse(out.transpose(1, 2).reshape(*x.shape[:3], -1))
        return x + self.proj_keyboard(self._keyboard(x, steering, rotary, attend))

    def mouse_keys_values(self, x: Tensor, steering: Steering, rotary: Rotary) -> KeyValue:
        """What `forward` would put into the mouse's ring, each [B, S x heads, T, head_dim]."""
        _, k, v = self._mouse_qkv(x, steering, rotary)
        return k, v

    def _mouse_qkv(self, x: Tensor, steering: Steering, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        batch, latents, places, dim = x.shape
        joint, gelu, linear, norm = self.mouse_mlp
        weight = joint.weight[:, :dim] if self._token_weight is None else self._token_weight
        h = norm(linear(gelu(product(x, weight, None, self.packed) + steering.mouse)))  # [B, T, S, hidden]
        qkv = self.t_qkv(h).view(batch, latents, places, 3, -1, self.config.head_dim)
        v = qkv[:, :, :, 2].flatten(2, 3)  # [B, T, S x heads, head_dim]
        both = _normed_rotated(qkv[:, :, :, :2].flatten(2, 4), rotary, v.dtype)
        q, k = both.view(batch, latents, places, 2, -1).unbind(3)
        q, k = (a.unflatten(3, (-1, self.config.head_dim)).flatten(2, 3) for a in (q, k))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # places count as heads: [B, S x heads, T, head_dim]

    def _keyboard(self, x: Tensor, steering: Steering, rotary: Rotary, attend: Attend) -> Tensor:
        batch, latents, places, _ = x.shape
        heads, head_dim = self.config.heads, self.config.head_dim
        q = self.mouse_attn_q(x).view(batch, latents, places * heads, head_dim)
        q = _normed_rotated(q, rotary, steering.keys.dtype)
        q = q.view(batch, latents * places, heads, head_dim).transpose(1, 2)  # [B, heads, TxS, head_dim]
        out = attend.keyboard(q, steering.keys, steering.values)  # [B, heads, TxS, head_dim]
        return out.transpose(1, 2).reshape(batch, latents, places, heads * head_dim)


class _StoredNorm(nn.RMSNorm):
    """A weight that the published files carry and the published code never uses (it normalises without weight)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim, eps=1e-6)
        self.weight.requires_grad_(False)


def _normed_rotated(x: Tensor, rotary: Rotary, dtype: torch.dtype) -> Tensor:
    """RMS-normalise each head without weight in float32, then turn it. x [B, T, heads, head_dim]."""
    return apply_rotary(rms_norm(x.float(), None, 1e-6), rotary).to(dtype)
