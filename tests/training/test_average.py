"""Averages of runs: the mean of what each would export, and only of runs of one network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import average, export
from training.common import starting_weights


def state(value: float, size: int = 2) -> dict:
    weights = {"patch_embedding.weight": torch.full((size, 2), value), "patch_embedding.bias": torch.full((size,), 2 * value)}
    helper = {"read.weight": torch.full((1,), -value)}
    return {"step": 3, "seconds": 60.0, "model": {k: v + 9 for k, v in weights.items()}, "averaged": weights, "helper": helper}


def run(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["x", *map(str, arguments)])
    module.main()


def save(folder: Path, saved: dict) -> Path:
    folder.mkdir()
    torch.save(saved, folder / "last.pt")
    return folder


def test_the_mean_begins_runs_and_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [save(tmp_path / name, state(value)) for name, value in (("a", 1.0), ("b", 2.0), ("c", 6.0))]
    run(monkeypatch, average, *runs, "--out", tmp_path / "new" / "mean.pt")
    weights, helper = starting_weights(tmp_path / "new" / "mean.pt")
    assert torch.equal(weights["patch_embedding.weight"], torch.full((2, 2), 3.0)) and torch.equal(
        weights["patch_embedding.bias"], torch.full((2,), 6.0)
    )
    assert torch.equal(helper["read.weight"], torch.tensor([-3.0]))
    run(monkeypatch, export, "dit", tmp_path / "new" / "mean.pt", tmp_path / "mean.safetensors")
    assert torch.equal(starting_weights(tmp_path / "mean.safetensors")[0]["patch_embedding.bias"], torch.full((2,), 6.0))


def test_exported_weights_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = save(tmp_path / "a", state(1.0)), save(tmp_path / "b", state(4.0))
    run(monkeypatch, export, "dit", other / "last.pt", tmp_path / "b.safetensors")
    run(monkeypatch, average, one, tmp_path / "b.safetensors", "--out", tmp_path / "mean.pt")
    kept = torch.load(tmp_path / "mean.pt", weights_only=True)
    assert torch.equal(kept["averaged"]["patch_embedding.weight"], torch.full((2, 2), 2.5)) and "helper" not in kept
    assert kept["step"] == 6 and kept["seconds"] == 120.0


def test_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = save(tmp_path / "a", state(1.0)), save(tmp_path / "b", state(5.0))
    run(monkeypatch, average, one, other, "--shares", 0.75, 0.25, "--out", tmp_path / "mean.pt")
    kept = torch.load(tmp_path / "mean.pt", weights_only=True)
    assert torch.equal(kept["averaged"]["patch_embedding.bias"], torch.full((2,), 4.0)) and kept["helper"]["read.weight"].item() == -2.0


def test_it_refuses_what_does_not_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    one, other = save(tmp_path / "a", state(1.0)), save(tmp_path / "b", state(1.0, size=3))
    (tmp_path / "there.pt").touch()
    torch.save({"averaged": {}, "helper": {}}, tmp_path / "whole.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for arguments, words in (
        ((one, other, "--out", tmp_path / "mean.pt"), "2 tensors are not of one network, patch_embedding.weight among them"),
        ((one, one, "--shares", 0.5, 0.6, "--out", tmp_path / "mean.pt"), "name one for each of the 2 runs, summing up to 1"),
        ((one, tmp_path / "c", "--out", tmp_path / "mean.pt"), "c is not there"),
        ((one, tmp_path / "whole.pt", "--out", tmp_path / "mean.pt"), "whole.pt is no run's last.pt"),
        ((one, tmp_path / "text.pt", "--out", tmp_path / "mean.pt"), "no weights can be read from"),
        ((one, one, "--out", tmp_path / "there.pt"), "name a .pt file that is not there yet"),
    ):
        with pytest.raises(SystemExit) as raised:
            run(monkeypatch, average, *arguments)
        assert raised.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "mean.pt").exists()
