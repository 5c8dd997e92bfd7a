"""A network that learns: its optimiser and learning rate, clipping, and its averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.dit import DiT
from training.common import MixedOptimizer, cosine_schedule, load_moments
from training.plan import OptimizerSettings
from training.sharded import local, mapped, part_like, whole

NOT_HIDDEN = ("head.head", "patch_embedding", "modulation", "keyboard_embed", "time_")  # matrices that Muon should leave alone


class Learner:
    """Weights in float32, updated by AdamW, or by Muon where they are matrices."""

    def __init__(self, model: DiT, settings: OptimizerSettings, lr: float) -> None:
        self.model, self.settings, self.lr = model, settings, lr
        trained = [p for p in model.parameters() if p.requires_grad]
        if settings.kind == "muon":
            self.optimizer: Any = MixedOptimizer(model, lr, lr / 2, settings.weight_decay, NOT_HIDDEN)
        else:
            self.optimizer = torch.optim.AdamW(trained, lr=lr, betas=settings.betas, weight_decay=settings.weight_decay)

    def forget(self) -> None:
        """Drop the gradients, those that another network's loss has left too."""
        self.model.zero_grad(set_to_none=True)

    def step(self, iteration: int, iterations: int) -> Tensor:
        """Clip and update at the rate of this iteration; the norm of the gradient before."""
        settings = self.settings
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        factor = cosine_schedule(iteration / iterations, warmup=0.0) if settings.schedule == "cosine" else 1.0
        factor *= min(1.0, (iteration + 1) / (settings.warmup + 1))
        if isinstance(self.optimizer, MixedOptimizer):
            self.optimizer.step(factor)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * factor
            self.optimizer.step()
        self.forget()
        return norm

    def state(self, kept: bool = True) -> dict:
        """The optimiser's state, whole, on the host; all processes must ask, also those that do not keep it (they get empty tensors)."""
        return mapped(self.optimizer.state_dict(), partial(whole, kept=kept))

    def load(self, state: dict) -> None:
        """Take over a state of `state`, as exactly as it was; rate, betas and decay stay those of the settings."""
        if isinstance(self.optimizer, MixedOptimizer):
            _spread(self.optimizer.adamw, state["adamw"])  # Muon's are whole everywhere
            self.optimizer.load_state_dict(state)
            return
        _spread(self.optimizer, state)
        load_moments(self.optimizer, state)


def _spread(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Lay the moments of a whole `state_dict` out, in place, as the parameters they belong to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in state["state"].items():
        like = parameters[index]
        for name, value in entry.items():
            entry[name] = part_like(value, like) if value.shape == like.shape else value


class Average:
    """Averaged weights: the newest until iteration ``start``, from then on their exponential moving average."""

    def __init__(self, model: nn.Module, decay: float, start: int = 0) -> None:
        self.decay, self.start = decay, start
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Follow the weights after ``iteration``."""
        share = 1.0 if iteration < self.start else 1 - self.decay
        for name, p in model.named_parameters():
            local(self.weights[name]).lerp_(local(p.detach()), share)

    def state(self, kept: bool = True) -> dict[str, Tensor]:
        """The weights, whole, on the host; all processes must ask, also those that do not keep them."""
        return {name: whole(weight, kept) for name, weight in self.weights.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            local(weight).copy_(local(part_like(state[name], weight)))

    @contextmanager
    def worn(self, model: nn.Module) -> Iterator[None]:
        """The model with these weights, for as long as that lasts."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            own, other = local(p.detach()), local(self.weights[name])
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)


def checkpoint_layers(dit: DiT) -> None:
    """Let every layer keep its inputs alone and compute itself again in the backward pass (gradient checkpointing)."""
    for layer in dit.blocks:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
