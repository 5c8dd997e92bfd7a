"""Playing a recording of a DiT with nothing but `models/`. Run as a script it writes the small recording that travels with the project:

    python -m tests.models.dit_recordings        # tests/fixtures/dit_small.safetensors

That one was made by this code on the day it reproduced all recordings of the published code to 4e-7; it guards the same
numbers where those are not at hand.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.dit import DiT, DiTConfig
from models.flow import FlowSchedule, add_noise, x0_from_output
from models.kv_cache import DiTCache
from tests.recordings import FIXTURES, Recording, read_recording

BLOCK = 3


def windows(rows: Tensor, latents: range) -> Tensor:
    """Condition rows [B, frames, K] -> what each latent reads, [B, latents, 12, K] (SPEC §2)."""
    return rows[:, torch.tensor([[max(0, 4 * t - 12 + r) for r in range(12)] for t in latents])]


def build(r: Recording) -> DiT:
    """The recorded model: sizes from the metadata, weights under their published names."""
    c = r.config
    defaults = DiTConfig.from_name(c["mode"])
    head_dim = r["w.model.blocks.0.action_model.key_attn_q_norm.weight"].shape[0]
    sizes = {name: c[name] for name in ("dim", "ffn_dim", "num_heads", "num_layers", "local_attn_size")}
    sizes |= {name: c[name] for name in ("freq_dim", "img_dim") if name in c}
    action = replace(
        defaults.action, blocks=tuple(c["action_blocks"]), heads=c["action_heads"], hidden=head_dim * c["action_heads"],
        keyboard_hidden=c["action_hidden_size"],
    )  # fmt: skip
    dit = DiT(replace(defaults, **sizes, action=action))
    dit.load_state_dict(r.part("w.model."))
    return dit.requires_grad_(False).to(r["in.noise"].device)


def start_cache(dit: DiT, r: Recording) -> DiTCache:
    height, width = (side // 2 for side in r["in.noise"].shape[3:])
    cache = dit.new_cache(1, height, width, r["in.noise"].device)
    dit.precompute_context(r["in.visual_context"], cache)
    return cache


def inputs(r: Recording, x: Tensor, block: int, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What one pass over a block is given: x with its condition channels, timesteps, keyboard and mouse windows."""
    latents = range(BLOCK * block, BLOCK * block + BLOCK)
    side = "out" if "out.keyboard_cond" in r.tensors else "in"
    keyboard, mouse = (windows(r[f"{side}.{name}_cond"], latents) for name in ("keyboard", "mouse"))
    channels = r["in.cond_concat"][:, :, latents.start : latents.stop]
    return torch.cat([x, channels], 1), timestep.expand(1, BLOCK), keyboard, mouse


def run_block(dit: DiT, cache: DiTCache, r: Recording, block: int, schedule: FlowSchedule, given: int = 0) -> list[Tensor]:
    """Denoise a block with the recorded noise and commit it: x0 after each pass, the clean one included."""
    timesteps = [*schedule.timesteps(r.config["denoising_step_list"]), torch.tensor(0.0)]
    k = block - given
    x, passes = r["in.noise"][:, :, BLOCK * k : BLOCK * k + BLOCK], []
    for i, timestep in enumerate(timesteps):
        if 0 < i < len(timesteps) - 1:
            x = add_noise(passes[-1], r["in.renoise"][k, i - 1].transpose(0, 1)[None], schedule.sigma(timestep))
        elif i > 0:
            x = passes[-1]
        output = dit(*inputs(r, x, block, timestep), cache, BLOCK * block)
        passes.append(x0_from_output(x, output, schedule.sigma(timestep), dit.config.prediction))
    return passes


def make_small() -> None:
    """Random weights and inputs from a fixed seed; outputs by this code."""
    torch.manual_seed(7)
    blocks, height, width = 3, 4, 6
    config: dict[str, Any] = dict(
        mode="universal", dim=32, ffn_dim=48, freq_dim=16, img_dim=24, num_heads=2, num_layers=2, local_attn_size=4, action_blocks=[0],
        action_heads=2, action_hidden_size=8, denoising_step_list=[1000, 666, 333],
    )  # fmt: skip
    action = replace(DiTConfig().action, blocks=(0,), heads=2, hidden=32, keyboard_hidden=8)
    sizes = {name: config[name] for name in ("dim", "ffn_dim", "freq_dim", "img_dim", "num_heads", "num_layers", "local_attn_size")}
    dit = DiT(DiTConfig(**sizes, action=action))
    tensors = {f"w.model.{name}": (t + 0.1 * torch.randn(t.shape)).bfloat16() for name, t in dit.state_dict().items()}
    latents, frames = BLOCK * blocks, 1 + 4 * (BLOCK * blocks - 1)
    tensors |= {
        "in.noise": torch.randn(1, 16, latents, height, width),
        "in.renoise": torch.randn(blocks, 2, BLOCK, 16, height, width),
        "in.cond_concat": torch.randn(1, 20, latents, height, width),
        "in.visual_context": torch.randn(1, 5, 24),
        "out.keyboard_cond": torch.randint(0, 2, (1, frames, 4)).float(),
        "out.mouse_cond": torch.randn(1, frames, 2) * 0.1,
    }
    path = FIXTURES / "dit_small.safetensors"
    metadata = {"config": json.dumps(config)}
    save_file(tensors, path, metadata)
    r = read_recording(path)
    dit, schedule = build(r), FlowSchedule()
    cache = start_cache(dit, r)
    tensors["out.x0_steps"] = torch.stack([torch.stack(run_block(dit, cache, r, block, schedule)) for block in range(blocks)])
    save_file(tensors, path, metadata)


if __name__ == "__main__":
    make_small()
