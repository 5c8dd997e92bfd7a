"""3x3 convolutions with a quarter of the multiplications, in float32: Winograd's F(4x4, 3x3).

A tile of 4x4 outputs needs 6x6 inputs. Per output row A^T [(G g) * (B^T d)] gives the four sums of products of six numbers d with three
weights g by six multiplications instead of twelve; in two dimensions by 36 instead of 144 (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", arXiv:1509.09308, at the points 0, 1, -1, 2, -2 and infinity). Over channels and frames each of the 36
is a product of matrices. The transformed inputs serve all three taps in time, so nothing is laid side by side before.

The results differ from the plain sum by rounding alone: two to three times as far from the exact sum (1e-6) as oneDNN's are.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 4
TAPS = 36  # 6x6
AT_ONCE = 4 << 20  # bytes of transformed inputs, or one row of tiles if that is more: a core's caches are small
STRIPS = 2  # of that size at a time: one product of each cannot be shared by two threads, two products can
# Of `torch.backends.cpu.get_cpu_capability`: with AVX2 it was measured to be quicker, on one processor (docs/PERFORMANCE.md). With AVX-512
# products are quicker and memory is not, and whoever has its bfloat16 plays in that: not measured, so not done.
MEASURED = ("AVX2",)
MIN_CHANNELS = 32  # in and out: with 12 out two threads are quicker as it stands

_B = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
_G = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def _squared(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    one = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(one, one).float()


_INPUTS, _OUTPUTS = _squared(_B), _squared(_A)  # [36, 36] and [16, 36]: both dimensions of a tile at once


def quicker(weight: Tensor) -> bool:
    """Whether a causal convolution with this ``weight`` `[out, in, 3, 3, 3]` is quicker so than as torch does it."""
    wide = min(weight.shape[:2]) >= MIN_CHANNELS and weight.shape[2:] == (3, 3, 3)
    return wide and weight.is_cpu and weight.dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() in MEASURED


def takes(x: Tensor) -> bool:
    """Whether `convolve` can be given ``x``: float32, not to be differentiated, and nobody casts their products."""
    return x.dtype == torch.float32 and not (torch.is_grad_enabled() and x.requires_grad) and not torch.is_autocast_enabled("cpu")


def transform(weight: Tensor) -> Tensor:
    """Weights `[out, in, time, 3, 3]` as `convolve` takes them: `[36, time, in, out]`."""
    spread = torch.tensor(_G, dtype=torch.float64)
    placed = weight.permute(3, 4, 2, 1, 0).double()  # [3, 3, time, in, out]
    found = torch.kron(spread, spread) @ placed.flatten(0, 1).flatten(1)
    return found.to(weight.dtype).view(TAPS, *placed.shape[2:])


def convolve(x: Tensor, weights: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """The convolution of what `room` gave, `[B, time - 1 + T, rows, columns, in]`, once it is written -> `[B, T, height, width, out]`.

    ``x`` is all of that memory, not a part of it.
    """
    batch, frames, rows, columns, dim = map(int, x.shape)  # numbers, or a recording would work them out again each time
    taps, out_dim = int(weights.shape[1]), int(weights.shape[3])
    count, down, across = frames - taps + 1, rows // TILE, columns // TILE
    out = x.new_empty(batch, count, down, TILE, across, TILE, out_dim)
    strip = max(1, min(down, AT_ONCE // (TAPS * frames * across * dim * x.element_size())))  # rows of tiles
    strip = -(-down // -(-down // strip))  # as many strips, of about the same size
    for one in range(batch):
        first = 0
        while first < down:
            strip = min(strip, down - first)
            strips = STRIPS if first + STRIPS * strip <= down else 1
            last = first + strips * strip
            whole = _strips(x, one, first, weights, strips, strip, across)
            places = out[one, :, first:last].unflatten(1, (strips, strip))
            if torch.compiler.is_dynamo_compiling():  # it knows no `out` with gaps, and makes one call of these two itself
                places.copy_(whole + bias)
            else:
                torch.add(whole, bias, out=places)
            first = last
    return out.view(batch, count, down * TILE, across * TILE, out_dim)[:, :, :height, :width]


def _strips(x: Tensor, one: int, first: int, weights: Tensor, strips: int, down: int, across: int) -> Tensor:
    """``strips`` times ``down`` rows of tiles of x[``one``] from the ``first`` on: `[T, strips, down, 4, across, 4, out]`."""
    _, frames, rows, columns, dim = map(int, x.shape)
    row = columns * dim
    taps, out_dim = int(weights.shape[1]), int(weights.shape[3])
    count = frames - taps + 1
    tiles = x.as_strided(  # they share their edges; the offset is told outright: inductor loses that of a view
        (strips, 6, 6, frames, down, across, dim),
        (down * TILE * row, row, dim, rows * row, TILE * row, TILE * dim, 1),
        one * frames * rows * row + first * TILE * row,
    )
    inputs = torch.bmm(_INPUTS.expand(strips, -1, -1), tiles.reshape(strips, TAPS, -1)).view(strips, TAPS, frames, down * across, dim)
    sums = x.new_empty(strips, TAPS, count * down * across, out_dim)
    for mine, given in zip(sums, inputs, strict=True):
        torch.bmm(given[:, :count].flatten(1, 2), weights[:, 0], out=mine)
        for tap in range(1, taps):
            mine.baddbmm_(given[:, tap : tap + count].flatten(1, 2), weights[:, tap])
    outputs = torch.bmm(_OUTPUTS.expand(strips, -1, -1), sums.flatten(2)).view(strips, TILE, TILE, count, down, across, out_dim)
    return outputs.permute(3, 0, 4, 1, 5, 2, 6)


def room(frames: int, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """New memory as `convolve` takes it, for pictures like ``like`` `[B, T, H, W, in]`, and the part of it where ``frames`` of them go.

    The margins are zero, the part `[B, frames, height, width, in]` is not yet written.
    """
    rows, columns = -(-height // TILE) * TILE + 2, -(-width // TILE) * TILE + 2  # whole tiles, and one on each side
    extended = like.new_empty(like.shape[0], frames, rows, columns, like.shape[-1])
    for margin in (extended[:, :, 0], extended[:, :, height + 1 :], extended[:, :, :, 0], extended[:, :, :, width + 1 :]):
        margin.zero_()
    return extended, extended[:, :, 1 : height + 1, 1 : width + 1]
