"""Weights as they are multiplied: the same bits, until the layer is moved; never of what learns, of other dtypes, of large models."""

from __future__ import annotations

import copy

import pytest
import torch

from engine import load_config
from engine.memory import weights_bytes
from models import linear
from models.dit import DiT
from models.kernels import onednn_has_bfloat16
from models.linear import Linear, linear_gelu, product
from tests.models.test_float8 import model as float_model
from tests.models.test_float8 import needs_float8, played

needs_packing = pytest.mark.skipif(
    not onednn_has_bfloat16() or linear._REORDER is None, reason="oneDNN has no bfloat16 on this processor, so that nothing is packed"
)


def model() -> DiT:
    return float_model().bfloat16()


def walked(dit: DiT) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        return played(dit)


@needs_packing
@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 28, 84, 420])
@pytest.mark.parametrize("sides", [(256, 768), (1024, 256), (36, 20)])
def test_the_same_bits(rows: int, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = Linear(*sides).bfloat16().requires_grad_(False)
    x = torch.randn(1, rows, sides[0]).bfloat16()
    plain, bent = layer(x), linear_gelu(x, layer)
    layer.pack()
    assert layer.packed is not None
    assert torch.equal(layer(x), plain) and torch.equal(linear_gelu(x, layer), bent)
    assert torch.equal(product(x, layer.weight, None, layer.packed), torch.nn.functional.linear(x, layer.weight))


@needs_packing
@torch.no_grad()
def test_what_is_packed_is_what_is_multiplied() -> None:
    """Without it the test before would hold of a layer that does not look at it."""
    layer = Linear(64, 64).bfloat16().requires_grad_(False)
    layer.pack()
    x = torch.randn(84, 64).bfloat16()
    before = layer(x)
    layer.weight.zero_()
    assert torch.equal(layer(x), before)
    layer.pack()
    assert torch.equal(layer(x), layer.bias.expand(84, -1))


@needs_packing
def test_what_is_to_be_differentiated_is_not_packed() -> None:
    layer = Linear(64, 64).bfloat16()
    layer.pack()
    x = torch.randn(84, 64).bfloat16().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None


@needs_packing
@torch.no_grad()
def test_a_compiler_sees_a_plain_layer() -> None:
    layer = Linear(64, 64).bfloat16().requires_grad_(False)
    layer.pack()
    x = torch.randn(84, 64).bfloat16()
    graph = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(graph(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_other_dtypes_and_devices_are_not_packed() -> None:
    assert linear.pack(torch.zeros(64, 64)) is None and linear.pack(torch.zeros(64, 64, dtype=torch.float16)) is None
    assert linear.pack(torch.zeros(64, 64, dtype=torch.bfloat16, device="meta")) is None


@needs_packing
def test_a_model_laid_out_is_packed_until_it_is_moved() -> None:
    dit = model()
    plain = walked(dit)
    dit.fuse()
    # queries, keys and values, output, feed-forward; of an action module four of the mouse's weights and two of the keyboard's
    assert [len(layer.packs) for layer in dit.blocks] == [4 + 6, 4]
    fused = walked(dit)
    torch.testing.assert_close(fused.float(), plain.float(), atol=0.1, rtol=0.1)
    twin = copy.deepcopy(dit)
    assert torch.equal(walked(twin), fused)
    dit.double()
    assert not any(layer.packs for layer in dit.blocks)
    assert all(getattr(module, "packed", None) is None for module in dit.modules())
    dit.bfloat16().fuse()
    assert torch.equal(walked(dit), fused)


@needs_packing
def test_other_weights_are_packed_anew() -> None:
    dit, other = model(), model()
    dit.fuse()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    dit.load_state_dict(other.state_dict())
    other.fuse()
    assert torch.equal(walked(dit), walked(other))


@needs_packing
def test_a_large_model_is_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    once = weights_bytes(load_config("garden"), dtype="bfloat16")
    size = sum(parameter.nbytes for parameter in model().parameters())
    monkeypatch.setattr(linear, "MOST", size - 1)
    dit = model()
    dit.fuse()
    assert not any(layer.packs for layer in dit.blocks)
    assert weights_bytes(load_config("garden"), dtype="bfloat16") < once
    monkeypatch.setattr(linear, "MOST", size)
    dit.fuse()
    assert all(layer.packs for layer in dit.blocks)


@needs_packing
@needs_float8
def test_what_is_in_float8_is_not_packed() -> None:
    dit = model()
    dit.fuse()
    dit.to_float8()
    assert [len(layer.packs) for layer in dit.blocks] == [6, 0]  # the action module's
