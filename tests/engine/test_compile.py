"""Inside a block nothing is read back from the device, and the layers are one graph: what a GPU must have, shown without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import engine.session
from engine import Action, World, WorldError, load_config
from engine.config import LINEARS
from models.attention import SelfAttention
from models.dit import DiT
from models.float8 import why_not
from models.vae import VAE
from tests.tiny_world import with_image, write_tiny_world

WALK = [Action(frozenset(keys)) for keys in ("w", "wl", "", "a", "sj", "d", "w", "i")]


@pytest.fixture(scope="module")
def image_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("image"), change=with_image)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def play_without_memory(yaml: Path, monkeypatch: pytest.MonkeyPatch, linears: str = "exact") -> None:
    """A session on the meta device, which has no numbers: whoever reads one back fails. Only pictures may leave it."""
    config = load_config(yaml, {"linears": linears})
    with torch.device("meta"):
        dit, vae = DiT(config.model).requires_grad_(False), VAE(config.vae).requires_grad_(False)
    world = World(config, dit.eval(), vae.eval(), {}, torch.device("meta"), torch.float32)
    monkeypatch.setattr(engine.session, "to_uint8", lambda frames: np.zeros((frames.shape[2], 16, 32, 3), np.uint8))
    monkeypatch.setattr("models.flow.WITHOUT_FLOAT64", {"meta"})
    session = world.session(start=world.random_start(), rewind_mb=0)
    for action in WALK:  # past the window's end, so that rings go round
        session.step(action)
    assert session.clock.block == len(WALK)


@pytest.mark.parametrize("linears", LINEARS)
@pytest.mark.parametrize("kind", ["tiny", "image"])
def test_nothing_is_read_back_inside_a_block(
    kind: str, linears: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_without_memory(request.getfixturevalue(f"{kind}_yaml"), monkeypatch, linears)


def test_the_watch_sees_a_read(image_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SelfAttention.forward
    monkeypatch.setattr(SelfAttention, "forward", lambda self, x, *rest: forward(self, x + 0 * float(x.sum()), *rest))
    with pytest.raises(RuntimeError, match="meta"):
        play_without_memory(image_yaml, monkeypatch)


@pytest.mark.parametrize("linears", LINEARS)
def test_layers_are_one_graph_with_the_same_numbers(linears: str, image_yaml: Path, fresh_compiler: None) -> None:
    """``fullgraph`` refuses any break. Two kinds of layers make two graphs, for all blocks from the full window on."""
    if linears == "float8" and (reason := why_not(torch.device("cpu"), torch.float32)):
        pytest.skip(reason)
    plain, compiled = (World.untrained(load_config(image_yaml, {"linears": linears}), dtype="float32") for _ in range(2))
    compiled.dit.compile(backend="eager")
    start = plain.random_start()
    ours, theirs = plain.session(2, start, rewind_mb=0), compiled.session(2, start, rewind_mb=0)
    for action in WALK:
        assert np.abs(ours.step(action).astype(int) - theirs.step(action)).max() <= 1
    first, second = ours.snapshot().tensors, theirs.snapshot().tensors
    near = 1e-4 if linears == "exact" else 0.01  # where last bits differ, a number on the edge of two of float8's goes to the other one
    for name, tensor in first.items():
        torch.testing.assert_close(tensor.float(), second[name].float(), rtol=near, atol=1.01 if name == "last_frame" else near)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_a_read_breaks_the_graph(image_yaml: Path, fresh_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.untrained(load_config(image_yaml), dtype="float32")
    forward = SelfAttention.forward
    monkeypatch.setattr(SelfAttention, "forward", lambda self, x, *rest: forward(self, x if x.sum() > 0 else x + 0, *rest))
    world.dit.compile(backend="eager")
    session = world.session(0, world.random_start(), rewind_mb=0)
    with pytest.raises(Exception, match=r"(?i)data-dependent|data dependent"):
        for action in WALK:
            session.step(action)


def test_the_world_compiles_and_says_so(tiny_yaml: Path, fresh_compiler: None) -> None:
    """Compiling happens in `World.compile`, not in the game; the fingerprint of a session tells of it."""
    world, told = World.load(tiny_yaml), []
    world.compile(lambda what, part: told.append((what, part)), backend="eager")
    assert told == [("compiling", 0.0), ("compiling", 1.0)] and world.describe()["compiled"]
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1
    session, plain = world.session(1), World.load(tiny_yaml).session(1)
    for action in WALK:
        assert np.abs(session.step(action).astype(int) - plain.step(action)).max() <= 1
    assert counters["stats"]["unique_graphs"] == graphs


def test_where_torch_cannot_compile(tiny_yaml: Path, fresh_compiler: None) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nfound")

    world = World.load(tiny_yaml)
    with pytest.raises(WorldError, match="cannot be compiled here"):
        world.compile(backend=no_compiler)
    assert not world.compiled and world.dit.body is None


def tiny_decoder(settings: dict[str, Any]) -> None:
    settings["taehv"] = {"z_dim": 4, "widths": [8, 4, 4, 4]}
    settings["weights"]["taehv"] = ["taehv.safetensors"]
    settings["decoder"] = "taehv"


@pytest.mark.parametrize("kind", ["vae", "taehv"])
def test_the_decoder_is_one_graph_with_the_same_pictures(kind: str, tmp_path: Path, fresh_compiler: None) -> None:
    """One shape for all blocks but the first, also after a rewind, a saved game or a restart: nothing is compiled twice."""
    config = load_config(write_tiny_world(tmp_path, change=tiny_decoder if kind == "taehv" else None))
    plain, compiled = (World.untrained(config, dtype="float32") for _ in range(2))
    compiled.compile(decoder=True, backend="eager")
    start = plain.random_start()
    ours, theirs = compiled.session(2, start), plain.session(2, start)
    for action in WALK[:6]:
        assert np.abs(ours.step(action).astype(int) - theirs.step(action)).max() <= 1
    first, second = ours.snapshot(), theirs.snapshot()
    for name, tensor in second.tensors.items():
        if name.startswith("decoder."):
            torch.testing.assert_close(first.tensors[name], tensor, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    after = ours.step(WALK[6])
    for go_back in (lambda: ours.rewind(), lambda: ours.restore(first)):
        go_back()
        assert (ours.step(WALK[6]) == after).all()
    ours.reset()
    for action in WALK[:2]:
        ours.step(action)
    assert counters["stats"]["unique_graphs"] == 2
