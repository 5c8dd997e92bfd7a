"""The loop: goes on exactly where it stopped, however it was stopped. Of several processes: test_processes.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.errors import WorldError
from models.vae import VAE
from tests.training.child import SETTINGS, endless_plan, trainer_of
from tests.training.tiny import ALONE, networks_for, state_of, tiny_config, tiny_data, tiny_dit, tiny_plan, with_window, write_ragged
from training.dataset import ClipFolder, Data
from training.draws import Draws
from training.learner import Average
from training.objectives import Networks
from training.plan import SECTIONS, OptimizerSettings, Plan, RolloutSettings
from training.trainer import Trainer, TrainingError

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def assert_equal(a: object, b: object, where: str = "") -> None:
    """The same nested dicts, lists and numbers, tensors bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "seconds":
                assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.mark.parametrize(("objective", "kind"), [("dmd", "adamw"), ("consistency", "adamw"), ("dmd", "muon")])
def test_a_resumed_run_is_the_same_run(objective: str, kind: str, tmp_path: Path) -> None:
    """Weights, averages, optimisers, critic, target, drawn numbers and the place in the data, bit for bit."""
    config = tiny_config(tmp_path)
    data = tiny_data(tmp_path, config, blocks=3, count=3)

    def run(folder: str, iterations: int) -> dict:
        plan = tiny_plan(objective, iterations=iterations, student_every=2, ema_from=2, micro=1, **SETTINGS.get(objective, {}))
        plan = replace(plan, optimizer=replace(plan.optimizer, kind=kind, schedule="constant", warmup=3))
        Trainer(plan, config, networks_for(objective, config), data, ALONE, tmp_path / folder).run()
        return state_of(tmp_path / folder)

    whole = run("whole", 5)
    run("parts", 2)
    parts = run("parts", 5)
    assert_equal(whole, parts)
    assert ("muon" in whole["optimizer"]) == (kind == "muon")
    fresh = networks_for(objective, config).student.state_dict()
    assert any(not torch.equal(fresh[name], whole["model"][name]) for name in fresh)
    assert any(not torch.equal(whole["averaged"][name], whole["model"][name]) for name in fresh)


def test_the_student_learns_in_its_turns_and_each_at_its_own_rate(tmp_path: Path) -> None:
    """Every third iteration; between them it keeps its bits, and so does its average. The critic learns in each."""
    config = tiny_config(tmp_path)
    rates = OptimizerSettings(lr=2e-3, critic_lr=5e-4, betas=(0.0, 0.99), weight_decay=0.0)
    plan = tiny_plan("dmd", iterations=7, student_every=3, optimizer=rates, **SETTINGS["dmd"])
    nets = networks_for("dmd", config)
    trainer = Trainer(plan, config, nets, tiny_data(tmp_path, config, blocks=3), ALONE, tmp_path / "run")

    def weights() -> list[dict[str, torch.Tensor]]:
        learning = [dict(dit.named_parameters()) for dit in (nets.student, nets.critic)]
        return [{name: p.detach().clone() for name, p in one.items()} for one in (*learning, trainer.average.weights)]

    seen = [weights()]
    trainer.run(after=lambda _: seen.append(weights()))
    moved = [[max(float((b[name] - a[name]).abs().max()) for name in a) for a, b in zip(*two, strict=True)] for two in pairwise(seen)]
    students, critics, averages = zip(*moved, strict=True)
    assert [move > 0 for move in students] == [move > 0 for move in averages] == [True, False, False, True, False, False, True]
    assert min(critics) > 0
    assert students[0] == pytest.approx(2e-3, rel=0.01) and critics[0] == pytest.approx(5e-4, rel=0.01)  # Adam's first step is its rate


