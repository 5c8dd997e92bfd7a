"""The command line as a user meets it: what it plays, and the one line for what it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import engine
from game import cli
from game.options import UsageError
from game.player import Game
from tests.tiny_world import write_tiny_world

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_tiny(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world to be spoiled."""
    shutil.copytree(tiny.parent, tmp_path / "world")
    return tmp_path / "world" / tiny.name


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own, with an invisible display."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    """The one line on stderr with which ``arguments`` are refused."""
    assert cli.main([str(argument) for argument in arguments]) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("loading ")]
    assert len(lines) == 1 and lines[0].startswith("reverie: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--world", "no-such-world"], ["no-such-world", "garden"]),
        (["--world", "gone.yaml"], ["gone.yaml"]),
        (["--blocks", "-3"], ["--blocks", "-3"]),
        (["--blocks", "0"], ["--blocks"]),
        (["--blocks", "many"], ["--blocks", "many"]),
        (["--blocks", "9" * 5000], ["--blocks"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--no-such-option"], ["--no-such-option", "--help"]),
        (["--start", "gone.png"], ["gone.png"]),
        (["--start", "."], ["--start", "folder"]),
        (["--start", "x" * 5000], ["so long a name"]),
        (["--world", "x" * 5000], ["so long a name"]),
        (["--headless", "--world", "x" * 5000 + ".yaml"], ["no world file"]),
        (["--record", "x" * 5000 + ".mp4"], ["so long a name"]),
        (["--headless", "--device", "meta"], ["meta"]),
        (["--record", "film.gif"], ["film.gif", ".mp4"]),
        (["--record", "gone/film.mp4"], ["gone"]),
        (["--record", "film.mp4", "--session", "./film.mp4", "--overwrite"], ["--session film.mp4", "is the film of --record"]),
        (["--record", "film.mp4", "--session", "gone/film.jsonl"], ["--session gone/film.jsonl", "there is no folder"]),
        (["--record", "film.mp4", "--session", ".", "--overwrite"], ["--session .", "is a folder"]),
        (["--headless", "--device", "cpu:7"], ["there is no device 'cpu:7' here"]),
        (["--headless", "--decode-device", ""], ["there is no device '' here"]),
        (["--headless", "--weights", ""], ["--weights", "must name a folder, not ''"]),
        (["--headless", "--dump", " "], ["--dump", "must name a folder, not ' '"]),
        (["--list", "--world", "nowhere"], ["--list shows every bundled world: leave --world out"]),
        (["--overlap"], ["--overlap goes with --headless or --bench"]),
        (["--json"], ["--bench"]),
        (["--bench", "--record", "a.mp4"], ["--bench"]),
        (["--headless", "--script", "w*3 q"], ["column 5", "'q'"]),
        (["--script", "w*0"], ["column 1", "'0'"]),
        (["--script", "gone.txt"], ["gone.txt", "no such file"]),
    ],
)
def test_bad_arguments_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]) -> None:
    line = refused(capsys, *arguments)
    assert all(word in line for word in words), line


def test_nothing_is_overwritten_unasked(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    Path("film.mp4").write_text("precious")
    Path("dump").mkdir()
    Path("dump/note.txt").write_text("precious")
    assert "exists already" in refused(capsys, "--world", tiny, "--headless", "--record", "film.mp4")
    assert "not empty" in refused(capsys, "--world", tiny, "--headless", "--dump", "dump")
    assert "is not a folder" in refused(capsys, "--world", tiny, "--headless", "--dump", "film.mp4")
    assert "nothing can be written into" in refused(capsys, "--world", tiny, "--headless", "--dump", "film.mp4/deeper/still")
    assert Path("film.mp4").read_text() == "precious"
    assert cli.main(["--world", str(tiny), "--headless", "--blocks", "1", "--record", "film.mp4", "--overwrite"]) == 0
    assert len(iio.imread("film.mp4")) == 9


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    Path("locked").mkdir(mode=0o500)
    assert "cannot be written to" in refused(capsys, "--record", "locked/a.mp4")


@pytest.mark.parametrize("patience", [20.0, 0.0])
def test_the_end_waits_a_while_for_a_screenshot_and_never_for_the_world(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    leave, shot = threading.Event(), []

    def save() -> None:
        leave.wait(0.3 if patience else 20)
        shot.append("whole")

    threads = [
        threading.Thread(target=leave.wait, args=(20,), name="reverie-world", daemon=True),
        threading.Thread(target=save, name="reverie-screenshot"),
    ]

    def play() -> int:
        for thread in threads:
            thread.start()
        return 7

    def end(status: int) -> NoReturn:
        raise SystemExit(status, list(shot))

    monkeypatch.setattr(cli, "main", play)
    monkeypatch.setattr(cli, "SCREENSHOT_SECONDS", patience)
    monkeypatch.setattr("os._exit", end)
    with pytest.raises(SystemExit) as caught:
        cli.console()
    leave.set()
    for thread in threads:
        thread.join()
    assert caught.value.args == (7, ["whole"] if patience else [])


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the current folder cannot be removed")
def test_the_current_folder_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    Path.cwd().rmdir()
    assert "a.mp4: the current folder" in refused(capsys, "--record", "a.mp4")
    assert "d: the current folder" in refused(capsys, "--dump", "d")


def test_headless_film_and_pictures(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    arguments = ["--headless", "--blocks", "3", "--record", "a.mp4", "--dump", "pictures", "--script", "w+l*2 idle", "--seed", "7"]
    assert cli.main(["--world", str(tiny), *arguments]) == 0
    out = capsys.readouterr().out
    assert "3 blocks, 33 frames" in out and "a.mp4" in out
    assert len(iio.imread("a.mp4")) == 33
    lines = [json.loads(line) for line in Path("pictures/actions.jsonl").read_text().splitlines()]
    assert len(lines) == 33 and lines[0]["keys"] == ["l", "w"] and lines[32]["keys"] == []
    assert np.asarray(Image.open(Path("pictures") / lines[32]["file"])).shape == (16, 32, 3)


def test_same_seed_same_pictures(tiny: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli.main(["--world", str(tiny), "--headless", "--blocks", "1", "--dump", folder, "--seed", str(seed)]) == 0
    a, b, c = (Path(folder, "frame_000008.png").read_bytes() for folder in "abc")
    assert a == b != c


def test_in_a_window(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--world", str(tiny), "--blocks", "2", "--record", "a.mp4"]) == 0
    output = capsys.readouterr()
    assert "W walk forward" in output.out and "F1" in output.out and "loading tiny" in output.err
    assert len(iio.imread("a.mp4")) == 21


@pytest.mark.parametrize("blocks", [1, 0])
def test_interrupted_in_a_window(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], blocks: int) -> None:
    """What has been written is named, and nothing else."""
    Path("a.mp4").write_text("old")
    turn = Game._turn

    def interrupted(game: Game) -> None:
        if not blocks:
            raise KeyboardInterrupt
        turn(game)
        if game.presenter.block is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(Game, "_turn", interrupted)
    assert cli.main(["--world", str(tiny), "--record", "a.mp4", "--overwrite"]) == 130
    output = capsys.readouterr()
    assert ("written: a.mp4" in output.out) == bool(blocks) and "interrupted" in output.err
    assert Path("a.mp4").read_bytes() == b"old" if not blocks else len(iio.imread("a.mp4")) >= 9


def test_without_a_display_the_demo_walk_is_filmed(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    Path("reverie-demo.mp4").write_text("precious")
    assert cli.main(["--world", str(tiny), "--blocks", "2"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reverie: ")]
    assert len(said) == 1 and "no display" in said[0] and "reverie-demo-2.mp4" in said[0]
    assert Path("reverie-demo.mp4").read_text() == "precious" and len(iio.imread("reverie-demo-2.mp4")) == 21
    assert "no-such-world" in (cli.main(["--world", "no-such-world"]), capsys.readouterr().err)[1]


def test_a_display_asked_for_by_name_that_is_not_there(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "no-such-driver")
    assert "no-such-driver" in refused(capsys, "--world", tiny)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _edit(file: Path, change: Any) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _rename(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors["surprise"] = tensors.pop(name)


def _reshape(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(3, 5, 7)


def _poison(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = torch.full_like(tensors[name], float("nan"))


@pytest.mark.parametrize("part", ["dit", "vae"])
@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        _truncate,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"not safetensors at all"),
        lambda file: _edit(file, _rename),
        lambda file: _edit(file, _reshape),
        lambda file: _edit(file, _poison),
    ],
    ids=["missing", "truncated", "empty", "nonsense", "renamed key", "wrong shape", "NaN"],
)
def test_spoiled_weights_are_one_line(capsys: pytest.CaptureFixture[str], own_tiny: Path, part: str, spoil: Any) -> None:
    spoil(own_tiny.parent / f"{part}.safetensors")
    assert f"{part}.safetensors" in refused(capsys, "--world", own_tiny, "--headless", "--blocks", 1)


def test_weights_of_another_world(capsys: pytest.CaptureFixture[str], own_tiny: Path, tmp_path: Path) -> None:
    def wider(settings: dict[str, Any]) -> None:
        settings["model"]["dim"] = 64

    (tmp_path / "other").mkdir()
    write_tiny_world(tmp_path / "other", change=wider)
    assert "dit.safetensors" in refused(capsys, "--world", own_tiny, "--weights", tmp_path / "other", "--headless", "--blocks", 1)


@pytest.mark.parametrize(("setting", "value"), [("colour", "blue"), ("fps", "fast"), ("height", 17), ("title", [1])])
def test_a_yaml_with_a_bad_setting(capsys: pytest.CaptureFixture[str], own_tiny: Path, setting: str, value: object) -> None:
    own_tiny.write_text(yaml.safe_dump(yaml.safe_load(own_tiny.read_text()) | {setting: value}))
    assert setting in refused(capsys, "--world", own_tiny)


def test_start_pictures(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    play = ("--world", tiny, "--headless", "--blocks", 1, "--start")
    Path("text.png").write_text("no picture")
    Image.new("RGB", (1, 1)).save("dot.png")
    assert "text.png" in refused(capsys, *play, "text.png")
    assert "1" in refused(capsys, *play, "dot.png")
    for mode in ("L", "RGBA"):
        Image.new(mode, (64, 48)).save(f"{mode}.png")
        assert cli.main([str(argument) for argument in (*play, f"{mode}.png")]) == 0
    Image.new("1", (9000, 9000)).save("huge.png")
    refused(capsys, *play, "huge.png")


def test_the_start_picture_is_looked_at_before_the_weights(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    Path("text.png").write_text("no picture")
    Path("empty").mkdir()
    assert "text.png" in refused(capsys, "--world", tiny, "--weights", "empty", "--headless", "--start", "text.png")
    assert "--start" in refused(capsys, "--world", "universal", "--weights", "empty", "--headless")


def test_an_unexpected_failure_is_one_line_and_its_account_on_demand(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.Session.step", lambda self, action: 1 / 0)
    assert "ZeroDivisionError" in refused(capsys, "--world", tiny, "--headless", "--blocks", 1, status=1)
    assert "ZeroDivisionError" in refused(capsys, "--world", tiny, "--blocks", 1, status=1)
    assert cli.main(["--world", str(tiny), "--headless", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("garden") and "112x64" in lines[0] and "16 fps" in lines[0]
    assert any(line.startswith("universal") and "missing" in line for line in lines)


def test_bench(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--world", str(tiny), "--bench", "--blocks", "2"]) == 0
    assert "fps" in capsys.readouterr().out
    assert cli.main(["--world", str(tiny), "--bench", "--blocks", "2", "--json", "--script", "w"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["blocks"] == 2 and report["frames"] == 24 and "total" in report["stages"]


def test_bench_is_the_bench(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`play.py --bench` opens, warms up and measures as `reverie bench` does, side by side too."""
    asked: list[list[object]] = []

    def benchmark(session: engine.Session, blocks: int, choose: Any, warmup: int, startup: dict, *rest: object) -> NoReturn:
        keys = None if choose is None else [sorted(choose(block).keys) for block in range(4)]
        found = [session.world.config, session.clock.block, torch.get_num_threads(), blocks, keys, warmup, list(startup), *rest]
        asked.append(found)
        raise UsageError("enough")

    monkeypatch.setattr(engine, "benchmark", benchmark)
    monkeypatch.setattr(engine, "ceiling_of", lambda session: "ceiling")
    Path("walk.txt").write_text("w*2 d")
    world = ["--world", str(tiny), "--seed", "3"]
    for more, script in ([], "--replay"), (["--overlap"], "--replay"), (["--blocks", "7", "--context", "last"], ""):
        threads = torch.get_num_threads()
        for command, option in (["bench"], script), (["--bench"], script and "--script"):
            torch.set_num_threads(threads)  # side by side each takes half
            assert cli.main([*command, *world, *more, *([option, "walk.txt"] if option else [])]) == 2
        ours, theirs = asked[-2:]
        assert ours == theirs
    assert [found[5] for found in asked] == [engine.SETTLE] * 6
    assert [found[7:] for found in asked] == [["ceiling", overlap] for overlap in (False, False, True, True, False, False)]
    assert asked[1][4] == [["w"], ["w"], ["d"], ["w"]] and asked[5][3:5] == [7, None]
    capsys.readouterr()
    for words in (["--load", "x"], ["--actions", "walk.txt"], ["--rewind-mb", "0"], ["--dump", "d"]):
        assert f"--bench measures without {words[0]}" in refused(capsys, "--world", tiny, "--bench", *words)
    Path("clip.mp4").touch()
    assert "begins with a picture" in refused(capsys, "--world", tiny, "--bench", "--start", "clip.mp4")


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "play.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}  # threads that wait by spinning suffer on a busy machine
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_the_front_door_from_another_folder(tiny: Path, tmp_path: Path) -> None:
    done = run("--world", str(tiny), "--headless", "--blocks", "1", "--record", "a.mp4", cwd=tmp_path)
    assert done.returncode == 0 and "9 frames" in done.stdout and (tmp_path / "a.mp4").is_file()
    assert done.stderr.splitlines()[0].startswith("loading ")


