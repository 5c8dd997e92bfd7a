"""`torch.compile` as this package wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

GRAPHS = 64  # of one function in a process: two for every world that is played; torch gives up at 8


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``function`` compiled, one graph without a break for every shape it is called with."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    return torch.compile(function, fullgraph=True, dynamic=False, **options)
