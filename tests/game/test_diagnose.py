"""What goes wrong in pictures, made on purpose, and whether the tool sees it; and that it sees nothing where nothing is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from game import cli, framesource
from game.diagnosis import COLUMNS, Diagnosis, Limits, Meter, border_steps, diagnose, latent_rhythm, patch_power
from game.framesource import Film
from models.vae import VAE
from tests import order_vae
from training.simulator import random_poses, rollout
from training.train_vae import load_garden_vae

FPS = 16
GARDEN_VAE = Path(__file__).parents[2] / "assets" / "garden" / "vae.safetensors"


@cache
def walk(seed: int = 11) -> np.ndarray:
    """37 frames of a walk that turns right, then left: `[F, 64, 112, 3]`."""
    keyboard, mouse = torch.zeros(1, 36, 4), torch.zeros(1, 36, 2)
    keyboard[:, :, 0] = 1
    mouse[:, :18, 1], mouse[:, 18:, 1] = 0.05, -0.06
    frames, _ = rollout(random_poses(1, torch.Generator().manual_seed(seed)), keyboard, mouse)
    return frames[0].permute(0, 2, 3, 1).numpy()


def verdicts(frames: np.ndarray, fps: float = FPS) -> Diagnosis:
    meter = Meter()
    for frame in frames:
        meter.add(frame)
    return diagnose(meter.table(), fps)


def found(frames: np.ndarray) -> set[str]:
    return {trouble.kind for trouble in verdicts(frames).troubles if trouble.found}


@torch.inference_mode()
def reconstructed(encoder: VAE, decoder: VAE) -> np.ndarray:
    video = torch.from_numpy(walk()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    frames = decoder.decode(encoder.encode(video))[0].permute(1, 2, 3, 0)
    return ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def spoiled(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return change(walk().astype(float)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_clean_walk(seed: int) -> None:
    assert found(walk(seed)) == set()


@pytest.mark.skipif(not GARDEN_VAE.is_file(), reason="the garden's weights are not in the box")
def test_the_gardens_vae_and_the_same_with_frames_exchanged() -> None:
    vae = load_garden_vae(GARDEN_VAE)
    assert found(reconstructed(vae, vae)) == set()
    wrong = load_garden_vae(GARDEN_VAE)
    for layer in wrong.decoder.upsamples:
        if getattr(layer, "time_conv", None) is not None:  # the last C channels for the even frame, the first for the odd
            for parameter in (layer.time_conv.weight, layer.time_conv.bias):
                parameter.data = parameter.data.roll(len(parameter) // 2, 0)
    assert "flicker or time order" in found(reconstructed(vae, wrong))


def test_the_wrong_order_of_time_downsampling() -> None:
    """[yes, yes, no] for [no, yes, yes], with the same weights where names and shapes allow: it builds, runs, and is seen.

    The VAE of this test was trained for minutes: also in the right order its pictures are blurred, and jump from latent to latent.
    """
    vaes = order_vae.load(), order_vae.load((True, True, False))
    right, wrong = (verdicts(reconstructed(vae, vae)) for vae in vaes)
    zigzag = [np.mean(diagnosis.table["zigzag"][2:] > Limits().zigzag) for diagnosis in (right, wrong)]
    assert zigzag[0] < Limits().zigzag_share < 0.5 < zigzag[1], zigzag
    assert "flicker or time order" in {trouble.kind for trouble in wrong.troubles if trouble.found}


RNG = np.random.default_rng(0)
CHESS = (np.indices((64, 112)) // 8).sum(0) % 2  # squares of 8 pixels
TROUBLES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "a picture that stands still": ("frozen", lambda v: np.concatenate([v[:5], np.repeat(v[5:6], 40, 0)])),
    "fog": ("washed out", lambda v: 128 + (v - 128) * 0.1),
    "black": ("washed out", lambda v: v * 0),
    "noise": ("noisy", lambda v: RNG.integers(0, 256, v.shape)),
    "much noise over the picture": ("noisy", lambda v: v * 0.3 + RNG.normal(0, 60, v.shape)),
    "a chessboard of patches": ("grid", lambda v: v + (CHESS * 24)[None, :, :, None]),
    "lines between patches": ("grid", lambda v: np.where((np.arange(112) % 8 == 7)[None, None, :, None], v * 0.5, v)),
    "every patch of one colour": ("grid", lambda v: v[:, ::8, ::8].repeat(8, 1).repeat(8, 2)),
    "ever darker": ("drifting", lambda v: v * np.linspace(1, 0.2, len(v))[:, None, None, None]),
    "ever greyer": ("drifting", lambda v: v + (v.mean(-1, keepdims=True) - v) * np.linspace(0, 1, len(v))[:, None, None, None]),
    "a strobe": ("flicker or time order", lambda v: v * (1 - 0.3 * (np.arange(len(v)) % 2))[:, None, None, None]),
    "pairs of frames exchanged": ("flicker or time order", lambda v: v[np.arange(36) ^ 1]),
    "fours of frames backwards": ("flicker or time order", lambda v: v[np.arange(36) ^ 3]),
    "one new frame in four": ("flicker or time order", lambda v: v[np.arange(36) // 4 * 4] + RNG.normal(0, 1, (36, *v.shape[1:]))),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_of_every_kind(name: str) -> None:
    kind, change = TROUBLES[name]
    assert kind in found(spoiled(change))


def test_a_player_who_rests_is_no_trouble() -> None:
    assert found(np.concatenate([np.repeat(walk()[:1], 20, 0), walk()])) == set()


def test_the_numbers_themselves() -> None:
    flat = np.full((64, 64), 100.0)
    assert border_steps(flat) == 1 and 0.9 < patch_power(flat) < 1.1
    wave = 100 + 50 * np.sin(np.arange(64) * 2 * np.pi / 8)[None].repeat(64, 0)
    assert patch_power(wave) > 100 and patch_power(wave.T) < 2
    assert latent_rhythm(np.array([np.nan, *[1, 1, 1, 5] * 4])) == pytest.approx(5.1 / 1.1)
    meter = Meter()
    for value in (0, 10, 10):
        meter.add(np.full((16, 24, 3), value, np.uint8))
    table = meter.table()
    assert list(table) == list(COLUMNS) and np.isnan(table["difference"][0]) and table["difference"][1:].tolist() == [10, 0]
    assert table["mean"] == pytest.approx([0, 10, 10], abs=1e-4) and table["saturation"].tolist() == [0, 0, 0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["diagnose", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_film_a_table_a_json_and_a_plot(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        "112x64",
        "-r",
        "16",
        "-i",
        "-",
    ]
    subprocess.run([*command, "-crf", "16", "-pix_fmt", "yuv420p", "walk.mp4"], input=walk().tobytes(), check=True)
    assert cli.main(["diagnose", "walk.mp4", "--json", "n.json", "--plot", "n.png"]) == 0
    said = capsys.readouterr().out
    assert "verdict: nothing wrong to be seen" in said and said.count("\nfine ") == 6
    numbers = json.loads(Path("n.json").read_text())
    assert numbers["fps"] == 16 and numbers["sound"] is True and len(numbers["frames"]["sharpness"]) == 37
    assert Image.open("n.png").width > 500
    assert "exists already" in refused(capsys, "walk.mp4", "--json", "n.json")
    assert cli.main(["diagnose", "walk.mp4", "--json", "n.json", "--overwrite"]) == 0


def test_a_folder_of_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(20):
        Image.fromarray(RNG.integers(0, 256, (32, 48, 3), np.uint8)).save(f"frame_{number:06d}.png")
    Path("actions.jsonl").touch()
    assert cli.main(["diagnose", ".", "--fps", "10"]) == 0
    said = capsys.readouterr().out
    assert "TROUBLE noisy" in said and "verdict: noisy" in said and said.splitlines()[2].startswith("     1")
    Image.new("RGB", (64, 64)).save("frame_000020.png")
    assert "frames of different sizes, (64, 64) after (48, 32)" in refused(capsys, ".")
    Path("frame_000003.png").write_text("no picture")
    assert "frame_000003.png: cannot be read as a picture" in refused(capsys, ".")


def test_what_cannot_be_diagnosed(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    Path("text.mp4").write_text("no film")
    Path("dot").mkdir()
    Image.new("RGB", (4, 4)).save("dot/a.png")
    assert "no such film or folder" in refused(capsys, "gone.mp4")
    if os.name == "posix":
        os.mkfifo("pipe")
        assert "pipe: is a pipe or a device; give a film" in refused(capsys, "pipe")
    assert "holds no pictures" in refused(capsys, "empty")
    assert "is no film that can be read" in refused(capsys, "text.mp4")
    assert "4x4 are too small" in refused(capsys, "dot")
    assert "must end in .png" in refused(capsys, "dot", "--plot", "a.txt")
    assert "does not exist" in refused(capsys, "dot", "--json", "gone/a.json")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "--plot needs matplotlib: pip install matplotlib" in refused(capsys, "dot", "--plot", "a.png")


def test_a_damaged_film_is_judged_and_said_to_be(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix, codec in ("mkv", "ffv1"), ("mp4", "libx264"):
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=size=112x64:rate=16"]
        subprocess.run([*command, "-frames:v", "40", "-c:v", codec, f"whole.{suffix}"], check=True)
        data = bytearray(Path(f"whole.{suffix}").read_bytes())
        middle = len(data) // 2
        data[middle : middle + len(data) // 8] = bytes(len(data) // 8)
        Path(f"damaged.{suffix}").write_bytes(data)
        for name, sound in ("whole", True), ("damaged", False):
            assert cli.main(["diagnose", f"{name}.{suffix}", "--json", "n.json", "--overwrite"]) == 0
            told, numbers = capsys.readouterr().err, json.loads(Path("n.json").read_text())
            count = len(numbers["frames"]["mean"])
            assert (numbers["damage"] is None) == sound == (told == "") == (count == 40)
            assert sound or f"damaged.{suffix}: is damaged; judged are the {count} frames that can be read (ffmpeg: " in told


@pytest.mark.skipif(os.name != "posix", reason="a shell plays ffmpeg")
def test_a_film_whose_reading_fails_is_not_judged_as_if_whole(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.ppm").write_bytes(b"P6\n200 200\n255\n" + bytes(200 * 200 * 3))  # more than a pipe holds
    Path("a.mkv").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(12))

    def ffmpeg(words: str) -> None:
        monkeypatch.setattr(Film, "_command", lambda film: ["sh", "-c", words])

    ffmpeg("cat a.ppm a.ppm; echo '[vist#0:0 @ 0x1] [error] it is broken' >&2; exit 3")
    assert "a.mkv: it can be read up to frame 2 and not further (it is broken)" in refused(capsys, "a.mkv")
    ffmpeg("cat a.ppm; kill -9 $$")
    assert "up to frame 1 and not further (ffmpeg ended with status -9)" in refused(capsys, "a.mkv")
    monkeypatch.setattr(framesource, "SECONDS", 1.0)
    ffmpeg("cat a.ppm a.ppm a.ppm")
    frames = iter(Film(Path("a.mkv")))
    next(frames)
    time.sleep(1.2)  # that is our time, not ffmpeg's
    assert len(list(frames)) == 2
    monkeypatch.setattr(framesource, "SECONDS", 0.3)
    ffmpeg("cat a.ppm; exec sleep 60")
    assert "a.mkv: given up after" in refused(capsys, "a.mkv")


def test_patience_is_for_waiting_only() -> None:
    killed = threading.Event()
    patience = framesource.Patience(SimpleNamespace(kill=killed.set), 0.1)
    with patience:
        pass
    assert not killed.wait(0.25) and not patience.lost
    with patience:
        assert killed.wait(10) and patience.lost
    patience.end()


def test_it_needs_no_torch(here: Path) -> None:
    Image.new("RGB", (32, 32)).save("a.png")
    code = "import sys; from game import cli; assert cli.main(['diagnose', '.']) == 0; assert not {'torch', 'pygame'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={"PYTHONPATH": str(Path(__file__).parents[2])})
