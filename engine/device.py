"""What differs from one kind of device to another."""

from __future__ import annotations

import torch
from torch import Tensor


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def to_host(pictures: Tensor) -> Tensor:
    """``pictures`` on the host, when they are there. From a GPU into pinned memory: pageable memory is copied twice, in small pieces.

    torch keeps freed pinned memory for the next block. Only the copy is waited for, not what other streams do.
    """
    if not pictures.is_cuda:
        return pictures.cpu()
    host = torch.empty(pictures.shape, dtype=pictures.dtype, pin_memory=True)
    host.copy_(pictures, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(pictures.device))
    arrived.synchronize()
    return host
