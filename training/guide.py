"""A helper for the first hours of training: it asks the denoiser's middle layer where it stands.

A picture of the garden is a function of four numbers (place, heading, pitch). Learning from pixels alone, the denoiser
must find that out for itself, and blurs until it does. So a linear head reads every token in the middle of the network
and is trained, with the network, to tell the pose: as what can be seen from it, the directions and distances of things.
The head is not part of the model: it is saved with the run and never exported. A training that goes on from exported weights fits its heads
first (`fitting`): what heads that know nothing ask of the network, it unlearns the place by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from models.dit import DiT
from training.simulator import world

_LANDMARKS = [(t.x, t.y) for t in world.THINGS] + [(world.POND.x, world.POND.y)]
FEATURES = 15 + 3 * len(_LANDMARKS)
FIT_BATCHES = 12  # forward passes that a head is fitted to
RIDGE = 1e-4  # of the mean square of what the head reads
SOFTNESS = 0.02  # errors far below it count squared, far above it linearly


def pose_features(pose: Tensor) -> Tensor:
    """Poses [..., 4] (x, y, yaw, pitch) as numbers of about unit size [..., FEATURES]."""
    x, y, yaw, pitch = pose.unbind(-1)
    middle = world.SIZE / 2
    dx, dy, c, s = (middle - x) / middle, (middle - y) / middle, yaw.cos(), yaw.sin()
    features = [c, s, dx, dy, dx * c + dy * s, dy * c - dx * s, pitch / world.PITCH_LIMIT]
    features += [f(k * yaw) for k in (2, 4) for f in (torch.cos, torch.sin)]
    features += [f(v * torch.pi) for v in (dx, dy) for f in (torch.cos, torch.sin)]
    for lx, ly in _LANDMARKS:
        ox, oy = lx - x, ly - y
        ahead, aside = ox * c + oy * s, oy * c - ox * s
        distance = torch.hypot(ox, oy).clamp_min(0.3)
        features += [ahead / distance, aside / distance, 0.8 / distance]
    return torch.stack(features, dim=-1)


class PoseGuide(nn.Module):
    """Listens to one layer of a denoiser; `loss` compares what its tokens know with the pose."""

    def __init__(self, dit: DiT, layer: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dit.config.dim)
        self.read = nn.Linear(dit.config.dim, FEATURES)
        self._tokens: Tensor | None = None
        self._heard: tuple[Tensor, Tensor] | None = None  # while it is fitted: sums over tokens of x x^T and x y^T, with a one below x
        dit.blocks[layer].register_forward_hook(self._listen)

    def _listen(self, _layer: nn.Module, _inputs: tuple, tokens: Tensor) -> None:
        self._tokens = tokens  # [B, T, S, dim]

    def told(self) -> Tensor:
        """What the tokens of the last forward pass say, [B, T, S, FEATURES]. They can be asked once."""
        return self.read(self._hear(slice(None)))

    def loss(self, pose: Tensor, part: slice = slice(None)) -> Tensor:
        """Error per latent [B, T] of the last forward pass, or of ``part`` of its latents, against poses [B, T, 4]."""
        heard, wanted = self._hear(part), pose_features(pose)[:, :, None]
        if self._heard is not None:
            self._note(heard, wanted)
        error = self.read(heard) - wanted
        return ((error.square() + SOFTNESS**2).sqrt() - SOFTNESS).mean((2, 3))

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Whatever `loss` is asked of meanwhile, the head answers best, by least squares, from then on. It asks nothing of the network."""
        many, weight = self.read.in_features + 1, self.read.weight
        self._heard = tuple(torch.zeros(many, n, dtype=torch.float64, device=weight.device) for n in (many, FEATURES))
        try:
            yield
            squares, products = (part.cpu() for part in self._heard)
            if not squares[-1, -1]:
                raise RuntimeError("the guide has heard nothing to be fitted to")
            small = RIDGE * squares.diagonal()[:-1].mean() * torch.eye(many, dtype=torch.float64)
            small[-1, -1] = 0  # the mean is free
            solved = torch.linalg.solve(squares + small, products)
            with torch.no_grad():
                self.read.weight.copy_(solved[:-1].T)
                self.read.bias.copy_(solved[-1])
        finally:
            self._heard = None

    def _hear(self, part: slice) -> Tensor:
        if self._tokens is None:
            raise RuntimeError("the guide has heard nothing yet: run the denoiser first")
        tokens, self._tokens = self._tokens, None
        return self.norm(tokens[:, part].float())

    @torch.no_grad()
    def _note(self, heard: Tensor, wanted: Tensor) -> None:
        x = heard.flatten(0, 2).double()
        y = wanted.expand(-1, -1, heard.shape[2], -1).flatten(0, 2).double()
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        self._heard[0].add_(x.T @ x), self._heard[1].add_(x.T @ y)


class Guides(nn.Module):
    """Two guides over a window seen twice (`View` "clean"): one asks the clean half where it stands, one the noisy half where it is to go.

    What is seen must be known a layer earlier than what follows from it and the actions: ``told`` may listen later than ``seen``.
    """

    def __init__(self, dit: DiT, seen: int, told: int) -> None:
        super().__init__()
        self.seen, self.told = PoseGuide(dit, seen), PoseGuide(dit, told)

    def loss(self, pose: Tensor, known: int) -> tuple[Tensor, Tensor]:
        """Errors [B, known] and [B, T] of the last forward pass over ``known`` clean latents and T noisy ones, of poses [B, T, 4]."""
        return self.seen.loss(pose[:, :known], slice(0, known)), self.told.loss(pose, slice(known, None))

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """`PoseGuide.fitting` of both; where nothing is seen, use the other's alone."""
        with ExitStack() as both:
            both.enter_context(self.seen.fitting())
            both.enter_context(self.told.fitting())
            yield
