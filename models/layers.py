"""One layer of the denoiser, and what stands before and after the layers: see `models.dit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.action import ActionModule, Steering
from models.attention import Attend, CrossAttention, KeyValue, SelfAttention
from models.float8 import Float8Linear
from models.kv_cache import Block, KVRing, LayerCache
from models.linear import Linear, Packed, linear_gelu, standing_in
from models.recorded import Recordings, play
from models.rope import Rotary

if TYPE_CHECKING:
    from models.dit_config import DiTConfig

Modulation = tuple[Tensor, ...]  # (shift, scale, gate) twice in a layer, (shift, scale) in the head
CondRows = tuple[Tensor, Tensor | None]  # keyboard and mouse rows, cut per latent


@dataclass(frozen=True)
class Given:
    """What all passes over the block of latents [start, start + n) share; made by `DiT.prepare`."""

    start: int
    n: int
    grid: Rotary
    time: Rotary
    steerings: Sequence[Steering | CondRows | None]  # of each layer
    slots: Tensor  # of the rings, [n] on the device
    rows: CondRows | None = None  # what the steerings are to be made of, where `models.graphs` may do that

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Given:
        """The same with every tensor but the steerings' changed."""

        def each(value: Rotary | CondRows | None) -> Any:
            if isinstance(value, tuple):
                return tuple(map(each, value))
            return None if value is None else change(value)

        return replace(self, grid=each(self.grid), time=each(self.time), slots=change(self.slots), rows=each(self.rows))

    def tensors(self) -> list[Tensor]:
        """Every tensor but the steerings'."""
        found: list[Tensor] = []
        self.mapped(lambda tensor: found.append(tensor) or tensor)
        return found


