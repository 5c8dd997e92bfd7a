from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.kv_cache import Block, DiTCache, KVRing, LayerCache

TOKENS, HEADS, HEAD_DIM = 2, 3, 4


def empty(window: int, batch: int = 1) -> DiTCache:
    shape = (batch, HEADS, window, TOKENS, HEAD_DIM)
    mouse = (batch, HEADS * TOKENS, window, 1, HEAD_DIM)
    return DiTCache([LayerCache(KVRing.empty(shape, "cpu", torch.float32), KVRing.empty(mouse, "cpu", torch.float32), None)], window)


def stream(latents: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(3, batch, HEADS, latents * TOKENS, HEAD_DIM).unbind(0)


def cut(x: Tensor, first: int, end: int) -> Tensor:
    return x[:, :, first * TOKENS : end * TOKENS]


@pytest.mark.parametrize(("window", "n"), [(6, 3), (4, 3), (15, 3), (3, 3), (5, 1), (7, 5)])
@pytest.mark.parametrize("offset", [0, 300_000, 300_001])
@pytest.mark.parametrize("grad", [False, True])
def test_ring_sees_the_last_latents(window: int, n: int, offset: int, grad: bool) -> None:
    cache, (q, k, v) = empty(window), stream(8 * n)
    for start in range(0, 8 * n, n):
        block = cache.open(offset + start, n)
        now = [cut(x, start, start + n).clone().requires_grad_(grad) for x in (q, k, v)]
        out = cache.layers[0].tokens.attend(block, *now)
        first = max(0, start + n - window)
        seen = [cut(x, first, start + n) for x in (k, v)]
        torch.testing.assert_close(out, F.scaled_dot_product_attention(now[0], *seen))
        assert (cache.first, cache.written) == (offset + first, offset + start + n)
    assert not cache.layers[0].tokens.k.requires_grad


def test_gradient_survives_later_passes() -> None:
    """A pass made with gradients may be overwritten in the ring before its backward pass."""
    cache, (q, k, v) = empty(4), stream(6)
    ring = cache.layers[0].tokens
    ring.attend(cache.open(0, 3), *(cut(x, 0, 3) for x in (q, k, v)))
    now = [cut(x, 3, 6).clone().requires_grad_() for x in (q, k, v)]
    out = ring.attend(cache.open(3, 3), *now)
    ring.attend(cache.open(3, 3), *stream(3))
    out.sum().backward()
    again = [x.detach().clone().requires_grad_() for x in now]
    seen = [torch.cat([cut(x, 2, 3), y], 2) for x, y in zip((k, v), again[1:], strict=True)]
    F.scaled_dot_product_attention(again[0], *seen).sum().backward()
    for ours, theirs in zip(now, again, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_slots_are_plain_numbers() -> None:
    assert Block(window=4, first=2, start=3, n=3).writes == [(3, 0, 1), (0, 1, 2)]
    assert Block(window=6, first=0, start=3, n=3).writes == [(3, 0, 3)]
    block = Block(window=4, first=1, start=2, n=2)
    latents = {(1, 4): [(1, 4)], (0, 4): [(0, 4)], (3, 5): [(0, 1), (3, 4)], (2, 2): []}
    assert {held: block.slots(*held) for held in latents} == latents


def test_repeating_a_block_changes_nothing_else() -> None:
    cache, (q, k, v) = empty(4), stream(6)
    for start in (0, 3, 3, 3):
        cache.layers[0].tokens.attend(cache.open(start, 3), *(cut(x, start, start + 3) for x in (q, k, v)))
        books = (cache.first, cache.written)
    assert books == (2, 6)


def test_rewinding_forgets_what_follows() -> None:
    cache = empty(6)
    for start in (0, 3, 6, 9):
        cache.open(start, 3)
    assert (cache.first, cache.written) == (6, 12)
    block = cache.open(8, 3)  # overwrites 8, 9, 10; 11 belongs to a future that will not happen
    assert (cache.first, cache.written, block.first) == (6, 11, 6)
    cache.open(0, 3)
    assert (cache.first, cache.written) == (0, 3)


@pytest.mark.parametrize("start", [13, 5, -1])
def test_holes_are_refused(start: int) -> None:
    cache = empty(6)
    for s in (0, 3, 6, 9):
        cache.open(s, 3)
    with pytest.raises(ValueError, match=rf"{start}"):
        cache.open(start, 3)
    assert (cache.first, cache.written) == (6, 12)


def test_block_larger_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"block of 5 .* window of 4"):
        empty(4).open(0, 5)


def test_clone_load_and_clear() -> None:
    cache, (q, k, v) = empty(4, batch=2), stream(3, batch=2)
    cache.layers[0].image = (torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4))
    cache.layers[0].tokens.attend(cache.open(0, 3), q, k, v)
    twin = cache.clone()
    saved = {name: tensor.clone() for name, tensor in cache.tensors().items()}
    assert set(saved) == {f"layers.0.{part}.{x}" for part in ("tokens", "mouse", "image") for x in "kv"}
    cache.layers[0].tokens.attend(cache.open(3, 3), *stream(3, batch=2))
    assert (twin.first, twin.written) == (0, 3)
    for name, tensor in twin.tensors().items():
        torch.testing.assert_close(tensor, saved[name], rtol=0, atol=0)
    cache.load(saved, 0, 3)
    assert (cache.first, cache.written) == (0, 3)
    torch.testing.assert_close(cache.layers[0].tokens.k, twin.layers[0].tokens.k, rtol=0, atol=0)
    cache.clear()
    assert (cache.first, cache.written) == (0, 0) and cache.layers[0].image is not None


def test_a_saved_state_of_another_size_is_refused() -> None:
    cache = empty(4)
    with pytest.raises(ValueError, match=r"layers\.0\.mouse\.k is \[1, 6, 6, 1, 4\]|layers\.0\.tokens\.k is \[1, 3, 6, 2, 4\]"):
        cache.load(empty(6).tensors(), 0, 0)
    with pytest.raises(ValueError, match="differs in"):
        cache.load({}, 0, 0)
    with pytest.raises(ValueError, match=r"0\.\.9 in a window of 4"):
        cache.load(cache.tensors(), 0, 9)
