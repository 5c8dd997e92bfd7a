"""What a command reads is never what it writes over, whatever --overwrite says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.test_cli import elsewhere, own_tiny, refused, tiny  # noqa: F401 (fixtures; elsewhere is one that every test has)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--load", "saved", "--session", "saved"], "--session saved"),
        (["--start", "a.png", "--session", "link"], "--session link"),
        (["--start", "clip.mp4", "--record", "./clip.mp4"], "--record clip.mp4"),
        (["--start", "clip.mp4", "--actions", "clip.session.jsonl", "--record", "clip.mp4", "--session", "b"], "--record clip.mp4"),
        (["--start", "clip.mp4", "--actions", "walk.session.jsonl", "--record", "walk.mp4"], "session file is walk.session.jsonl"),
        (["--world", "t.yaml", "--session", "t.yaml"], "--session t.yaml"),
        (["--script", "walk.txt", "--headless", "--session", "walk.txt"], "--session walk.txt"),
        (["--start", "d/frame_000001.png", "--dump", "d"], "--dump d/frame_000001.png"),
        (["--script", "d/actions.jsonl", "--dump", "d"], "--dump d/actions.jsonl"),
        (["--replay", "walk.session.jsonl", "--record", "walk.mp4"], "session file is walk.session.jsonl"),
        (["replay", "walk.session.jsonl", "--export", "walk.session.jsonl"], "--export walk.session.jsonl"),
        (["replay", "walk.session.jsonl", "--snapshot", "x", "--snapshot", "saved", "--export", "saved"], "--export saved"),
        (["replay", "walk.session.jsonl", "--film", "clip.mp4", "--record", "clip.mp4"], "--record clip.mp4"),
        (["render", "walk.session.jsonl", "--start", "clip.mp4", "--out", "clip.mp4"], "--out clip.mp4"),
        (["diagnose", "clip.mp4", "--json", "clip.mp4"], "--json clip.mp4"),
        (["diagnose", "d", "--json", "d/frame_000001.png"], "--json d/frame_000001.png"),
    ],
)
def test_no_output_takes_the_place_of_what_is_read(capsys: pytest.CaptureFixture[str], arguments: list[str], option: str) -> None:
    Path("d").mkdir()
    names = "saved a.png clip.mp4 clip.session.jsonl walk.txt t.yaml d/frame_000001.png d/actions.jsonl"
    for name in names.split():
        Path(name).write_text("precious")
    Path("link").symlink_to("a.png")
    Path("walk.session.jsonl").write_text('{"reverie": "session"}\n')
    line = refused(capsys, *arguments, "--overwrite")
    assert option in line and "would take the place of" in line and "choose another name" in line
    assert all(Path(name).read_text() == "precious" for name in names.split())


def test_no_output_takes_the_place_of_what_a_world_is_made_of(capsys: pytest.CaptureFixture[str], own_tiny: Path) -> None:  # noqa: F811
    """The yaml's own start picture and weights, in its folder and in that of --weights, by their names or by a link."""
    folder = own_tiny.parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    weights = next(folder.rglob("*.safetensors"))
    picture = next(folder.rglob("*.png"))
    shutil.copytree(folder, "elsewhere")
    Path("link").symlink_to(weights)
    play = ("--world", own_tiny, "--headless", "--blocks", "1", "--overwrite")
    a_weight = "a file of the world's weights"
    for name, what in ((picture, "the world's start picture"), (weights, a_weight), ("link", a_weight)):
        line = refused(capsys, *play, "--session", name)
        assert f"--session {name}" in line and f"would take the place of {what}" in line
    other = Path("elsewhere") / weights.relative_to(folder)
    assert a_weight in refused(capsys, *play, "--weights", "elsewhere", "--session", other)
    assert other.read_bytes() == before[weights]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dump", "d", "--session", "d/actions.jsonl"], "--session d/actions.jsonl: is what --dump calls a file of its own"),
        (["--dump", "d", "--session", "./d/frame_000003.png"], "is what --dump calls a file of its own"),
        (["diagnose", "d", "--json", "d.png", "--plot", "./d.png"], "--plot d.png: is the file of --json"),
    ],
)
def test_no_output_takes_the_place_of_another(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    Path("d").mkdir()
    assert words in refused(capsys, *arguments, "--overwrite")
    assert not any(Path("d").iterdir())
