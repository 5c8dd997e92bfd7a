"""What `--record` writes is what training reads; what others filmed is converted into it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from safetensors import safe_open

from engine import Action, World, load_config
from engine.conditioning import StartCondition
from engine.picture import to_video
from game import cli
from models.errors import WorldError
from tests.tiny_world import write_tiny_world
from tests.training.test_trainers import random_clips
from tests.training.tiny import write_clips
from training import convert, encode, train
from training.dataset import Clip, Data, open_clips
from training.latents import Clips, cut_windows
from training.parts import make_vae
from training.sessions import Film, read_csv, read_stretches

CPU = torch.device("cpu")
SCRIPT = "w*2 wa+l look(0.1,-0.7) idle".replace("wa", "w+a")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the tiny world's yaml, a film of five blocks with its session file)."""
    folder = tmp_path_factory.mktemp("recorded")
    world, film = write_tiny_world(folder), folder / "walk.mp4"
    arguments = ["--world", world, "--headless", "--script", SCRIPT, "--blocks", "5", "--record", film]
    assert cli.main([str(a) for a in arguments]) == 0
    return world, film


def command(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["x", *(str(a) for a in arguments)])
    return module.main()


def test_training_is_given_what_the_player_was(recorded: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows, the start picture's channels and the latents of a recorded film equal what the engine makes of the same."""
    world_file, film = recorded
    assert command(monkeypatch, encode, film, "--world", world_file, "--out", tmp_path / "clips", "--device", "cpu") == 0
    world = World.load(world_file)
    data = Data(open_clips(tmp_path / "clips", world.config), world.config, 0)
    assert len(data.source) == 1 and data.most_blocks == 5
    batch = data.window(0, 0, 15)
    session = world.session(0)
    clock = world.config.clock
    for words in ({"w"}, {"w"}, {"w", "a", "l"}, None, set()):
        action = Action(look=(0.1, -0.7)) if words is None else Action(frozenset(words))
        rows = session._ring.hold(clock, *world.config.actions.to_model(action))
        windows = session._ring.windows(clock, rows)
        own = slice(clock.start, clock.start + 3)
        assert torch.equal(windows.keyboard, batch.rows.keyboard[:, own]) and torch.equal(windows.mouse, batch.rows.mouse[:, own])
        session._ring.commit(clock, rows)
        clock = clock.next()
    frames = np.stack(list(Film(film)))
    assert len(frames) == 57
    start: StartCondition = world.condition(frames[0])
    torch.testing.assert_close(batch.condition[:, :, :3], start.block(world.config.clock), atol=2e-3, rtol=2e-3)  # half precision
    with torch.no_grad():
        z = make_vae(world.config, None, CPU).encode(to_video(frames))
    torch.testing.assert_close(batch.latents, z, atol=5e-3, rtol=5e-3)
    later = data.window(0, 6, 9)
    assert torch.equal(later.rows.keyboard, batch.rows.keyboard[:, 6:]) and not later.condition[:, :4].any() and not later.from_start.any()


def test_no_clip_takes_the_place_of_another(
    recorded: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Films of one name from two folders, and a film that was encoded before: refused before anything is written."""
    world_file, film = recorded
    other, clips = tmp_path / "other" / film.name, tmp_path / "clips"
    other.parent.mkdir()
    shutil.copy(film, other)
    common = ["--world", world_file, "--out", clips, "--device", "cpu"]
    assert command(monkeypatch, encode, film, other, *common) == 2
    assert capsys.readouterr().err.startswith("two sources are named walk,") and not clips.exists()
    clips.mkdir()
    (clips / "walk-00003.clip.safetensors").write_bytes(b"of a longer film")
    assert command(monkeypatch, encode, film, *common) == 2
    assert "has 1 clips of walk already (walk-00003.clip.safetensors): leave it out, or remove them" in capsys.readouterr().err
    assert [path.read_bytes() for path in clips.iterdir()] == [b"of a longer film"]
    encode.check_targets(["wal", "walk-00003"], clips)  # of other films


def test_a_film_of_a_phone_held_upright_is_turned(tmp_path: Path) -> None:
    """Its frames lie in the file, and a note says to turn them; ffmpeg does, and hands them out taller than wide."""
    lying, upright = tmp_path / "lying.mp4", tmp_path / "upright.mp4"
    writer = imageio_ffmpeg.write_frames(str(lying), (96, 48), fps=16, codec="libx264", output_params=["-crf", "1"])
    writer.send(None)
    frame = np.zeros((48, 96, 3), np.uint8)
    frame[:, 48:] = 200
    for _ in range(4):
        writer.send(frame.tobytes())
    writer.close()
    turn = ["-loglevel", "error", "-display_rotation", "90", "-i", lying, "-c", "copy", upright]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *map(str, turn)], check=True, timeout=60)
    film = Film(upright)
    frames = np.stack(list(film)).astype(int)
    assert film.size == (48, 96) and frames.shape == (4, 96, 48, 3)
    assert np.abs(frames[:, :44] - 200).max() < 12 and frames[:, 52:].max() < 12  # what was right is above


def test_a_film_with_the_hud_in_it_is_refused(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    film = tmp_path / "hud.mp4"
    arguments = ["--world", recorded[0], "--headless", "--script", "w", "--blocks", "2", "--record", film, "--record-hud"]
    assert cli.main([str(a) for a in arguments]) == 0
    with pytest.raises(WorldError, match="shows the HUD"):
        Film(film)


def test_stretches_end_where_the_game_did(tmp_path: Path) -> None:
    def block(epoch: int, number: int, frames: int, keys: str) -> dict:
        return {"epoch": epoch, "block": number, "keys": list(keys), "look": [0, 0], "frames": frames}

    lines = [{"reverie": "session", "version": 1}, block(0, 0, 9, "w"), block(0, 1, 12, "w"), block(0, 2, 12, "a")]
    lines += [{"mark": "gap", "epoch": 0, "block": 1}, block(0, 3, 12, "a"), block(1, 2, 12, "s"), {"end": "left"}]
    path = tmp_path / "x.session.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 1, "torn')
    found = [[("".join(a.keys), stretch.actions.count(a)) for a in dict.fromkeys(stretch.actions)] for stretch in read_stretches(path)]
    assert found == [[("w", 9)], [("a", 24)], [("s", 12)]]


@pytest.mark.parametrize(
    "line",
    [
        '{"epoch":0,"block":0,"keys":"w","look":[0,0],"frames":9}',
        '{"epoch":0,"block":0,"keys":[],"look":[0,1e999],"frames":9}',
        '{"epoch":0,"block":0,"keys":[],"look":[0,0],"frames":9999}',
        '{"epoch":0,"block":0}',
        "[]",
        "{",
    ],
)
def test_damaged_sessions_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "x.session.jsonl"
    path.write_text('{"reverie":"session"}\n' + line + "\n")
    with pytest.raises(WorldError, match="line 2"):
        read_stretches(path)


def test_a_film_and_a_table_become_a_recording(recorded: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as fast and larger than the world: every second frame is kept, under the action it was filmed with."""
    world_file, _ = recorded
    source, table = tmp_path / "drive.mp4", tmp_path / "drive.csv"
    writer = imageio_ffmpeg.write_frames(str(source), (64, 32), fps=32, codec="libx264", output_params=["-crf", "1"])
    writer.send(None)
    for i in range(90):
        writer.send(np.full((32, 64, 3), 2 * i, np.uint8).tobytes())
    writer.close()
    table.write_text("frame,keys,pitch,yaw\n0,idle\n20,w+l,0,0.5\n60,,0.25,-1\n")
    target = tmp_path / "recordings" / "drive.mp4"
    assert command(monkeypatch, convert, source, table, "--world", world_file, "--out", target) == 0
    frames, config = np.stack(list(Film(target))), load_config(world_file)
    assert frames.shape == (45, 16, 32, 3) and np.abs(frames[:, 8, 16, 0] - 4.0 * np.arange(45)).max() < 8
    (stretch,) = read_stretches(target.with_name("drive.session.jsonl"))
    keyboard, mouse = stretch.rows(config.actions)
    assert keyboard[:, 0].tolist() == [0] * 10 + [1] * 20 + [0] * 15
    np.testing.assert_allclose(mouse[[0, 15, 40]], [[0, 0], [0, 0.1], [0.025, -0.1]])
    assert command(monkeypatch, encode, target, "--world", world_file, "--out", tmp_path / "clips", "--device", "cpu") == 0
    assert Data(open_clips(tmp_path / "clips", config), config, 0).most_blocks == 4


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("0,w\n0,a\n", "rise, not 0"),
        ("0,w,2,0\n", r"\[-1, 1\]"),
        ("0,w,x\n", "line 1"),
        ("", "no actions"),
        ("frame,keys\n", "no actions"),
        ("-3,w\n5,s\n", "line 1: frames are 0 or more and must rise, not -3"),
        ('"0","w"\n3,s\n', "line 1: a frame is a whole number, not '\"0\"'"),
        ("0.5,w\n3,s\n", "line 1: a frame is a whole number, not '0.5'"),
    ],
)
def test_wrong_tables_are_refused(table: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(WorldError, match=says):
        read_csv(tmp_path / "t.csv")


def test_a_table_that_a_spreadsheet_wrote(tmp_path: Path) -> None:
    """The mark at its beginning is no part of the first frame's number."""
    (tmp_path / "t.csv").write_text("0,w\n3,s\n", encoding="utf-8-sig")
    assert [(frame, *action.keys) for frame, action in read_csv(tmp_path / "t.csv")] == [(0, "w"), (3, "s")]


def write_film(path: Path, rate: int, *more: str) -> None:
    source = ["-loglevel", "error", "-f", "lavfi", "-i", f"testsrc2=size=112x64:rate={rate}", "-frames:v", "40", *more]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *source, "-pix_fmt", "yuv420p", str(path)], check=True, timeout=60)


