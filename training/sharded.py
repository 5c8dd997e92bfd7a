"""Tensors that FSDP2 spreads over processes (DTensor): a process's part, the whole, and back. What is not spread is itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from models.errors import WorldError


def local(tensor: Tensor) -> Tensor:
    """This process's part, over the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor, on the device where it is; what is not spread is itself, no copy. All processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor, kept: bool = True) -> Tensor:
    """All of a tensor on the host. Where it is sharded, all processes must ask; who does not keep it gets an empty one.

    Processes of one machine share its memory: a state in each of them would be there as many times.
    """
    full = gathered(tensor)
    return full.detach().to("cpu", copy=True) if kept else torch.empty(0)


def part_like(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, laid out as ``like``."""
    full = full.to(like.device)
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def whole_state(module: nn.Module, kept: bool = True) -> dict[str, Tensor]:
    """A module's state, whole, on the host, as `whole` has it."""
    return {name: whole(tensor, kept) for name, tensor in module.state_dict().items()}


def gathered_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state, whole, as `gathered` has it."""
    return {name: gathered(tensor).detach() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a module, sharded or not, its whole state back."""
    own = module.state_dict()
    if own.keys() != state.keys():
        raise WorldError(f"the weights do not fit: they differ in {', '.join(sorted(own.keys() ^ state.keys())[:3])}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise WorldError(f"the weights do not fit: {name} is {list(state[name].shape)}, expected {list(tensor.shape)}")
        local(tensor).copy_(local(part_like(state[name], tensor)))


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in its dicts and lists changed."""
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return change(value) if isinstance(value, Tensor) else value
