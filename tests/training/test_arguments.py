"""The trainers' commands refuse what is out of range in one line, before they load or write anything."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.worldfile import asset_folder
from models.errors import WorldError
from training.arguments import device, in_a_line, new_folder, number, seed, whole
from training.common import TrainingRun
from training.latents import Clips
from training.train_vae import read_scale

GIVEN = {  # what each command cannot do without
    "train_vae": [],
    "train_dit": ["--vae", "none.safetensors"],
    "finetune": ["--vae", "none.safetensors", "--start-from", "none"],
    "train_decoder": ["--vae", "none.safetensors", "--dit", "none"],
    "localise": ["--feed", "none"],
    "make_clips": ["--vae", "none.safetensors", "--out", "out"],
    "heldout": ["none"],
    "sharpen": ["--vae", "none.safetensors", "--dit", "none", "--out", "out"],
    "encode": ["--out", "out"],
    "evaluate": [],
    "make_garden": ["--dry-run"],
}
REFUSED = [
    ("train_vae", "--minutes", "0", "must be above 0"),
    ("train_vae", "--frames", "12", "must be 1 and a multiple of 4 more"),
    ("train_vae", "--batch", "two", "must be a whole number, not 'two'"),
    ("train_dit", "--lr", "-1", "must be above 0 and at most 1, not -1"),
    ("train_dit", "--lr", "nan", "must be above 0 and at most 1, not nan"),
    ("train_dit", "--robust", "-0.1", "must be from 0 to"),
    ("train_dit", "--slow-looking", "-1", "must be from 0 to"),
    ("train_dit", "--blocks", "40", "must be from 2 to 9, not 40"),
    ("train_dit", "--starts-batch", "0", "must be from 1 to"),
    ("finetune", "--batch", "0", "must be from 1 to"),
    ("finetune", "--robust", "-0.1", "must be from 0 to"),
    ("finetune", "--first-horizon", "20", "must be from 1 to 9, not 20"),
    ("finetune", "--last-horizon", "1", "not below --first-horizon, which is 2"),
    ("finetune", "--told-layer", "44", "must be from 0 to 9, not 44"),
    ("finetune", "--device", "banana", "there is no device 'banana' here"),
    ("train_decoder", "--imagined", "2", "must be from 0 to 1, not 2"),
    ("localise", "--layer", "10", "must be from 0 to 9, not 10"),
    ("make_clips", "--backing", "1.5", "must be from 0 to 1, not 1.5"),
    ("make_clips", "--idle", "1.5", "must be from 0 to 1, not 1.5"),
    ("make_clips", "--turning", "-0.5", "must be from 0 to 1, not -0.5"),
    ("make_clips", "--near", "1.5", "must be from 0 to 1, not 1.5"),
    ("make_clips", "--seed", "89", "must be from 0 to 88, not 89"),
    ("heldout", "--clips", "0", "must be from 1 to"),
    ("sharpen", "--amount", "inf", "must be above 0"),
    ("encode", "--walks", "-3", "must be from 0 to"),
    ("encode", "--seed", "900000", "must be from 0 to 899999"),
    ("evaluate", "--starts", "0", "must be from 1 to"),
    ("make_garden", "--seed", "100", "must be from 0 to 86, not 100"),
]


def run(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> int:
    module = importlib.import_module(f"training.{command}")
    monkeypatch.setattr("sys.argv", [f"training.{command}", *GIVEN[command], *arguments])
    return module.main()


@pytest.mark.parametrize(("command", "option", "value", "says"), REFUSED)
def test_numbers_out_of_range(
    command: str, option: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, command, option, value)
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert left.value.code == 2 and option in last and says in last
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train_vae", "make_clips"])
def test_a_file_where_the_folder_should_be(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:  # fmt: skip
    (tmp_path / "there").write_text("kept")
    assert run(monkeypatch, command, "--out", str(tmp_path / "there")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "name a folder that can be written to" in error and (tmp_path / "there").read_text() == "kept"


@pytest.mark.parametrize("options", [("--world", "nowhere"), ("--weights", "nowhere"), ("--device", "nowhere")])
def test_the_evaluation_of_nothing(options: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "evaluate", "--only", "none", *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nowhere" in error


def test_another_file_under_the_name_of_the_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:  # fmt: skip
    notes = tmp_path / "notes.json"
    for text in ("no tables", "[]", '{"my": "notes"}'):
        notes.write_text(text)
        assert run(monkeypatch, "evaluate", "--only", "none", "--json", str(notes)) == 2
        assert "is no evaluation: name another file" in capsys.readouterr().err and notes.read_text() == text


@pytest.mark.parametrize(("kind", "says"), [("dit", "no weights can be read from"), ("vae", "no weights can be read from")])
def test_an_export_of_no_run(
    kind: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from training import export

    (tmp_path / "text.pt").write_text("no weights")
    monkeypatch.setattr("sys.argv", ["export", kind, str(tmp_path / "text.pt"), str(tmp_path / "out.safetensors")])
    with pytest.raises(SystemExit) as left:
        export.main()
    assert left.value.code == 2 and says in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


def export(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    from training import export

    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    return export.main()


def test_an_export_takes_nothing_of_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """Neither the run itself nor files whose names are like those of shards; its own old shards go when the new weights are there."""
    run_file, others = tmp_path / "last.pt", [tmp_path / f"dit-{what}.safetensors" for what in ("best-of-three", "00001-of-2")]
    weights = {"patch_embedding.weight": torch.ones(2, 2)}
    torch.save({"step": 3, "seconds": 60.0, "model": weights, "averaged": weights, "optimizer": {}}, run_file)
    kept = run_file.read_bytes()
    shard = tmp_path / "dit-00001-of-00002.safetensors"
    for file in (*others, shard):
        file.write_text("there")
    assert export(monkeypatch, "dit", run_file, run_file) == 2 and "its name must end in .safetensors" in capsys.readouterr().err
    assert export(monkeypatch, "dit", run_file, tmp_path / "dit.safetensors") == 0
    assert run_file.read_bytes() == kept and all(file.read_text() == "there" for file in others) and not shard.exists()
    assert torch.equal(load_file(tmp_path / "dit.safetensors")["patch_embedding.weight"], torch.ones(2, 2).half())


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (b"junk", "cannot be gone on from"),
        (b"", "cannot be gone on from"),
        ([1, 2], "cannot be gone on from"),
        ({"of": "another"}, "cannot be gone on from"),
        ({"step": 1, "seconds": 1.0, "model": {}, "averaged": {}}, "is of another trainer, it has no optimizer"),
        ({"step": 1, "seconds": 1.0, "model": None, "averaged": {}, "optimizer": {}}, "is of another trainer, it has no model"),
    ],
)
def test_a_run_that_is_none(what: object, says: str, tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    if isinstance(what, bytes):
        file.write_bytes(what)
    else:
        torch.save(what, file)
    kept = file.read_bytes()
    with pytest.raises(WorldError, match=rf"last\.pt {says}.*choose another --out") as refusal:
        TrainingRun(tmp_path, 1.0).resume()
    assert "\n" not in str(refusal.value) and file.read_bytes() == kept


def test_shards_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named, whoever reads it; single blocks are no walks and walks no single blocks."""
    from tests.training.test_trainers import random_clips

    vae, clips = str(asset_folder() / "garden/vae.safetensors"), random_clips(2)
    short = Clips(
        clips.latents[:, :, :3], clips.condition[:, :, :3], clips.keyboard[:, :9], clips.mouse[:, :9], clips.pose[:, :3], clips.settled
    )
    wrong = replace(clips, mouse=clips.mouse[:1])
    for name, wanted in (("junk", "no clips can be read"), ("empty", "no clips can be read"), ("other", "holds a; clips of"),
                         ("short", "its clips have 1 blocks, 9 are wanted"), ("wrong", "mouse is .* which is of no clips"),
                         ("none", "latents is .* which is of no clips")):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        file = folder / "0_00000.safetensors"
        if name in ("junk", "empty"):
            file.write_text("no shard" * (name == "junk"))
        elif name == "other":
            save_file({"a": torch.ones(1)}, file)
        else:
            {"short": short, "wrong": wrong, "none": clips.oldest(0)}[name].save(file)
        for command in ("train_dit", "localise", "finetune"):
            monkeypatch.setitem(GIVEN, command, ["--vae", vae] * (command != "localise") + ["--start-from", "none"])
            assert run(monkeypatch, command, "--feed", str(folder), "--out", str(tmp_path / "run")) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and "0_00000.safetensors" in error and re.search(wanted, error), (command, error)
        with pytest.raises(WorldError, match=wanted):
            Clips.load(file, 9)
    assert not (tmp_path / "run").exists()
    short.save(tmp_path / "first.safetensors")
    assert len(Clips.load(tmp_path / "first.safetensors", 1)) == 2


