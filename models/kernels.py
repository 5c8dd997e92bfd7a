"""Where a CPU is quicker with other calls than the obvious ones: the same formulas, chosen by device and dtype alone.

Nothing here is chosen by trial: the same machine takes the same calls every time, and so gives the same bits. Whether a compiler asks
is `torch.compiler.is_dynamo_compiling`, true for the one that traces; `is_compiling` is true for every thread while any compiles.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Raised when a CPU makes other calls in float32, or in half precision: what was recorded before has other last bits
# (`engine.exact.fingerprint`).
FLOAT32_CALLS, HALF_CALLS = 2, 2
HALF = (torch.bfloat16, torch.float16)
# Where plain products beat torch's fused CPU kernel in half precision (torch 2.13, one core; measured in docs/PERFORMANCE.md).
MANY_KEYS = (128, 1024)
FEW_QUERIES = 8
FEW_KEYS = 16  # for so few a GPU's fused kernels still work on whole tiles of 128
SMALL = 1 << 18  # numbers in queries and in keys, up to which float32 is quicker where keys are few: its memory stays in the caches
_plain_products = True


def onednn_has_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor: it wants AVX-512 (or its like), and refuses elsewhere."""
    can = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # no public way to ask
    return torch.backends.mkldnn.is_available() and can is not None and can()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last dimension, times ``weight`` [..., dim] if there is one; x in float32.

    Away from a GPU torch makes this of many calls, of which the sum of squares is the slowest; its vector norm is not.
    """
    if x.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_dynamo_compiling():
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        return x * scale if weight is None else (x * scale).mul_(weight)
    normed = F.rms_norm(x, (x.shape[-1],), None, eps)
    return normed if weight is None else normed * weight


def use_plain_products(allowed: bool) -> None:
    """Whether `attend` may do without torch's fused attention where that is slower. For the whole process, as torch's own switches."""
    global _plain_products
    _plain_products = allowed


def plain_products() -> bool:
    """What `use_plain_products` said last."""
    return _plain_products


def by_hand(q: Tensor, k: Tensor) -> bool:
    """Whether `attend` makes plain products of these [B, heads, tokens, head_dim]."""
    keys = k.shape[2]
    quicker = keys <= MANY_KEYS[1] if keys >= MANY_KEYS[0] else q.shape[2] <= FEW_QUERIES or _small(q, k)
    return _plain_products and plays(q, *HALF) and quicker


def spelled_out(q: Tensor, k: Tensor) -> bool:
    """Whether `attend` spells attention out for a compiler to fuse: over time at each place, thousands of tiny ones, on a GPU."""
    return _plain_products and q.is_cuda and q.shape[2] <= FEW_QUERIES and k.shape[2] <= FEW_KEYS


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v; all [B, heads, tokens, head_dim]."""
    if torch.compiler.is_dynamo_compiling() and spelled_out(q, k):
        return in_sums(q, k, v)
    if not by_hand(q, k):
        return F.scaled_dot_product_attention(q, k, v)
    if k.shape[2] >= MANY_KEYS[0]:
        return torch.bmm(_scores(q, k).softmax(-1), v.flatten(0, 1)).view(*q.shape[:3], v.shape[-1])
    kind = torch.float32 if _small(q, k) else q.dtype
    scores = _scores(q.to(kind), k.to(kind)).float()  # over time at each place: hundreds or thousands of tiny products
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()  # torch's softmax takes three times as long for short rows
    sums = weights.sum(-1, keepdim=True)
    return torch.bmm(weights.to(kind), v.flatten(0, 1).to(kind)).div_(sums).to(v.dtype).view(*q.shape[:3], v.shape[-1])


def in_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` without a product of matrices, in float32. For a compiler: run as it is it makes large tensors."""
    scores = (q.float()[:, :, :, None] * k.float()[:, :, None]).sum(-1) * q.shape[-1] ** -0.5  # [B, heads, query tokens, key tokens]
    return (scores.softmax(-1)[..., None] * v.float()[:, :, None]).sum(3).to(v.dtype)


def _small(q: Tensor, k: Tensor) -> bool:
    return max(q.numel(), k.numel()) <= SMALL


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q k^T / sqrt(head_dim), [B x heads, query tokens, key tokens]; the root is divided by before the result is rounded."""
    ignored = q.new_empty(1, 1, 1)
    return torch.baddbmm(ignored, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), beta=0, alpha=int(q.shape[-1]) ** -0.5)


def plays(x: Tensor, *kinds: torch.dtype) -> bool:
    """Whether ``x`` is a tensor of one of these ``kinds`` on a CPU, not to be differentiated, and in no compiler's hands."""
    return x.is_cpu and x.dtype in kinds and not (torch.is_grad_enabled() and x.requires_grad) and not torch.compiler.is_dynamo_compiling()
