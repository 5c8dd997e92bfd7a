"""Films and what can happen to them: encoders that stall or die, full disks, kills, names that are taken."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from engine import Action, Ready
from game import film as film_module
from game.controls import Sample
from game.film import Film, FilmError, inspect_film, lock, read_film, recover_parts
from game.names import free_name, part_of, session_beside
from game.player import Game
from game.recorder import Recorder, film_recorder
from game.script import Script
from game.sessionfile import read_session
from game.sessionheader import Header
from game.sessionsink import SessionSink
from game.sinks import Background, Block, SinkError
from game.window import Window
from tests.game.dream import header
from tests.game.fake import FakeConfig, FakeSession
from tests.long import LONG, times

CONFIG = FakeConfig(fps=100, width=112, height=64)
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="signals and limits as Linux has them")


def blocks(count: int, config: FakeConfig = CONFIG) -> Iterator[Block]:
    session = FakeSession(config)
    for _ in range(count):
        clock = session.clock
        yield Block(0, clock.block, clock.frames.start, Sample(Action("w"), 0.0), session.step(Action()), 0.0)


class Noise(FakeSession):
    """Pictures that no encoder makes small."""

    def step(self, action: Action, ready: Ready | None = None) -> np.ndarray:
        shape = super().step(action).shape
        frames = np.random.default_rng(self.clock.block).integers(0, 256, shape, np.uint8)
        if ready is not None:
            ready(frames)
        return frames


def recording(path: Path, wait: bool = False) -> tuple[Background, Background]:
    """Session file and film, as the command line makes them."""
    head = Header()
    head.fields = header()
    session = SessionSink(session_beside(path), head.get)
    film = Background(Recorder(path, identity=head.identity), wait)
    film.on_drop = session.gap
    return Background(session, wait, keep_actions=True), film


def test_one_frame_count_in_film_session_file_and_clock(window: Window, tmp_path: Path) -> None:
    sinks = recording(tmp_path / "a.mp4", wait=True)
    session = FakeSession(CONFIG)
    Game(window, CONFIG, lambda report: session, limit=5, sinks=sinks).run()
    film, file = inspect_film(tmp_path / "a.mp4"), read_session(tmp_path / "a.session.jsonl")
    assert film.frames == sum(block.frames for block in file.blocks) == session.clock.frames.start == 57
    assert film.identity == file.identity and file.end == "played to the end" and not file.gaps
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.mp4", "a.session.jsonl"]
    decoded = np.stack(list(read_film(tmp_path / "a.mp4", 64, 112)))
    assert decoded.shape == (57, 64, 112, 3) and np.abs(decoded[:, 0, 0, 0].astype(int) - np.arange(57)).max() <= 3
    with pytest.raises(FilmError, match="is 112x64, not 64x64"):
        next(read_film(tmp_path / "a.mp4", 64, 64))


def test_a_film_whose_header_was_missed_is_opened_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "a.mp4")
    recorder.open(CONFIG)
    recorder.write(next(blocks(1)))
    recorder.close()
    open_film, tried, misses = film_module.imageio_ffmpeg.read_frames, [], 1

    def deaf(*arguments: str, **options: list[str]) -> Iterator:
        tried.append(arguments)
        if len(tried) <= misses:
            raise OSError("Could not load meta information")
        yield from open_film(*arguments, **options)

    monkeypatch.setattr(film_module.imageio_ffmpeg, "read_frames", deaf)
    assert len(list(read_film(tmp_path / "a.mp4", 64, 112))) == 9 and len(tried) == 2
    misses = 9
    with pytest.raises(FilmError, match="cannot be read as a film"):
        next(read_film(tmp_path / "a.mp4", 64, 112))
    assert len(tried) == 4


def test_films_are_read_without_a_word_about_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/conftest.py` says it for the tests' own reading; the program must say it itself."""
    asked = []
    monkeypatch.setattr(
        film_module.imageio_ffmpeg, "read_frames", lambda *_, **options: asked.append(options["input_params"]) or (_ for _ in ())
    )
    with pytest.raises(FilmError):
        next(read_film(tmp_path / "a.mp4", 64, 112))
    assert asked and all("-nostdin" in options for options in asked)


