"""What a training is: its yaml, read as strictly as a world's. Files are named on the command line, never in a yaml."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch

from engine.config import WorldConfig, load_config, read_settings
from engine.worldfile import list_worlds, load_yaml
from models.errors import WorldError, one_line
from models.flow import TRAIN_STEPS
from training.common import working_dtype

OBJECTIVES = ("forcing", "regression", "dmd", "sid", "causvid", "consistency")
SECTIONS = {  # which parts of a plan an objective reads
    "forcing": {"forcing"},
    "regression": {"rollout"},
    "dmd": {"rollout", "score"},
    "sid": {"rollout", "score"},
    "causvid": {"forcing", "score"},
    "consistency": {"forcing", "consistency"},
}
CRITICS = ("optimizer.critic_lr", "student_every")
LEVELS = tuple(f"forcing.{name}" for name in ("levels", "step_weights", "range", "shared"))
LOSS = tuple(f"forcing.{name}" for name in ("space", "weighting", "context_noise", "drop_actions", "resampling", "begin_weights", "robust"))
UNREAD = {  # and which settings of those parts, and of the plan itself, it does not: refused, unless they are as they are by default
    "forcing": CRITICS,
    "regression": ("blocks", *CRITICS),
    "dmd": ("blocks", "score.alpha"),
    "sid": ("blocks",),
    "causvid": (*LOSS, "score.alpha"),
    "consistency": (*LEVELS, *LOSS, *CRITICS),
}


def _between(low: float, value: float, high: float, name: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value:g}")


@dataclass(frozen=True)
class ForcingSettings:
    """A pass over all latents at once (`objectives/forcing.py`).

    ``context``: what a block sees of the past: "clean" truth beside it (teacher forcing), the "noisy" latents themselves (diffusion
    forcing), or "all" of the window, past and future (a teacher for the scores). ``levels``: the sampler's "steps", drawn with
    ``step_weights``, or "uniform" over ``range`` of the schedule; per block, or one for the window (``shared``). ``space``: what
    the error is measured in; ``weighting`` over noise levels. ``context_noise``: the most noise (standard deviation) added to
    clean context. ``drop_actions``: share of samples that see no action, for guidance. ``resampling``: share of the iterations whose clean
    context is what the model makes of it (`objectives/resampling.py`), each block begun at a pass drawn with ``begin_weights``.
    Weights are one for each of the sampler's steps, or none: then all count alike.
    ``robust``: the error from which on a block counts as its logarithm (`objectives/forcing.robust`); 0: every error as it is.
    """

    context: Literal["clean", "noisy", "all"] = "clean"
    levels: Literal["steps", "uniform"] = "steps"
    step_weights: tuple[float, ...] = ()
    range: tuple[float, float] = (0.0, 1.0)
    shared: bool = False
    space: Literal["x0", "velocity", "noise"] = "x0"
    weighting: Literal["uniform", "bell", "min_snr"] = "uniform"
    context_noise: float = 0.0
    drop_actions: float = 0.0
    resampling: float = 0.0
    begin_weights: tuple[float, ...] = ()
    robust: float = 0.0

    def __post_init__(self) -> None:
        _between(0, self.range[0], self.range[1], "the beginning of range")
        _between(0, self.range[1], 1, "the end of range")
        _between(0, self.drop_actions, 1, "drop_actions")
        _between(0, self.context_noise, 10, "context_noise")
        _between(0, self.resampling, 1, "resampling")
        _between(0, self.robust, 100, "robust")
        for name in ("step_weights", "begin_weights"):
            weights = getattr(self, name)
            if any(weight < 0 for weight in weights) or (weights and not sum(weights)):
                raise ValueError(f"{name} must be positive, got {list(weights)}")
        if self.resampling and self.context != "clean":
            raise ValueError(f"resampling makes a clean context, and context is {self.context!r}")
        if self.context_noise and self.context != "clean":
            raise ValueError(f"context_noise is added to a clean context, and context is {self.context!r}")


@dataclass(frozen=True)
class RolloutSettings:
    """Self-Forcing (`objectives/rollout.py`). ``horizon``: fewest and most blocks; ``exit``: the pass with the gradient, drawn at
    random or the last; ``finish``: go on after it without, so that later blocks see what play would have made; ``context_noise``:
    timestep of the clean pass; ``gradient_latents``: how many of the last have a gradient; ``start_share``: of windows that begin with
    their session (others are given their first block)."""

    horizon: tuple[int, int] = (2, 7)
    exit: Literal["random", "last"] = "random"
    exit_shared: bool = True
    finish: bool = False
    context_noise: float = 0.0
    gradient_latents: int = 21
    start_share: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.horizon
        if not 1 <= low <= high:
            raise ValueError(f"horizon must be two rising numbers of blocks from 1 on, got {[low, high]}")
        if self.gradient_latents < 1:
            raise ValueError(f"gradient_latents must be at least 1, got {self.gradient_latents}")
        _between(0, self.context_noise, TRAIN_STEPS, "context_noise")
        _between(0, self.start_share, 1, "start_share")


@dataclass(frozen=True)
class ScoreSettings:
    """The two scores of distribution matching (`objectives/scores.py`). ``context``: what they see, "all" of the window or, "noisy",
    its past; ``range`` and ``shift`` of their noise levels; ``alpha`` is SiD's; ``critic_space``: that of the critic's error."""

    context: Literal["all", "noisy"] = "all"
    guidance: float = 1.0
    range: tuple[float, float] = (0.02, 0.98)
    shift: float = 5.0
    alpha: float = 1.0
    critic_space: Literal["x0", "velocity", "noise"] = "velocity"
    critic_weighting: Literal["uniform", "bell", "min_snr"] = "uniform"

    def __post_init__(self) -> None:
        low, high = self.range
        if not 0 < low < high <= 1:
            raise ValueError(f"range must be two rising numbers in (0, 1], got {[low, high]}")
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")


@dataclass(frozen=True)
class ConsistencySettings:
    """Causal consistency (`objectives/consistency.py`): ``levels`` between noise and data; the target's averaging ``decay``."""

    levels: int = 48
    decay: float = 0.95
    guidance: float = 1.0

    def __post_init__(self) -> None:
        _between(2, self.levels, TRAIN_STEPS, "levels")
        _between(0, self.decay, 1, "decay")


