"""The same model written as plainly as it usually is, to measure against: same weights, same numbers, none of the care.

Caches are rolled and ask the device where they end; rotary embedding is complex and in float64; the image's keys, the time embedding
and the modulation are computed again in every pass and for every token; convolutions are padded `conv3d` over [B, C, T, H, W]; latents
are decoded one at a time and frames come to the host in float32. It shares only parameters with `models`, so a test that holds
both against each other checks both.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.actions import IDLE, Action
from engine.conditioning import ConditionRing, StartCondition, stands_still
from engine.device import synchronize
from engine.sampler import SeededNoise
from engine.world import World
from models.action import ActionModule
from models.dit import DiT
from models.flow import FlowSchedule, add_noise, x0_from_output
from models.layers import Layer, timestep_embedding
from models.rope import axis_angles, axis_split
from models.vae import VAE
from models.vae_layers import AttentionBlock, CausalConv3d, ResidualBlock, RMSNorm, Upsample


class RollingCache:
    """Keys and values [B, window x tokens, heads, head_dim]; where they end is kept on the device and read back."""

    def __init__(self, batch: int, tokens: int, window: int, heads: int, head_dim: int, like: Tensor) -> None:
        self.k = like.new_zeros(batch, window * tokens, heads, head_dim)
        self.v = like.new_zeros(batch, window * tokens, heads, head_dim)
        self.tokens, self.size = tokens, window * tokens
        self.global_end = torch.zeros(1, dtype=torch.long, device=like.device)
        self.local_end = torch.zeros(1, dtype=torch.long, device=like.device)

    def update(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Append the keys of the latents from ``start`` on (or overwrite them), and give back all that is to be seen."""
        new = k.shape[1]
        end = start * self.tokens + new
        fresh = end - self.global_end.item()
        local_end = self.local_end.item() + fresh
        if local_end > self.size:
            surplus = local_end - self.size
            kept = self.local_end.item() - surplus
            self.k[:, :kept] = self.k[:, surplus : surplus + kept].clone()
            self.v[:, :kept] = self.v[:, surplus : surplus + kept].clone()
            local_end = self.size
        self.k[:, local_end - new : local_end] = k
        self.v[:, local_end - new : local_end] = v
        self.global_end.fill_(end)
        self.local_end.fill_(local_end)
        return self.k[:, :local_end], self.v[:, :local_end]


@dataclass
class LayerState:
    tokens: RollingCache
    mouse: RollingCache | None
    keyboard: RollingCache | None


