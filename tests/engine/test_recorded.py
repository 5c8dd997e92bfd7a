"""Calls that are recorded once and then made without Python: the same bits in every kind of world, what cannot be is played as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import Action, Session, World
from models.recorded import Recordings
from tests.tiny_world import with_image, write_tiny_world

WALK = [Action(frozenset(keys)) for keys in ("w", "wa", "", "a", "sd", "d", "w", "s")]


def without_mouse(settings: dict[str, Any]) -> None:
    settings["model"]["action"]["mouse_dim"] = 0
    del settings["actions"]["look"], settings["actions"]["look_scale"]


def tiny_decoder(settings: dict[str, Any]) -> None:
    settings["decoder"] = "taehv"
    settings["taehv"] = {"z_dim": 4, "widths": [8, 4, 4, 4]}
    settings["weights"]["taehv"] = ["taehv.safetensors"]


def played(session: Session) -> tuple[list[np.ndarray], dict[str, torch.Tensor]]:
    """The walk's pictures, and what the session remembers at its end."""
    frames = [session.step(action) for action in WALK]
    return frames, session.snapshot().tensors


def at_once(world: World) -> World:
    """Recorded when a call comes for the first time."""
    world.dit.recordings.patience = world.decoder.recordings.patience = 0
    return world


def unrecorded(world: World) -> World:
    world.dit.recordings = world.decoder.recordings = None
    return world


def made(recordings: Recordings) -> list[bool]:
    return [calls is not None for calls in recordings._known.values()]


def assert_same(ours: tuple[list[np.ndarray], dict[str, torch.Tensor]], theirs: tuple[list[np.ndarray], dict[str, torch.Tensor]]) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
    assert ours[1].keys() == theirs[1].keys()
    assert all(torch.equal(tensor, theirs[1][name]) for name, tensor in ours[1].items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_recorded_garden_is_the_same_garden(dtype: str) -> None:
    world = at_once(World.load("garden", dtype=dtype))
    ours = played(world.session(seed=3, rewind_mb=0))
    assert made(world.dit.recordings) == [True] * len(world.dit.blocks) and made(world.decoder.recordings) == [True]
    assert_same(ours, played(unrecorded(world).session(seed=3, rewind_mb=0)))


@pytest.mark.parametrize("change", [with_image, without_mouse, tiny_decoder])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_kind_of_world_is_recorded(change: Callable[[dict[str, Any]], None], dtype: str, tmp_path: Path) -> None:
    world = at_once(World.untrained(write_tiny_world(tmp_path, change=change), dtype=dtype))
    start = world.random_start()
    ours = played(world.session(start=start, rewind_mb=0))
    assert made(world.dit.recordings) == [True] * len(world.dit.blocks) and made(world.decoder.recordings) == [True]
    assert_same(ours, played(unrecorded(world).session(start=start, rewind_mb=0)))


def test_what_cannot_be_recorded_is_played_as_it_is(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such thing here")

    monkeypatch.setattr(torch.jit, "trace", refuse)
    world = at_once(World.load(tiny_yaml))
    ours = played(world.session(rewind_mb=0))
    assert made(world.dit.recordings) == [False] and made(world.decoder.recordings) == [False]
    assert_same(ours, played(unrecorded(world).session(rewind_mb=0)))


def test_a_live_world_is_recorded_before_play(tiny_yaml: Path) -> None:
    world = World.load(tiny_yaml)
    world.warm_up(live=True)
    before = [dict(recordings._known) for recordings in (world.dit.recordings, world.decoder.recordings)]
    ours = played(world.session(rewind_mb=0))
    assert [made(recordings) for recordings in (world.dit.recordings, world.decoder.recordings)] == [[True], [True]]
    assert before == [recordings._known for recordings in (world.dit.recordings, world.decoder.recordings)]
    assert_same(ours, played(World.load(tiny_yaml).session(rewind_mb=0)))


def lay_out(world: World) -> World:
    """Anew, for weights that have changed."""
    world.dit.double().float().fuse()
    world.vae.double().float().lay_out()
    world._default = None
    return world


def test_other_weights_end_a_recording(tiny_yaml: Path) -> None:
    world, other = at_once(World.load(tiny_yaml)), World.load(tiny_yaml)
    with torch.no_grad():
        for tensor in (*other.dit.parameters(), *other.decoder.parameters()):
            tensor.mul_(1.1)
    played(world.session(rewind_mb=0))
    world.dit.load_state_dict(other.dit.state_dict())
    world.vae.load_state_dict(other.vae.state_dict())
    lay_out(world)
    assert made(world.dit.recordings) == made(world.decoder.recordings) == []
    ours, theirs = (played(one.session(rewind_mb=0)) for one in (world, unrecorded(lay_out(other))))
    assert_same(ours, theirs)


def test_copies_and_trainings_have_nothing_of_it(tiny_world: World) -> None:
    for _ in range(2):  # longer than its patience
        played(tiny_world.session(rewind_mb=0))
    assert made(tiny_world.dit.recordings) and made(copy.deepcopy(tiny_world.dit).recordings) == []
    known = len(tiny_world.decoder.recordings._known)
    cache = tiny_world.decoder.new_decoder_cache()
    for _ in range(2):  # outside inference mode: somebody may want to differentiate
        tiny_world.decoder.decode_block(torch.zeros(1, 4, 2, 4, 8), cache)
    assert known == len(tiny_world.decoder.recordings._known)


def test_a_short_game_is_not_worth_recording(tiny_yaml: Path) -> None:
    world = World.load(tiny_yaml)
    session = world.session(rewind_mb=0)
    played(session)
    assert made(world.dit.recordings) == made(world.decoder.recordings) == []
    frames, _ = played(session)
    assert made(world.dit.recordings) == made(world.decoder.recordings) == [True]
    again = unrecorded(World.load(tiny_yaml)).session(rewind_mb=0)
    played(again)
    assert all(np.array_equal(a, b) for a, b in zip(frames, played(again)[0], strict=True)), "nothing shows where it began"
