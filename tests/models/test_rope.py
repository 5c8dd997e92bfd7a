from __future__ import annotations

import math

import pytest
import torch

from models.rope import apply_rotary, axis_split, rotary_grid, rotary_time


@pytest.mark.parametrize(("head_dim", "split"), [(128, (44, 42, 42)), (64, (24, 20, 20)), (16, (8, 4, 4)), (4, (4, 0, 0))])
def test_axis_split(head_dim: int, split: tuple[int, int, int]) -> None:
    assert axis_split(head_dim) == split


def test_odd_head_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim 7 is odd"):
        axis_split(7)


def test_grid_is_three_tables_turned_as_complex_numbers() -> None:
    x = torch.randn(2, 3 * 2 * 4, 5, 128)
    ours = apply_rotary(x, rotary_grid(torch.arange(7, 10), 2, 4, 128))
    frequencies = [10000.0 ** -(torch.arange(0, d, 2).double() / d) for d in (44, 42, 42)]
    token = 0
    for latent in (7, 8, 9):
        for row in range(2):
            for column in range(4):
                angles = torch.cat([p * f for p, f in zip((latent, row, column), frequencies, strict=True)])
                pairs = torch.view_as_complex(x[:, token].double().unflatten(-1, (-1, 2)).contiguous())
                turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
                torch.testing.assert_close(ours[:, token], turned.float(), rtol=1e-5, atol=1e-5)
                token += 1


def test_only_the_first_numbers_turn_with_time() -> None:
    x = torch.randn(1, 3, 2, 64)
    turned = apply_rotary(x, rotary_time(torch.tensor([0, 5, 5]), 8, 256.0))
    torch.testing.assert_close(turned[..., 8:], x[..., 8:], rtol=0, atol=0)
    torch.testing.assert_close(turned[:, 0], x[:, 0])
    angle = 5 * 256 ** (-2 / 8)  # second pair
    expected = x[0, 1, 0, 2] * math.cos(angle) - x[0, 1, 0, 3] * math.sin(angle)
    torch.testing.assert_close(turned[0, 1, 0, 2], expected)


def test_angles_of_far_positions_are_exact() -> None:
    position = 12_345_678
    cos, sin = rotary_grid(torch.tensor([position]), 1, 1, 128)
    angles = [position * 10000.0 ** (-2 * i / 44) for i in range(22)]
    torch.testing.assert_close(cos[0, 0, :22], torch.tensor([math.cos(a) for a in angles]), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin[0, 0, :22], torch.tensor([math.sin(a) for a in angles]), rtol=0, atol=1e-6)


def test_products_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 2 * 6, 1, 64)

    def products(start: int) -> torch.Tensor:
        table = rotary_grid(torch.arange(start, start + 2), 2, 3, 64)
        return apply_rotary(q, table)[0, :, 0] @ apply_rotary(k, table)[0, :, 0].T

    torch.testing.assert_close(products(0), products(300_000), rtol=1e-4, atol=1e-4)