class Layer(nn.Module):
    """Self-attention, cross-attention to the image (if any), action module (in some layers), feed-forward."""

    def __init__(self, config: DiTConfig, acts: bool) -> None:
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.self_attn = SelfAttention(dim, config.num_heads, config.eps)
        self.norm3 = nn.LayerNorm(dim, config.eps) if config.img_dim else None
        self.cross_attn = CrossAttention(dim, config.num_heads, config.eps) if config.img_dim else None
        self.action_model = ActionModule(dim, config.action) if acts else None
        self.ffn = nn.Sequential(Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), Linear(config.ffn_dim, dim))
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))
        self.packs: tuple[Packed, ...] = ()  # what `pack` has made
        with torch.no_grad():
            self.modulation[:, 2::3] = 1  # the two gates

    def pack(self) -> None:
        """Keep the weights a second time, as they are multiplied (`models.linear`), until the layer is moved. Call `DiT.fuse` first."""
        for module in self.modules():
            if isinstance(module, (Linear, SelfAttention, ActionModule)):
                module.pack()
        found = (getattr(module, "packed", None) for module in self.modules())
        self.packs = tuple(packed for packed in found if packed is not None)

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self.packs = ()
        return super()._apply(*args, **kwargs)

    def to_float8(self) -> None:
        """Make attention's and the feed-forward part's products in float8 from now on, for good; `models.float8`. Call `DiT.fuse` first.

        The action module stays as it is: a tenth of the products, and what the player says is not to be rounded.
        """
        self.self_attn.to_float8()
        if self.cross_attn is not None:
            self.cross_attn.to_float8()
        self.ffn[0], self.ffn[2] = Float8Linear.of(self.ffn[0]), Float8Linear.of(self.ffn[2])
        if self.packs:  # of what is left
            self.pack()

    def outputs(self) -> list[nn.Linear]:
        """The linear layers that write into the residual stream."""
        action = self.action_model
        acting = [] if action is None else [action.proj_keyboard] + ([action.proj_mouse] if action.config.mouse_dim else [])
        return [self.self_attn.o, self.ffn[2], *([] if self.cross_attn is None else [self.cross_attn.o]), *acting]

    def forward(
        self, x: Tensor, modulation: Modulation | Tensor, steering: Steering | CondRows | None, grid: Rotary, time: Rotary,
        attend: Attend,
    ) -> Tensor:  # fmt: skip
        """x [B, T, S, dim] -> [B, T, S, dim]; ``modulation`` is shift, scale and gate, twice.

        Of what depends on weights that may change, the raw material may be given instead: the time's six vectors [B, T, 6, dim] for
        ``modulation``, keyboard and mouse rows for ``steering``.
        """
        modulation, steering = self._own(modulation, steering, time, x.dtype)
        x = self._attended(x, modulation, grid, attend)
        if self.action_model is not None:
            x = self.action_model(x, steering, time, attend)
        hidden = linear_gelu(modulate(x, modulation[3], modulation[4], self.eps), self.ffn[0])
        return torch.addcmul(x, modulation[5], self.ffn[2](hidden))

    def modulated(self, six: Tensor) -> Modulation:
        """The time's six vectors [B, T, 6, dim] and the layer's own: shift, scale and gate, twice, each [B, T, 1, dim]."""
        return (self.modulation + six)[:, :, :, None].unbind(2)

    def _own(
        self, modulation: Modulation | Tensor, steering: Steering | CondRows | None, time: Rotary, dtype: torch.dtype
    ) -> tuple[Modulation, Steering | None]:
        if isinstance(modulation, Tensor):
            modulation = self.modulated(modulation)
        if isinstance(steering, tuple):
            steering = None if self.action_model is None else self.action_model.prepare(*steering, time, dtype)
        return modulation, steering

    def _attended(self, x: Tensor, modulation: Modulation, grid: Rotary, attend: Attend) -> Tensor:
        x = torch.addcmul(x, modulation[2], self.self_attn(modulate(x, modulation[0], modulation[1], self.eps), grid, attend))
        return x if self.cross_attn is None else x + self.cross_attn(self.norm3(x), attend)

    def remember(
        self,
        x: Tensor,
        modulation: Modulation | Tensor,
        given: Given,
        memory: LayerCache,
        block: Block | None,
        steering: Steering | CondRows | None,
    ) -> None:
        """Leave what `forward` would leave in the rings, and work out nothing else.

        No ``block``: the window is full, and the slots are found on the device.
        """

        def write(ring: KVRing, keys_values: KeyValue) -> None:
            if block is None:
                ring.write_full(given.slots, *keys_values)
            else:
                ring.write(block, *keys_values)

        grid, time = given.grid, given.time
        modulation, steering = self._own(modulation, steering, time, x.dtype)
        if memory.mouse is None:  # nothing that is remembered depends on this layer's output
            write(memory.tokens, self.self_attn.keys_values(modulate(x, modulation[0], modulation[1], self.eps), grid))
        else:
            x = self._attended(x, modulation, grid, memory.attend_full(given.slots) if block is None else memory.attend(block))
            write(memory.mouse, self.action_model.mouse_keys_values(x, steering, time))
        if memory.keyboard is not None:
            write(memory.keyboard, (steering.keys, steering.values))


