"""Trainings in a process of their own: ``python -m tests.training.child FOLDER OBJECTIVE…``, alone or as one of several.

Each objective runs in FOLDER/OBJECTIVE-N with N processes; behind its name "-image" gives its networks image tokens, "-half"
checkpointed layers and bfloat16, and "-muon" that optimizer. Without objectives: one forcing that never ends, to be killed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from engine.config import WorldConfig
from tests.training.tiny import networks_for, tiny_config, tiny_data, tiny_plan
from training.dataset import Batch, Data
from training.draws import Draws
from training.parallel import Workers
from training.plan import Plan, RolloutSettings, ScoreSettings
from training.trainer import Trainer

ROLLOUT = RolloutSettings(horizon=(1, 3), exit_shared=False, gradient_latents=6)
SETTINGS = {
    "regression": {"rollout": ROLLOUT},
    "dmd": {"rollout": ROLLOUT, "score": ScoreSettings(guidance=1.5)},
    "sid": {"rollout": ROLLOUT, "score": ScoreSettings(guidance=1.5)},
}


def endless_plan() -> Plan:
    plan = tiny_plan("forcing", iterations=10**6, save_every=5, report_every=1)
    return replace(plan, optimizer=replace(plan.optimizer, schedule="constant"))  # whatever the last iteration


def plan_of(words: str, **changes: object) -> Plan:
    """The plan of an objective, with what its name says behind it."""
    objective, *more = words.split("-")
    changes |= {"checkpointing": True, "precision": "bfloat16"} if "half" in more else {}
    plan = tiny_plan(objective, batch=4, iterations=3, report_every=1, student_every=2, **SETTINGS.get(objective, {}), **changes)
    return replace(plan, optimizer=replace(plan.optimizer, kind="muon")) if "muon" in more else plan


class Seeing(Data):
    """Windows with image tokens."""

    def batch(self, draws: Draws, blocks: int, start_share: float = 0.35, together: bool = False) -> Batch:
        return replace(super().batch(draws, blocks, start_share, together), visual=draws.normal("picture", 5, 8))


def trainer_of(folder: Path, objective: str, workers: Workers, plan: Plan) -> Trainer:
    name, *more = objective.split("-")
    place = folder / f"{objective}-{workers.count}"
    (place / f"files-{workers.rank}").mkdir(parents=True, exist_ok=True)
    config: WorldConfig = tiny_config(place / f"files-{workers.rank}")
    data = tiny_data(place / f"files-{workers.rank}", config, blocks=3, count=3)
    if "image" in more:
        model = replace(config.model, img_dim=8)
        config = SeeingConfig(config, model)
        data = Seeing(data.source, config, 0)
    return Trainer(plan, config, networks_for(name, config), data, workers, place)


class SeeingConfig:
    """A config whose model has image tokens but which no vision encoder goes with."""

    def __init__(self, config: WorldConfig, model: object) -> None:
        self.model, self._config = model, config

    def __getattr__(self, name: str) -> object:
        return getattr(self._config, name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, objectives = Path(sys.argv[1]), sys.argv[2:]
    workers = Workers.start("cpu")
    for objective in objectives:
        trainer_of(target, objective, workers, plan_of(objective)).run()
    if not objectives:
        trainer_of(target, "forcing", workers, endless_plan()).run()
    workers.finish()
