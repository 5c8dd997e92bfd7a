"""The attention kernel: chosen, refused where it is not there, and told as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine import Action, World, WorldError, benchmark, fingerprint, load_config
from engine.attention import Choice, _order, _without_failing, attentions_of, choose_attention
from models import kernels

CPU = torch.device("cpu")
FLASH, MATH = 1, 0  # of `SDPBackend`
GARDEN = load_config("garden")


@pytest.fixture(autouse=True)
def back_to_auto() -> Iterator[None]:
    yield
    choose_attention("auto", CPU, torch.float32, GARDEN)


def taken() -> int:
    tokens = torch.zeros(1, 1, 16, 16)
    return torch._fused_sdp_choice(tokens, tokens, tokens)


def test_auto_on_a_cpu_is_torch_as_it_comes(tiny_yaml: Path) -> None:
    before = taken(), torch._C._get_sdp_priority_order()
    world = World.load(tiny_yaml)
    assert (taken(), torch._C._get_sdp_priority_order()) == before == (FLASH, before[1])
    assert fingerprint(world)["attention"] == "torch sdpa"  # what sessions recorded so far say
    choose_attention("math", CPU, torch.float32, GARDEN)
    choose_attention("auto", CPU, torch.float32, GARDEN)
    assert (taken(), torch._C._get_sdp_priority_order()) == before


def test_a_kernel_by_name_is_used_and_told(tiny_yaml: Path) -> None:
    pictures = {}
    for name, number in (("flash", FLASH), ("math", MATH)):
        world = World.load(tiny_yaml, attention=name)
        assert taken() == number and torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() == (name == "flash")
        told = benchmark(world.session(), blocks=1, warmup=0).engine
        assert told["attention"].startswith(f"{name}, torch sdpa ({name}")
        assert told["attention of"] == {"tokens": name, "mouse": name, "keyboard": name}
        assert fingerprint(world)["attention"] == f"torch sdpa ({'flash math' if name == 'flash' else 'math'})"
        pictures[name] = world.session(1).step(Action(frozenset("w"))).astype(int)
    assert np.abs(pictures["flash"] - pictures["math"]).max() <= 1


def test_plain_products_are_told_as_such_and_give_way_to_a_name(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.load(tiny_yaml, dtype="bfloat16")
    assert world.describe()["attention of"] == dict.fromkeys(("tokens", "mouse", "keyboard"), "plain products")
    plain = {"tokens": "flash", "image": "plain products", "mouse": "plain products", "keyboard": "flash"}
    assert attentions_of(load_config("universal"), CPU, torch.bfloat16) == plain
    fused: list[torch.Size] = []
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: (fused.append(q.shape), attention(q, k, v))[1])
    few, keys = torch.randn(1, 4, 3, 16).bfloat16(), torch.randn(1, 4, 15, 16).bfloat16()
    by_hand = kernels.attend(few, keys, keys)
    assert not fused and kernels.by_hand(few, keys)
    assert World.load(tiny_yaml, dtype="bfloat16", attention="flash").describe()["attention of"]["mouse"] == "flash"
    fused.clear()  # of the trial
    torch.testing.assert_close(kernels.attend(few, keys, keys).float(), by_hand.float(), rtol=0.05, atol=0.02)
    assert fused == [few.shape]


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_a_kernel_that_is_not_there(tiny_yaml: Path, name: str) -> None:
    with pytest.raises(WorldError, match=f"no {name} attention for float32 and heads of 16 on cpu; choose auto or flash or math"):
        World.load(tiny_yaml, attention=name)
    assert taken() == FLASH
    with pytest.raises(WorldError, match="attention is one of auto, cudnn"):
        World.untrained(tiny_yaml, attention="fast")
    with pytest.raises(WorldError, match="no flash attention"):
        choose_attention("flash", torch.device("meta"), torch.float32, GARDEN)


@pytest.mark.parametrize(("capability", "first"), [((9, 0), "cudnn"), ((12, 0), "cudnn"), ((8, 9), "flash")])
def test_the_order_on_a_gpu(capability: tuple[int, int], first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the order: whether a GPU takes it is for `tests.gpu_table`."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    cuda = torch.device("cuda")
    assert _order("auto", cuda) == (("cudnn",) if first == "cudnn" else ()) + ("flash", "efficient", "math")
    assert _order("efficient", cuda) == ("efficient", "flash", "math") and _order("math", cuda) == ("math",)
    assert str(Choice("auto", _order("auto", cuda))).startswith(f"torch sdpa ({first} ")


def test_torch_tries_the_order_it_is_given() -> None:
    """What `choose_attention` builds on: an enabled kernel that cannot do it is passed over."""
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
        assert taken() == MATH


def test_a_kernel_that_takes_an_attention_and_fails_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuDNN may, over three queries at each of thousands of places."""
    attention, tried = F.scaled_dot_product_attention, []

    def sometimes(q, k, v):
        tried.append((tuple(q.shape), q.is_contiguous(), taken()))
        if q.shape[2] == 3 and torch.backends.cuda.flash_sdp_enabled():
            raise RuntimeError("no plan\nfor this")
        return attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", sometimes)
    assert _without_failing("auto", ("flash", "math"), GARDEN, CPU, torch.float32) == ("math",)
    assert ((1, 4, 84, 64), False, FLASH) in tried and ((1, 112, 3, 32), False, MATH) in tried
    assert _without_failing("cudnn", ("cudnn", "flash", "math"), GARDEN, CPU, torch.float32) == ("cudnn", "math"), "it took nothing here"
    with pytest.raises(WorldError, match=r"the flash attention fails in this world \(mouse: no plan"):
        _without_failing("flash", ("flash", "math"), GARDEN, CPU, torch.float32)
    assert taken() == FLASH
