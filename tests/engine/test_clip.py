"""Going on from a given clip: whole blocks through all caches, at the clock 0, 3, 6, 9, as if the session had made them itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import Action, Session, Snapshot, World, WorldError, load_config
from engine.clip import encode_clip, whole_blocks
from engine.clock import BlockClock
from engine.conditioning import ConditionRing, Rows, StartCondition
from engine.picture import to_video
from engine.sampler import SeededNoise
from models.dit import DiT
from models.vae import VAE
from models.vision import VisionConfig
from tests.models.dit_recordings import build
from tests.recordings import Recording, relative_error
from tests.tiny_world import write_tiny_world

WALK = [Action(frozenset(keys)) for keys in ("w", "wl", "", "j", "ai", "sk")]


def state(session: Session) -> dict[str, Tensor]:
    """Everything the next block depends on."""
    tensors = {f"cache.{name}": tensor for name, tensor in session._cache.tensors().items()}
    tensors |= {f"decoder.{name}": tensor for name, tensor in session._decoder.tensors().items()}
    return tensors | {"keyboard": session._ring.keyboard, "mouse": session._ring.mouse, "start": session._start.channels}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def clip_of(world: World, blocks: int) -> np.ndarray:
    session = world.session(seed=5)
    return np.concatenate([session.step(WALK[i % len(WALK)]) for i in range(blocks)])


def test_whole_blocks() -> None:
    assert [whole_blocks(frames, BlockClock()) for frames in (0, 8, 9, 20, 21, 32, 33, 100)] == [
        (0, 0), (0, 0), (1, 9), (1, 9), (2, 21), (2, 21), (3, 33), (8, 93),
    ]  # fmt: skip
    assert whole_blocks(10, BlockClock(n=1)) == (3, 9)


def test_encoding_a_clip_in_blocks_is_encoding_it_whole(tiny_world: World) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (25, 16, 32, 3), np.uint8)
    parts = list(encode_clip(tiny_world.vae, clip, BlockClock(), 16, 32, tiny_world.device))
    assert [part.shape for part in parts] == [(1, 4, 3, 2, 4)] * 2
    whole = tiny_world.vae.encode(to_video(clip[:21]))
    assert relative_error(torch.cat(parts, 2), whole) < 1e-5


@pytest.mark.parametrize("blocks", [1, 2, 4, 7])
def test_a_session_fed_with_latents_stands_where_the_one_that_made_them_does(tiny_world: World, blocks: int) -> None:
    made: list[Tensor] = []
    first = tiny_world.session(seed=3)
    commit = first._sampler.commit
    first._sampler.commit = lambda *inputs: (made.append(inputs[-1].clone()), commit(*inputs))[1]  # type: ignore[method-assign]
    frames = [first.step(WALK[i % len(WALK)]) for i in range(blocks)]
    other = tiny_world.session(seed=3)
    shown = other._live_through(other._start, tuple((made[i], WALK[i % len(WALK)]) for i in range(blocks)))
    assert other.clock == first.clock == BlockClock(block=blocks) and other.clock.start == 3 * blocks
    assert other._ring.count == first._ring.count == first.clock.frames.start
    assert (other._cache.first, other._cache.written) == (first._cache.first, first._cache.written)
    assert same(state(first), state(other))
    assert all(np.array_equal(a, b) for a, b in zip(frames, shown, strict=True))
    for action in WALK:
        assert np.array_equal(first.step(action), other.step(action))


def test_cached_equals_uncached_after_a_clip(tiny_yaml: Path) -> None:
    """One pass over the block after a clip against one pass over everything at once, under the mask that the caches stand for."""
    world = World.load(load_config(tiny_yaml, {"model.local_attn_size": 7}))
    session = world.session(start=clip_of(world, 4), actions=WALK[:4])
    clock, n, window = session.clock, 3, 7
    clean = torch.cat([latents for latents, _ in session._past], dim=2)
    noise = SeededNoise(1).noise(clock, 0, (1, 4, n, *clean.shape[3:]))
    rows = session._ring.hold(clock, *world.config.actions.to_model(WALK[4]))
    windows = session._ring.windows(clock, rows)
    condition = session._start.block(clock)
    with torch.inference_mode():
        cached = world.dit(
            torch.cat([noise, condition], 1), torch.full((1, n), 900.0), windows.keyboard, windows.mouse, session._cache, clock.start
        )
        ring, past, at = ConditionRing(world.config.model.action), [], BlockClock()
        while at.block <= clock.block:
            held = ring.hold(at, *world.config.actions.to_model(WALK[at.block]))
            past.append((ring.windows(at, held), session._start.block(at)))
            ring.commit(at, held)
            at = at.next()
        latents = torch.arange(at.start)
        block_end = (latents // n + 1) * n
        mask = (latents[None] < block_end[:, None]) & (latents[None] >= block_end[:, None] - window)
        x = torch.cat([torch.cat([clean, noise], 2), torch.cat([condition for _, condition in past], 2)], 1)
        timestep = torch.cat([torch.zeros(1, clock.start), torch.full((1, n), 900.0)], 1)
        keyboard = torch.cat([windows.keyboard for windows, _ in past], 1)
        mouse = torch.cat([windows.mouse for windows, _ in past], 1)
        whole = world.dit.forward_parallel(x, timestep, keyboard, mouse, latents, mask)
    assert relative_error(cached, whole[:, :, -n:]) < 1e-5


def test_a_clip_of_pictures(tiny_world: World) -> None:
    clip, session = clip_of(tiny_world, 3), tiny_world.session()
    told: list[float] = []
    shown = session.prefill(np.concatenate([clip, clip[:5]]), WALK[:2], told.append)  # five frames are left over
    assert [part.shape for part in shown] == [(9, 16, 32, 3), (12, 16, 32, 3), (12, 16, 32, 3)]
    assert session.clock.block == 3 and told == sorted(told) and told[-1] == 1
    assert session._past[2][1] == Action()  # nothing said: idle
    start = tiny_world.condition(clip[0])
    assert torch.equal(session._start.channels, start.channels)  # the condition is the clip's first frame
    one, other = session.step(WALK[0]), tiny_world.session(start=clip, actions=WALK[:2]).step(WALK[0])
    assert one.shape == (12, 16, 32, 3) and np.array_equal(one, other)
    assert not np.array_equal(one, tiny_world.session(start=clip).step(WALK[0]))  # what was done in the clip counts
    large = clip.repeat(3, 1).repeat(3, 2)
    assert tiny_world.session(start=large / 255).clock.block == 3  # any size, floats too


def test_restart_after_a_clip_comes_back_to_its_end(tiny_world: World) -> None:
    clip = clip_of(tiny_world, 2)
    session = tiny_world.session(seed=4, start=clip)
    first = [session.step(action) for action in WALK]
    session.reset()
    assert session.clock == BlockClock(epoch=1, block=2)
    assert all(np.array_equal(frames, session.step(action)) for frames, action in zip(first, WALK, strict=True))
    session.reset(start=clip[0])  # a picture instead: the clip is forgotten
    assert session.clock.block == 0
    assert np.array_equal(session.step(), tiny_world.session(seed=4, start=clip[0]).step())


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(WorldError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_game_remembers_its_clip(tiny_world: World, tmp_path: Path) -> None:
    """Restart after loading goes back to the clip's end, and a clip alone can be saved."""
    clip = clip_of(tiny_world, 2)
    session = tiny_world.session(seed=7, start=clip, actions=WALK[:2])
    fresh = {name: tensor.clone() for name, tensor in state(session).items()}
    session.snapshot().save(tmp_path / "clip")
    following = [session.step(action) for action in WALK[:2]]
    session.snapshot().save(tmp_path / "later")
    for name in ("clip", "later"):
        loaded = tiny_world.resume(Snapshot.load(tmp_path / name, tiny_world))
        loaded.reset()
        assert loaded.clock.block == 2
        assert all(np.array_equal(loaded.step(action), frames) for action, frames in zip(WALK[:2], following, strict=True))
    assert same(state(tiny_world.resume(Snapshot.load(tmp_path / "clip"))), fresh)


