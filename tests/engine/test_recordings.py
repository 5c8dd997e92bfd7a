"""Whole rollouts of the published code, through the ring, the sampler and the VAE (`shared/reference`; skipped without it)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from engine.clock import BlockClock
from engine.conditioning import ConditionRing, Rows, StartCondition
from engine.sampler import BlockSampler
from models.checkpoint import build_empty
from models.dit import DiT, DiTConfig
from models.flow import x0_from_velocity
from models.kv_cache import DiTCache
from models.vae import VAE, VAEConfig

FOLDER = Path(__file__).parents[3] / "shared" / "reference"
ROLLOUTS = ("universal_local6", "gta_drive_local4")


class Recording:
    """A file of `shared/reference`, ready to be played: its tensors, and a DiT, cache, ring and sampler of its sizes."""

    def __init__(self, name: str) -> None:
        path = FOLDER / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"no recording {path}")
        with safe_open(path, "pt") as file:
            self.tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - not a mapping
            c = json.loads(file.metadata()["config"])
        defaults = DiTConfig.from_name(c["mode"])
        heads, hidden, keyboard_hidden = c["action_heads"], 64 * c["action_heads"], c["action_hidden_size"]
        blocks = tuple(c["action_blocks"])
        action = replace(defaults.action, blocks=blocks, heads=heads, hidden=hidden, keyboard_hidden=keyboard_hidden)
        sizes = {key: c[key] for key in ("dim", "ffn_dim", "num_heads", "num_layers", "local_attn_size")}
        self.config = replace(defaults, **sizes, action=action)
        self.dit = build_empty(DiT, self.config)
        self.dit.load_state_dict(self.part("w.model."), assign=True)
        self.cache: DiTCache = self.dit.new_cache(1, 4, 6)
        self.dit.precompute_context(self["in.visual_context"], self.cache)
        self.ring = ConditionRing(self.config.action)
        self.sampler = BlockSampler(self.dit, c["denoising_step_list"], c.get("timestep_shift", 5.0))
        self.given = self.tensors["in.initial_latent"].shape[2] // 3 if "in.initial_latent" in self.tensors else 0  # blocks
        concat = self["in.cond_concat"]
        self.start = StartCondition(concat[:, 4:])
        torch.testing.assert_close(self.start.channels, concat, rtol=0, atol=0)  # the mask is the recorded one

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}

    def noise(self, clock: BlockClock, step: int, shape: tuple[int, ...]) -> Tensor:
        """The recorded noise; with a clip in front, it is counted from the first generated block."""
        block = clock.block - self.given
        if step == 0:
            return self["in.noise"][:, :, 3 * block : 3 * block + 3]
        return self["in.renoise"][block, step - 1].transpose(0, 1)[None]


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("name", ROLLOUTS)
@torch.inference_mode()
def test_whole_rollout(name: str) -> None:
    r = Recording(name)
    clock, latents = BlockClock(), []
    keyboard_rows, mouse_rows = [], []
    for block in range(6):
        rows = r.ring.hold(clock, r["in.keyboard_per_block"][block].numpy(), r["in.mouse_per_block"][block].numpy())
        windows, condition = r.ring.windows(clock, rows), r.start.block(clock)
        steps = list(r.sampler.denoise(clock, r.cache, condition, windows, r))
        output = r.sampler.commit(clock, r.cache, condition, windows, steps[-1])
        clean = x0_from_velocity(steps[-1], output, r.sampler.schedule.sigma(0.0))  # smallest sigma, as recorded
        for step, ours in enumerate([*steps, clean]):
            assert error(ours, r["out.x0_steps"][block, step]) < 1e-4, (block, step)
        torch.testing.assert_close(torch.tensor([*r.sampler.timesteps, 0.0]), r["out.timesteps"][block], rtol=1e-6, atol=0)
        r.ring.commit(clock, rows)
        keyboard_rows.append(rows.keyboard), mouse_rows.append(rows.mouse)
        latents.append(steps[-1])
        clock = clock.next()
    assert error(torch.cat(latents, 2), r["out.latents"]) < 1e-4
    torch.testing.assert_close(torch.cat(keyboard_rows)[None], r["out.keyboard_cond"], rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(mouse_rows)[None], r["out.mouse_cond"], rtol=0, atol=0)

    vae = build_empty(VAE, VAEConfig(dim=8))
    vae.load_state_dict(r.part("vae."), assign=True, strict=False)  # the decoder alone was recorded
    memory = vae.new_decoder_cache()
    for block, block_latents in enumerate(latents):
        video = vae.decode_block(block_latents, memory).transpose(1, 2)  # [1, F, 3, H, W]
        assert error(video, r[f"out.video_block_{block}"]) < 1e-4, block


@torch.inference_mode()
def test_prefill_from_a_clip() -> None:
    """Two given blocks pass block by block at timestep 0, with a different action in every row; then three are played."""
    r = Recording("prefill_local6")
    clock, latents = BlockClock(), []
    for block in range(5):
        frames = slice(clock.frames.start, clock.frames.stop)
        rows = Rows(r["in.keyboard_cond"][0, frames], r["in.mouse_cond"][0, frames])
        windows, condition = r.ring.windows(clock, rows), r.start.block(clock)
        if block < r.given:
            x0 = r["in.initial_latent"][:, :, clock.latents.start : clock.latents.stop]
        else:
            *_, x0 = r.sampler.denoise(clock, r.cache, condition, windows, r)
        r.sampler.commit(clock, r.cache, condition, windows, x0)
        r.ring.commit(clock, rows)
        latents.append(x0)
        clock = clock.next()
    assert error(torch.cat(latents, 2), r["out.latents"]) < 1e-4