def test_cheap_answers_come_without_torch(tmp_path: Path) -> None:
    for arguments in (["--help"], ["--version"], ["--blocks", "-3"], ["--start", "gone.png"]):
        code = f"import sys; from game import cli\ntry: cli.main({arguments!r})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
        assert done.returncode == 0


def test_going_on_from_a_saved_game(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engine import REWIND_MB, Action, Snapshot, World
    from game.commands import play

    assert play.REWIND_MB == REWIND_MB
    session = World.load(tiny).session(seed=3)
    for _ in range(4):
        session.step(Action(frozenset("w")))
    session.snapshot().save("saved")
    assert cli.main(["--world", str(tiny), "--load", "saved", "--headless", "--script", "w l", "--blocks", "2", "--dump", "d"]) == 0
    frames = np.concatenate([session.step(Action(frozenset(key))) for key in "wl"])
    assert np.array_equal(frames, np.stack([iio.imread(f"d/frame_{i:06d}.png") for i in range(24)]))
    lines = [json.loads(line) for line in Path("d/actions.jsonl").read_text().splitlines()]
    assert [lines[0]["block"], lines[-1]["block"]] == [4, 5]
    assert cli.main(["--world", str(tiny), "--load", "saved", "--blocks", "1", "--rewind-mb", "0"]) == 0
    capsys.readouterr()
    assert "belongs to the world 'tiny', this is garden" in refused(capsys, "--headless", "--load", "saved")
    assert "--start" in refused(capsys, "--world", tiny, "--load", "saved", "--start", tiny.parent / "start.png")
    assert "seed" in refused(capsys, "--world", tiny, "--load", "saved", "--seed", 4)
    assert "no such file" in refused(capsys, "--world", tiny, "--load", "gone")
    assert "a folder" in refused(capsys, "--world", tiny, "--load", ".")
    assert "--rewind-mb" in refused(capsys, "--rewind-mb", "-1")
    Path("saved").write_bytes(Path("saved").read_bytes()[:-1])
    assert "cut short" in refused(capsys, "--world", tiny, "--headless", "--load", "saved")
    with pytest.raises(ValueError, match="cut short"):
        Snapshot.load("saved")
