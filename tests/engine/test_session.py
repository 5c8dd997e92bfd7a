from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import engine.session
from engine import Action, Session, World, WorldError
from engine.clock import BlockClock
from engine.frames import Arriving
from engine.sampler import SeededNoise
from tests.long import times
from tests.tiny_world import write_tiny_world

WALK = [Action(frozenset(keys)) for keys in ("w", "wl", "", "j", "ai", "sk")]


def play(session: Session, blocks: int) -> list[np.ndarray]:
    return [session.step(WALK[session.clock.block % len(WALK)]) for _ in range(blocks)]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_shapes_types_and_clock(tiny_world: World) -> None:
    session = tiny_world.session()
    blocks = play(session, 3)
    assert [block.shape for block in blocks] == [(9, 16, 32, 3), (12, 16, 32, 3), (12, 16, 32, 3)]
    assert all(block.dtype == np.uint8 and block.flags.c_contiguous and block.flags.writeable for block in blocks)
    assert session.clock == BlockClock(block=3)
    passes = ["denoise 1", "denoise 2", "denoise 3"]
    assert list(session.timings) == ["conditioning", "history", *passes, "decode", "transfer", "commit", "total"]
    assert sum(session.timings.values()) == pytest.approx(2 * session.timings["total"], rel=0.05)


def test_same_seed_and_actions_give_the_same_bits(tiny_world: World) -> None:
    base = play(tiny_world.session(seed=1), 8)
    torch.manual_seed(99)
    torch.rand(10)
    assert same(base, play(tiny_world.session(seed=1), 8))
    assert not same(base, play(tiny_world.session(seed=2), 8))
    other = tiny_world.session(seed=1)
    assert not same(base, [other.step(Action()) for _ in range(8)])


def test_two_sessions_side_by_side_do_not_meet(tiny_world: World) -> None:
    base = play(tiny_world.session(seed=1), 6)
    one, other = tiny_world.session(seed=1), tiny_world.session(seed=2)
    mixed = [(play(one, 1)[0], play(other, 1)[0])[0] for _ in range(6)]
    assert same(base, mixed)


def test_restart_is_identical_and_raises_the_epoch(tiny_world: World) -> None:
    session = tiny_world.session(seed=3)
    first = play(session, 8)
    session.reset()
    assert session.clock == BlockClock(epoch=1, block=0)
    assert same(first, play(session, 8))
    session.reset(seed=4)
    assert session.seed == 4 and not same(first, play(session, 8))
    session.reset(seed=3)
    assert session.clock.epoch == 3 and same(first, play(session, 8))


class FailingNoise:
    """Seeded noise that fails once, before the given step of the given block."""

    def __init__(self, block: int, step: int) -> None:
        self.source, self.fails_at = SeededNoise(0), (block, step)

    def noise(self, clock: BlockClock, step: int, shape: Any) -> torch.Tensor:
        if (clock.block, step) == self.fails_at:
            self.fails_at = (-1, -1)
            raise RuntimeError("interrupted")
        return self.source.noise(clock, step, shape)


@pytest.mark.parametrize("block", [0, 1, 4, 7])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_block_dropped_while_denoising_leaves_no_trace(tiny_world: World, block: int, step: int) -> None:
    base = play(tiny_world.session(), 9)
    session = Session(tiny_world, noise=FailingNoise(block, step))
    played = play(session, block)
    with pytest.raises(RuntimeError, match="interrupted"):
        session.step(Action(frozenset("sd")))  # another action than the one that will count
    assert session.clock.block == block
    assert same(base, played + play(session, 9 - block))


