"""From a decoder's frames to pictures on the host."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor


def to_uint8(frames: Tensor) -> np.ndarray:
    """Frames `[1, 3, F, H, W]` in [-1, 1] -> uint8 `[F, H, W, 3]` on the host: round((x + 1) 127.5)."""
    return Arriving(to_bytes(frames)).wait().numpy()


def to_bytes(frames: Tensor) -> Tensor:
    """`to_uint8` where the frames are."""
    pictures = frames[0].permute(1, 2, 3, 0).float().add(1).mul(127.5).round_().clamp_(0, 255)
    return pictures.to(torch.uint8).contiguous()


class Arriving:
    """``pictures`` on their way to the host, from a GPU on a stream of their own: what is queued there meanwhile does not wait for them.

    Into pinned memory, for pageable memory is copied twice, in small pieces. torch keeps freed pinned memory for the next block.
    """

    def __init__(self, pictures: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not pictures.is_cuda:
            self._host = pictures.cpu()
            return
        stream = _copy_stream(pictures.device)
        stream.wait_stream(torch.cuda.current_stream(pictures.device))
        self._host = torch.empty(pictures.shape, dtype=pictures.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            self._host.copy_(pictures, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(stream)
        pictures.record_stream(stream)  # its memory is not given to anybody else before

    def wait(self) -> Tensor:
        """The pictures, when they are there. Only the copy is waited for, not what other streams do."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
