"""Sessions from end to end, in processes of their own: the same bits, and what is left after a kill."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from threading import Thread
from typing import Any

import imageio.v3 as iio
import pygame
import pytest
import torch

from engine import IDLE, Action, Ready, Session, World
from engine.world import choose_dtype
from game import cli
from game.commands import play
from game.commands.replay import run_for_play, tell
from game.film import inspect_film
from game.names import part_of
from game.player import Game
from game.replay import Check, Plan
from game.sessionfile import SessionError, read_session
from models.float8 import why_not
from tests.child import kill_tree, spawn
from tests.game.dream import walk
from tests.long import LONG, times
from tests.tiny_world import write_tiny_world

WALK = "w*2 w+l look(0.1,-0.7)*2 d idle s+look(-0.3,0.25) j*3 w"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def change(settings: dict[str, Any]) -> None:
        settings["fps"] = 48  # a block in a quarter of a second

    return write_tiny_world(tmp_path_factory.mktemp("tiny"), change=change)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def reverie(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def hashes(path: str) -> list[str | None]:
    return [block.sha256 for block in read_session(Path(path)).blocks]


def test_two_fresh_processes_a_window_and_a_replay_give_the_same_bits(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = times(4, 50)
    play = ("--world", tiny, "--script", WALK, "--blocks", count, "--seed", 5)
    processes = [spawn(tmp_path, *play, "--headless", "--session", f"{name}.session.jsonl") for name in "ab"]
    processes += [spawn(tmp_path, *play, "--record", "window.mp4")]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0], Path("said.txt").read_text()
    expected = hashes("a.session.jsonl")
    assert len(set(expected)) == count and hashes("b.session.jsonl") == expected == hashes("window.session.jsonl")
    frames = 9 + 12 * (count - 1)
    assert inspect_film(Path("window.mp4")).frames == frames == len(iio.imread("window.mp4"))

    assert reverie("replay", "window.session.jsonl", "--world", tiny, "--verify") == 0
    assert f"{count} blocks, every frame as recorded" in capsys.readouterr().out
    assert reverie("--replay", "window.session.jsonl", "--world", tiny, "--record", "again.mp4") == 0
    assert hashes("again.session.jsonl") == expected and inspect_film(Path("again.mp4")).frames == frames
    assert reverie("render", "a.session.jsonl", "--world", tiny, "--out", "render.mp4") == 0
    assert inspect_film(Path("render.mp4")).identity == read_session(Path("a.session.jsonl")).identity
    assert (iio.imread("render.mp4") == iio.imread("window.mp4")).all()
    assert reverie("render", "a.session.jsonl", "--world", tiny, "--out", "hud.mp4", "--hud") == 0
    assert "HUD" in refused(capsys, "replay", "a.session.jsonl", "--world", tiny, "--verify", "--film", "hud.mp4")
    assert reverie("replay", "a.session.jsonl", "--export", "walk.txt") == 0
    assert reverie("replay", "walk.txt", "--world", tiny, "--seed", 5, "--headless", "--record", "script.mp4") == 0
    assert hashes("script.session.jsonl") == expected


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    capsys.readouterr()
    assert reverie(*arguments) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("loading ")]
    assert len(lines) == 1 and lines[0].startswith("reverie: "), lines
    return lines[0]


def test_what_cannot_be_replayed_is_refused_with_the_difference(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = "walk.session.jsonl"
    assert reverie("--world", tiny, "--headless", "--blocks", 2, "--record", "walk.mp4") == 0
    assert "--world" in refused(capsys, "replay", session, "--verify")
    assert "session" in refused(capsys, "replay", session, "--world", "garden", "--verify")
    assert "fps is 16 here, 48 in the session; give --fps 48" in refused(
        capsys, "replay", session, "--world", _other(tmp_path / "a", 0, fps=16), "--verify"
    )
    line = refused(capsys, "replay", session, "--world", _other(tmp_path / "b", 1), "--verify")
    assert "weights dit/dit.safetensors is " in line and "(and 1 more)" in line
    assert "local_attn_size is 9 here, 15" in refused(
        capsys, "render", session, "--out", "b.mp4", "--world", _other(tmp_path / "c", 0, window=9)
    )
    assert "would take the place of the session" in refused(
        capsys, "replay", session, "--world", tiny, "--headless", "--record", "walk.mp4"
    )
    assert "exists already" in refused(capsys, "--world", tiny, "--headless", "--session", session)
    Path("walk.mp4").rename("other.mp4")
    assert f"{session} exists already" in refused(capsys, "--world", tiny, "--headless", "--record", "walk.mp4")
    assert "--script" in refused(capsys, "--replay", session, "--script", "w")
    assert "no such file" in refused(capsys, "--replay", "gone.jsonl")
    assert "not the film" in refused(capsys, "replay", session, "--world", tiny, "--verify", "--film", _film("x.mp4"))
    Path("text.png").write_text("no picture")
    assert "text.png" in refused(capsys, "replay", session, "--world", tiny, "--verify", "--start", "text.png")


@pytest.mark.parametrize("changes", ["--context last --steps 1000,400", "--linears float8", "--size 64x32 --hold-still"])
def test_the_refusal_says_which_options_play_it(changes: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And with them it is played: every frame as recorded."""
    cpu = torch.device("cpu")
    if "float8" in changes and (reason := why_not(cpu, choose_dtype("auto", cpu))):
        pytest.skip(reason)
    session = "walk.session.jsonl"
    assert reverie("--world", tiny, "--headless", "--blocks", 3, "--session", session, *changes.split()) == 0
    _, give, advice = refused(capsys, "replay", session, "--world", tiny, "--verify").partition("; give ")
    assert give and sorted(advice.split()) == sorted(changes.split())
    assert reverie("replay", session, "--world", tiny, "--verify", *advice.split()) == 0
    assert "3 blocks, every frame as recorded" in capsys.readouterr().out