@pytest.mark.parametrize("clip", [1e-2, 1e6])
def test_a_gradient_is_clipped_to_the_plans_norm_before_the_step(clip: float, tmp_path: Path) -> None:
    """Both networks' gradients: what the optimiser gets is no longer than that, and in the direction it was."""
    config = tiny_config(tmp_path)
    plan = tiny_plan("dmd", iterations=1, optimizer=OptimizerSettings(lr=1e-3, critic_lr=1e-3, clip=clip), **SETTINGS["dmd"])
    nets = networks_for("dmd", config)
    trainer = Trainer(plan, config, nets, tiny_data(tmp_path, config, blocks=3), ALONE, tmp_path / "run")
    taken: dict[str, float] = {}
    for name, learner in (("student", trainer.student), ("critic", trainer.critic)):

        def note(optimizer: torch.optim.Optimizer, *_: object, name: str = name) -> None:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            taken[name] = float(torch.cat([grad.flatten() for grad in grads]).norm())

        learner.optimizer.register_step_pre_hook(note)
    report = trainer.step()
    for name, norm in taken.items():
        whole = float(report[f"{name} gradient"])
        assert 1e-2 < whole < 1e6 and norm == pytest.approx(min(whole, clip), rel=1e-3)
    assert taken.keys() == {"student", "critic"}


def test_a_killed_run_loses_at_most_one_interval(tmp_path: Path) -> None:
    """SIGKILL in the middle; what is left goes on to the very bits of a run that was never stopped."""
    torch.set_num_threads(1)  # as the child does
    command = [sys.executable, "-m", "tests.training.child", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    folder, deadline = tmp_path / "forcing-1", time.monotonic() + 240
    log = folder / "log.jsonl"
    try:
        while not log.exists() or len(log.read_text().splitlines()) < 13:
            assert process.poll() is None and time.monotonic() < deadline, "the training ended or did not begin"
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = json.loads([line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")][-1])["step"]
    saved = state_of(folder)["step"]
    assert saved % 5 == 0 and done - saved <= 5 and saved >= 10
    until = saved + 4
    again = trainer_of(tmp_path, "forcing", ALONE, replace(endless_plan(), iterations=until))
    assert again.iteration == saved
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, saved + 1))
    again.run()
    trainer_of(tmp_path / "whole", "forcing", ALONE, replace(endless_plan(), iterations=until, save_every=1000)).run()
    plans = [state_of(place / "forcing-1") for place in (tmp_path, tmp_path / "whole")]
    assert_equal(*plans)


def test_a_half_written_checkpoint_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, "forcing", ALONE, replace(endless_plan(), iterations=2))
    trainer.run()
    before = (trainer.folder / "last.pt").read_bytes()

    def torn(state: dict, file: object) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space"):
        trainer.save()
    assert (trainer.folder / "last.pt").read_bytes() == before


def test_it_stops_at_a_loss_that_is_no_number_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "forcing", ALONE, replace(endless_plan(), iterations=5))
    trainer.run()
    trainer.plan = endless_plan()
    with torch.no_grad():
        trainer.networks.student.head.head.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="no number at iteration 5"):
        trainer.run()
    assert torch.isfinite(state_of(trainer.folder)["model"]["head.head.weight"]).all()


def test_another_plan_does_not_go_on_from_a_folder(tmp_path: Path) -> None:
    plan = replace(endless_plan(), iterations=1)
    trainer_of(tmp_path, "forcing", ALONE, plan).run()
    with pytest.raises(WorldError, match="begun with batch 2, the plan says 4: choose another --out"):
        trainer_of(tmp_path, "forcing", ALONE, replace(plan, batch=4))
    torch.save({"model": {}, "step": 3}, tmp_path / "forcing-1" / "last.pt")
    with pytest.raises(WorldError, match="another trainer"):
        trainer_of(tmp_path, "forcing", ALONE, plan)
    (tmp_path / "forcing-1" / "last.pt").write_bytes(b"PK torn")
    with pytest.raises(WorldError, match="cannot be read"):
        trainer_of(tmp_path, "forcing", ALONE, plan)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_optimiser_keeps_its_kind_and_takes_the_plans_numbers(kind: str, tmp_path: Path) -> None:
    def settings(**changes: object) -> Plan:
        return replace(endless_plan(), iterations=1, optimizer=OptimizerSettings(lr=1e-3, **changes))

    trainer_of(tmp_path, "forcing", ALONE, settings(kind=kind)).run()
    other = "muon" if kind == "adamw" else "adamw"
    with pytest.raises(WorldError, match=f"begun with optimizer.kind {kind}, the plan says {other}: choose another --out"):
        trainer_of(tmp_path, "forcing", ALONE, settings(kind=other))
    again = trainer_of(tmp_path, "forcing", ALONE, settings(kind=kind, betas=(0.5, 0.7), weight_decay=0.3))
    optimizer = again.student.optimizer
    (group,) = (optimizer if kind == "adamw" else optimizer.muon).param_groups
    assert again.iteration == 1 and group["weight_decay"] == 0.3 and group.get("betas", (0.5, 0.7)) == (0.5, 0.7)
    assert any(value.any() for value in next(iter((optimizer if kind == "adamw" else optimizer.muon).state.values())).values())


