import json
import threading
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from engine import Action
from game.controls import Sample
from game.headless import play_headless
from game.names import free_name
from game.recorder import Recorder
from game.script import Script, parse_script
from game.sinks import Background, Block, Dump, SinkError
from tests.game.fake import WALK, FakeConfig, FakeSession


def blocks(count: int, session: FakeSession | None = None) -> list[Block]:
    session = session or FakeSession()
    made = []
    for _ in range(count):
        clock = session.clock
        made.append(Block(0, clock.block, clock.frames.start, Sample(Action({"w"}, (0.5, 0)), 0.0), session.step(Action()), 0.0))
    return made


class Memory:
    """A sink that can be slow and can fail."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.written: list[Block] = []
        self.go = threading.Event()
        self.go.set()
        self.fails_at = fails_at
        self.closed = 0

    def open(self, config) -> None: ...

    def write(self, block: Block) -> None:
        self.go.wait(5)
        if len(self.written) == self.fails_at:
            raise SinkError("disk full")
        self.written.append(block)

    def close(self) -> None:
        self.closed += 1


def test_the_mp4_has_every_frame_at_its_own_size_and_rate(tmp_path: Path) -> None:
    config = FakeConfig(fps=16, width=112, height=64)
    path = tmp_path / "a b.mp4"
    recorder = Background(Recorder(path), wait=True)
    recorder.open(config)
    for block in blocks(3, FakeSession(config)):
        recorder.write(block)
    recorder.close()
    video = iio.imread(path)
    assert video.shape == (33, 64, 112, 3)
    assert abs(video[20].astype(int).mean() - 20) < 3, "frames in their order"
    metadata = iio.immeta(path, plugin="FFMPEG")
    assert metadata["fps"] == 16 and metadata["codec"] == "h264" and metadata["pix_fmt"].startswith("yuv420p")


def test_an_encoder_that_cannot_write_says_so_in_one_line(tmp_path: Path) -> None:
    recorder = Background(Recorder(tmp_path / "gone" / "a.mp4"), wait=False)
    recorder.open(FakeConfig())
    for block in blocks(30):
        recorder.write(block)
        time.sleep(0.002)
    with pytest.raises(SinkError) as error:
        recorder.close()
    assert "a.mp4" in str(error.value) and "\n" not in str(error.value)


def test_without_ffmpeg_the_recording_fails_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ffmpeg() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", no_ffmpeg)
    recorder = Recorder(tmp_path / "a.mp4")
    with pytest.raises(SinkError, match=r"a\.mp4.*No ffmpeg") as error:
        recorder.open(FakeConfig())
    assert "\n" not in str(error.value)
    recorder.close()


def test_a_killed_encoder_is_noticed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4")
    recorder.open(FakeConfig())
    first, *rest = blocks(50)
    recorder.write(first)
    recorder._process.kill()
    recorder._process.wait()
    with pytest.raises(SinkError, match="failed after"):
        for block in rest:
            recorder.write(block)
        recorder.close()


def test_live_a_full_queue_drops_whole_blocks_and_never_waits() -> None:
    memory = Memory()
    sink = Background(memory, wait=False, depth=2)
    sink.open(FakeConfig())
    memory.go.clear()
    started = time.perf_counter()
    for block in blocks(10):
        sink.write(block)
    assert time.perf_counter() - started < 0.5
    assert sink.dropped >= 7
    memory.go.set()
    sink.close()
    assert len(memory.written) == 10 - sink.dropped and memory.closed == 1


def test_unwatched_nothing_is_dropped() -> None:
    memory = Memory()
    sink = Background(memory, wait=True, depth=1)
    sink.open(FakeConfig())
    for block in blocks(20):
        sink.write(block)
    sink.close()
    assert [block.index for block in memory.written] == list(range(20)) and sink.dropped == 0


def test_a_failing_sink_ends_but_the_game_goes_on() -> None:
    memory = Memory(fails_at=1)
    sink = Background(memory, wait=False)
    sink.open(FakeConfig())
    for block in blocks(20):
        sink.write(block)
        time.sleep(0.001)
    with pytest.raises(SinkError, match="disk full"):
        sink.close()
    assert memory.closed == 1 and len(memory.written) == 1


def test_the_dump_has_every_frame_with_its_action(tmp_path: Path) -> None:
    sink = Dump(tmp_path / "deep" / "dump")
    sink.open(FakeConfig())
    for block in blocks(2):
        sink.write(block)
    sink.close()
    lines = [json.loads(line) for line in (sink.folder / "actions.jsonl").read_text().splitlines()]
    assert len(lines) == 21
    assert lines[9] == {"frame": 9, "file": "frame_000009.png", "epoch": 0, "block": 1, "keys": ["w"], "look": [0.5, 0.0]}
    picture = np.asarray(Image.open(sink.folder / lines[9]["file"]))
    assert picture.shape == (16, 32, 3) and (picture == 9).all()


def test_a_shorter_dump_over_a_longer_one_leaves_no_old_frames(tmp_path: Path) -> None:
    others = ["frame_1.png", "frame_0000001.png", "frame_000001.png.bak", "my_frame_000001.png", "note.txt"]
    for name in (*others, "frame_000000.png", "frame_000020.png", "frame_1000000.png"):
        (tmp_path / name).write_text("old")
    sink = Dump(tmp_path, overwrite=True)
    sink.open(FakeConfig())
    sink.write(blocks(1)[0])
    sink.close()
    frames = [f"frame_{number:06d}.png" for number in range(9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, *frames, "actions.jsonl"])


def test_a_dump_into_an_impossible_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot write into"):
        Dump(tmp_path / "file" / "dump").open(FakeConfig())


def test_headless_plays_the_script_and_then_idles() -> None:
    session, memory = FakeSession(), Memory()
    tally = play_headless(session, session.config, parse_script("w w+l", WALK.keys), 4, [memory])
    assert [action.keys for action in session.actions] == [{"w"}, {"w", "l"}, set(), set()]
    assert (tally.blocks, tally.frames) == (4, 9 + 3 * 12) and tally.fps > 0
    assert len(memory.written) == 4 and memory.closed == 1 and not tally.interrupted


def test_headless_an_interrupt_ends_the_film_properly() -> None:
    class Interrupted(FakeSession):
        def step(self, action):
            if self.clock.block == 2:
                raise KeyboardInterrupt
            return super().step(action)

    session, memory = Interrupted(), Memory()
    tally = play_headless(session, session.config, Script([(Action(), 9)]), 9, [memory])
    assert tally.blocks == 2 and memory.closed == 1 and tally.interrupted


def test_headless_stops_when_the_film_fails() -> None:
    session, sink = FakeSession(), Background(Memory(fails_at=1), wait=True)
    with pytest.raises(SinkError, match="disk full"):
        play_headless(session, session.config, Script([(Action(), 1)]), 1000, [sink])
    assert session.clock.block < 100


def test_a_free_name_is_never_an_existing_file(tmp_path: Path) -> None:
    assert free_name("demo", folder=tmp_path) == tmp_path / "demo.mp4"
    (tmp_path / "demo.mp4").touch()
    (tmp_path / "demo-2.mp4").touch()
    assert free_name("demo", folder=tmp_path) == tmp_path / "demo-3.mp4"
