"""What sessions rely on: a warm-up that touches nothing, a start picture that comes through unchanged, settings told in full."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import engine.exact
from engine import Action, World, fingerprint, pin_threads, processor, settings
from engine.exact import compiler_options, make_exact
from engine.picture import fit_picture, load_picture
from models.kernels import FLOAT32_CALLS, HALF_CALLS
from models.vae_layers import CausalConv3d
from tests.tiny_world import write_tiny_world


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("tiny"))


def test_the_warm_up_leaves_no_trace(tiny: Path) -> None:
    cold, warm = World.load(tiny), World.load(tiny)
    cold._warm = True  # pretends to be
    warm.warm_up()
    state = {name: tensor.clone() for name, tensor in warm.dit.state_dict().items()}
    sessions = [cold.session(3), warm.session(3)]
    for action in (Action("w"), Action(look=(0.2, -1))):
        first, second = (session.step(action) for session in sessions)
        assert (first == second).all()
    assert sessions[1].clock.block == 2 and all(torch.equal(state[name], tensor) for name, tensor in warm.dit.state_dict().items())


def test_kernels_are_exact_once_there_is_a_session(tiny: Path) -> None:
    world = World.load(tiny)
    world.session()
    found = fingerprint(world)
    assert found["deterministic"] is True and found["threads"] == torch.get_num_threads() and found["processor"] == processor()
    assert found["device"] == "cpu" and found["compile"] is False and json.loads(json.dumps(found)) == found
    assert not torch.utils.deterministic.fill_uninitialized_memory
    half = World.load(tiny, dtype="bfloat16")
    assert found["calls"] == FLOAT32_CALLS and fingerprint(half).keys() == found.keys() - {"calls"} | {"half calls"}
    assert fingerprint(half)["half calls"] == HALF_CALLS
    next(module for module in half.vae.modules() if isinstance(module, CausalConv3d))._tiled = torch.zeros(1)
    assert fingerprint(half)["calls"] == FLOAT32_CALLS, "its start pictures are encoded in float32"
    before = torch.get_num_threads()
    pin_threads(before + 1)
    assert fingerprint(world)["threads"] == before + 1
    pin_threads(before)


def test_on_a_gpu_the_general_switch_is_off_and_the_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    before = torch.get_deterministic_debug_mode()
    monkeypatch.setattr(engine.exact, "_on_gpu", False)
    try:
        make_exact(cpu, cpu)
        assert torch.get_deterministic_debug_mode() == 1
        make_exact(cpu, gpu)
        assert torch.get_deterministic_debug_mode() == 0 and torch.backends.cudnn.deterministic and not torch.backends.cudnn.allow_tf32
        make_exact(cpu, cpu)
        assert torch.get_deterministic_debug_mode() == 0, "the other world may be playing"
    finally:
        torch.set_deterministic_debug_mode(before)
    assert compiler_options() == {"deterministic": True}


def test_settings_name_every_number_and_no_word(tiny: Path) -> None:
    world = World.load(tiny)
    found = settings(world.config)
    assert found["model.dim"] == 32 and found["sampler.steps"] == [1000, 666, 333] and found["actions.keyboard[2].key"] == "a"
    assert found["height"] == 16 and found["actions.opposites"] == [["w", "s"], ["a", "d"]]
    assert not any("title" in name or "does" in name or "weights" in name for name in found)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("size", [(16, 32), (64, 112), (352, 640), (24, 40)])
def test_a_picture_of_the_right_size_comes_through_unchanged(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    pixels = fit_picture(picture, *size)
    assert pixels.shape == (*size, 3) and (fit_picture(pixels, *size) == pixels).all()
    assert torch.equal(load_picture(picture, *size), load_picture(pixels, *size))


def test_a_session_from_the_pixels_is_the_same(tiny: Path) -> None:
    world = World.load(tiny)
    a, b = world.session(1), world.session(1, world.start_pixels())
    assert (a.step(Action("w")) == b.step(Action("w"))).all()


def test_block_sizes(tiny: Path) -> None:
    assert World.load(tiny).config.block_frames == (9, 12)