def test_a_checkpoint_of_another_depth_is_refused(tmp_path: Path) -> None:
    config, plan = tiny_config(tmp_path), replace(endless_plan(), iterations=1)
    deep = replace(config, model=replace(config.model, num_layers=2))
    data = tiny_data(tmp_path, config)
    Trainer(plan, deep, Networks(tiny_dit(deep, 1)), data, ALONE, tmp_path / "run").run()
    with pytest.raises(WorldError, match=r"last\.pt: the weights do not fit: they differ in blocks\.1\..*choose another --out"):
        Trainer(plan, config, Networks(tiny_dit(config, 1)), data, ALONE, tmp_path / "run")


def test_every_clip_is_seen_once_before_any_is_seen_again(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data = tiny_data(tmp_path, config, count=5)
    seen = [data._order("student", c // 5)[c % 5] for turn in range(5) for c in Draws(0, 10 * turn, range(2), 2, turn=turn).counters]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5)) and seen[:5] != seen[5:]


def test_the_average_begins_late(tmp_path: Path) -> None:
    dit = tiny_dit(tiny_config(tmp_path), 1)
    average, weight = Average(dit, 0.9, start=3), dit.head.head.weight
    for iteration in range(5):
        with torch.no_grad():
            weight.fill_(float(iteration))
        average.update(dit, iteration)
    expected = 0.9 * (0.9 * 2 + 0.1 * 3) + 0.1 * 4
    torch.testing.assert_close(average.weights["head.head.weight"], torch.full_like(weight, expected))
    with average.worn(dit):
        assert float(dit.head.head.weight[0, 0].detach()) == pytest.approx(expected)
    assert (dit.head.head.weight == 4).all()


@pytest.mark.parametrize("objective", ["regression", "dmd", "sid"])
def test_half_precision_loses_no_gradient(objective: str, tmp_path: Path) -> None:
    """Every weight gets about the gradient it gets in float32, though most passes of a rollout are made without one."""
    config = tiny_config(tmp_path)
    found = []
    for precision in ("float32", "bfloat16"):
        nets = networks_for(objective, config)
        plan = tiny_plan(objective, precision=precision, **SETTINGS[objective])
        trainer = Trainer(plan, config, nets, tiny_data(tmp_path, config, blocks=3), ALONE, tmp_path / precision)
        trainer.student.step = lambda *_: torch.zeros(())  # leaves the gradients where they are
        trainer._update(trainer.student, "student", trainer.objective.student_loss)
        found.append({name: p.grad for name, p in nets.student.named_parameters() if p.requires_grad})
    assert all(grad is not None for grad in found[1].values())
    one, other = (torch.cat([grad.flatten() for grad in grads.values()]) for grads in found)
    assert torch.cosine_similarity(one, other, dim=0) > 0.98


@pytest.mark.parametrize("objective", ["forcing", "regression", "dmd", "sid", "causvid", "consistency"])
def test_a_plans_checkpointing_changes_no_gradient(objective: str, tmp_path: Path) -> None:
    """Layers computed again in the backward pass, after the rollout has gone on through rings smaller than itself."""
    config = with_window(tiny_config(tmp_path), 7)
    rollout = {"rollout": RolloutSettings(horizon=(4, 4), exit="last")} if "rollout" in SECTIONS[objective] else {}
    found = []
    for again in (False, True):
        nets = networks_for(objective, config)
        plan = tiny_plan(objective, checkpointing=again, **rollout)
        trainer = Trainer(plan, config, nets, tiny_data(tmp_path, config, blocks=4), ALONE, tmp_path / str(again))
        trainer.student.step = lambda *_: torch.zeros(())  # leaves the gradients where they are
        trainer._update(trainer.student, "student", trainer.objective.student_loss)
        found.append({name: p.grad for name, p in nets.student.named_parameters() if p.requires_grad})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_reports_sheets_and_half_precision(kind: str, tmp_path: Path) -> None:
    """bfloat16 with float32 masters, checkpointed layers, a contact sheet, TensorBoard files."""
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny_config(tmp_path)
    plan = tiny_plan("regression", iterations=4, report_every=2, sheet_every=2, checkpointing=True, **SETTINGS["regression"])
    plan = replace(plan, precision="bfloat16", optimizer=OptimizerSettings(kind=kind, lr=1e-3))
    vae = VAE(config.vae).eval().requires_grad_(False)
    nets = Networks(tiny_dit(config, 1))
    Trainer(plan, config, nets, tiny_data(tmp_path, config, blocks=3), ALONE, tmp_path / "run", vae, tensorboard=True).run()
    assert all(p.dtype == torch.float32 for p in nets.student.parameters())
    assert sorted(p.name for p in (tmp_path / "run" / "sheets").iterdir()) == ["000002.png", "000004.png"]
    assert Image.open(tmp_path / "run" / "sheets" / "000002.png").size == (3 * 32, 2 * 2 * 16)
    events = board.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e.step for e in events.Scalars("loss")] == [2, 4] == [line["step"] for line in lines]
    assert events.Scalars("loss")[0].value == pytest.approx(lines[0]["loss"])
    longer = replace(plan, iterations=6)
    again = Trainer(
        longer, config, Networks(tiny_dit(config, 1)), tiny_data(tmp_path, config, blocks=3), ALONE, tmp_path / "run", vae, True
    )
    assert again.iteration == 4
    again.run()
    events = board.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [2, 4, 6], "going on has taken reports away"
    assert [e.step for e in events.Images("played, below the truth")] == [2, 4, 6]


def test_a_progress_bar_where_there_is_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trainer_of(tmp_path, "forcing", ALONE, replace(endless_plan(), iterations=3, report_every=2)).run()
    out, err = capsys.readouterr()
    assert "3/3" in err and "loss=" in err and "step " not in out


def test_clips_that_are_too_short_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path)
    data = Data(ClipFolder(write_ragged(tmp_path / "clips", (3, 2, 4, 2)), config), config, 0)
    trainer = Trainer(tiny_plan("forcing", blocks=3, iterations=2), config, networks_for("forcing", config), data, ALONE, tmp_path / "run")
    assert "left out: 2 clips of fewer than 3 blocks; 2 are left" in capsys.readouterr().out
    trainer.run()
    assert state_of(tmp_path / "run")["clips"] == 2
    with pytest.raises(WorldError, match="the longest clip has 4 blocks, the plan asks for 5"):
        data.keep(5)


def test_a_clip_no_longer_than_the_window_makes_no_other_begin_with_its_session(tmp_path: Path) -> None:
    """About the share that was asked for begin there: of the long clips. Of the short one, each."""
    config = tiny_config(tmp_path)
    data = Data(ClipFolder(write_ragged(tmp_path / "clips", (4, 2, 4, 4)), config), config, 0)
    batch = data.batch(Draws(0, 0, range(200), 200), 2, start_share=0.2)
    assert 0.3 < batch.from_start.float().mean() < 0.5  # a quarter, and a fifth of the rest
    assert data.batch(Draws(0, 0, range(3), 3), 2, start_share=0.0, together=True).from_start.all()
    data.keep(3)
    assert 0.1 < data.batch(Draws(0, 0, range(200), 200), 2, start_share=0.2).from_start.float().mean() < 0.3
