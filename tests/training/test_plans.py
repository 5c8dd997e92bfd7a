"""The bundled plans: what they say fits, down to the published sizes, without a byte of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from models.checkpoint import build_empty
from models.dit import DiT
from models.errors import WorldError
from tests.tiny_world import write_tiny_world
from tests.training.tiny import write_clips
from training import export, train
from training.dryrun import dry_run
from training.objectives import OBJECTIVES
from training.plan import ForcingSettings, OptimizerSettings, Plan, ScoreSettings, read_plan

PLANS = sorted((Path(train.__file__).parent / "configs").glob("*.yaml"))


def test_there_is_a_plan_for_every_objective() -> None:
    assert {read_plan(path).objective for path in PLANS if path.stem.startswith("garden_")} == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("objective", "setting", "value"),
    [
        *((kind, f"forcing.{name}", value) for kind in ("consistency", "causvid") for name, value in (
            ("drop_actions", 0.1), ("robust", 0.03), ("resampling", 0.5), ("begin_weights", [1, 1, 1]), ("space", "velocity"),
            ("weighting", "bell"), ("context_noise", 0.3),
        )),
        ("consistency", "forcing.levels", "uniform"), ("consistency", "forcing.range", [0.1, 0.9]), ("consistency", "forcing.shared", True),
        ("consistency", "forcing.step_weights", [1, 1, 1]), ("consistency", "student_every", 2), ("forcing", "optimizer.critic_lr", 1e-3),
        ("regression", "optimizer.critic_lr", 1e-3), ("regression", "blocks", 3), ("dmd", "blocks", 3), ("sid", "blocks", 3),
        ("dmd", "score.alpha", 1.2), ("causvid", "score.alpha", 1.2),
    ],
)  # fmt: skip
def test_a_setting_that_its_objective_does_not_read_is_refused(objective: str, setting: str, value: object, tmp_path: Path) -> None:
    """In one line that names both; at its default it may stand there."""

    def plan_with(given: object) -> Path:
        part, _, name = setting.rpartition(".")
        settings = {"world": "garden", "objective": objective} | ({part: {name: given}} if part else {name: given})
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    with pytest.raises(WorldError) as refusal:
        read_plan(plan_with(value))
    assert str(refusal.value) == f"plan.yaml: the objective {objective} does not read {setting}: leave it out"
    holder = {"forcing": ForcingSettings, "optimizer": OptimizerSettings, "score": ScoreSettings}.get(setting.rpartition(".")[0], Plan)
    default = next(field.default for field in fields(holder) if field.name == setting.rpartition(".")[2])
    read_plan(plan_with(list(default) if isinstance(default, tuple) else default))


def test_noise_on_a_clean_context_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="context_noise is added to a clean context, and context is 'noisy'"):
        ForcingSettings(context="noisy", context_noise=0.3)


# of a weight: itself, gradient, two moments (and, of the student, its average), in float32; a target is two copies, a teacher one
BYTES = {"student": 20, "critic": 16, "teacher": 4, "target": 8}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_plan_runs_on_shapes(path: Path) -> None:
    """An iteration, backward passes and all, on the meta device, with a layer for the sake of time."""
    plan = read_plan(path)
    world = plan.world_config()
    model = world.model
    world = replace(world, model=replace(model, num_layers=1, action=replace(model.action, blocks=(0,))))
    lines = dry_run(plan, world).splitlines()
    assert lines[0].startswith(f"{plan.objective} on {plan.world}") and any(line.split()[:1] == ["student"] for line in lines)
    if path.stem == "published":
        assert "latents 16x21x44x80" in lines[1] and "18480 tokens" in lines[2] and "steps [1000, 750, 500, 250]" in lines[3]
    number = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines if line[:8].strip() in BYTES}
    heading = next(place for place, line in enumerate(lines) if line.split()[:1] == ["processes"])
    rows = [[float(word.replace(",", "")) for word in line.split()] for line in lines[heading + 1 :]]
    player = 2 * number["student"] if plan.forcing is not None and plan.forcing.resampling else 0
    for count, weights, samples, kept, rings, together in rows:
        bytes_each = sum(BYTES[name] * value for name, value in number.items()) / count + player
        assert weights == pytest.approx(bytes_each / 2**20, abs=0.6) and samples <= plan.batch / count
        assert together == pytest.approx(weights + kept + rings, abs=2) and kept > 0 and (rings > 0) == (plan.rollout is not None)
    assert rows[0][0] == 1 and "student" in number


def test_the_published_plan_has_the_published_numbers() -> None:
    plan = read_plan(next(path for path in PLANS if path.stem == "published"))
    world = plan.world_config()
    assert (world.sampler.steps, world.sampler.shift, plan.batch, plan.student_every) == ((1000, 750, 500, 250), 5.0, 64, 5)
    assert (plan.optimizer.lr, plan.optimizer.critic_lr, plan.optimizer.betas[0]) == (2e-6, 4e-7, 0.0)
    assert (plan.ema_decay, plan.ema_from, plan.rollout.horizon, world.model.num_frame_per_block) == (0.99, 200, (7, 7), 3)
    dit = build_empty(DiT, world.model)
    assert sum(p.numel() for p in dit.parameters()) == 1_619_242_304
    plain = sum(p.numel() for name, p in dit.named_parameters() if ".action_model." not in name)
    assert 1.3e9 < plain < 1.45e9  # what the family calls 1.3 B; the rest are action modules


def test_train_then_export_then_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of training/README.md on a tiny world: what is exported has the names that play reads."""
    world = write_tiny_world(tmp_path)
    plan = tmp_path / "plan.yaml"
    plan.write_text("world: garden\nobjective: forcing\nblocks: 2\nbatch: 2\niterations: 2\nprecision: float32\nsheet_every: 2\n")
    clips, run = write_clips(tmp_path / "clips"), tmp_path / "run"
    words = [plan, "--world", world, "--clips", clips, "--out", run, "--student", "world", "--device", "cpu"]
    for module, arguments in ((train, words), (export, ["dit", run / "last.pt", tmp_path / "new.safetensors"])):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments)])
        assert not module.main()
    new, old = load_file(tmp_path / "new.safetensors"), load_file(tmp_path / "dit.safetensors")
    assert {name: tensor.shape for name, tensor in new.items()} == {name: tensor.shape for name, tensor in old.items()}
    assert all(tensor.dtype == torch.float16 for tensor in new.values())
    assert (run / "sheets" / "000002.png").is_file() and "resumed" not in capsys.readouterr().out


def test_training_imports_without_a_window_or_ffmpeg() -> None:
    """As on a machine with nothing but torch, numpy, safetensors, yaml and pillow."""
    modules = "train encode convert train_dit finetune train_vae export"
    missing = "pygame imageio imageio_ffmpeg tqdm matplotlib tensorboard"
    code = f"import sys, importlib\nfor m in {missing.split()!r}: sys.modules[m] = None\n"
    code += f"for m in {modules.split()!r}: importlib.import_module('training.' + m)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