def test_the_film_has_a_key_frame_per_block_and_none_out_of_order(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4")
    recorder.open(CONFIG)
    for block in blocks(4):
        recorder.write(block)
    recorder.close()
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-i", tmp_path / "a.mp4", "-c", "copy", "-f", "framecrc", "-"]
    lines = [line.split(",") for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines() if line[0] != "#"]
    assert [int(line[1]) for line in lines] == [int(line[2]) for line in lines], "no B-frames: decoded in the order they are seen"
    assert len(lines) == 45
    assert [number for number, line in enumerate(lines) if not any("F=0x0" in field for field in line)] == [0, 9, 21, 33]


def test_odd_sizes_are_padded_not_scaled(tmp_path: Path) -> None:
    config = FakeConfig(width=33, height=17)
    recorder = Recorder(tmp_path / "a.mp4")
    recorder.open(config)
    recorder.write(next(blocks(1, config)))
    recorder.close()
    assert iio.imread(tmp_path / "a.mp4").shape == (9, 18, 34, 3)


@LINUX
def test_a_stalled_encoder_costs_blocks_and_nothing_else(window: Window, tmp_path: Path) -> None:
    sinks = recording(tmp_path / "a.mp4")
    session = FakeSession(CONFIG)
    game = Game(window, CONFIG, lambda report: session, limit=22, sinks=sinks)
    on_block, film, begun = game.presenter._on_block, sinks[1], []

    def stall(block: Block) -> None:
        on_block(block)
        begun.append(time.perf_counter())
        if block.index in (2, 18):
            while film.sink._process is None:
                time.sleep(0.001)
            film.sink._process.send_signal(signal.SIGSTOP if block.index == 2 else signal.SIGCONT)

    game.presenter._on_block = stall
    game.run()
    file = read_session(tmp_path / "a.session.jsonl")
    assert [block.index for block in file.blocks] == list(range(22)), "the session file has them all"
    assert film.dropped == len(file.gaps) > 0
    assert inspect_film(tmp_path / "a.mp4").frames == sum(b.frames for b in file.blocks if (b.epoch, b.index) not in file.gaps)
    assert begun[-1] - begun[0] < 21 * 0.12 + 2 and game.presenter.shown.underruns < 15, "play went on"


@LINUX
def test_a_killed_encoder_is_told_and_the_session_file_goes_on(window: Window, tmp_path: Path) -> None:
    sinks = recording(tmp_path / "a.mp4")
    game = Game(window, CONFIG, lambda report: Noise(CONFIG), limit=8, sinks=sinks)
    on_block, toasts = game.presenter._on_block, []
    part, toast = part_of(tmp_path / "a.mp4"), window.toast
    window.toast = lambda text: (toasts.append(text), toast(text))

    def kill(block: Block) -> None:
        on_block(block)
        if block.index == 3:
            end = time.perf_counter() + 10
            while not (part.exists() and part.stat().st_size > 50_000) and time.perf_counter() < end:
                time.sleep(0.001)
            sinks[1].sink._process.kill()

    game.presenter._on_block = kill
    with pytest.raises(SinkError, match=r"a\.mp4 failed after .* a\.part\.mp4"):
        game.run()
    file = read_session(tmp_path / "a.session.jsonl")
    assert len(file.blocks) == 8 and file.end == "played to the end" and (0, 7) in file.gaps
    assert sum("a.mp4" in text for text in toasts) == 1
    (line,) = recover_parts(tmp_path)
    assert inspect_film(tmp_path / "a-recovered.mp4").frames >= 9 and "a-recovered.session.jsonl" in line
    assert session_beside(tmp_path / "a-recovered.mp4").exists() and not part_of(tmp_path / "a.mp4").exists()


@LINUX
def test_an_encoder_that_never_goes_on_is_given_up_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("game.sinks.STUCK_SECONDS", 0.3)
    film = Background(Recorder(tmp_path / "a.mp4"), wait=False)
    film.open(CONFIG)
    for number, block in enumerate(blocks(40)):
        film.write(block)
        if number == 0:
            while film.sink.frames < 9:
                time.sleep(0.01)
            film.sink._process.send_signal(signal.SIGSTOP)
    assert film.dropped > 0
    began = time.perf_counter()
    with pytest.raises(SinkError, match="given up"):
        film.close()
    assert time.perf_counter() - began < 8


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A folder that holds no more: a small file system if we may mount one, else a limit on every file we write."""
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True
    ).returncode  # fmt: skip
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, before[1]))
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@LINUX
def test_a_full_disk_does_not_end_the_game(window: Window, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 96) as folder:
        sinks = recording(folder / "a.mp4")
        game = Game(window, CONFIG, lambda report: Noise(CONFIG), limit=8, sinks=sinks)
        with pytest.raises(SinkError, match=r"a\.mp4 failed after|breaks off after") as error:
            game.run()
        assert "\n" not in str(error.value)
        assert game.presenter.block.index == 7
        file = read_session(folder / "a.session.jsonl")
        assert len(file.blocks) >= 1 and all(block.sha256 for block in file.blocks)


@LINUX
@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="a folder nobody can write to")
def test_a_folder_that_takes_no_files_does_not_end_the_game(window: Window) -> None:
    game = Game(window, CONFIG, lambda report: FakeSession(CONFIG), limit=2, sinks=recording(Path("/proc/a.mp4")))
    with pytest.raises(SinkError, match=r"/proc/a"):
        game.run()
    assert game.presenter.block.index == 1


def test_what_came_into_being_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4")
    recorder.open(CONFIG)
    recorder.write(next(blocks(1)))
    (tmp_path / "a.mp4").write_text("precious")
    recorder.close()
    assert (tmp_path / "a.mp4").read_text() == "precious" and recorder.path == tmp_path / "a-2.mp4"
    assert inspect_film(recorder.path).frames == 9


def test_two_recordings_of_one_name(tmp_path: Path) -> None:
    first, second = Recorder(tmp_path / "a.mp4"), Recorder(tmp_path / "a.mp4")
    first.open(CONFIG)
    with pytest.raises(SinkError, match="another recording"):
        second.open(CONFIG)
    second.close()
    first.write(next(blocks(1)))
    assert recover_parts(tmp_path) == [], "what is being written is left alone"
    first.close()
    assert inspect_film(tmp_path / "a.mp4").frames == 9


def test_only_our_own_leftovers_are_recovered(tmp_path: Path) -> None:
    (tmp_path / "x.part.mp4").write_text("somebody else's")
    lock(tmp_path / "empty.part.mp4").close()
    assert recover_parts(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["x.part.mp4"]
    assert free_name("x", folder=tmp_path).name == "x-2.mp4"


def test_an_older_ffmpeg_makes_films_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("game.recorder.ffmpeg_version", lambda: (6, 1))
    recorder = Recorder(tmp_path / "a.mp4")
    recorder.open(CONFIG)
    recorder.write(next(blocks(1)))
    recorder.close()
    assert inspect_film(tmp_path / "a.mp4").frames == 9


def test_handing_a_block_over_costs_the_player_nothing(tmp_path: Path) -> None:
    """99 of 100 under a millisecond of the caller's own time; the long test has blocks of the published size (8 MB)."""
    config = FakeConfig(width=640, height=352) if LONG else FakeConfig(width=320, height=176)
    sinks = recording(tmp_path / "a.mp4")
    for sink in sinks:
        sink.open(config)
    spent = []
    for block in blocks(times(20, 1000), config):
        began = time.thread_time()
        for sink in sinks:
            sink.write(block)
        spent.append(time.thread_time() - began)
    for sink in sinks:
        sink.close()
    assert np.percentile(spent, 99) < 1e-3
    assert len(read_session(tmp_path / "a.session.jsonl").blocks) == len(spent)


def test_a_script_with_looks_plays_headless() -> None:
    from game.headless import play_headless

    session = FakeSession(CONFIG)
    play_headless(session, CONFIG, Script([(Action(look=(0.5, 0)), 2)]), 3, [])
    assert [action.look for action in session.actions] == [(0.5, 0), (0.5, 0), (0, 0)]


def test_a_film_with_the_hud_in_it(tmp_path: Path) -> None:
    """Enlarged until it can be read, marked as such, and different where the keys are."""
    config = FakeConfig(width=64, height=48)
    actions = [Action(frozenset("w")), Action(frozenset("dj"), look=(0.5, 0.0))]
    for with_hud in (False, True):
        film = film_recorder(tmp_path / f"{with_hud}.mp4", False, lambda: "ab" * 32, with_hud)
        film.open(config)
        for index, action in enumerate(actions):
            count = 12 if index else 9
            film.write(Block(0, index, 12 * index, Sample(action, 0.0), np.full((count, 48, 64, 3), 90, np.uint8), 0.2))
        film.close()
        assert inspect_film(tmp_path / f"{with_hud}.mp4") == Film(21, "ab" * 32, hud=with_hud)
    pictures = iio.imread(tmp_path / "True.mp4").astype(int)
    assert pictures.shape == (21, 384, 512, 3)
    assert (abs(pictures - 90) > 60).any((1, 2, 3)).all() and (abs(pictures[:, 150:200] - 90) < 6).all()
    assert (abs(pictures[0] - pictures[20]) > 60).any() and abs(pictures[0] - pictures[8]).mean() < 1
