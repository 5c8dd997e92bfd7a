"""To a device, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor``, which lies on the host, on ``device``; work queued there goes on meanwhile.

    To a GPU by way of pinned memory: from pageable memory the driver copies only when all that was queued before is done, and the host
    waits for that. What was pinned is kept for the next time.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not torch.compiler.is_dynamo_compiling():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, non_blocking=True)
