"""Rotary position embedding over (time, row, column), on interleaved pairs, for any position (SPEC §3).

Angles are computed in float64 where they are needed and never read from a table that ends: a session may run for ever.
Source of the formula: Su et al. 2021, "RoFormer", with the per-axis frequency tables of Wan 2.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.transfer import send

# cos and sin, float32, each [tokens, 1, pairs]: broadcasts over [batch, tokens, heads, pairs]; or both in one complex64 tensor, which a
# CPU turns with in a single operation
Rotary = tuple[Tensor, Tensor] | Tensor


def axis_split(head_dim: int) -> tuple[int, int, int]:
    """Numbers of a head that turn with time, row and column: 44, 42, 42 of 128. Raises ``ValueError`` if ``head_dim`` is odd."""
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd: rotary embedding turns pairs of numbers, choose dim and num_heads for an even one")
    third = head_dim // 2 // 3
    return head_dim - 4 * third, 2 * third, 2 * third


def axis_angles(positions: Tensor, axis_dim: int, theta: float) -> Tensor:
    """Angles in radians, float64 ``[len(positions), axis_dim / 2]``: position x theta^(-2i / axis_dim)."""
    exponents = torch.arange(0, axis_dim, 2, dtype=torch.float64, device=positions.device) / axis_dim
    return positions.to(torch.float64)[:, None] * theta**-exponents


def rotary_grid(positions: Tensor, height: int, width: int, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Table for the tokens of the latents at ``positions`` [T], in (latent, row, column) order: T x height x width rows."""
    time_dim, row_dim, column_dim = axis_split(head_dim)
    rows = torch.arange(height, device=positions.device)
    columns = torch.arange(width, device=positions.device)
    time_angles = axis_angles(positions, time_dim, theta)[:, None, None, :]  # [T, 1, 1, time pairs]
    row_angles = axis_angles(rows, row_dim, theta)[None, :, None, :]  # [1, h, 1, row pairs]
    column_angles = axis_angles(columns, column_dim, theta)[None, None, :, :]  # [1, 1, w, column pairs]
    grid = (len(positions), height, width, -1)
    angles = torch.cat([a.expand(grid) for a in (time_angles, row_angles, column_angles)], dim=-1)  # [T, h, w, pairs]
    return _table(angles.flatten(0, 2))


def rotary_time(positions: Tensor, turning: int, theta: float) -> tuple[Tensor, Tensor]:
    """Table for whole latents: only the first ``turning`` numbers of a head turn, with time. T rows."""
    return _table(axis_angles(positions, turning, theta))


def apply_rotary(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of x ``[..., tokens, heads, head_dim]``; numbers beyond the table's pairs stay.

    A complex table must have all the head's pairs (`prepare_rotary`) and takes float32 only.
    """
    if isinstance(rotary, Tensor):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotary).flatten(-2)
    cos, sin = rotary
    turning = 2 * cos.shape[-1]
    even, odd = x[..., :turning].unflatten(-1, (-1, 2)).unbind(-1)  # each [..., tokens, heads, pairs]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return turned if turning == x.shape[-1] else torch.cat((turned, x[..., turning:]), dim=-1)


def prepare_rotary(rotary: tuple[Tensor, Tensor], head_dim: int, device: torch.device) -> Rotary:
    """The table as heads of ``head_dim`` numbers are turned quickest on ``device``: complex on a CPU, real elsewhere. Waits for nothing."""
    if device.type != "cpu":
        return to_device(rotary, device)
    cos, sin = rotary
    rest = head_dim // 2 - cos.shape[-1]  # pairs that stay: turned by nothing
    return torch.complex(F.pad(cos, (0, rest), value=1.0), F.pad(sin, (0, rest)))


def to_device(rotary: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """The table on ``device``, without waiting for it."""
    return send(rotary[0], device), send(rotary[1], device)


def _table(angles: Tensor) -> tuple[Tensor, Tensor]:
    return angles.cos().float()[:, None, :], angles.sin().float()[:, None, :]  # [tokens, 1, pairs]