@dataclass(frozen=True)
class OptimizerSettings:
    """``betas`` and ``weight_decay`` are AdamW's; "muon" is Muon for matrices, AdamW for the rest. ``schedule``: constant after
    ``warmup`` iterations, or a cosine over the second half of the iterations; ``clip``: the most a gradient's norm may be."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 2e-6
    critic_lr: float = 4e-7
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.01
    clip: float = 10.0
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        for name in ("lr", "critic_lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")


@dataclass(frozen=True)
class Plan:
    """A whole training. ``steps`` and ``window`` replace the world's own; ``blocks`` is the window of objectives without rollout.

    ``batch`` counts all processes together; ``micro`` samples of a process are computed at a time (0: all). The student learns in
    every ``student_every``-th iteration where there is a critic, which learns in each. ``precision`` "auto" is bfloat16 where the
    device computes in it itself, else float32.
    """

    world: str
    objective: Literal["forcing", "regression", "dmd", "sid", "causvid", "consistency"]
    forcing: ForcingSettings | None = None
    rollout: RolloutSettings | None = None
    score: ScoreSettings | None = None
    consistency: ConsistencySettings | None = None
    optimizer: OptimizerSettings = OptimizerSettings()
    steps: tuple[int, ...] = ()
    window: int = 0
    blocks: int = 5
    batch: int = 8
    micro: int = 0
    iterations: int = 1000
    student_every: int = 5
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpointing: bool = False
    ema_decay: float = 0.99
    ema_from: int = 0
    save_every: int = 100
    report_every: int = 10
    sheet_every: int = 0

    def __post_init__(self) -> None:
        for name in ("blocks", "batch", "iterations", "student_every", "save_every", "report_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        _between(0, self.ema_decay, 1, "ema_decay")
        given = {name for name in ("forcing", "rollout", "score", "consistency") if getattr(self, name) is not None}
        stray = sorted(given - SECTIONS[self.objective])
        if stray:
            raise ValueError(f"the objective {self.objective} reads no settings {stray[0]}; it reads {', '.join(SECTIONS[self.objective])}")
        for name in UNREAD[self.objective]:
            part, _, last = name.rpartition(".")
            holder = getattr(self, part) if part else self
            if holder is not None and getattr(holder, last) != next(item.default for item in fields(holder) if item.name == last):
                raise ValueError(f"the objective {self.objective} does not read {name}: leave it out")
        if self.objective in ("causvid", "consistency") and self.forcing is not None and self.forcing.context == "all":
            raise ValueError(f"{self.objective} trains what can be played: forcing.context must be noisy or clean")

    def dtype(self, device: torch.device) -> torch.dtype:
        """What is computed in on ``device``."""
        return working_dtype(device) if self.precision == "auto" else getattr(torch, self.precision)

    def world_config(self, world: str | Path | None = None) -> WorldConfig:
        """The world's config, or that of another ``world`` in its place, with this plan's steps and window.

        Raises WorldError for a world that there is not, and for one with another number of steps than this plan has weights for.
        """
        options: dict[str, object] = {"sampler.steps": list(self.steps)} if self.steps else {}
        options |= {"model.local_attn_size": self.window} if self.window else {}
        if world is None and self.world not in list_worlds():
            names = ", ".join(list_worlds())
            raise WorldError(f"world is one of {names}, got {one_line(self.world, 80)!r}; give a yaml of your own with --world")
        config = load_config(world or self.world, options)
        steps = config.sampler.steps
        for name in ("step_weights", "begin_weights"):
            weights = getattr(self.forcing or ForcingSettings(), name)
            if weights and len(weights) != len(steps):  # fewer would leave the last passes as they are, without a word
                raise WorldError(
                    f"forcing.{name} has {len(weights)} numbers, and {config.name} has {len(steps)} steps ({list(steps)}): "
                    "copy the plan and give one for each step, or none"
                )
        return config


def read_plan(path: Path) -> Plan:
    """The plan in a yaml file. Raises WorldError for what cannot be read or is wrong in it."""
    return read_settings(Plan, load_yaml(path), path.name)
