"""Linear layers whose products are made in float8 (e4m3): weights rounded once, tokens as they come. Quicker on a GPU, and not the same.

Each output channel has a scale and each token has one, the largest number in it over 448, so that every row uses all of the range:

    y[i, j] = s_i t_j sum_k round(x[i, k] / s_i) round(w[j, k] / t_j) + b_j      sums in float32

(rowwise scaling, as in torchao and FBGEMM; Micikevicius et al. 2022, "FP8 formats for deep learning"). Frozen layers only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KIND = torch.float8_e4m3fn
LARGEST = torch.finfo(KIND).max  # 448
SMALLEST_SCALE = 1e-12  # of a row of zeros
SIDES = 16  # the kernels take sides that are multiples of it


class Float8Linear(nn.Module):
    """A linear layer of frozen ``weight`` [out, in] and ``bias`` [out] or None. It takes and gives what the layer it stands for does.

    Raises ``ValueError`` unless both sides are multiples of 16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if any(side % SIDES for side in weight.shape):
            raise ValueError(
                f"a weight of {weight.shape[0]}x{weight.shape[1]} has a side that is no multiple of {SIDES}: float8 wants them so"
            )
        rounded, scale = in_float8(weight.detach())
        self.register_buffer("rounded", rounded, persistent=False)  # [out, in]
        self.register_buffer("scale", scale.T.contiguous(), persistent=False)  # [1, out]
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> Float8Linear:
        return cls(linear.weight, linear.bias)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """x [..., in] -> [..., out - first]: without the outputs before ``first``."""
        rows, scale = in_float8(x.flatten(0, -2))
        out = torch._scaled_mm(rows, self.rounded[first:].T, scale, self.scale[:, first:], out_dtype=x.dtype)
        out = out if self.bias is None else out + self.bias[first:]
        return out.unflatten(0, x.shape[:-1])


def in_float8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] as float8 [N, K] and scales [N, 1] in float32: their product is near ``rows``, row by row."""
    scale = rows.abs().amax(1, keepdim=True).float().div(LARGEST).clamp_min(SMALLEST_SCALE)
    return (rows / scale).clamp(-LARGEST, LARGEST).to(KIND), scale  # rounding may take the largest beyond the range, which is NaN there


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps ``device`` from multiplying in float8 for a model in ``dtype``; None where it can. Tries it, and looks at what comes."""
    if device.type == "cuda" and dtype != torch.bfloat16:
        return f"on a GPU it goes with bfloat16, and this is {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return f"{torch.cuda.get_device_name(device)} has none: it came with compute capability 8.9 (Ada, Hopper)"
    scales = torch.arange(1, SIDES + 1, device=device, dtype=dtype)  # of rows: a kernel may know one for all of them, and no more
    try:
        with torch.no_grad():
            found = Float8Linear(torch.diag(scales), None)(scales[:, None].expand(-1, SIDES))
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return f"torch {torch.__version__} cannot on {device}: {str(error).splitlines()[0][:120]}"
    right = device.type == "meta" or torch.allclose(found, scales[:, None] * scales, rtol=0.01)
    return None if right else f"torch {torch.__version__} multiplies it wrongly on {device}"
