"""`reverie inspect`: our own files, published ones, `.pth`, folders, and two files side by side."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import compare_weights, inspect_weights
from engine.worldfile import asset_folder
from game import cli
from models.errors import WeightError, WorldError
from tests.models.test_telltale import sparse

GARDEN = asset_folder() / "garden"
Manifest = dict[str, dict[str, list[int]]]


def test_our_own_files() -> None:
    report = inspect_weights(GARDEN / "dit.safetensors")
    assert report.nearest is not None and report.nearest.fits
    assert (report.nearest.worlds, report.nearest.part) == (("garden",), "dit")
    assert report.sha256 == hashlib.sha256((GARDEN / "dit.safetensors").read_bytes()).hexdigest()
    assert report.parameters == sum(tensor.numel() for tensor in load_file(GARDEN / "dit.safetensors").values())
    assert list(report.dtypes) == ["F16"] and report.nonfinite == {}


@pytest.mark.parametrize(
    ("name", "worlds", "part", "parameters"),
    [
        ("universal", {"universal"}, "dit", 1_619_242_304),
        ("gta_drive", {"gta_drive"}, "dit", 1_619_238_464),
        ("templerun", {"templerun"}, "dit", 1_508_715_584),
        ("Wan2.1_VAE.pth", {"universal", "gta_drive", "templerun"}, "vae", None),
        ("clip_visual", {"universal", "gta_drive", "templerun"}, "vision", None),
    ],
)
def test_published_files(tmp_path: Path, manifest: Manifest, name: str, worlds: set[str], part: str, parameters: int | None) -> None:
    shapes = {**manifest[name], **({"textual.x": [3]} if part == "vision" else {})}
    report = inspect_weights(sparse(tmp_path / "w.safetensors", shapes), numbers=False)
    assert report.nearest is not None and report.nearest.fits
    assert set(report.nearest.worlds) >= worlds and report.nearest.part == part
    assert parameters in (None, report.parameters) and report.nearest.ignored == (part == "vision")


def test_what_is_wrong_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(GARDEN / "vae.safetensors")
    names = sorted(tensors)
    tensors["surprise"] = tensors.pop(names[0])
    tensors[names[1]] = torch.zeros(3, 5)
    tensors[names[2]].view(-1)[:2] = torch.tensor([math.nan, math.inf])
    torch.save(tensors, tmp_path / "w.pth")
    assert cli.main(["inspect", str(tmp_path / "w.pth"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["nearest"]["worlds"] == ["garden"] and not report["nearest"]["fits"]
    assert report["nearest"]["missing"] == [names[0]] and report["nearest"]["unexpected"] == ["surprise"]
    assert report["nearest"]["misshapen"][names[1]][0] == [3, 5]
    assert report["nonfinite"] == {names[2]: 2} and list(tmp_path.iterdir()) == [tmp_path / "w.pth"]
    assert cli.main(["inspect", str(tmp_path / "w.pth")]) == 0
    out = capsys.readouterr().out
    for words in (
        f"missing: 1\n    {names[0]}",
        "unexpected: 1\n    surprise",
        "[3, 5] instead of",
        f"{names[2]}: 2 numbers",
        report["sha256"],
    ):
        assert words in out


def test_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = {"x": torch.ones(4, 4), "y": torch.full((3,), 2.0), "z": torch.zeros(2), "s": torch.ones(2), "only": torch.ones(1)}
    b = {"x": torch.ones(4, 4), "y": torch.tensor([2.0, 2.0, 2.5]), "z": torch.tensor([0.0, 1.0]), "s": torch.ones(3)}
    save_file({f"model.{name}": tensor for name, tensor in a.items()}, tmp_path / "a.safetensors")
    torch.save({name: tensor.bfloat16() for name, tensor in b.items()}, tmp_path / "b.pth")
    found = compare_weights(tmp_path / "a.safetensors", tmp_path / "b.pth")
    assert [item.name for item in found.different] == ["z", "y"] and found.same == 1 and not found.equal
    assert found.different[0].relative == math.inf and found.different[0].largest == 1
    assert found.different[1].largest == 0.5 and found.different[1].relative == pytest.approx(0.5 / math.sqrt(12))
    assert found.misshapen == {"s": ((2,), (3,))} and found.only_first == ("only",) and found.only_second == ()
    files = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.pth")]
    assert cli.main(["inspect", *files]) == 0
    out = capsys.readouterr().out
    assert out.index(" z ") < out.index(" y ") and "5.00e-01" in out and "only in" in out
    assert cli.main(["inspect", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["different"][0]["relative"] == "inf"
    assert cli.main(["inspect", files[0], files[0]]) == 0
    assert "the same: 5 tensors with equal numbers" in capsys.readouterr().out


def test_nan_in_one_file_only(tmp_path: Path) -> None:
    save_file({"x": torch.tensor([1.0, math.nan]), "y": torch.tensor([math.nan])}, tmp_path / "a.safetensors")
    save_file({"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([math.nan])}, tmp_path / "b.safetensors")
    found = compare_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [item.name for item in found.different] == ["x"] and found.different[0].largest == math.inf


def test_a_folder(tmp_path: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(GARDEN, tmp_path / "garden")
    sparse(tmp_path / "deep" / "w.safetensors", manifest["gta_drive"])
    (tmp_path / "page.pth").write_text("<html>")
    (tmp_path / "page.reverie.safetensors").write_text("made by play: not listed")
    assert cli.main(["inspect", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("deep/w.safetensors: the part 'dit' of gta_drive, 1,619,238,464 parameters")
    assert lines[1].startswith("garden/dit.safetensors: the part 'dit' of garden")
    assert lines[3].startswith("page.pth: is a web page")
    assert cli.main(["inspect", str(tmp_path), "--json"]) == 0
    assert "web page" in json.loads(capsys.readouterr().out)[3]["error"]


def test_a_world_is_looked_for_before_the_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.inspect.file_hash", lambda path, fresh: pytest.fail("the file was read"))
    with pytest.raises(WorldError, match="unknown world 'nowhere'"):
        inspect_weights(GARDEN / "vae.safetensors", ["nowhere"])


def test_what_cannot_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "w.pth").write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n")
    for arguments, words in (
        (["gone.safetensors"], "no such file"),
        ([str(tmp_path / "empty")], "there are no .safetensors or .pth files"),
        ([str(tmp_path / "w.pth")], "Git-LFS pointer"),
        ([str(GARDEN), str(GARDEN / "vae.safetensors")], "give two files"),
        ([str(GARDEN / "vae.safetensors"), "--world", "gone.yaml"], "gone.yaml"),
        ([str(GARDEN), "--world", "gone.yaml"], "gone.yaml"),
    ):
        assert cli.main(["inspect", *arguments]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(WeightError, match="no weight file"):
        compare_weights(GARDEN / "vae.safetensors", tmp_path / "gone.safetensors")