def test_clips_that_cannot_be_used_change_nothing(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, session = clip_of(tiny_world, 2), tiny_world.session(seed=2)
    before = state(session)
    for wrong, words in [
        (clip[:8], "the clip has 8 frames; at least 9 are needed"),
        (clip[..., :2], "an array [frames, height, width, 3], got [21, 16, 32, 2]"),
        (clip[0], "got [16, 32, 3]"),
        (np.broadcast_to(clip[:1], (490, 16, 32, 3)), "the clip is longer than 40 blocks (488 frames)"),
        (clip.astype(np.int64), "uint8 or float, got int64"),
        (clip.astype(np.float32), "must lie in [0, 1]"),
        (clip[:, :8, :8], "is 8x8 pixels"),
    ]:
        assert words in refusal(lambda wrong=wrong: session.prefill(wrong))
    assert "3 actions are too many for a clip of 2 blocks" in refusal(lambda: session.prefill(clip, WALK[:3]))
    assert "no key 'q'" in refusal(lambda: session.prefill(clip, [Action(frozenset("q"))]))
    assert "actions go with a clip" in refusal(lambda: tiny_world.session(actions=WALK[:1]))

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    for target, name in [(tiny_world.vae, "encode_frames"), (session._sampler, "commit"), (tiny_world.vae, "decode_block")]:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fail)
            with pytest.raises(MemoryError):
                session.prefill(clip)
    assert session.clock == BlockClock() and session._past == () and same({k: v for k, v in before.items() if "cache" not in k}, {
        k: v for k, v in state(session).items() if "cache" not in k
    })  # fmt: skip
    fresh = tiny_world.session(seed=2)
    assert all(np.array_equal(session.step(action), fresh.step(action)) for action in WALK)
    assert "this session stands at block 6; reset it first" in refusal(lambda: session.prefill(clip))


