"""`training.train_dit` as one starts it: clips from a folder, first blocks from another, ended and gone on with."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from engine.worldfile import asset_folder
from tests.training.test_trainers import random_clips, small_dit
from training import finetune as tuning
from training import train_dit
from training.common import TrainingRun
from training.guide import Guides, PoseGuide
from training.latents import Clips
from training.make_clips import write_shard
from training.objectives.resampling import Resampler

VAE = asset_folder() / "garden/vae.safetensors"


def first_blocks(count: int) -> Clips:
    """What ``make_clips --blocks 1`` writes: clips of three latents, with their rows."""
    long = random_clips(count)
    cut = {name: getattr(long, name)[:, :, :3] for name in ("latents", "condition")}
    rows = {name: getattr(long, name)[:, :8] for name in ("keyboard", "mouse")}
    return replace(long, **cut, **rows, pose=long.pose[:, :3])


class Counted(TrainingRun):
    """A run that ends after so many steps, however long they take, and reports each."""

    @property
    def progress(self) -> float:
        return min(1.0, self.step / self.minutes)


def fill(folder: Path) -> None:
    """Walks and first blocks, as `training.make_clips` leaves them."""
    for name, clips in (("feed", random_clips(3)), ("starts", first_blocks(4))):
        (folder / name).mkdir()
        write_shard(clips, folder / name, 1)


def logged(trainer: ModuleType, words: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What the command with these ``words`` reports, of a small denoiser, step by step."""
    monkeypatch.setattr(sys, "argv", ["x", *words.split()])
    monkeypatch.setattr(trainer, "garden_dit", small_dit)
    monkeypatch.setattr(trainer, "TrainingRun", functools.partial(Counted, report_every=0.0))
    trainer.main()
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def train(folder: Path, steps: int, monkeypatch: pytest.MonkeyPatch, more: str = "", run: str = "run") -> list[dict]:
    words = f"--vae {VAE} --feed {folder}/feed --starts {folder}/starts --out {folder}/{run} --minutes {steps} --batch 2 --blocks 2"
    words += " --lr 4e-3 --starts-batch 4 --guided-layer 0 --told-layer 1 --resampling 1 --resampling-at-once --no-compile --device cpu"
    words += f" {more}"
    return logged(train_dit, words, folder / run, monkeypatch)


def test_first_blocks_are_learned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    lines = train(tmp_path, 12, monkeypatch)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all({"loss", "s1.00", "pose", "seen", "starts", "their pose"} <= set(line) for line in lines)
    assert lines[-1]["their pose"] < 0.95 * lines[0]["their pose"]
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 12
    longer = train(tmp_path, 14, monkeypatch)  # the same command with more time
    assert longer[:12] == lines and [line["step"] for line in longer[12:]] == [13, 14]
    assert "at step 12" in capsys.readouterr().out


def test_guides_are_fitted_to_weights_that_came_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what heads that know nothing ask of the network would be the first thing that it learns."""
    fill(tmp_path)
    torch.manual_seed(5)
    save_file(small_dit().state_dict(), tmp_path / "exported.safetensors")
    fitted: list[bool] = []
    fitting = Guides.fitting
    monkeypatch.setattr(Guides, "fitting", lambda self: (fitted.append(True), fitting(self))[1])
    plain = train(tmp_path, 2, monkeypatch)
    assert not fitted, "fresh weights and heads learn together"
    lines = train(tmp_path, 2, monkeypatch, f"--start-from {tmp_path}/exported.safetensors", "second")
    assert len(fitted) == 1
    assert all(lines[0][name] < 0.7 * plain[0][name] for name in ("seen", "pose", "their pose"))
    train(tmp_path, 3, monkeypatch, f"--start-from {tmp_path}/exported.safetensors", "second")
    train(tmp_path, 2, monkeypatch, f"--start-from {tmp_path}/second", "third")
    assert len(fitted) == 1, "a run that goes on, or begins with another run's heads, keeps them"


def test_first_blocks_alone_are_no_walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "feed").mkdir()
    write_shard(random_clips(3), tmp_path / "feed", 1)
    with pytest.raises(SystemExit):
        train(tmp_path, 1, monkeypatch)
    assert f"--starts {tmp_path}/starts" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("shares", ["0 0 0 1", "1 -1", "nan 1", "inf"])
def test_where_the_past_begins_is_told_in_shares(
    shares: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    with pytest.raises(SystemExit):
        train(tmp_path, 1, monkeypatch, f"--begins {shares}")
    assert f"--begins {shares}: shares" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_past_begins_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    begun: list[int] = []
    played = Resampler.__call__
    monkeypatch.setattr(
        Resampler, "__call__", lambda self, batch, begins, noise: (begun.extend(begins), played(self, batch, begins, noise))[1]
    )
    train(tmp_path, 4, monkeypatch, "--blocks 4 --begins 1 0 0")
    assert len(begun) == 12 and set(begun) == {0}
    train(tmp_path, 4, monkeypatch, "--blocks 4 --begins 0 3", "second")
    assert set(begun[12:]) == {1}


def finetune(folder: Path, steps: int, monkeypatch: pytest.MonkeyPatch, more: str = "", run: str = "tuned") -> list[dict]:
    words = f"--vae {VAE} --start-from {folder}/exported.safetensors --feed {folder}/feed --out {folder}/{run} --minutes {steps} --batch 2"
    words += f" --lr 1e-3 --first-horizon 2 --last-horizon 3 --guided-layer 0 --told-layer 1 --device cpu {more}"
    return logged(tuning, words, folder / run, monkeypatch)


def test_rollouts_go_on_from_exported_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command as one gives it: heads fitted first, horizons that grow, ended and gone on with; errors counted as told."""
    (tmp_path / "feed").mkdir()
    write_shard(random_clips(3), tmp_path / "feed", 1)
    torch.manual_seed(5)
    save_file(small_dit().state_dict(), tmp_path / "exported.safetensors")
    fitted: list[bool] = []
    fitting = PoseGuide.fitting
    monkeypatch.setattr(PoseGuide, "fitting", lambda self: (fitted.append(True), fitting(self))[1])
    lines = finetune(tmp_path, 4, monkeypatch)
    assert len(fitted) == 1 and [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["blocks"] == 2 and lines[-1]["blocks"] == 3
    more = finetune(tmp_path, 5, monkeypatch)
    assert more[:4] == lines and [line["step"] for line in more[4:]] == [5] and len(fitted) == 1
    robust = finetune(tmp_path, 4, monkeypatch, "--robust 0.05", "robust")
    assert robust[0]["loss"] == lines[0]["loss"], "what is reported is the error as it is"
    assert robust[-1]["loss"] != lines[-1]["loss"]
