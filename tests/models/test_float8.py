"""Products in float8: the formula, nothing but the layers meant, and clear words where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine import load_config
from models.dit import DiT
from models.float8 import KIND, LARGEST, Float8Linear, in_float8, why_not
from models.linear import linear_gelu

CPU = torch.device("cpu")
needs_float8 = pytest.mark.skipif(why_not(CPU, torch.float32) is not None, reason=str(why_not(CPU, torch.float32)))


def test_every_row_uses_all_of_the_range() -> None:
    torch.manual_seed(0)
    rows = torch.randn(40, 64) * torch.logspace(-6, 6, 40)[:, None]
    rows[7] = 0
    rounded, scale = in_float8(rows)
    assert rounded.dtype == KIND and scale.shape == (40, 1) and scale.dtype == torch.float32
    largest = rounded.float().abs().amax(1)
    assert torch.equal(largest[:7], torch.full((7,), LARGEST)) and largest[7] == 0  # and no NaN where rounding goes beyond
    again = rounded.float() * scale
    near = (again - rows).abs() <= rows.abs() * 2**-4 + scale * 2**-10  # three bits after the first, or the smallest step
    assert near.all() and torch.isfinite(again).all()


@needs_float8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_product_of_what_was_rounded(dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(1)
    linear = torch.nn.Linear(48, 32, bias=biased).to(dtype)
    x = torch.randn(2, 3, 5, 48).to(dtype)
    layer = Float8Linear.of(linear)
    with torch.no_grad():
        ours, tail, unrounded = layer(x), layer(x, first=16), linear(x)
        (a, s), (b, t) = in_float8(x.flatten(0, -2)), in_float8(linear.weight)
        exact = (a.double() * s.double()) @ (b.double() * t.double()).T + (linear.bias.double() if biased else 0)
    assert ours.dtype == dtype and ours.shape == (2, 3, 5, 32)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    torch.testing.assert_close(ours.flatten(0, -2).double(), exact, **close)
    assert torch.equal(tail, ours[..., 16:])
    assert 0.001 < float((ours - unrounded).norm() / ours.norm()) < 0.06  # rounded, and not to nothing
    torch.testing.assert_close(linear_gelu(x, layer), torch.nn.functional.gelu(ours, approximate="tanh"))


def test_sides_must_fit() -> None:
    with pytest.raises(ValueError, match="24x32 has a side that is no multiple of 16"):
        Float8Linear(torch.zeros(24, 32), None)


def model(**changes: object) -> DiT:
    torch.manual_seed(0)
    config = load_config("garden").model
    action = replace(config.action, blocks=(0,), hidden=32, heads=2)
    dit = DiT(replace(config, dim=64, num_heads=2, ffn_dim=96, num_layers=2, action=action, **changes)).eval().requires_grad_(False)
    torch.nn.init.normal_(dit.head.head.weight, std=0.1)  # a fresh head is silent
    return dit


def played(dit: DiT) -> torch.Tensor:
    """Two passes over two blocks, and the keys that the second leaves without a pass of its own."""
    generator = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    visual = rand(1, 5, dit.config.img_dim) if dit.config.img_dim else None
    cache = dit.new_cache(1, 4, 6)
    dit.precompute_context(visual, cache)
    outputs = []
    for start in (0, 3):
        x, keyboard, mouse = rand(1, dit.config.in_dim, 3, 8, 12), rand(1, 3, 12, 4), rand(1, 3, 12, 2)
        outputs.append(dit(x, torch.full((1, 3), 700.0), keyboard, mouse, cache, start))
        dit.remember(x, torch.zeros(1, 3), dit.prepare(x, keyboard, mouse, start), cache)
    return torch.cat(outputs)


@needs_float8
@torch.no_grad()
@pytest.mark.parametrize("img_dim", [0, 16])
def test_a_model_in_float8_is_near_itself(img_dim: int) -> None:
    exact = played(model(img_dim=img_dim))
    dit = model(img_dim=img_dim)
    dit.fuse()
    dit.to_float8()
    apart = float((played(dit) - exact).norm() / exact.norm())
    assert 1e-4 < apart < 0.1
    rounded = {name for name, module in dit.named_modules() if isinstance(module, Float8Linear)}
    parts = ["self_attn._qkv", "self_attn.o", "ffn.0", "ffn.2"] + ["cross_attn.q", "cross_attn.o"] * bool(img_dim)
    assert rounded == {f"blocks.{i}.{part}" for i in range(2) for part in parts}  # the action module is exact
    kept = sum(tensor.nbytes for tensor in (*dit.blocks.parameters(), *dit.blocks.buffers()))
    assert kept < 0.7 * sum(p.nbytes for p in model(img_dim=img_dim).blocks.parameters())  # what was rounded is held once


@needs_float8
def test_it_is_for_playing_only() -> None:
    dit = model()
    with pytest.raises(ValueError, match="fuse"):
        dit.to_float8()
    dit.fuse()
    dit.to_float8()
    with pytest.raises(ValueError, match="load its weights anew"):
        dit.to(torch.bfloat16)


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "A100")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    assert why_not(gpu, torch.float16) == "on a GPU it goes with bfloat16, and this is float16"
    assert why_not(gpu, torch.bfloat16).startswith("A100 has none")

    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError("no kernel\nand many more lines")

    monkeypatch.setattr("torch._scaled_mm", lambda rows, weight, *_, **__: rows.float() @ weight.float())  # without their scales
    assert why_not(CPU, torch.float32) == f"torch {torch.__version__} multiplies it wrongly on cpu"
    monkeypatch.setattr("torch._scaled_mm", missing)
    assert why_not(CPU, torch.float32) == f"torch {torch.__version__} cannot on cpu: no kernel"