def test_the_gardens_own_clip_goes_on_without_a_seam() -> None:
    """From pixels alone: the first new frame is no further from the clip's last than the clip's frames are from one another."""
    world = World.load("garden")
    session, walk = world.session(seed=1), [Action(frozenset("wl"))] * 3
    clip = np.concatenate([session.step(action) for action in walk[:2]])
    other = world.session(seed=1)
    shown = np.concatenate(other.prefill(clip, walk[:2]))
    after = other.step(walk[2])
    steps = np.abs(np.diff(shown.astype(float), axis=0)).mean((1, 2, 3))
    assert np.abs(after[0].astype(float) - shown[-1]).mean() < 1.5 * steps.max()
    assert np.abs(shown.astype(float) - clip).mean() < 8  # what the VAE makes of its own pictures
    assert np.abs(after.astype(float) - session.step(walk[2])).mean() < 16  # much as the world that made the clip goes on


@torch.inference_mode()
def test_the_recorded_clip(recording: Callable[[str], Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prefill_local6` through `World.session` and `Session.step`. It gives latents and rows, no pictures: these come in at the seams."""
    r = recording("prefill_local6")

    def published(settings: dict[str, Any]) -> None:
        settings.update(height=64, width=96)
        settings["vae"].update(
            dim=2, z_dim=16, dim_mult=[1, 1, 1, 1], temporal_downsample=[False, True, True], patch_size=1,
            latents_mean=[0.0] * 16, latents_std=[1.0] * 16,
        )  # fmt: skip
        settings["model"].update(in_dim=36, out_dim=16)

    tiny = load_config(write_tiny_world(tmp_path, change=published))
    dit = build(r)
    config = replace_parts(tiny, dit)
    world = World(config, dit, VAE(config.vae).requires_grad_(False), {}, torch.device("cpu"), torch.float32)
    given = r["in.initial_latent"]
    start = StartCondition(r["in.cond_concat"][:, 4:], visual_context=r["in.visual_context"])

    class Recorded:
        def noise(self, clock: BlockClock, step: int, shape: tuple[int, ...]) -> Tensor:
            block = clock.block - 2
            return r["in.noise"][:, :, 3 * block : 3 * block + 3] if step == 0 else r["in.renoise"][block, step - 1].transpose(0, 1)[None]

    def rows(ring: ConditionRing, clock: BlockClock, *held: Any) -> Rows:
        own = slice(clock.frames.start, clock.frames.stop)
        return Rows(r["in.keyboard_cond"][0, own], r["in.mouse_cond"][0, own])

    monkeypatch.setattr(ConditionRing, "hold", rows)
    monkeypatch.setattr(World, "condition", lambda world, picture: start)
    monkeypatch.setattr("engine.session.encode_clip", lambda *inputs: iter(given.split(3, 2)))
    monkeypatch.setattr("engine.session.SeededNoise", lambda seed: Recorded())
    session = world.session(start=np.zeros((21, 64, 96, 3), np.uint8))
    made: list[Tensor] = [given]
    commit = session._sampler.commit
    session._sampler.commit = lambda *inputs: (made.append(inputs[-1].clone()), commit(*inputs))[1]  # type: ignore[method-assign]
    assert session.clock == BlockClock(block=2)
    for _ in range(3):
        session.step()
    assert relative_error(torch.cat(made, 2), r["out.latents"]) < 1e-4


def replace_parts(config: Any, dit: DiT) -> Any:
    """The config with the recorded model's sizes; its start picture's tokens come recorded too, so no image encoder is built."""
    sizes = replace(VisionConfig(), dim=dit.config.img_dim)
    return replace(config, model=dit.config, vision=sizes, weights=replace(config.weights, vision=("none.pth",)))