class ImageProjection(nn.Module):
    """Image tokens [B, L, img_dim] -> [B, L, dim]."""

    def __init__(self, img_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(img_dim), nn.Linear(img_dim, img_dim), nn.GELU(), nn.Linear(img_dim, dim), nn.LayerNorm(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(tokens)


class Head(nn.Module):
    """Tokens -> the numbers of their patch, channel last."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, math.prod(config.patch_size) * config.out_dim)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x: Tensor, modulation: Modulation | Tensor) -> Tensor:
        """``modulation`` is shift and scale, or the time embedding [B, T, dim] they are made of."""
        modulation = self.modulated(modulation) if isinstance(modulation, Tensor) else modulation
        return self.head(modulate(x, *modulation, self.eps))

    def modulated(self, embedded: Tensor) -> Modulation:
        """Shift and scale, each [B, T, 1, dim]."""
        return (self.modulation + embedded[:, :, None])[:, :, :, None].unbind(2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without parameters, then scale and shift: LN(x) (1 + scale) + shift (adaptive LN of Peebles & Xie 2023).

    Shift and scale are [B, T, 1, dim], or [dim], and ``scale`` then 1 + scale already (`uniform`): the norm takes them along.
    """
    if shift.dim() == 1:
        return F.layer_norm(x, shift.shape, scale, shift, eps)
    return F.layer_norm(x, (x.shape[-1],), eps=eps) * (1 + scale) + shift


def uniform(modulation: Modulation) -> Modulation:
    """The modulation of a single latent [1, 1, 1, dim] as one for all of them, each [dim]; see `modulate`."""
    return tuple((part + 1 if i % 3 == 1 else part).flatten() for i, part in enumerate(modulation))


def layer_body(
    layer: Layer, x: Tensor, modulation: Modulation, steering: Steering | None, grid: Rotary, time: Rotary, memory: LayerCache,
    slots: Tensor,
) -> Tensor:  # fmt: skip
    """``layer`` over a full window (`KVRing.attend_full`), to be compiled; x [B, T, S, dim] -> [B, T, S, dim]."""
    return layer(x, modulation, steering, grid, time, memory.attend_full(slots))


def run_over_window(
    body: Callable[..., Tensor], modulation: Modulation, steering: Steering | None, given: Given, memory: LayerCache, layer: Layer,
    x: Tensor,
) -> Tensor:  # fmt: skip
    """``layer`` by ``body``: `layer_body` compiled, or `run_recorded`."""
    return body(layer, x, modulation, steering, given.grid, given.time, memory, given.slots)


def run_as_it_is(
    modulation: Modulation, steering: Steering | None, given: Given, attend: Attend, layer: Layer, x: Tensor
) -> Tensor:  # fmt: skip
    """``layer`` over whatever window there is."""
    return layer(x, modulation, steering, given.grid, given.time, attend)


def run_recorded(
    recordings: Recordings, layer: Layer, x: Tensor, modulation: Modulation, steering: Steering | None, grid: Tensor, time: Tensor,
    memory: LayerCache, slots: Tensor,
) -> Tensor:  # fmt: skip
    """``layer`` over a full window (`KVRing.attend_full`), recorded where that can be; x [B, T, S, dim] -> [B, T, S, dim]."""
    kept = memory.tokens, memory.mouse, memory.keyboard
    image, packs = memory.image or (), layer.packs
    steers = () if steering is None else (steering.mouse, steering.keys, steering.values)
    rings = [buffer for ring in kept if ring is not None for buffer in (ring.k, ring.v)]
    given = [x, grid, time, slots, *modulation, *rings, *image, *(part for part in steers if part is not None)]
    given += [packed.weight for packed in packs]

    def run(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        x, grid, time, slots = islice(rest, 4)
        modulated = tuple(islice(rest, len(modulation)))
        rings = [ring and KVRing(next(rest), next(rest)) for ring in kept]
        seen = LayerCache(*rings, tuple(islice(rest, len(image))) or None)
        steered = Steering(*(part if part is None else next(rest) for part in steers)) if steers else None
        with standing_in(packs, tuple(rest)):
            return layer(x, modulated, steered, grid, time, seen.attend_full(slots))

    key = layer, len(image), *(ring is None for ring in kept), *(part is None for part in steers)
    calls = recordings.find(key, run, given, telling=(x, memory.tokens.k, *image))
    return run(*given) if calls is None else play(calls, given)


def timestep_embedding(timestep: Tensor, freq_dim: int) -> Tensor:
    """Sinusoids of timesteps [...] -> float64 [..., freq_dim]: cosines first, base 10000 (Vaswani et al. 2017)."""
    half = freq_dim // 2
    frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.to(torch.float64)[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
