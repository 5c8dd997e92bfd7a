"""Blocks taken back, and played again: the same bits, in the memory that was promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import engine.session
from engine import Action, Session, World, WorldError, load_config
from engine.clock import BlockClock
from engine.config import SamplerConfig
from engine.history import OVERHEAD, REWIND_MB, History, overwritten_latents
from engine.snapshot import decoder_layout
from models.dit import DiT
from tests.engine.test_session import play, same
from tests.tiny_world import write_tiny_world

BLOCKS = 26


def state(session: Session) -> dict[str, torch.Tensor]:
    return session.snapshot().tensors


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def base(tiny_world: World) -> tuple[list[np.ndarray], list[dict[str, torch.Tensor]]]:
    """A walk, and the whole state before each of its blocks."""
    session = tiny_world.session()
    states, blocks = [], []
    for _ in range(BLOCKS):
        states.append(state(session))
        blocks += play(session, 1)
    return blocks, states


def test_rewound_and_played_again_is_the_same(tiny_world: World, base: Any) -> None:
    blocks, states = base
    session = tiny_world.session()
    play(session, 21)
    for back in range(1, 21):
        at = 21 - back
        session.rewind(back)
        assert (session.clock.block, session.clock.epoch, session.rewindable) == (at, 2 * back - 1, at)
        assert equal(state(session), states[at]), back
        assert np.array_equal(session.last_frame, blocks[at - 1][-1])
        session.step(Action(frozenset("sd")))  # another way on, taken back too
        session.rewind(1)
        assert same(blocks[at:21], play(session, back)), back


def test_block_by_block_down_to_the_start(tiny_world: World, base: Any) -> None:
    blocks, states = base
    session = tiny_world.session()
    play(session, BLOCKS)
    for at in reversed(range(BLOCKS)):
        session.rewind()
        assert equal(state(session), states[at])
    assert session.clock.block == 0 and session.last_frame is None and session.clock.epoch == BLOCKS
    assert same(blocks, play(session, BLOCKS))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["model"].update(local_attn_size=4),
        lambda s: s["model"].update(local_attn_size=3),
        lambda s: s["model"].update(local_attn_size=6),
        lambda s: s["model"].update(num_frame_per_block=1),
        lambda s: s["model"].update(num_frame_per_block=4, prediction="velocity"),
        lambda s: s.update(dtype="bfloat16"),
    ],
)
def test_rewinding_at_other_sizes(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    session = World.load(write_tiny_world(tmp_path, change=change)).session()
    blocks = play(session, 14)
    for back in (1, 2, 5, 9, 13, 14):
        session.rewind(back)
        assert same(blocks[14 - back :], play(session, back)), back


def test_a_failed_step_leaves_the_past_whole(tiny_world: World, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, states = base
    session = tiny_world.session()
    play(session, 12)
    kept = session._history.nbytes

    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine.session, "to_uint8", fail)
        for keys in ("sd", "wa"):
            with pytest.raises(MemoryError):
                session.step(Action(frozenset(keys)))
    assert equal(state(session), states[12])
    assert (session.rewindable, session._history.nbytes) == (12, kept)
    session.rewind(1)
    assert equal(state(session), states[11])
    assert same(blocks[11:], play(session, BLOCKS - 11))


def test_the_budget_holds_and_the_oldest_go_first(tiny_world: World, base: Any) -> None:
    blocks, _ = base
    whole = tiny_world.session()
    play(whole, BLOCKS)
    one = (whole._history.nbytes - whole._history._undos[0].nbytes) / (BLOCKS - 1)
    session = tiny_world.session(rewind_mb=9.5 * one / 1e6)
    reach = []
    for _ in range(BLOCKS):
        play(session, 1)
        history = session._history
        assert history.nbytes == sum(undo.nbytes for undo in history._undos) <= history.budget
        reach.append(session.rewindable)
    assert reach[:7] == list(range(1, 8)) and min(reach[9:]) >= 5, reach
    with pytest.raises(WorldError, match=rf"cannot rewind {reach[-1] + 1} blocks: {reach[-1]} are kept"):
        session.rewind(reach[-1] + 1)
    back = reach[-1]
    session.rewind(back)
    assert session.rewindable == 0 and same(blocks[-back:], play(session, back))


def test_off_and_too_small_say_so(tiny_world: World, base: Any) -> None:
    blocks, _ = base
    for megabytes, words in ((0, "turned off"), (0.01, r"one block takes 0 MB")):
        session = tiny_world.session(rewind_mb=megabytes)
        played = play(session, 3)
        assert session.rewindable == 0 and session._history.nbytes == 0
        with pytest.raises(WorldError, match=words):
            session.rewind()
        assert same(blocks[:5], played + play(session, 2))


@pytest.mark.parametrize("blocks", [0, -1, 6])
def test_only_what_is_there_can_be_taken_back(tiny_world: World, blocks: int) -> None:
    session = tiny_world.session()
    play(session, 5)
    before = state(session)
    with pytest.raises(WorldError, match="cannot rewind"):
        session.rewind(blocks)
    assert equal(state(session), before) and session.clock.epoch == 0


def test_restart_begins_a_new_past(tiny_world: World, base: Any) -> None:
    blocks, _ = base
    session = tiny_world.session()
    play(session, 7)
    session.reset()
    assert session.rewindable == 0 and session._history.nbytes == 0 and session.last_frame is None
    assert same(blocks[:4], play(session, 4))
    session.rewind(4)
    assert same(blocks[:4], play(session, 4))


def test_what_is_kept_is_what_somebody_could_still_read() -> None:
    """Against the rule itself: before block m, latents [3m + 3 - window, 3m) are still to be read."""
    for n in (1, 2, 3, 4):
        for window in range(n, 17):
            for block in range(12):
                start = n * block
                over = range(max(0, start - window), max(0, start + n - window))
                needed = {latent for m in range(block) for latent in range(max(0, n * m + n - window), n * m)}
                first, end = overwritten_latents(BlockClock(block=block, n=n), window)
                assert set(range(first, end)) == needed & set(over), (n, window, block)


def block_bytes(name: str, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes to keep for one block of a bundled world, and of the decoder's state kept with every fourth."""
    config = load_config(name)
    model, vae = config.model, config.vae
    height, width, n = config.height // vae.spatial_ratio, config.width // vae.spatial_ratio, model.num_frame_per_block
    cache = DiT.new_cache(SimpleNamespace(config=model), 1, height // 2, width // 2, "meta", dtype)
    slots = sum(view.nbytes for view in cache.views(*overwritten_latents(BlockClock(block=100), model.local_attn_size)))
    decoder = sum(torch.Size(shape).numel() * dtype.itemsize for _, shape in decoder_layout(vae, n, height, width, dtype, 2))
    small = OVERHEAD + config.height * config.width * 3 + 24 * 6 * 4 + n * vae.z_dim * height * width * 4
    return slots + small, decoder


def test_a_minute_of_the_garden_fits_the_default_budget() -> None:
    """In float32, which is twice what machines that compute in bfloat16 need. The sizes are compared with a real session's below."""
    block, decoder = block_bytes("garden", torch.float32)
    blocks = int((REWIND_MB * 1e6 - decoder) // (block + decoder / 4))
    seconds = blocks * 12 / load_config("garden").fps
    print(f"garden: {block / 1e6:.2f} MB a block + {decoder / 1e6:.2f} MB every fourth: {blocks} blocks, {seconds:.0f} s")
    assert blocks >= 80 and seconds >= 60


@pytest.mark.parametrize("name", ["universal", "gta_drive", "templerun"])
def test_what_the_published_sizes_need(name: str) -> None:
    block, decoder = block_bytes(name, torch.bfloat16)
    print(f"{name}: {block / 1e6:.0f} MB a block + {decoder / 1e6:.0f} MB every fourth, default budget {REWIND_MB} MB")
    assert block + decoder > REWIND_MB * 1e6, "the default budget takes back none of these: docs/SAVING.md says so"


def test_the_garden_itself_keeps_what_was_computed() -> None:
    config = replace(load_config("garden"), sampler=SamplerConfig(steps=(1000,)))  # fewer passes leave the same
    session = World.load(config, dtype="float32").session()
    for _ in range(7):
        session.step(Action(frozenset("w")))
    block, decoder = block_bytes("garden", torch.float32)
    undos = list(session._history._undos)
    assert [undo.decoder is not None for undo in undos] == [True, False, False, False, True, False, False]
    assert [undo.nbytes for undo in undos[5:]] == [block, block]
    assert sum(tensor.nbytes for tensor in undos[4].decoder.values()) == decoder
    before = state(session)
    session.rewind(1)
    session.step(Action(frozenset("w")))
    assert equal(state(session), before)


def test_an_empty_history_has_nothing() -> None:
    history = History(10**6)
    with pytest.raises(IndexError):
        history.back(1)
