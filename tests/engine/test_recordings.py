"""Whole rollouts of the published code through the ring, the sampler and the stream decoder, as a session plays them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.clock import BlockClock
from engine.conditioning import ConditionRing, Rows, StartCondition, encode_start
from engine.sampler import BlockSampler
from models.dit import DiT
from models.flow import x0_from_velocity
from tests.models.dit_recordings import build, start_cache
from tests.published import CLIP_FILE, load_recorded
from tests.recordings import RecordedNoise, Recording, relative_error

Read = Callable[[str], Recording]


class Playback:
    """A recording played by the engine's parts, with the recorded noise."""

    def __init__(self, recording: Recording, dit: DiT | None = None) -> None:
        self.r = recording
        dit = dit or build(recording)
        self.cache = start_cache(dit, recording)
        self.ring = ConditionRing(dit.config.action)
        self.sampler = BlockSampler(dit, recording.config["denoising_step_list"], recording.config.get("timestep_shift", 5.0))
        given = recording.tensors.get("in.initial_latent")
        self.noise = RecordedNoise(recording, 0 if given is None else given.shape[2] // 3)
        self.start = StartCondition(recording["in.cond_concat"][:, 4:])
        self.clock = BlockClock()

    def recorded_rows(self, side: str) -> Rows:
        frames = slice(self.clock.frames.start, self.clock.frames.stop)
        return Rows(self.r[f"{side}.keyboard_cond"][0, frames], self.r[f"{side}.mouse_cond"][0, frames])

    def block(self, rows: Rows, given: Tensor | None = None) -> list[Tensor]:
        """x0 of every pass, the clean one last; ``given`` latents are only committed. Advances everything."""
        windows = self.ring.windows(self.clock, rows)
        condition = self.start.block(self.clock)
        steps = [given] if given is not None else list(self.sampler.denoise(self.clock, self.cache, condition, windows, self.noise))
        clean_input = torch.cat([steps[-1], condition], 1)
        output = self.sampler.dit(clean_input, torch.zeros(1, 3), windows.keyboard, windows.mouse, self.cache, self.clock.start)
        whole = {name: tensor.clone() for name, tensor in self.cache.tensors().items()}
        for layer in self.cache.layers:  # what the commit must leave is not there yet
            for ring in (layer.tokens, layer.mouse, layer.keyboard):
                for _, i, count in [] if ring is None else self.cache.open(self.clock.start, 3).writes:
                    slot = (self.clock.start + i) % self.cache.window
                    ring.k[:, :, slot : slot + count] = ring.v[:, :, slot : slot + count] = torch.nan
        self.sampler.commit(self.clock, self.cache, condition, windows, steps[-1])
        for name, tensor in self.cache.tensors().items():  # the commit leaves what the whole pass would have left
            torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)
        clean = x0_from_velocity(steps[-1], output, self.sampler.schedule.sigma(0.0))  # smallest sigma, as recorded
        self.ring.commit(self.clock, rows)
        self.clock = self.clock.next()
        return [*steps, clean]


@pytest.mark.parametrize("name", ["universal_local6", "gta_drive_local4"])
@torch.inference_mode()
def test_whole_rollout(recording: Read, name: str, tmp_path: Path) -> None:
    """From files on disk in the published layout, through `World.load`."""
    r = recording(name)
    world = load_recorded(r, tmp_path)
    assert world.config.model.local_attn_size == r.config["local_attn_size"]
    playback, latents, rows = Playback(r, world.dit), [], []
    torch.testing.assert_close(playback.start.channels, r["in.cond_concat"], rtol=0, atol=0)  # our mask is the recorded one
    for block in range(6):
        held = playback.ring.hold(playback.clock, r["in.keyboard_per_block"][block].numpy(), r["in.mouse_per_block"][block].numpy())
        passes = playback.block(held)
        for step, x0 in enumerate(passes):
            assert relative_error(x0, r["out.x0_steps"][block, step]) < 1e-4, (block, step)
        torch.testing.assert_close(torch.tensor([*playback.sampler.timesteps, 0.0]), r["out.timesteps"][block], rtol=1e-6, atol=0)
        latents.append(passes[-2])
        rows.append(held)
    assert relative_error(torch.cat(latents, 2), r["out.latents"]) < 1e-4
    assert torch.equal(torch.cat([part.keyboard for part in rows])[None], r["out.keyboard_cond"])
    assert torch.equal(torch.cat([part.mouse for part in rows])[None], r["out.mouse_cond"])

    memory = world.vae.new_decoder_cache()
    for block, x0 in enumerate(latents):
        video = world.vae.decode_block(x0, memory).transpose(1, 2)  # [1, F, 3, H, W]
        assert relative_error(video, r[f"out.video_block_{block}"]) < 1e-4, block


@torch.inference_mode()
def test_prefill_from_a_clip(recording: Read, tmp_path: Path) -> None:
    """Two given blocks pass block by block at timestep 0, with a different action in every row; then three are played."""
    r = recording("prefill_local6")
    playback, latents = Playback(r, load_recorded(r, tmp_path).dit), []
    for block in range(5):
        own = playback.clock.latents
        given = r["in.initial_latent"][:, :, own.start : own.stop] if block < playback.noise.given else None
        latents.append(playback.block(playback.recorded_rows("in"), given)[-2])
    assert relative_error(torch.cat(latents, 2), r["out.latents"]) < 1e-4


@torch.inference_mode()
def test_rollout_that_travels_with_the_project(fixture_recording: Read, tmp_path: Path) -> None:
    r = fixture_recording("dit_small")
    playback = Playback(r, load_recorded(r, tmp_path).dit)
    playback.start.channels = r["in.cond_concat"]  # random, the mask too
    for block in range(3):
        for step, x0 in enumerate(playback.block(playback.recorded_rows("out"))):
            assert relative_error(x0, r["out.x0_steps"][block, step]) < 1e-4, (block, step)


@torch.inference_mode()
def test_vae_and_image_encoder_from_published_files(fixture_recording: Read, tmp_path: Path) -> None:
    """Both `.pth`, at their first reading and, rewritten as safetensors, at the second."""
    r, clip = fixture_recording("vae_dim8"), fixture_recording("clip_vit_small")
    for reading in (1, 2):
        world = load_recorded(r, tmp_path, clip)
        assert relative_error(encode_start(world.vae, r["in.image"], 16), r["out.image_zeros_latent"]) < 1e-5
        assert relative_error(world.vae.encode(r["in.video"]), r["out.video_latent"]) < 1e-5
        assert relative_error(world.vae.decode(r["out.video_latent"]), r["out.video_decoded"].clamp(-1, 1)) < 1e-5  # ours is clamped
        assert relative_error(world._visual_context(clip["in.image"]), clip["out.tokens"]) < 1e-5
        made = sorted(file.name for file in (tmp_path / "published").glob("*.reverie.safetensors"))
        assert made == ["Wan2.1_VAE.reverie.safetensors", f"{Path(CLIP_FILE).stem}.visual.reverie.safetensors"], reading