@pytest.mark.parametrize("rate", [1000, 500])
def test_a_film_of_too_many_frames_a_second_is_refused(
    rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a thousand ffmpeg writes "1k", which is read as 0: at that rate the film would never end."""
    write_film(tmp_path / "fast.mp4", rate)
    (tmp_path / "t.csv").write_text("0,w\n")
    assert command(monkeypatch, convert, tmp_path / "fast.mp4", tmp_path / "t.csv", "--out", tmp_path / "cv" / "a.mp4") == 2
    assert "frames a second, up to 240 can be read" in capsys.readouterr().err and not (tmp_path / "cv").exists()


def test_what_could_not_be_written_whole_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_film(tmp_path / "a.mp4", 16)
    (tmp_path / "t.csv").write_text("0,w\n")
    arguments = [tmp_path / "a.mp4", tmp_path / "t.csv", "--out", tmp_path / "cv" / "a.mp4"]
    write = imageio_ffmpeg.write_frames
    with monkeypatch.context() as patch:
        patch.setattr(imageio_ffmpeg, "write_frames", lambda path, *more, **options: write("/proc/a.mp4", *more, **options))
        assert command(monkeypatch, convert, *arguments) == 2
    with monkeypatch.context() as patch:
        patch.setattr("training.convert.fit_frame", lambda *more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(monkeypatch, convert, *arguments)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "cv/a.mp4: cannot be written: ffmpeg" in said[0] and not list((tmp_path / "cv").iterdir())
    assert command(monkeypatch, convert, *arguments) == 0
    assert sorted(path.name for path in (tmp_path / "cv").iterdir()) == ["a.mp4", "a.session.jsonl"]


def test_a_damaged_film_is_taken_as_far_as_it_goes_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_film(tmp_path / "whole.mp4", 16, "-movflags", "frag_keyframe+empty_moov", "-g", "8")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    assert len(list(Film(tmp_path / "whole.mp4"))) == 40 and capsys.readouterr().err == ""
    assert 0 < len(list(Film(tmp_path / "half.mp4"))) < 40
    (line,) = capsys.readouterr().err.splitlines()
    assert "half.mp4 is damaged; so much of it as can be read is taken (ffmpeg: " in line


@pytest.mark.parametrize("text", ["", '{"reverie":"session"}\n'])
def test_a_session_without_a_block_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.session.jsonl").write_text(text)
    with pytest.raises(WorldError, match=r"x\.session\.jsonl: not one block of a film is in it"):
        read_stretches(tmp_path / "x.session.jsonl")


def test_walks_of_the_simulator_are_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, encode, "--walks", 1, "--blocks", 2, "--out", tmp_path, "--device", "cpu") == 0
    config = load_config("garden")
    data = Data(open_clips(tmp_path, config), config, 0)
    with safe_open(tmp_path / "walk-0-00001.clip.safetensors", "pt") as file:
        assert file.get_slice("latents").get_shape() == [16, 6, 8, 14] and file.get_slice("mouse").get_shape() == [21, 2]
    assert 0.5 < float(data.window(0, 0, 6).latents.std()) < 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "there is no plan 'nowhere'"),
        (["garden_forcing"], "--clips"),
        (["garden_dmd", "--clips", "clips"], "--teacher"),
        (["garden_forcing", "--clips", "."], "training.encode"),
        (["garden_forcing", "--clips", "clips", "--student", "missing.safetensors"], "missing.safetensors"),
        (["garden_forcing", "--clips", "clips", "--device", "tpu"], "tpu"),
        (["garden_forcing", "--clips", "clips", "--world", "universal"], "clips of universal hold"),
        (["garden_forcing", "--clips", "tiny"], "garden takes [16, "),
        (["garden_regression", "--clips", "clips"], "the longest clip has 5 blocks, the plan asks for 9"),
        (["wrong.yaml"], "did you mean iterations"),
        (["unfit.yaml"], "forcing reads no settings rollout"),
        (["path.yaml"], "world is one of garden"),
        (["steps.yaml"], "forcing.step_weights has 3 numbers, and garden has 4 steps ([1000, 750, 500, 250])"),
        (["begins.yaml"], "forcing.begin_weights has 4 numbers, and garden has 3 steps"),
        (["garden_forcing", "--clips", "clips", "--iterations", "-5"], "--iterations -5: at least 1"),
        (["missing.yaml"], "cannot read missing.yaml: No such file"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "tiny")
    (tmp_path / "clips").mkdir()
    blank = Clip(torch.zeros(16, 15, 8, 14), torch.zeros(16, 30, 8, 14), torch.zeros(57, 4), torch.zeros(57, 2))
    blank.save(tmp_path / "clips" / "0.clip.safetensors", "test")
    Path("wrong.yaml").write_text("world: garden\nobjective: forcing\nitertions: 3\n")
    Path("unfit.yaml").write_text("world: garden\nobjective: forcing\nrollout: {horizon: [1, 2]}\n")
    begun = "world: garden\nobjective: forcing\n"
    Path("steps.yaml").write_text(begun + "steps: [1000, 750, 500, 250]\nforcing: {step_weights: [0.6, 0.2, 0.2]}\n")
    Path("begins.yaml").write_text(begun + "forcing: {resampling: 0.5, begin_weights: [1.0, 1.0, 1.0, 1.0]}\n")
    Path("path.yaml").write_text("world: /etc/passwd\nobjective: forcing\n")
    assert command(monkeypatch, train, *arguments, *([] if "--device" in arguments else ["--device", "cpu"])) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says in lines[0], lines


@pytest.mark.parametrize("half", [False, True])
def test_a_gardens_pool_is_read_as_its_own_trainers_read_it(half: bool, tmp_path: Path) -> None:
    """The pool that `train_dit` leaves, in half precision, also within a training in bfloat16."""
    clips = random_clips()
    stored = Clips(**{name: tensor.half() if name != "pose" else tensor for name, tensor in vars(clips).items()})
    stored.save(tmp_path / "clips.safetensors")
    config = load_config("garden", {"height": 8 * clips.latents.shape[3], "width": 8 * clips.latents.shape[4]})
    data = Data(open_clips(tmp_path / "clips.safetensors", config), config, 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        for first in (0, 12):
            ours, known = data.window(1, first, 12), cut_windows(stored, torch.tensor([1]), torch.tensor([first]), 12)
            for a, b in ((ours.latents, known.latents), (ours.condition, known.condition), (ours.rows.keyboard, known.keyboard)):
                assert torch.equal(a, b)
            assert torch.equal(ours.rows.mouse, known.mouse) and bool(ours.from_start) == (first == 0) and data.most_blocks == 9
