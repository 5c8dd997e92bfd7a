"""Passes over a full window as graphs: what may differ from block to block is read from where it is copied to, and from nowhere else.

A pretended capture stands for CUDA's: it leaves the rings as they were, its outputs hold nothing until they are replayed, and a replay
calls the captured function again with whatever the host had told it then.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from engine import Action, Session, World, load_config
from game.worldoptions import add_world_options, place_of
from models.action import Steering
from models.graphs import CudaCapture
from models.kv_cache import Block
from tests.tiny_world import with_image, write_tiny_world

WALK = [Action(frozenset(keys)) for keys in ("w", "wl", "", "a", "sj", "d", "w", "i", "s", "l")]


@pytest.fixture(scope="module")
def image_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("image"), change=with_image)


class Pretended:
    """``session`` is known by the time something is captured. ``captured`` counts."""

    def __init__(self) -> None:
        self.captured, self.replayed = 0, 0
        self.session: Session | None = None

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        cache = self.session._cache
        kept = {name: buffer.clone() for name, buffer in cache.tensors().items()}
        made = run()
        for name, buffer in cache.tensors().items():
            buffer.copy_(kept[name])
        outputs = list(tensors_in(made))
        for tensor in outputs:
            tensor.fill_(float("nan"))
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            books = cache.first, cache.written
            for mine, new in zip(outputs, tensors_in(run()), strict=True):
                mine.copy_(new)
            assert (cache.first, cache.written) == books, "the books are the host's: they must be right before a replay"

        return replay, made


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Steering):
        value = [getattr(value, field.name) for field in fields(value)]
    return [] if value is None else [tensor for item in value for tensor in tensors_in(item)]


def graphed(yaml: Path, seed: int = 2, **changes: object) -> tuple[Session, Session, Pretended]:
    """A session as it is, and one with graphs."""
    plain, world = (World.untrained(load_config(yaml, changes), dtype="float32") for _ in range(2))
    start, capture = plain.random_start(), Pretended()
    world.dit.recordings, world.dit.capture = None, lambda: capture
    ours, theirs = (w.session(seed, start, rewind_mb=10) for w in (world, plain))
    capture.session = ours
    return ours, theirs, capture


def frozen_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA does: places that the host tells a copy stay those of the capture. Here: no such place may be told over a full window."""
    writes = Block.writes.func

    def told(block: Block) -> list[tuple[int, int, int]]:
        assert not block.full, "slots must come from the device once the window is full"
        return writes(block)

    monkeypatch.setattr(Block, "writes", property(told))


