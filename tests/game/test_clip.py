"""Films to go on from: decoded within limits, played on from through the command line, with a window and without."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest

from engine import Action
from game import cli
from game.clip import actions_of, read_clip
from game.options import UsageError, is_clip
from game.script import ScriptError
from tests.game.fake import RUN, WALK
from tests.tiny_world import write_tiny_world


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def film(path: str, frames: int, size: str = "64x32", rate: int = 16, *more: str) -> Path:
    """A test film by ffmpeg, lossless."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "lavfi", "-i", f"testsrc=size={size}:rate={rate}"]
    subprocess.run([*command, "-frames:v", str(frames), *more, path], check=True)
    return Path(path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("loading ")]
    assert len(lines) == 1 and lines[0].startswith("reverie: "), lines
    return lines[0]


def test_frames_come_out_one_by_one_at_the_worlds_size() -> None:
    assert [is_clip(Path(name)) for name in ("a.mp4", "A.MOV", "a.webm", "a.png", "a.gif", "mp4")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    clip = read_clip(film("a.mkv", 14, "32x16", 24, "-c:v", "ffv1", "-pix_fmt", "bgr0"), 16, 32, 100)
    assert clip.frames.shape == (14, 16, 32, 3) and clip.frames.dtype == np.uint8 and clip.fps == 24
    assert np.array_equal(clip.frames, np.stack(list(iio.imiter("a.mkv"))))  # of the right size: untouched
    assert len(read_clip(Path("a.mkv"), 16, 32, 5).frames) == 6  # one more than may be: the caller can tell
    wide = read_clip(film("b.avi", 9, "200x64", 25, "-c:v", "mjpeg"), 16, 32, 100)
    assert wide.frames.shape == (9, 16, 32, 3)
    Path("c.mp4").write_bytes(film("d.mkv", 9, "64x32", 25, "-c:v", "ffv1").read_bytes())
    assert len(read_clip(Path("c.mp4"), 16, 32, 100).frames) == 9  # told by its bytes


def test_what_is_no_film(tmp_path: Path) -> None:
    Path("text.mp4").write_text("hello, I am no film")
    Path("list.mp4").write_text(f"ffconcat version 1.0\nfile '{film('real.mp4', 9)}'\n")
    Path("net.mp4").write_text("#EXTM3U\n#EXTINF:1\nhttp://127.0.0.1:9/x.ts\n")
    Path("empty.mp4").touch()
    for name in ("text.mp4", "list.mp4", "net.mp4", "empty.mp4"):
        with pytest.raises(UsageError, match="is no film that can be read"):
            read_clip(Path(name), 16, 32, 100)
    Path("half.mp4").write_bytes(Path("real.mp4").read_bytes()[:300])
    with pytest.raises(UsageError, match="no frame can be read from it"):
        read_clip(Path("half.mp4"), 16, 32, 100)
    with pytest.raises(UsageError, match="No such file"):
        read_clip(Path("gone.mp4"), 16, 32, 100)


def test_actions_of_a_clip() -> None:
    Path("a.txt").write_text("w*2 w+l\nidle")
    keys = [frozenset("w"), frozenset("w"), frozenset("wl"), frozenset(), frozenset()]
    assert actions_of(Path("a.txt"), WALK, 5) == [Action(held) for held in keys]
    assert actions_of(Path("a.txt"), WALK, 2) == [Action(held) for held in keys[:2]]
    with pytest.raises(ScriptError, match="unknown key 'l'"):
        actions_of(Path("a.txt"), RUN, 2)


def test_going_on_from_a_film(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film("a.mp4", 25, "64x32", 25)
    Path("done.txt").write_text("w*9")
    play = ("--world", tiny, "--headless", "--blocks", 2, "--overwrite", "--dump")
    assert cli.main([str(word) for word in (*play, "out", "--start", "a.mp4", "--actions", "done.txt", "--script", "w l")]) == 0
    said = capsys.readouterr().out
    assert "a.mp4: going on from 2 blocks, 21 frames; the last 4 make no whole block and are cut" in said
    assert "a.mp4 has 25 frames a second; this world takes them for 16 a second" in said and "2 blocks, 24 frames" in said
    log = Path("out/actions.jsonl").read_text().splitlines()
    assert '"block": 2, "keys": ["w"]' in log[0] and '"block": 3, "keys": ["l"]' in log[-1]
    with_actions = Path("out/frame_000000.png").read_bytes()
    assert cli.main([str(word) for word in (*play, "out", "--start", "a.mp4", "--script", "w l")]) == 0
    assert Path("out/frame_000000.png").read_bytes() != with_actions


def test_going_on_from_a_film_in_a_window(tiny: Path) -> None:
    film("a.mp4", 21)
    assert cli.main(["--world", str(tiny), "--start", "a.mp4", "--blocks", "2", "--dump", "out", "--script", "w l"]) == 0
    log = Path("out/actions.jsonl").read_text().splitlines()
    assert len(log) == 24 and '"block": 2, "keys": ["w"]' in log[0] and '"block": 3, "keys": ["l"]' in log[-1]


def test_films_and_actions_that_are_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film("short.mp4", 5)
    film("long.mp4", 500)
    film("small.mkv", 9, "8x8", 16, "-c:v", "ffv1")
    Path("done.txt").write_text("w q")
    play = ("--world", tiny, "--headless", "--start")
    assert "the clip has 5 frames; at least 9" in refused(capsys, *play, "short.mp4")
    assert "longer than 40 blocks" in refused(capsys, *play, "long.mp4")
    assert "8x8 pixels" in refused(capsys, *play, "small.mkv")
    assert "'q'" in refused(capsys, *play, film("a.mp4", 9), "--actions", "done.txt")
    assert "no such file" in refused(capsys, *play, "a.mp4", "--actions", "gone.txt")
    assert "--actions goes with a clip" in refused(capsys, "--world", tiny, "--headless", "--actions", "done.txt")
    assert "gone.mp4" in refused(capsys, *play, "gone.mp4")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "333,666"], ["--steps", "smaller than the one before", "'333,666'"]),
        (["--steps", "1001"], ["--steps", "from 0 to 1000"]),
        (["--steps", "1000,x"], ["--steps", "whole number", "'x'"]),
        (["--steps", ""], ["--steps"]),
        (["--window", "16"], ["--window", "from 1 to 15"]),
        (["--window", "2"], ["local_attn_size 2 is smaller than a block of 3 latents"]),
        (["--fps", "0"], ["--fps", "from 1 to 240"]),
        (["--size", "640"], ["--size", "WIDTHxHEIGHT such as 640x352"]),
        (["--size", "650x352"], ["width must be a multiple of 16 up to 2048, got 650"]),
        (["--size", "64x9999"], ["height must be a multiple of 16 up to 2048, got 9999"]),
        (["--dtype", "int8"], ["--dtype", "int8", "bfloat16"]),
        (["--device", "mps"], ["there is no device 'mps' here; use cpu"]),
    ],
)
def test_options_that_are_refused(tiny: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]) -> None:
    line = refused(capsys, "--world", tiny, "--headless", *options)
    assert all(word in line for word in words), line


def test_options_that_are_played(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "1000,500", "--window", "4", "--fps", "20", "--size", "48x32", "--dtype", "bfloat16", "--seed", "9"]
    assert cli.main(["--world", str(tiny), "--headless", "--blocks", "2", "--dump", "out", *options]) == 0
    assert "native 20" in capsys.readouterr().out
    assert iio.imread("out/frame_000020.png").shape == (32, 48, 3)
