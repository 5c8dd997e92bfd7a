"""The trainers' commands refuse what is out of range in one line, before they load or write anything."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest
import torch

from models.errors import WorldError
from training.arguments import device, in_a_line, new_folder, number, seed, whole

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
    assert error.count("\n") == 1 and "no folder can be made there" in error and (tmp_path / "there").read_text() == "kept"


@pytest.mark.parametrize("options", [("--world", "nowhere"), ("--weights", "nowhere"), ("--device", "nowhere")])
def test_the_evaluation_of_nothing(options: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "evaluate", "--only", "none", *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nowhere" in error


def test_another_file_under_the_name_of_the_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:  # fmt: skip
    notes = tmp_path / "notes.json"
    notes.write_text("no tables")
    with pytest.raises(SystemExit):
        run(monkeypatch, "evaluate", "--only", "none", "--json", str(notes))
    assert "is no evaluation: name another file" in capsys.readouterr().err and notes.read_text() == "no tables"


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

    assert (fails(), works()) == (2, 0) and (tmp_path / "a" / "b").is_dir()
    assert capsys.readouterr().err == "there is no such thing\n"
