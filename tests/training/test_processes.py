"""Several processes come to what one does, by the command that a user types and by FSDP2 over gloo; and each fails for all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.tiny_world import write_tiny_world
from tests.training.child import plan_of, trainer_of
from tests.training.tiny import ALONE, state_of, write_clips
from training import train
from training.parallel import Workers

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


OBJECTIVES = ["dmd-image", "sid", "dmd-image-half", "regression", "causvid", "forcing", "consistency", "sid-muon"]
# the third as the plan `published`


def start_two(*commands: list[str], **options: object) -> list[subprocess.Popen]:
    """Two processes that find each other, each with its own command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # as torchrun sets it
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.DEVNULL,
            env={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options,
        )
        for rank, command in enumerate(commands)
    ]  # fmt: skip


def tiny_training(folder: Path, **settings: object) -> list[str]:
    """The words of a command that trains a tiny world, after the module's name."""
    plan = {"world": "garden", "objective": "forcing", "blocks": 2, "batch": 2, "iterations": 2, "precision": "float32", **settings}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    given = {"world": write_tiny_world(folder), "clips": write_clips(folder / "clips"), "out": folder / "run", "device": "cpu"}
    return [str(folder / "plan.yaml"), *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def test_torchrun_does_what_one_process_does(tmp_path: Path) -> None:
    """The command of training/README.md: the same words, the same losses, a checkpoint that both go on from."""
    words = ["training.train", *tiny_training(tmp_path, report_every=1, optimizer={"kind": "muon", "lr": 1e-3, "clip": 1.0})]
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *words, "--out", str(tmp_path / "two")]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    for iterations in ("2", "4"):
        for module in (run, [*words, "--out", str(tmp_path / "one")]):
            command = [sys.executable, "-m", *module, "--iterations", iterations]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-2000:]
            assert ("resumed" in done.stdout) == (iterations == "4")
    one, two = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
    assert (tmp_path / "two" / "last.pt").is_file()


def test_who_fails_waits_for_nobody(tmp_path: Path) -> None:
    """One of two processes is told weights that are not there, after it has met the other: it says so and ends, and so does the other."""
    command = ["training.train", *tiny_training(tmp_path)]
    processes = start_two(command, [*command, "--student", "nowhere.pt"], stderr=subprocess.PIPE, text=True)
    try:
        told = processes[1].communicate(timeout=300)[1]
        assert processes[1].returncode == 2 and "no weights can be read from nowhere.pt" in told and "Traceback" not in told
        processes[0].communicate(timeout=60)
        assert processes[0].returncode
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(("lacking", "says"), [("tensorboard", "--tensorboard needs a package"), ("vae", "there is no vae.safetensors")])
def test_what_the_main_process_needs_is_asked_for_before_the_others_are_met(
    lacking: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny_training(tmp_path, sheet_every=2)
    if lacking == "vae":
        (tmp_path / "vae.safetensors").unlink()
    else:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        words.append("--tensorboard")
    monkeypatch.setattr(Workers, "start", lambda device: pytest.fail("has joined the others"))
    monkeypatch.setattr(sys, "argv", ["x", *words])
    assert train.main() == 2
    assert says in capsys.readouterr().err


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """FSDP2 over gloo: the same losses, and a checkpoint that one process goes on from. With checkpointed layers in bfloat16 it comes to
    the same as far as that tells numbers apart, and to what is computed in float32 with all layers kept."""
    processes = start_two(*2 * [["tests.training.child", str(tmp_path), *OBJECTIVES]])
    try:
        for objective in OBJECTIVES:
            trainer_of(tmp_path, objective, ALONE, plan_of(objective, micro=3)).run()
        assert [process.wait(timeout=400) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first: dict[str, dict[str, float]] = {}  # report of two processes
    for objective in OBJECTIVES:
        half = objective.endswith("-half")
        logs = [[json.loads(line) for line in (tmp_path / f"{objective}-{n}" / "log.jsonl").read_text().splitlines()] for n in (1, 2)]
        assert len(logs[0]) == len(logs[1]) == 3
        for one, two in zip(*logs, strict=True):
            assert one.keys() == two.keys() and any(name.endswith("loss") for name in one)
            for name in one.keys() - {"minutes"}:
                assert two[name] == pytest.approx(one[name], rel=0.03 if half else 1e-4, abs=1e-6), (objective, name)
        first[objective] = logs[1][0]
        one, two = (state_of(tmp_path / f"{objective}-{n}") for n in (1, 2))
        if half:
            begun = trainer_of(tmp_path / "begun", objective, ALONE, plan_of(objective)).networks.student
            move, apart = (
                torch.cat([(other[name] - weight).flatten() for name, weight in one["averaged"].items()]).norm()
                for other in (dict(begun.named_parameters()), two["averaged"])
            )
            assert apart < 0.2 * move
        else:
            for name, weight in one["averaged"].items():
                torch.testing.assert_close(two["averaged"][name], weight, atol=2e-4, rtol=1e-3)
        for kind in ("muon", "adamw") if objective.endswith("-muon") else (None,):
            states = [state["optimizer"][kind] if kind else state["optimizer"] for state in (one, two)]
            assert states[0]["state"].keys() == states[1]["state"].keys() and states[0]["state"]
            for mine, theirs in zip(*(state["state"].values() for state in states), strict=True):
                assert [value.shape for value in mine.values()] == [value.shape for value in theirs.values()]
    for name in ("loss", "student gradient", "critic loss", "critic gradient"):
        other, wide = (first[objective][name] for objective in ("dmd-image-half", "dmd-image"))
        assert other == pytest.approx(wide, rel=0.02) and other != pytest.approx(wide, rel=1e-6)
    for objective in ("sid", "sid-muon"):
        (tmp_path / f"{objective}-1" / "last.pt").write_bytes((tmp_path / f"{objective}-2" / "last.pt").read_bytes())
        again = trainer_of(tmp_path, objective, ALONE, replace(plan_of(objective), iterations=5))
        assert again.iteration == 3
        again.run()
