"""A tiny world to train in: two clips of two blocks, networks of a few thousand weights, plans of milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from engine import load_config
from engine.config import WorldConfig
from models.dit import DiT
from tests.tiny_world import SETTINGS
from training.dataset import SUFFIX, Clip, ClipFolder, Data
from training.objectives import OBJECTIVES, Networks, Objective
from training.parallel import Workers
from training.plan import UNREAD, OptimizerSettings, Plan

CPU = torch.device("cpu")
ALONE = Workers(0, 1, CPU)
BLOCKS, CLIPS = 2, 2
SHAPE = (3, 4, 6, 2, 4)  # [B, z, T, h, w]


def tiny_config(folder: Path, prediction: str = "x0") -> WorldConfig:
    """The tiny world's config, from a yaml written into ``folder``."""
    settings: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SETTINGS))
    settings["model"]["prediction"] = prediction
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_config(path)


def tiny_clip(seed: int, latents: int, places: tuple[int, int] = (2, 4)) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    frames = 1 + 4 * (latents - 1)
    keyboard = torch.randint(0, 2, (frames, 4), generator=generator).float()
    mouse = 0.1 * torch.randn(frames, 2, generator=generator)
    picture = torch.randn(4, 30, *places, generator=generator)
    return Clip(torch.randn(4, latents, *places, generator=generator), picture, keyboard, mouse)


def write_clips(folder: Path, blocks: int = BLOCKS, count: int = CLIPS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        tiny_clip(seed, 3 * blocks).save(folder / f"{seed}{SUFFIX}", "test")
    return folder


def write_ragged(folder: Path, blocks: Sequence[int]) -> Path:
    """Clips of so many blocks each, in that order."""
    folder.mkdir(parents=True)
    for number, length in enumerate(blocks):
        tiny_clip(number, 3 * length).save(folder / f"{number}{SUFFIX}", "test")
    return folder


def state_of(folder: Path) -> dict:
    return torch.load(folder / "last.pt", weights_only=True)


def tiny_data(folder: Path, config: WorldConfig, blocks: int = BLOCKS, count: int = CLIPS) -> Data:
    return Data(ClipFolder(write_clips(folder / "clips", blocks, count), config), config, 0)


def tiny_dit(config: WorldConfig, seed: int, loud: bool = True) -> DiT:
    """A network; ``loud``: its head, silent at first, says something."""
    torch.manual_seed(seed)
    dit = DiT(config.model)
    if loud:
        torch.nn.init.normal_(dit.head.head.weight, std=0.1)
    return dit


def tiny_plan(objective: str, **changes: Any) -> Plan:
    """Settings that the objective does not read stay as they are by default: a plan with others is refused."""
    critic = {"optimizer.critic_lr", "student_every"}.isdisjoint(UNREAD[objective])
    rates = {"lr": 5e-3} | ({"critic_lr": 1e-2} if critic else {})
    fast = OptimizerSettings(**rates, betas=(0.0, 0.99), weight_decay=0.0, clip=1.0, schedule="cosine")
    settings = {"optimizer": fast, "blocks": BLOCKS, "batch": 2, "precision": "float32", "student_every": 1, "ema_decay": 0.9, **changes}
    return Plan(world="garden", objective=objective, **{name: value for name, value in settings.items() if name not in UNREAD[objective]})


def networks_for(objective: str, config: WorldConfig, loud: bool = True) -> Networks:
    """Networks with different random weights, as many as the objective needs."""
    kind = OBJECTIVES[objective]
    teacher = tiny_dit(config, 2, loud).requires_grad_(False) if kind.needs_teacher else None
    critic = tiny_dit(config, 3, loud) if kind.has_critic else None
    target = tiny_dit(config, 4, loud).requires_grad_(False) if kind.has_target else None
    return Networks(tiny_dit(config, 1, loud), teacher, critic, target)


def objective_of(plan: Plan, config: WorldConfig, networks: Networks, data: Data) -> Objective:
    return OBJECTIVES[plan.objective](plan, config, networks, data, CPU)


def with_window(config: WorldConfig, window: int) -> WorldConfig:
    return replace(config, model=replace(config.model, local_attn_size=window))


def randn(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wide(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]