class Baseline:
    """Plays a `World` the plain way, from its own state. `step` as a session's."""

    def __init__(self, world: World, seed: int = 0, start: StartCondition | None = None) -> None:
        self.world = world
        self.clock = world.config.clock
        self._start = start or world.condition(None)
        self._ring = ConditionRing(world.config.model.action)
        self._noise = SeededNoise(seed)
        schedule = FlowSchedule(world.config.sampler.shift)
        self._timesteps = schedule.timesteps(world.config.sampler.steps)
        self._sigmas = schedule.sigma(self._timesteps)
        self._layers: list[LayerState] = []
        self._decoder: dict[str, Tensor] = {}
        self.timings: dict[str, float] = {}
        self.latents: Tensor | None = None  # of the last block, [1, z, n, h, w]

    @torch.inference_mode()
    def step(self, action: Action = IDLE) -> np.ndarray:
        """The next block's frames, uint8 [F, H, W, 3]."""
        begun = time.perf_counter()
        x0 = self.imagine_only(action)
        denoised = time.perf_counter()
        pictures = self.develop(x0)
        now = time.perf_counter()
        self.timings = {"transformer": denoised - begun, "decode": now - denoised, "total": now - begun}
        return pictures

    @torch.inference_mode()
    def imagine_only(self, action: Action = IDLE) -> Tensor:
        """The transformer's part of `step`: latents [1, z, n, h, w], finished."""
        world, clock = self.world, self.clock
        rows = self._ring.hold(clock, *world.config.actions.to_model(action))
        windows = self._ring.windows(clock, rows).to(world.device)
        condition = self._start.block(clock)
        x0: Tensor | None = None
        shape = (1, world.config.model.out_dim, clock.n, *condition.shape[3:])
        for step, (timestep, sigma) in enumerate(zip(self._timesteps, self._sigmas, strict=True)):
            fresh = self._noise.noise(clock, step, shape).to(world.device)
            if step == len(self._timesteps) - 1 and step:
                fresh = world.config.sampler.last_noise * fresh
            x = fresh if x0 is None else add_noise(x0, fresh, float(sigma))
            out = self._pass(torch.cat([x, condition], 1), timestep, windows.keyboard, windows.mouse)
            x0 = x0_from_output(x, out.float(), float(sigma), world.config.model.prediction)
        assert x0 is not None
        if stands_still(world.config, clock, self._ring, rows):  # the next block is written over this one
            self.clock = clock.held()
        else:
            self._pass(torch.cat([x0, condition], 1), torch.zeros(()), windows.keyboard, windows.mouse)
            self._ring.commit(clock, rows)
            self.clock = clock.next()
        synchronize(world.device)
        self.latents = x0
        return x0

    @torch.inference_mode()
    def develop(self, latents: Tensor) -> np.ndarray:
        """The decoder's part of `step`, over the next latents [1, z, n, h, w] of its stream."""
        frames = torch.cat([self._decode(latents[:, :, i : i + 1], not self._decoder) for i in range(latents.shape[2])], dim=2)
        pictures = frames[0].permute(1, 2, 3, 0).float().cpu()  # [F, H, W, 3]
        return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    # ---- the transformer

    def _pass(self, x: Tensor, timestep: Tensor, keyboard: Tensor, mouse: Tensor | None) -> Tensor:
        dit, config = self.world.dit, self.world.config.model
        weight = dit.patch_embedding.weight
        tokens = F.conv3d(x.to(weight.dtype), weight, dit.patch_embedding.bias, stride=config.patch_size)
        n, height, width = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2)  # [1, n x S, dim]
        if not self._layers:
            self._layers = self._new_layers(dit, height * width, tokens)
        sinusoids = timestep_embedding(timestep.expand(1, n), config.freq_dim).to(tokens.dtype).to(tokens.device)
        embedded = dit.time_embedding(sinusoids).repeat_interleave(height * width, 1)  # [1, n x S, dim]
        modulation = dit.time_projection(embedded).unflatten(-1, (6, -1))  # [1, n x S, 6, dim]
        freqs = _token_freqs(config.head_dim, self.clock.start, n, height, width, tokens.device)
        context = None if dit.img_emb is None else dit.img_emb(self._start.visual_context)
        for layer, state in zip(dit.blocks, self._layers, strict=True):
            tokens = self._layer(layer, state, tokens, modulation, freqs, context, keyboard, mouse, n)
        shift, scale = (dit.head.modulation[:, None] + embedded[:, :, None]).unbind(2)
        out = dit.head.head(F.layer_norm(tokens, tokens.shape[-1:], eps=config.eps) * (1 + scale) + shift)
        out = out.view(1, n, height, width, *config.patch_size[1:], -1).permute(0, 6, 1, 2, 4, 3, 5)
        return out.flatten(5, 6).flatten(3, 4)

    def _new_layers(self, dit: DiT, places: int, like: Tensor) -> list[LayerState]:
        config, window = dit.config, dit.config.local_attn_size
        states = []
        for layer in dit.blocks:
            action, acts = config.action, layer.action_model is not None
            mouse = acts and action.mouse_dim
            states.append(
                LayerState(
                    RollingCache(1, places, window, config.num_heads, config.head_dim, like),
                    RollingCache(places, 1, window, action.heads, action.head_dim, like) if mouse else None,
                    RollingCache(1, 1, window, action.heads, action.head_dim, like) if acts else None,
                )
            )
        return states

    def _layer(
        self, layer: Layer, state: LayerState, x: Tensor, modulation: Tensor, freqs: Tensor, context: Tensor | None, keyboard: Tensor,
        mouse: Tensor | None, n: int,
    ) -> Tensor:  # fmt: skip
        e = (layer.modulation[:, None] + modulation).unbind(2)
        heads = layer.self_attn.num_heads
        h = F.layer_norm(x, x.shape[-1:], eps=layer.eps) * (1 + e[1]) + e[0]
        q = _rotate(_weighted_norm(layer.self_attn.norm_q, layer.self_attn.q(h)).unflatten(2, (heads, -1)), freqs).to(h.dtype)
        k = _rotate(_weighted_norm(layer.self_attn.norm_k, layer.self_attn.k(h)).unflatten(2, (heads, -1)), freqs).to(h.dtype)
        v = layer.self_attn.v(h).unflatten(2, (heads, -1))
        x = x + e[2] * layer.self_attn.o(_attend(q, *state.tokens.update(k, v, self.clock.start)).flatten(2))
        if context is not None:
            cross = layer.cross_attn
            q = _weighted_norm(cross.norm_q, cross.q(layer.norm3(x))).to(x.dtype).unflatten(2, (heads, -1))
            k = _weighted_norm(cross.norm_k, cross.k(context)).to(x.dtype).unflatten(2, (heads, -1))
            x = x + cross.o(_attend(q, k, cross.v(context).unflatten(2, (heads, -1))).flatten(2))
        if layer.action_model is not None:
            x = self._act(layer.action_model, state, x, keyboard, mouse, n)
        return x + e[5] * layer.ffn(F.layer_norm(x, x.shape[-1:], eps=layer.eps) * (1 + e[4]) + e[3])

    def _act(self, module: ActionModule, state: LayerState, x: Tensor, keyboard: Tensor, mouse: Tensor | None, n: int) -> Tensor:
        config, start = module.config, self.clock.start
        places = x.shape[1] // n
        positions = torch.arange(start, start + n, device=x.device)
        angles = axis_angles(positions, config.rope_dim, config.rope_theta)
        freqs = torch.polar(torch.ones_like(angles), angles)  # [n, pairs] complex128
        freqs = torch.cat([freqs, freqs.new_ones(n, config.head_dim // 2 - freqs.shape[1])], 1)
        if mouse is not None:
            rows = mouse.flatten(2).to(x.dtype)[:, :, None].expand(-1, -1, places, -1).flatten(1, 2)  # every token its own copy
            h = module.t_qkv(module.mouse_mlp(torch.cat([x, rows], -1)))
            h = h.view(n, places, 3, config.heads, config.head_dim).transpose(0, 1)  # [S, n, 3, heads, head_dim]
            q, k, v = h.unbind(2)
            q, k = (_rotate(_plain_norm(a), freqs).to(x.dtype) for a in (q, k))
            h = _attend(q, *state.mouse.update(k, v, start))  # [S, n, heads, head_dim]
            x = x + module.proj_mouse(h.flatten(2).transpose(0, 1).reshape(1, n * places, -1))
        rows = module.keyboard_embed(keyboard.to(x.dtype)).flatten(2)
        k, v = module.keyboard_attn_kv(rows).view(1, n, 2, config.heads, config.head_dim).unbind(2)
        q = module.mouse_attn_q(x).view(1, n * places, config.heads, config.head_dim)
        q = _rotate(_plain_norm(q), freqs.repeat_interleave(places, 0)).to(x.dtype)
        k = _rotate(_plain_norm(k), freqs).to(x.dtype)
        return x + module.proj_keyboard(_attend(q, *state.keyboard.update(k, v, start)).flatten(2))

    # ---- the decoder

    def _decode(self, latent: Tensor, first: bool) -> Tensor:
        """One latent [1, z, 1, h, w] -> frames [1, 3, 1 or 4, H, W]."""
        vae = self.world.vae
        mean, std = (torch.tensor(v, device=latent.device).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
        x = self._conv("conv2", vae.conv2, (latent.float() * std + mean).to(vae.conv2.weight.dtype))
        decoder = vae.decoder
        x = self._conv("conv1", decoder.conv1, x)
        for i, module in enumerate((*decoder.middle, *decoder.upsamples)):
            x = self._module(str(i), module, x, first)
        x = self._conv("head", decoder.head["2"], F.silu(_channel_norm(decoder.head["0"], x)))
        return _unpatch(x, vae).clamp(-1, 1)

    def _module(self, name: str, module: nn.Module, x: Tensor, first: bool) -> Tensor:
        if isinstance(module, ResidualBlock):
            norm1, conv1, norm2, conv2 = module.residual.values()
            h = self._conv(f"{name}.1", conv1, F.silu(_channel_norm(norm1, x)))
            h = self._conv(f"{name}.2", conv2, F.silu(_channel_norm(norm2, h)))
            return h + (x if isinstance(module.shortcut, nn.Identity) else self._conv(f"{name}.0", module.shortcut, x))
        if isinstance(module, AttentionBlock):
            batch, _, frames, height, width = x.shape
            h = _channel_norm(module.norm, x).transpose(1, 2).flatten(0, 1)
            q, k, v = module.to_qkv(h).flatten(2).transpose(1, 2)[:, None].chunk(3, -1)  # [T, 1, H x W, C]
            h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, (height, width))
            return x + module.proj(h).unflatten(0, (batch, frames)).transpose(1, 2)
        assert isinstance(module, Upsample)
        if module.time_conv is not None and not first:
            h = self._conv(f"{name}.t", module.time_conv, x)
            x = h.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)  # even and odd frames in turn
        frames = x.transpose(1, 2).flatten(0, 1)
        frames = module.resample["1"](F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"))
        return frames.unflatten(0, (x.shape[0], -1)).transpose(1, 2)

    def _conv(self, name: str, conv: CausalConv3d, x: Tensor) -> Tensor:
        if conv.kernel[0] == 1:
            return F.conv3d(x, conv.weight, conv.bias)
        past = self._decoder.get(name)
        past = torch.zeros_like(x[:, :, :1]).repeat(1, 1, 2, 1, 1) if past is None else past
        x = torch.cat([past, x], 2)
        self._decoder[name] = x[:, :, -2:].clone()
        side = conv.kernel[1] // 2
        return F.conv3d(F.pad(x, (side, side, side, side)), conv.weight, conv.bias)


def _unpatch(x: Tensor, vae: VAE) -> Tensor:
    p = vae.config.patch_size
    return x.unflatten(1, (3, p, p)).permute(0, 1, 4, 5, 2, 6, 3).flatten(5, 6).flatten(3, 4)


def _channel_norm(norm: RMSNorm, x: Tensor) -> Tensor:
    gamma = norm.gamma.view(1, -1, *[1] * (x.dim() - 2))
    return (F.normalize(x.float(), dim=1) * x.shape[1] ** 0.5 * gamma).to(x.dtype)


def _weighted_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight


def _plain_norm(x: Tensor) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)


def _token_freqs(head_dim: int, start: int, n: int, height: int, width: int, device: torch.device) -> Tensor:
    """Rotations of the tokens [n x S, head_dim / 2], complex128."""
    sides = (torch.arange(start, start + n), torch.arange(height), torch.arange(width))
    angles = [axis_angles(side.to(device), size, 10000.0) for side, size in zip(sides, axis_split(head_dim), strict=True)]
    time_, rows, columns = (torch.polar(torch.ones_like(a), a) for a in angles)
    grid = (n, height, width, -1)
    parts = [time_[:, None, None].expand(grid), rows[None, :, None].expand(grid), columns[None, None].expand(grid)]
    return torch.cat(parts, -1).flatten(0, 2)


def _rotate(x: Tensor, freqs: Tensor) -> Tensor:
    """Turn pairs of x [B, tokens, heads, head_dim] as complex numbers, in float64."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * freqs[:, None]).flatten(3)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All [B, tokens, heads, head_dim]."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
