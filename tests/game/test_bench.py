"""`reverie bench`, as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from game.cli import main
from tests.tiny_world import write_tiny_world

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("bench"))


def test_the_report_as_json(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--world", str(world), "--blocks", "3", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["blocks"] == 3 and data["frames"] == 36 and data["fps"] > 0
    stages = data["stages"]
    assert list(stages)[-1] == "total" and {"conditioning", "denoise 1", "denoise 3", "commit", "decode", "transfer"} <= stages.keys()
    parts = sum(stage["median"] for name, stage in stages.items() if name != "total")
    assert 0.5 * stages["total"]["median"] < parts < 1.5 * stages["total"]["median"]
    assert data["first_frame"]["median"] > 0 and list(data["startup"]) == ["import", "load", "warm-up", "first frame"]
    efficiency = data["efficiency"]
    assert 0 < efficiency["transformer_share"] < 1.2 and efficiency["copy_gb_s"] > 0
    assert 0 < data["present"]["median"] <= data["present"]["p99"] and "SDL dummy" in data["presented"] and "present" not in stages
    assert data["peak_bytes"]["host"] > 1e7 and data["machine"]["torch"]


def test_without_pygame_all_but_the_window_is_measured(world: Path, tmp_path: Path) -> None:
    """In a process that cannot import it: what a machine for measuring has is torch."""
    (tmp_path / "pygame.py").write_text("raise ModuleNotFoundError('No module named pygame', name='pygame')")
    words = ["bench", "--world", str(world), "--blocks", "1", "--json"]
    code = "import sys; from game.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["present"] is None and data["presented"] == "not measured: pygame is not installed" and data["fps"] > 0


def test_showing_pictures_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from game.presenting import present_seconds
    from tests.game.fake import FakeConfig

    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    seconds, where = present_seconds(FakeConfig(), np.zeros((16, 32, 3), np.uint8), blocks=3)
    assert len(seconds) == 3 and min(seconds) > 0 and "SDL_VIDEODRIVER" not in os.environ and where.startswith("a window of ")


def test_random_weights_need_no_files(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare.yaml"
    bare.write_text(world.read_text().replace("start: start.png\n", ""))
    assert main(["bench", "--world", str(bare), "--blocks", "1"]) == 2  # its files are not here
    capsys.readouterr()
    assert main(["bench", "--world", str(bare), "--blocks", "1", "--random", "--dtype", "bfloat16"]) == 0
    assert "bare on cpu, bfloat16: 12 frames" in capsys.readouterr().out


def test_actions_of_a_script_or_a_session(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engine import load_config
    from game.commands.bench import actions_of

    script = tmp_path / "walk.txt"
    script.write_text("w*2 d idle")
    choose = actions_of(script, load_config(world))
    assert [sorted(choose(block).keys) for block in range(5)] == [["w"], ["w"], ["d"], [], ["w"]]
    session = tmp_path / "walk.session.jsonl"
    play = ["--world", str(world), "--headless", "--script", "a w*2", "--blocks", "3", "--session", str(session)]
    assert main(play) == 0
    choose = actions_of(session, load_config(world))
    assert [sorted(choose(block).keys) for block in range(4)] == [["a"], ["w"], ["w"], ["a"]]
    assert main(["bench", "--world", str(world), "--blocks", "1", "--replay", str(session)]) == 0


def test_side_by_side(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--world", str(world), "--blocks", "3", "--overlap", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["frames"] == 36 and data["engine"]["overlap"] and data["stages"]["decode"]["median"] > 0
    play = ["--world", str(world), "--headless", "--script", "w*2 a", "--blocks", "5"]
    torch.set_num_threads(2)
    assert main([*play, "--overlap", "--session", str(tmp_path / "b.jsonl")]) == 0
    assert torch.get_num_threads() == 1  # half for each side, and so it is from here on
    assert main([*play, "--session", str(tmp_path / "a.jsonl")]) == 0
    ours, theirs = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("a.jsonl", "b.jsonl"))
    assert [line.get("sha256") for line in ours] == [line.get("sha256") for line in theirs]
    assert sum("sha256" in line for line in ours) >= 5
    assert theirs[0]["fingerprint"]["threads"] == 1
    assert main([*play[:2], "--overlap", "--blocks", "1"]) == 2


def test_compare_with_the_plain_variant(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--world", str(world), "--blocks", "2", "--compare", "baseline"]) == 0
    assert "x the plain variant" in capsys.readouterr().out
    for part in ("transformer", "decoder"):
        assert main(["bench", "--world", str(world), "--blocks", "2", "--compare", "baseline", "--part", part, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["part"] == part and data["blocks"] == len(data["ratios"]) == 2 and data["ratio"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replay", "nowhere.txt"], "no such file"),
        (["--random", "--weights", "."], "--random makes the weights itself"),
        (["--compare", "baseline", "--context", "last"], "the exact model"),
        (["--compare", "baseline", "--overlap"], "takes turns"),
        (["--part", "decoder"], "--part goes with --compare"),
        (["--attention", "cudnn"], "no cudnn attention for"),
        (["--blocks", "0"], "must be from 1"),
        (["--world", "nowhere"], "nowhere"),
    ],
)
def test_refusals(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err
