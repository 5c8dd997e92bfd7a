"""The trainer's loop: draw, loss, gradient, step; and everything needed to go on from a file as if nothing had happened."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from engine.config import WorldConfig
from models.dit import DiT
from models.errors import WorldError, one_line
from models.vae import VAE
from training.arguments import new_folder
from training.dataset import Data
from training.draws import Draws
from training.journal import Journal
from training.learner import Average, Learner, checkpoint_layers
from training.objectives import OBJECTIVES, Networks
from training.objectives.base import Report
from training.objectives.rollout import Rollout, half_precision
from training.parallel import Workers
from training.plan import Plan, RolloutSettings
from training.sharded import load_whole, whole_state
from training.sheet import contact_sheet

SAME = ("world", "objective", "seed", "batch", "student_every")  # of a plan that another must share to go on from its checkpoint


class TrainingError(RuntimeError):
    """A training that cannot go on."""


class Trainer:
    """One run of a plan in a folder. Networks come with their weights; they are sharded here."""

    def __init__(
        self, plan: Plan, world: WorldConfig, networks: Networks, data: Data, workers: Workers, folder: Path, vae: VAE | None = None,
        tensorboard: bool = False,
    ) -> None:  # fmt: skip
        self.plan, self.world, self.networks, self.workers, self.folder, self.vae = plan, world, networks, workers, folder, vae
        self.data = data
        for dit in (networks.teacher, networks.target):
            if dit is not None:
                dit.requires_grad_(False)
        for dit in (networks.student, networks.teacher, networks.critic, networks.target):
            if dit is not None:
                if plan.checkpointing:
                    checkpoint_layers(dit)
                workers.shard(dit)
        kind = OBJECTIVES[plan.objective]
        self.objective = kind(plan, world, networks, data, workers.device)
        short = data.keep(self.objective.longest)
        if short and workers.main:
            print(f"left out: {short} clips of fewer than {self.objective.longest} blocks; {len(data)} are left", flush=True)
        self.student = Learner(networks.student, plan.optimizer, plan.optimizer.lr)
        self.critic = None if networks.critic is None else Learner(networks.critic, plan.optimizer, plan.optimizer.critic_lr)
        self.average = Average(networks.student, plan.ema_decay, plan.ema_from)
        decay = plan.consistency.decay if plan.consistency else 0.95
        self.target = None if networks.target is None else Average(networks.student, decay)
        self.iteration, self.seconds = 0, 0.0
        self.samples = workers.samples(plan.batch)
        new_folder(folder)
        self._resume()
        self.journal = Journal(folder, self.iteration, plan.iterations, tensorboard) if workers.main else None
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def run(self, minutes: float = math.inf, after: Callable[[int], None] | None = None) -> None:
        """Train until the plan's last iteration, or until ``minutes`` (all of the folder's, resumed ones included) are over.

        ``after`` is called with the number of every iteration done. Raises TrainingError where a loss is no number.
        """
        mark, saved = time.monotonic(), self.iteration
        while self.iteration < self.plan.iterations and not self.workers.agree(self.seconds > 60 * minutes):
            self._count(self.step())
            self.iteration += 1
            now = time.monotonic()
            self.seconds, mark = self.seconds + now - mark, now
            if self.journal is not None:
                self.journal.advance()
            if self.iteration % self.plan.report_every == 0:
                self._report()
            if self.iteration % self.plan.save_every == 0:
                self.save()
                saved = self.iteration
            if self.plan.sheet_every and self.iteration % self.plan.sheet_every == 0:
                self.draw_sheet()
            if after is not None:
                after(self.iteration)
        if saved != self.iteration:
            self.save()
        if self.journal is not None:
            self.journal.close()

    def step(self) -> Report:
        """One iteration: the student's update when it is its turn, then the critic's."""
        plan, nets, report = self.plan, self.networks, {}
        if self.critic is None or self.iteration % plan.student_every == 0:
            with self._others_fixed(nets.critic):
                report |= self._update(self.student, "student", self.objective.student_loss)
            self.average.update(nets.student, self.iteration)
            if self.target is not None:
                self.target.update(nets.student, self.iteration)
                self._show_target()
        if self.critic is not None:
            with self._others_fixed(nets.student):
                report |= self._update(self.critic, "critic", self.objective.critic_loss)
        return report

    def _update(self, learner: Learner, purpose: str, loss_of: Callable[[Draws], tuple[Tensor, Report]]) -> Report:
        turn = self.iteration // (self.plan.student_every if purpose == "student" and self.critic is not None else 1)
        draws = Draws(self.plan.seed, self.iteration, self.samples, self.plan.batch, purpose, turn)
        total, device = len(self.samples), self.workers.device
        size = self.plan.micro or total
        learner.forget()
        sums: Report = {}
        for first in range(0, total, size):
            part = draws.part(first, size)
            share = len(part.samples) / total
            with half_precision(device) if self.plan.dtype(device) == torch.bfloat16 else nullcontext():
                loss, report = loss_of(part)
            (loss * share).backward()
            prefix = "" if purpose == "student" else f"{purpose} "
            for name, value in {"loss": loss, **report}.items():
                sums[prefix + name] = sums.get(prefix + name, 0) + value.detach().cpu() * share
        norm = learner.step(self.iteration, self.plan.iterations)
        sums[f"{purpose} gradient"] = norm.detach().cpu()
        if self.workers.agree(not math.isfinite(sum(float(value) for value in sums.values()))):
            raise TrainingError(f"the {purpose}'s loss or gradient is no number at iteration {self.iteration}; the last checkpoint is kept")
        return sums

    @contextmanager
    def _others_fixed(self, dit: DiT | None) -> Iterator[None]:
        """While one network learns, the other gets no gradient. Sharded ones cannot be told so: theirs is dropped (`Learner.forget`)."""
        if dit is None or self.workers.mesh is not None:
            yield
            return
        trained = [p for p in dit.parameters() if p.requires_grad]
        for p in trained:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in trained:
                p.requires_grad_(True)

    @torch.no_grad()
    def _show_target(self) -> None:
        for name, p in self.networks.target.named_parameters():
            p.copy_(self.target.weights[name])

    def _count(self, report: Report) -> None:
        for name, value in report.items():
            self._sums[name] = self._sums.get(name, torch.zeros(())) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def _report(self) -> None:
        numbers = self.workers.mean({name: total / self._counts[name] for name, total in self._sums.items()})
        self._sums, self._counts = {}, {}
        if self.journal is not None:
            self.journal.report(self.iteration, self.seconds, numbers)

    def draw_sheet(self) -> None:
        """Let the averaged student play a few clips, and keep the pictures."""
        blocks = min(self.data.most_blocks, 8)
        dtype, sampler = self.plan.dtype(self.workers.device), self.world.sampler
        rollout = Rollout(self.networks.student, sampler.steps, sampler.shift, RolloutSettings(), dtype, last_noise=sampler.last_noise)
        with self.average.worn(self.networks.student):
            picture = contact_sheet(rollout, self.data, self.vae, blocks, self.workers.device, self.workers.main)
        if picture is not None:
            self.journal.sheet(self.iteration, picture)

    # ---- checkpoints

    @property
    def file(self) -> Path:
        return self.folder / "last.pt"

    def save(self) -> None:
        """Write `last.pt` so that a kill at any moment leaves either the old one or the new one. All processes take part."""
        nets, main = self.networks, self.workers.main
        state = {
            "step": self.iteration, "seconds": self.seconds,
            "plan": {name: getattr(self.plan, name) for name in SAME}, "clips": len(self.data),
            "model": whole_state(nets.student, main), "averaged": self.average.state(main), "optimizer": self.student.state(main),
        }  # fmt: skip
        if self.critic is not None:
            state["critic"] = {"model": whole_state(nets.critic, main), "optimizer": self.critic.state(main)}
        if self.target is not None:
            state["target"] = self.target.state(main)
        if main:
            temporary = self.file.with_suffix(".pt.tmp")
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.file)

    def _resume(self) -> None:
        if not self.file.exists():
            return
        try:
            # several processes map the file: a copy in each of them would be there as many times
            state = torch.load(self.file, weights_only=True, map_location="cpu", mmap=self.workers.count > 1)
        except Exception as error:  # torch names many: a file of something else, one torn off, one that would run code
            raise WorldError(f"{self.file} cannot be read: {one_line(error, 120)}; move it away to begin anew") from None
        told = state.get("plan") if isinstance(state, dict) else None
        if told is None:
            raise WorldError(f"{self.file} is of another trainer; choose another --out, or begin from it with --student {self.file}")
        told = told | {"optimizer.kind": "muon" if "muon" in state["optimizer"] else "adamw"}  # so that older checkpoints tell it too
        wanted = {name: getattr(self.plan, name) for name in SAME} | {"optimizer.kind": self.plan.optimizer.kind}
        for name, own in wanted.items():
            if told[name] != own:
                raise WorldError(f"{self.folder} was begun with {name} {told[name]}, the plan says {own}: choose another --out")
        clips = len(self.data)
        if state["clips"] != clips and self.workers.main:
            print(f"{self.folder} has seen {state['clips']} clips, now there are {clips}: their order begins anew", flush=True)
        try:
            load_whole(self.networks.student, state["model"])
        except WorldError as error:
            raise WorldError(f"{self.file}: {error}; choose another --out") from None
        self.average.load(state["averaged"])
        self.student.load(state["optimizer"])
        if self.critic is not None:
            load_whole(self.networks.critic, state["critic"]["model"])
            self.critic.load(state["critic"]["optimizer"])
        if self.target is not None:
            self.target.load(state["target"])
            self._show_target()
        self.iteration, self.seconds = state["step"], state["seconds"]
        if self.workers.main:
            print(f"resumed {self.file} at iteration {self.iteration} after {self.seconds / 60:.1f} min", flush=True)