def _other(folder: Path, seed: int, fps: int = 48, window: int = 15) -> Path:
    def change(settings: dict[str, Any]) -> None:
        settings["fps"], settings["model"]["local_attn_size"] = fps, window

    folder.mkdir()
    return write_tiny_world(folder, change=change, seed=seed)


def _film(name: str, count: int = 3) -> str:
    iio.imwrite(name, [[[[0, 0, 0]] * 32] * 16] * count, fps=8, macro_block_size=2)
    return name


def test_a_difference_is_named_and_on_another_machine_it_is_best_effort(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reverie("--world", tiny, "--headless", "--blocks", 4, "--record", "walk.mp4") == 0
    lines = Path("walk.session.jsonl").read_text().splitlines()[:-1]
    block = json.loads(lines[3])
    wrong = json.dumps(block | {"sha256": "0" * 64})
    Path("bad.session.jsonl").write_text("\n".join([*lines[:3], wrong, *lines[4:], ""]))
    Path("walk.mp4").rename("bad.mp4")
    capsys.readouterr()
    assert reverie("replay", "bad.session.jsonl", "--world", tiny, "--verify") == 1
    output = capsys.readouterr()
    assert "first different block is block 2 (" in output.out and "dB from the film" in output.out and "stopped there" in output.out
    assert "best effort" not in output.err

    header = json.loads(lines[0])
    header["fingerprint"]["processor"] = "An abacus"
    Path("far.session.jsonl").write_text("\n".join([json.dumps(header), *lines[1:3], wrong, *lines[4:], ""]))
    assert reverie("replay", "far.session.jsonl", "--world", tiny, "--verify") == 1
    output = capsys.readouterr()
    assert "best effort" in output.err and "An abacus" in output.err and "1 of 4 blocks differ" in output.out


def test_an_interrupt_leaves_whole_files_and_claims_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reverie("--world", tiny, "--headless", "--blocks", 4, "--session", "walk.session.jsonl") == 0
    step = Session.step

    def interrupted(session: Session, action: Action = IDLE, ready: Ready | None = None) -> Any:
        if session.clock.block == 2:
            raise KeyboardInterrupt
        return step(session, action, ready)

    monkeypatch.setattr(Session, "step", interrupted)
    runs = {
        "play": ("--headless", "--blocks", 4, "--record", "play.mp4"),
        "verify": ("replay", "walk.session.jsonl", "--verify"),
        "again": ("replay", "walk.session.jsonl", "--headless", "--record", "again.mp4"),
        "render": ("render", "walk.session.jsonl", "--out", "render.mp4"),
    }
    for name, words in runs.items():
        capsys.readouterr()
        assert reverie(*words, "--world", tiny) == 130, name
        output = capsys.readouterr()
        assert "reverie: interrupted after 2 of 4 blocks; " in output.err and "every frame" not in output.out, name
        assert ("2 of 4 blocks compared, those as recorded; 2 not played" in output.out) == (name != "play")
        assert (f"written: {name}.mp4" in output.out) == (name != "verify")
    for name in ("play", "again", "render"):
        assert inspect_film(Path(f"{name}.mp4")).frames == 21 == len(iio.imread(f"{name}.mp4"))
    for name in ("play", "again"):
        file = read_session(Path(f"{name}.session.jsonl"))
        assert file.end == "interrupted" and len(file.blocks) == 2
    assert reverie("replay", "play.session.jsonl", "--world", tiny, "--verify") == 0, "whole, as far as it goes"
    assert "2 blocks, every frame as recorded" in capsys.readouterr().out


def test_a_replay_interrupted_in_the_window(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert reverie("--world", tiny, "--headless", "--blocks", 9, "--session", "walk.session.jsonl") == 0
    turn = Game._turn

    def interrupted(game: Game) -> None:
        turn(game)
        if game.presenter.block is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(Game, "_turn", interrupted)
    capsys.readouterr()
    assert reverie("replay", "walk.session.jsonl", "--world", tiny, "--record", "again.mp4") == 130
    output = capsys.readouterr()
    assert "of 9 blocks compared, those as recorded" in output.out and "written: again.mp4" in output.out
    assert "reverie: interrupted after " in output.err and inspect_film(Path("again.mp4")).frames >= 9


def test_what_was_not_compared_is_not_called_as_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = read_session(walk(tmp_path / "a.session.jsonl"))
    check = Check(Plan(file))
    for compared, unhashed, told in (
        (10, 0, "10 blocks, every frame as recorded"),
        (9, 1, "9 of 10 blocks compared, those as recorded; 1 never hashed"),
        (4, 0, "4 of 10 blocks compared, those as recorded; 6 not played"),
    ):
        check.compared, check.unhashed = compared, unhashed
        assert tell(check, file, best_effort=False, interrupted=False) == 0
        assert capsys.readouterr().out == f"{file.path}: {told}\n"


def test_options_that_replaying_has_no_use_for_are_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = "walk.session.jsonl"
    assert reverie("--world", tiny, "--headless", "--blocks", 1, "--session", session) == 0
    useless = "--overlap/--rewind-mb 0/--host x/--port 0/--max-sessions 2/--frames jpeg/--allow-host x/--exact/--seed 0"
    for words in useless.split("/"):
        assert refused(capsys, "--replay", session, *words.split()) == f"reverie: --replay does not go with {words.split()[0]}"
    assert "--record-hud goes with --record" in refused(capsys, "replay", session, "--world", tiny, "--headless", "--record-hud")
    assert "leave --verify out" in refused(capsys, "replay", session, "--export", "a.txt", "--verify")


def test_a_script_is_played_with_every_option_that_replay_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(play, "run", lambda args: asked.append(args) or 0)
    Path("walk.txt").write_text("w*3")
    words = "--context last --decoder taehv --no-hold-still --compile --decode-device cuda:1 --steps 1000,500 --size 48x32 --seed 7"
    assert reverie("replay", "walk.txt", *words.split()) == 0
    assert reverie("--script", "walk.txt", *words.split()) == 0
    replayed, played = (vars(args) | {"traceback": False} for args in asked)
    assert replayed == played and played["decode_device"] == "cuda:1" and played["hold_still"] is False
    assert reverie("--replay", "walk.txt", "--context", "last") == 0
    run_for_play(asked[2])  # which the real one hands it to
    assert asked[3].context == "last" and asked[3].script == "walk.txt" and asked[3].replay is None


def test_sessions_that_go_on_from_a_clip_or_a_saved_game(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reverie("--world", tiny, "--headless", "--script", WALK, "--blocks", 2, "--record", "clip.mp4") == 0
    play = ("--world", tiny, "--headless", "--blocks", 2)
    assert reverie(*play, "--start", "clip.mp4", "--actions", "clip.session.jsonl", "--session", "a.session.jsonl") == 0
    assert read_session(Path("a.session.jsonl")).blocks[0].index == 2
    verify = ("--world", tiny, "--verify")
    assert "give it with --start" in refused(capsys, "replay", "a.session.jsonl", *verify)
    assert "not the clip" in refused(capsys, "replay", "a.session.jsonl", *verify, "--start", _film("x.mp4", count=9))
    assert reverie("replay", "a.session.jsonl", *verify, "--start", "clip.mp4") == 0

    session = World.load(tiny).session(4)
    session.step()
    session.snapshot().save("saved.safetensors")
    assert reverie(*play, "--load", "saved.safetensors", "--session", "b.session.jsonl") == 0
    assert read_session(Path("b.session.jsonl")).blocks[0].index == 1
    assert "--snapshot" in refused(capsys, "replay", "b.session.jsonl", *verify)
    assert reverie("replay", "b.session.jsonl", *verify, "--snapshot", "saved.safetensors") == 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the children of a process in /proc")
def test_killed_at_any_moment_film_and_session_survive(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(time.time_ns() if LONG else 3)
    for number in range(times(2, 20)):
        folder = tmp_path / f"kill {number}"
        folder.mkdir()
        process = spawn(folder, "--world", tiny, "--record", "walk.mp4", "--script", WALK)
        _wait_for_blocks(folder / "walk.session.jsonl", 2, process)
        time.sleep(generator.uniform(0, 1.5))
        kill_tree(process)
        session, part = read_session(folder / "walk.session.jsonl"), part_of(folder / "walk.mp4")
        assert session.end is None and len(session.blocks) >= 2
        film = inspect_film(part)
        assert film.identity == session.identity and len(iio.imread(part)) == film.frames
        seen = sum(block.frames for block in session.blocks[:-1]) + 1  # of the newest block one frame is known to have been shown
        assert seen - film.frames <= 12, (seen, film.frames)

        said = _recover(folder, capsys)
        assert f"{film.frames} frames" in said and not part.exists()
        assert inspect_film(folder / "walk-recovered.mp4") == film
        recovered = folder / "walk-recovered.session.jsonl"
        assert read_session(recovered).blocks == session.blocks
        assert reverie("replay", recovered, "--world", tiny, "--verify") == 0
        assert "breaks off" in capsys.readouterr().out


def _wait_for_blocks(path: Path, count: int, process: Any) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.is_alive():
        try:
            if len(read_session(path).blocks) >= count:
                return
        except SessionError:
            pass
        time.sleep(0.02)
    raise AssertionError("it never came to play: " + (path.parent / "said.txt").read_text())


def _recover(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The next start: whatever else is asked for there, what was left is recovered first."""
    capsys.readouterr()
    assert reverie("--record", folder / "walk.mp4", "--world", "no-such-world") == 2
    return next(line for line in capsys.readouterr().err.splitlines() if "recovered" in line)


def test_one_count_and_flat_memory_over_a_long_session(tiny: Path, tmp_path: Path) -> None:
    """Fast: a few seconds. The long one is `tests/hour.py`, which a person runs."""
    from tests.hour import play

    report = play(tiny, tmp_path, seconds=times(1, 120))
    assert report.film == report.session == report.clock
    assert report.session > 9
    assert not LONG or abs(report.growth) < 0.02


def test_a_game_that_was_rewound_saved_and_loaded_replays(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real window and world, with keys pressed from beside; every branch is computed again from the session file."""
    path = Path("walk.session.jsonl")
    hands = Thread(target=_rewind_save_and_load, args=(path,), daemon=True)
    hands.start()
    assert reverie("--world", tiny, "--record", "walk.mp4", "--script", WALK + " w*400", "--blocks", 400) == 0
    hands.join(10)
    session = read_session(path)
    kinds = [block.origin.kind for block in session.blocks if block.origin is not None]
    assert kinds == ["start", "rewind", "load", "start"]
    assert session.end == "left"
    saved = next(Path("reverie-saves").glob("*-1.safetensors"))
    capsys.readouterr()
    assert reverie("replay", path, "--world", tiny, "--verify", "--snapshot", saved) == 0
    assert f"{len(session.blocks)} blocks, every frame as recorded" in capsys.readouterr().out


def _rewind_save_and_load(path: Path) -> None:
    def wait(kind: str, count: int, epochs: int) -> None:
        """Until the newest of so many epochs is of that kind and has so many blocks."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                blocks = read_session(path).blocks
            except SessionError:
                blocks = []
            began = [i for i, block in enumerate(blocks) if block.origin is not None]
            if len(began) == epochs and blocks[began[-1]].origin.kind == kind and len(blocks) - began[-1] >= count:
                return
            time.sleep(0.05)

    def key(which: int, kind: int = pygame.KEYDOWN) -> None:
        pygame.event.post(pygame.event.Event(kind, key=which, scancode=0, mod=0, unicode=""))

    wait("start", 6, 1)
    key(pygame.K_BACKSPACE)
    time.sleep(0.7)
    key(pygame.K_BACKSPACE, pygame.KEYUP)
    wait("rewind", 3, 2)
    key(pygame.K_F2)
    end = time.monotonic() + 60
    while not list(Path("reverie-saves").glob("*-1.safetensors")) and time.monotonic() < end:
        time.sleep(0.02)
    key(pygame.K_F4)
    wait("load", 3, 3)
    key(pygame.K_RETURN)
    wait("start", 3, 4)
    pygame.event.post(pygame.event.Event(pygame.QUIT))