def test_frames_are_handed_on_before_the_clean_pass(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    base, session, events = play(tiny_world.session(), 7), tiny_world.session(), []
    commit = session._sampler.commit
    monkeypatch.setattr(session._sampler, "commit", lambda *given: (events.append("commit"), commit(*given)))
    returned = [session.step(WALK[block % len(WALK)], events.append) for block in range(7)]
    assert same(base, returned) and same(base, [event for event in events if not isinstance(event, str)])
    assert [isinstance(event, str) for event in events] == [False, True] * 7


def test_where_all_is_queued_the_clean_pass_comes_before_the_pictures_are_waited_for(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """As on a GPU: the same blocks, and one that nobody can take is not played either."""
    base, session = play(tiny_world.session(), 7), tiny_world.session()
    monkeypatch.setattr(session, "_queues", True)
    monkeypatch.setattr(tiny_world, "compiled", True)  # alone what is queued in a moment goes first
    events: list[Any] = []
    commit, wait = session._sampler.commit, Arriving.wait
    monkeypatch.setattr(session._sampler, "commit", lambda *inputs: (events.append("clean"), commit(*inputs)))
    monkeypatch.setattr(Arriving, "wait", lambda coming: (events.append("waited for"), wait(coming))[1])
    returned = [session.step(action, lambda frames: events.append("ready")) for action in WALK[:2]]
    assert events == ["clean", "waited for", "ready"] * 2 and same(base[:2], returned)
    assert list(session.timings)[-4:] == ["decode", "commit", "transfer", "total"]
    with pytest.raises(ZeroDivisionError):
        session.step(Action(frozenset("sd")), lambda frames: 1 / 0)
    assert session.clock.block == 2 and same(base[2:], play(session, 5))


def test_a_block_whose_frames_nobody_can_take_is_not_played(tiny_world: World) -> None:
    base, session = play(tiny_world.session(), 5), tiny_world.session()
    played = play(session, 2)

    def refuse(frames: np.ndarray) -> None:
        raise RuntimeError("no, thank you")

    with pytest.raises(RuntimeError, match="thank"):
        session.step(Action(frozenset("sd")), refuse)
    assert session.clock.block == 2 and same(base, played + play(session, 3))


@pytest.mark.parametrize("stage", ["commit", "decode", "middle of the decoder", "transfer"])
def test_a_block_that_fails_late_leaves_no_trace(tiny_world: World, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    base = play(tiny_world.session(), 9)
    for block in (0, 6):
        session = tiny_world.session()
        played = play(session, block)
        target, name = {
            "commit": (session._sampler, "commit"),
            "decode": (tiny_world.vae, "decode_block"),
            "middle of the decoder": (tiny_world.vae.decoder.upsamples[-1], "forward"),
            "transfer": (engine.session, "to_uint8"),
        }[stage]

        def fail(*_: Any, **__: Any) -> None:
            raise MemoryError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(target, name, fail)
            patch.setattr(tiny_world.vae, "recordings", None)  # what is recorded asks no layer
            with pytest.raises(MemoryError):
                session.step(Action(frozenset("sd")))
        assert same(base, played + play(session, 9 - block))


def test_an_unknown_key_changes_nothing(tiny_world: World) -> None:
    session = tiny_world.session()
    with pytest.raises(WorldError, match="no key 'q'"):
        session.step(Action(frozenset("q")))
    assert session.clock.block == 0


def test_start_pictures(tiny_world: World, tiny_yaml: Path, tmp_path: Path) -> None:
    base = play(tiny_world.session(), 2)
    assert same(base, play(tiny_world.session(start=str(tiny_yaml.parent / "start.png")), 2))
    own = np.asarray(Image.open(tiny_yaml.parent / "start.png"))
    assert same(base, play(tiny_world.session(start=own), 2))
    grey = tmp_path / "grey.png"
    Image.new("L", (40, 40), 30).save(grey)
    other = play(tiny_world.session(start=grey), 2)
    assert not same(base, other)
    session = tiny_world.session()
    play(session, 7)
    session.reset(start=grey)
    assert same(other, play(session, 2))
    session.reset()  # keeps the picture
    assert same(other, play(session, 2))
    with pytest.raises(WorldError, match="there is no start picture"):
        session.reset(start=tmp_path / "none.png")
    assert session.clock.block == 2  # and goes on
    with pytest.raises(WorldError, match="1x1"):
        tiny_world.session(start=np.zeros((1, 1, 3), np.uint8))


def bare(settings: dict[str, Any]) -> None:
    settings["sampler"] = {"steps": [1000]}
    settings["model"].update(dim=16, num_heads=1, ffn_dim=8, local_attn_size=4)
    settings["model"]["action"].update(hidden=8, heads=1)
    settings["vae"].update(dim=2, num_res_blocks=0, z_dim=2, latents_mean=[0.0] * 2, latents_std=[1.0] * 2)
    settings["model"].update(in_dim=8, out_dim=2)
    settings.update(height=16, width=16)


def test_hundreds_of_blocks_in_constant_memory(tmp_path: Path) -> None:
    """Past latent 1100, where the published code's table of positions has long ended. With REVERIE_LONG=1 far on: 2100 blocks."""
    session = World.load(write_tiny_world(tmp_path, change=bare)).session(rewind_mb=1)
    marks: list[tuple[list[tuple[str, torch.Size, int]], int]] = []
    blocks = times(450, 2100)
    for block in range(blocks):
        frames = session.step(WALK[block % len(WALK)])
        if block in (200, blocks // 2 + 100, blocks - 1):
            assert frames.std() > 0
            marks.append((state_of(session), resident_bytes()))
    assert session.clock.latents.start == 3 * blocks > 1100
    (first, before), *later = marks
    for state, resident in later:
        assert state == first
        assert resident - before < 16e6


def state_of(session: Session) -> list[tuple[str, torch.Size, int]]:
    """Name, shape and bytes of every tensor a session holds."""
    found = {**session._cache.tensors(), **{f"decoder.{name}": tensor for name, tensor in session._decoder.tensors().items()}}
    found.update(keyboard=session._ring.keyboard, mouse=session._ring.mouse, start=session._start.channels)
    return [(name, tensor.shape, tensor.untyped_storage().nbytes()) for name, tensor in sorted(found.items())]


def resident_bytes() -> int:
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("no /proc on this system")
    return int(pages.read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["model"].update(local_attn_size=4),
        lambda s: s["model"].update(local_attn_size=3),
        lambda s: s["model"].update(num_frame_per_block=1),
        lambda s: s["model"].update(num_frame_per_block=4, prediction="velocity"),
        lambda s: s.update(sampler={"steps": [1000, 750, 500, 250]}),
        lambda s: s.update(height=32, width=48, dtype="bfloat16"),
    ],
)
def test_other_sizes_play_by_their_yaml_alone(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    world = World.load(write_tiny_world(tmp_path, change=change))
    session, n = world.session(), world.config.model.num_frame_per_block
    blocks = play(session, 8)
    assert [len(block) for block in blocks] == [1 + 4 * (n - 1)] + [4 * n] * 7
    assert blocks[0].shape[1:] == (world.config.height, world.config.width, 3)
    assert all(block.std() > 0 for block in blocks)
