"""`torch.compile` as this package wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

GRAPHS = 64  # of one function in a process: two for every world that is played; torch gives up at 8


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``function`` compiled, one graph without a break for every shape it is called with."""
    body = torch.compile(function, fullgraph=True, dynamic=False, **options)

    def call(*inputs: Any) -> Any:
        limits = torch._dynamo.config  # a thread's own: the one that calls need not be the one that compiled
        if limits.recompile_limit < GRAPHS:
            limits.recompile_limit = GRAPHS
        return body(*inputs)

    return call
