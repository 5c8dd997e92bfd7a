"""bfloat16 where oneDNN has none: on a processor without AVX-512 it refuses its own calls, and torch's are taken."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from models import kernels
from models.kernels import onednn_has_bfloat16
from models.linear import linear_gelu
from models.vae_layers import CausalConv3d, as_volume

CPU = torch.device("cpu")


@torch.no_grad()
def layers_in_bfloat16() -> None:
    """Raises if a layer that has calls of its own in bfloat16 cannot be computed, or is not what it is in float32."""
    torch.manual_seed(0)
    linear, conv = torch.nn.Linear(32, 64), CausalConv3d(8, 16, (3, 3, 3))
    x, frames = torch.randn(1, 84, 32), torch.randn(1, 5, 6, 10, 8)
    exact = linear_gelu(x, linear), conv(frames)
    linear, conv = linear.bfloat16(), conv.bfloat16()
    half = linear_gelu(x.bfloat16(), linear), conv(frames.bfloat16())
    conv.lay_out()
    for one, other in zip((*half, conv(frames.bfloat16())), (*exact, exact[1]), strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, atol=0.03, rtol=0.03)


def test_layers_in_bfloat16_are_what_they_are_in_float32() -> None:
    layers_in_bfloat16()


def test_so_they_are_where_onednn_has_no_bfloat16() -> None:
    """As on this processor, were it an older one: oneDNN can be told so."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN here")
    script = (
        "from tests.models import test_kernels as t; t.layers_in_bfloat16(); "
        "assert not t.onednn_has_bfloat16() and not t.as_volume(t.CPU), 'oneDNN has bfloat16 all the same'"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_convolutions_over_volumes_only_where_they_are_quick() -> None:
    assert (torch.bfloat16 in as_volume(CPU)) == onednn_has_bfloat16() and torch.float32 not in as_volume(CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.inference_mode()
def test_gelu_is_the_formula(dtype: torch.dtype) -> None:
    """Far out too, where the logistic function must not overflow."""
    linear = torch.nn.Linear(1, 1).double().requires_grad_(False)
    linear.weight.fill_(1), linear.bias.zero_()
    x = torch.cat([torch.linspace(-8, 8, 4001, dtype=torch.float64), torch.tensor([-1e4, -60.0, 60.0, 1e4], dtype=torch.float64)])[:, None]
    theirs = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 0.03}[dtype]
    torch.testing.assert_close(linear_gelu(x.to(dtype), linear.to(dtype)).double(), theirs, atol=tolerance, rtol=tolerance)


def test_gelu_under_autocast_and_of_weights_that_learn() -> None:
    """What is written over is what the product gave, and only where nobody wants its gradient."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(16, 32), torch.randn(64, 16)
    linear_gelu(x, linear).sum().backward()
    ours = linear.weight.grad.clone()
    linear.weight.grad = None
    torch.nn.functional.gelu(linear(x), approximate="tanh").sum().backward()
    torch.testing.assert_close(ours, linear.weight.grad)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_gelu(x, linear), torch.nn.functional.gelu(linear(x), approximate="tanh"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries, keys", [(84, 15), (3, 15), (84, 420), (7, 100), (40, 1200)])
@torch.inference_mode()
def test_attention_by_hand_is_the_formula(dtype: torch.dtype, queries: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 where all of it is small, and in half precision where it is not."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 16).to(dtype) for tokens in (queries, keys, keys))
    theirs = (q.double() @ k.double().transpose(-1, -2) / 4).softmax(-1) @ v.double()
    for small in (kernels.SMALL, 0):
        monkeypatch.setattr(kernels, "SMALL", small)
        assert kernels.by_hand(q, k) == (128 <= keys <= 1024 or (keys < 128 and (small > 0 or queries <= 8)))
        ours = kernels.attend(q, k, v)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, atol=0.02, rtol=0.02)


@torch.inference_mode()
def test_attention_spelled_out_for_a_compiler() -> None:
    """Only where keys and queries are few, and only on a GPU."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 24, n, 16, generator=generator) for n in (3, 15, 15))
    torch.testing.assert_close(kernels.in_sums(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))
    half = kernels.in_sums(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), kernels.in_sums(q, k, v), atol=0.03, rtol=0.03)
    assert not kernels.spelled_out(q, k)

    class Elsewhere:
        """A tensor's shape on a GPU."""

        def __init__(self, tokens: int) -> None:
            self.shape, self.is_cuda = (2, 24, tokens, 16), True

    assert kernels.spelled_out(Elsewhere(3), Elsewhere(15))
    assert not kernels.spelled_out(Elsewhere(3), Elsewhere(17)) and not kernels.spelled_out(Elsewhere(2640), Elsewhere(15))