@pytest.mark.parametrize("kind", ["tiny", "image"])
@pytest.mark.parametrize("changes", [{}, {"sampler.context": "last"}])
def test_graphs_give_the_same_bits(
    kind: str, changes: dict[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, capture = graphed(request.getfixturevalue(f"{kind}_yaml"), **changes)
    expected = [theirs.step(action) for action in WALK]
    frozen_slots(monkeypatch)
    for action, frames in zip(WALK, expected, strict=True):
        assert (ours.step(action) == frames).all()
    for name, tensor in theirs.snapshot().tensors.items():
        assert torch.equal(tensor, ours.snapshot().tensors[name]), name
    steps = len(ours.world.config.sampler.steps)
    passes = steps + (0 if changes else 1)
    assert capture.captured == passes + 1  # and one for the actions
    full = next(i for i in range(1, 20) if 3 * i >= ours.world.config.model.local_attn_size)
    assert capture.replayed == (len(WALK) - full) * (passes + 1)  # the first full window is played as it is


def test_nothing_is_compiled_while_a_graph_is_captured(image_yaml: Path) -> None:
    """Two kinds of layers, two compilations: both before the first capture."""
    torch._dynamo.reset()
    counters.clear()
    ours, theirs, capture = graphed(image_yaml)
    ours.world.compile(backend="eager")
    assert counters["stats"]["unique_graphs"] == 2 and not capture.captured
    for action in WALK:
        assert abs(ours.step(action).astype(int) - theirs.step(action)).max() <= 1
    assert counters["stats"]["unique_graphs"] == 2 and capture.captured
    torch._dynamo.reset()


def test_rewinding_restoring_and_another_start(image_yaml: Path) -> None:
    ours, theirs, capture = graphed(image_yaml)
    for session in (ours, theirs):
        for action in WALK:
            session.step(action)
        session.rewind(3)
    assert (ours.step(WALK[1]) == theirs.step(WALK[1])).all()
    saved = theirs.snapshot()
    for session in (ours, theirs):
        session.step(WALK[2])
        session.restore(saved)
    assert (ours.step(WALK[4]) == theirs.step(WALK[4])).all()
    known = capture.captured
    for session in (ours, theirs):
        session.reset(seed=9)
    for action in WALK:
        assert (ours.step(action) == theirs.step(action)).all()
    assert capture.captured == known  # the same rings


def test_other_rings_are_captured_anew(tiny_yaml: Path) -> None:
    ours, theirs, capture = graphed(tiny_yaml)
    for session in (ours, theirs):
        for action in WALK:
            session.step(action)
        session._cache = session._cache.clone()
    known = capture.captured
    for action in WALK[:3]:
        assert (ours.step(action) == theirs.step(action)).all()
    assert capture.captured == 2 * known


def test_what_cannot_be_captured_is_played_as_it_is(image_yaml: Path) -> None:
    """By this session: another one, or the same one with other layers, tries again. Nothing is compiled once more for it."""
    torch._dynamo.reset()
    counters.clear()
    ours, theirs, capture = graphed(image_yaml)
    ours.world.compile(backend="eager")

    def refuses(run: Callable[[], Any]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    ours.world.dit.capture = lambda: refuses
    with pytest.warns(UserWarning, match="without CUDA graphs, .*not permitted when stream is capturing more of it") as told:
        for action in WALK:
            assert abs(ours.step(action).astype(int) - theirs.step(action)).max() <= 1
    assert len([one for one in told if "CUDA graphs" in str(one.message)]) == 1 and not ours.graphed
    assert counters["stats"]["unique_graphs"] == 2
    ours.world.dit.capture = lambda: capture
    capture.session = other = ours.world.session(2, ours.start)
    for action in WALK:
        other.step(action)
    assert other.graphed and not ours.graphed
    torch._dynamo.reset()


def test_a_pass_that_was_broken_off_has_not_been_seen(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libraries and compiler do at a first call must have been done before anything is captured."""
    ours, theirs, capture = graphed(tiny_yaml)
    window = ours.world.config.model.local_attn_size
    while ours.clock.filled(window) < window:
        assert (ours.step() == theirs.step()).all()
    run_denoise = ours.world.dit.run_denoise

    def broken_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ours.world.dit, "run_denoise", broken_off)
    with pytest.raises(KeyboardInterrupt):
        ours.step()
    monkeypatch.setattr(ours.world.dit, "run_denoise", run_denoise)
    assert (ours.step() == theirs.step()).all() and not capture.captured
    assert (ours.step() == theirs.step()).all() and capture.captured and ours.graphed


def test_weights_that_lie_elsewhere_are_captured_anew(tiny_yaml: Path) -> None:
    ours, theirs, capture = graphed(tiny_yaml)
    for action in WALK:
        assert (ours.step(action) == theirs.step(action)).all()
    known = capture.captured
    for session in (ours, theirs):
        state = {name: 0.9 * tensor for name, tensor in session.world.dit.state_dict().items()}
        session.world.dit.load_state_dict(state)
    for action in WALK[:3]:
        assert (ours.step(action) == theirs.step(action)).all()
    assert capture.captured == 2 * known


def test_a_world_on_a_gpu_has_graphs_unless_told_otherwise(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.world.choose_attention", lambda *_: None)  # which would ask the GPU
    for graphs in (False, True):
        made = World.untrained(tiny_yaml, dtype="float32")
        world = World(made.config, made.dit, made.vae, {}, torch.device("cuda"), torch.float32, torch.device("cpu"), graphs=graphs)
        assert (world.dit.capture is not None) == graphs
    parser = argparse.ArgumentParser()
    add_world_options(parser.add_argument_group())
    assert place_of(parser.parse_args([]))["graphs"] and not place_of(parser.parse_args(["--no-graphs"]))["graphs"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_on_a_gpu(image_yaml: Path) -> None:
    plain, world = (World.untrained(load_config(image_yaml), "cuda", "float32") for _ in range(2))
    assert isinstance(world.dit.capture(), CudaCapture)
    plain.dit.capture = None
    start = plain.random_start()
    ours, theirs = (w.session(2, start) for w in (world, plain))
    for action in WALK:
        assert abs(ours.step(action).astype(int) - theirs.step(action)).max() <= 1
    assert ours.graphed and not theirs.graphed