def test_a_scale_that_is_none(tmp_path: Path) -> None:
    for mean, std in (([0.0] * 2, [1.0] * 2), ([0.0] * 16, [0.0] * 16), ([float("nan")] * 16, [1.0] * 16)):
        path = tmp_path / "vae.safetensors"
        save_file({"a": torch.ones(1)}, path, {"latents_mean": json.dumps(mean), "latents_std": json.dumps(std)})
        with pytest.raises(WorldError, match=r"--vae .*latents_mean and latents_std are not 16 numbers each"):
            read_scale(path)


@pytest.mark.parametrize("option", [("--sheet", "a.jpg", ".png"), ("--film", "a.png", ".gif"), ("--json", "a.txt", ".json")])
def test_what_is_written_last_is_looked_at_first(
    option: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:  # fmt: skip
    name, file, wanted = option
    monkeypatch.setattr("training.evaluate.World.load", lambda *_args, **_more: pytest.fail("loaded before it was refused"))
    assert run(monkeypatch, "evaluate", name, str(tmp_path / file)) == 2
    assert capsys.readouterr().err == f"{name} {tmp_path / file}: its name must end in {wanted}\n"


def test_another_world_than_the_simulators(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text("extends: garden\nfps: 24\n")
    assert run(monkeypatch, "evaluate", "--only", "none", "--world", str(tmp_path / "quick.yaml")) == 2
    assert "is no garden (112x64 at 24 frames a second" in capsys.readouterr().err


def test_types() -> None:
    assert whole(1, 5)("5") == 5 and number(0, 1)("0") == 0.0 and number(0, above=True)("1e-9") == 1e-9 and seed("88") == 88
    assert device("cpu") == torch.device("cpu")
    for parse, text in (
        (whole(1, 5), "6"),
        (whole(1, 5), "1.0"),
        (whole(1, 5), "9" * 5000),
        (number(0, 1), "x"),
        (number(0, above=True), "0"),
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


def test_a_command_ends_in_its_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    @in_a_line
    def fails() -> None:
        raise WorldError("there is no such thing")

    @in_a_line
    def works() -> None:
        new_folder(tmp_path / "a" / "b")

    @in_a_line
    def opens() -> None:
        (tmp_path / ("long" * 100)).read_text()

    assert (fails(), works()) == (2, 0) and (tmp_path / "a" / "b").is_dir()
    assert capsys.readouterr().err == "there is no such thing\n"
    assert opens() == 2 and capsys.readouterr().err.endswith("File name too long\n")
