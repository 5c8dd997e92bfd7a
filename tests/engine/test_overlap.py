"""Decoder and transformer side by side: the same bits, in the same order, and a session that can go on afterwards."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import Action, World, WorldError
from engine.overlap import Overlap, share_threads

WALK = [Action(frozenset(keys)) for keys in ("w", "wl", "", "a", "sj", "d", "w")]


def test_same_bits_as_stepping(tiny_world: World) -> None:
    stepped, beside = tiny_world.session(5, rewind_mb=0), tiny_world.session(5)
    expected = [stepped.step(action) for action in WALK]
    played = list(Overlap(beside).play(WALK))
    assert [block.clock.block for block in played] == list(range(len(WALK)))
    for block, frames in zip(played, expected, strict=True):
        assert np.array_equal(block.frames, frames)
        assert {"denoise 1", "commit", "decode", "transfer", "total"} <= block.timings.keys()
    assert beside.clock == stepped.clock and np.array_equal(beside.last_frame, stepped.last_frame)
    assert np.array_equal(beside.step(WALK[0]), stepped.step(WALK[0]))  # and goes on
    ours, theirs = beside.snapshot(), stepped.snapshot()
    assert all(torch.equal(tensor, theirs.tensors[name]) for name, tensor in ours.tensors.items())


def test_the_next_block_is_begun_while_one_is_decoded(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder of block 0 waits for the transformer of block 1: one after the other, this would never end."""
    session, begun = tiny_world.session(rewind_mb=0), threading.Event()
    imagine, develop, names = session.imagine, session.develop, []

    def imagining(*inputs):
        if session.clock.block == 1:
            begun.set()
        return imagine(*inputs)

    def developing(*inputs):
        names.append(threading.current_thread().name)
        assert begun.wait(20), "the transformer has not gone on"
        return develop(*inputs)

    monkeypatch.setattr(session, "imagine", imagining)
    monkeypatch.setattr(session, "develop", developing)
    assert len(list(Overlap(session).play(WALK[:3]))) == 3
    assert all(name.startswith("reverie-decoder") for name in names)


def test_a_decoder_on_another_device(tiny_yaml: Path) -> None:
    """Two names of the one processor, which torch holds to be two devices."""
    one, two = World.load(tiny_yaml), World.load(tiny_yaml, decode_device="cpu:0")
    assert two.decode_device != two.device and two.describe()["decode_device"] == "cpu:0"
    stepped, apart, beside = one.session(rewind_mb=0), two.session(rewind_mb=0), two.session(rewind_mb=0)
    for action, played in zip(WALK, Overlap(beside).play(WALK), strict=True):
        frames = stepped.step(action)
        assert np.array_equal(frames, played.frames) and np.array_equal(frames, apart.step(action))


def test_a_block_is_decoded_beside_its_clean_pass(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session, decoding = tiny_world.session(rewind_mb=0), threading.Event()
    remember, develop = session._remember, session.develop

    def remembering(*inputs) -> None:
        assert decoding.wait(20), "the decoder has not begun"
        decoding.clear()
        remember(*inputs)

    monkeypatch.setattr(session, "_remember", remembering)
    monkeypatch.setattr(session, "develop", lambda *inputs: decoding.set() or develop(*inputs))
    assert len(list(Overlap(session).play(WALK[:3]))) == 3


def test_waiting_for_the_block_before_is_no_stage(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_world.session(rewind_mb=0)
    develop = session.develop
    monkeypatch.setattr(session, "develop", lambda *inputs: time.sleep(0.2) or develop(*inputs))
    played = list(Overlap(session).play(WALK[:4]))
    assert all(block.timings["commit"] < 0.15 for block in played) and played[2].timings["total"] > 0.15


def test_a_clean_pass_that_fails(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its block, which is being decoded by then, does not count; the one before does."""
    stepped, beside = tiny_world.session(rewind_mb=0), tiny_world.session(rewind_mb=0)
    remember = beside._remember
    with monkeypatch.context() as patch:
        patch.setattr(beside, "_remember", lambda *inputs: 1 / 0 if beside.clock.block == 1 else remember(*inputs))
        with pytest.raises(ZeroDivisionError):
            list(Overlap(beside).play(WALK[:3]))
    stepped.step(WALK[0])
    assert beside.clock == stepped.clock and np.array_equal(beside.last_frame, stepped.last_frame)
    assert np.array_equal(beside.step(WALK[1]), stepped.step(WALK[1]))


def test_leaving_early_loses_nothing(tiny_world: World) -> None:
    stepped, beside = tiny_world.session(rewind_mb=0), tiny_world.session(rewind_mb=0)
    blocks = Overlap(beside).play(WALK)
    first = next(blocks).frames
    blocks.close()
    frames = [stepped.step(action) for action in WALK[:2]]  # the second had been begun
    assert np.array_equal(first, frames[0]) and np.array_equal(beside.last_frame, frames[1][-1])
    assert np.array_equal(beside.step(WALK[2]), stepped.step(WALK[2]))


def test_an_action_that_cannot_be_done(tiny_world: World) -> None:
    stepped, beside = tiny_world.session(rewind_mb=0), tiny_world.session(rewind_mb=0)
    with pytest.raises(WorldError, match="x"):
        list(Overlap(beside).play([WALK[0], Action(frozenset("x"))]))
    stepped.step(WALK[0])
    assert np.array_equal(beside.step(WALK[1]), stepped.step(WALK[1]))


def test_a_decoder_that_fails(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_world.session(rewind_mb=0)
    with monkeypatch.context() as patch:
        patch.setattr(session, "develop", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(Overlap(session).play(WALK[:3]))
    assert session.clock.block == 0
    assert np.array_equal(session.step(WALK[0]), tiny_world.session(rewind_mb=0).step(WALK[0]))


def test_both_sides_compute_with_the_threads_of_the_process(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    session, inside = tiny_world.session(rewind_mb=0), []
    develop = session.develop
    monkeypatch.setattr(session, "develop", lambda *inputs: inside.append(torch.get_num_threads()) or develop(*inputs))
    outside = [torch.get_num_threads() for _ in Overlap(session).play(WALK[:2])]
    assert inside == outside == [2, 2] and torch.get_num_threads() == 2


def test_threads_are_shared_on_a_processor_and_left_alone_elsewhere(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    share_threads(tiny_world)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    monkeypatch.setattr(tiny_world, "decode_device", torch.device("cuda"))
    share_threads(tiny_world)
    assert torch.get_num_threads() == 2
