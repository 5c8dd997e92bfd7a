"""The parts that need no network: protocol, turns of the model, the page's schedule, memory, options."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import engine.memory
from engine import Action, World, free_bytes, session_bytes, weights_bytes
from game import cli
from game.controls import Sample
from game.serve.delivery import Delivery
from game.serve.limits import Allowance, Limits
from game.serve.link import Parcel, encode
from game.serve.protocol import HEADER, At, Do, FrameHeader, Frozen, Got, Input, ProtocolError, parse
from game.serve.screen import PageTimeline, Screen
from game.serve.seatfiles import SeatFiles
from game.serve.turns import ModelThread
from game.sinks import Block
from game.threads import Cancelled
from tests.game.fake import FakeConfig

KEYS = ("w", "s", "left")


def test_a_frames_header_comes_back_as_it_was() -> None:
    header = FrameHeader("webp", True, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert HEADER.size == 32 and FrameHeader.unpack(header.pack() + b"picture") == header
    large = FrameHeader("jpeg", False, 0, 0, 0, 0, 2**40, 2**40, 10**6, 0, 1)
    assert FrameHeader.unpack(large.pack()).generation == 2**32 - 1, "what does not fit is as large as can be"
    for wrong in (b"", b"RV", bytes(32), header.pack()[:31], b"RV\x02" + header.pack()[3:], b"RV\x01\x09" + header.pack()[4:]):
        with pytest.raises(ProtocolError):
            FrameHeader.unpack(wrong)


def test_messages_are_read() -> None:
    def read(**found: object) -> object:
        return parse(json.dumps(found), KEYS)

    held = frozenset({"w", "left"})
    assert read(t="in", id=3, keys=["w", "left"], look=[0.5, -1], mouse=[3, 4]) == Input(3, held, (0.5, -1.0), (3.0, 4.0))
    assert read(t="in", id=3, keys=[]) == Input(3, frozenset(), (0.0, 0.0), (0.0, 0.0))
    assert read(t="got", epoch=1, block=2) == Got(1, 2) and read(t="got", epoch=1, block=2, spread=30).spread == 0.03
    assert read(t="at", epoch=1, block=2, frame=21, late=True, **{"in": -20}) == At(1, 2, 21, -0.02, True)
    assert read(t="frozen", epoch=1) == Frozen(1)
    assert read(t="do", do="save", slot=9) == Do("save", 9)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "7", "null", "{}", '{"t":[]}', '{"t":"exec"}', '{"t":"in"}', '{"t":"in","id":-1,"keys":[]}',
    '{"t":"in","id":1.5,"keys":[]}', '{"t":"in","id":true,"keys":[]}', '{"t":"in","id":1,"keys":["q"]}',
    '{"t":"in","id":1,"keys":"w"}', '{"t":"in","id":1,"keys":[["w"]]}',
    '{"t":"in","id":1,"keys":[],"look":[NaN,0]}', '{"t":"in","id":1,"keys":[],"look":[1e999,0]}',
    '{"t":"in","id":1,"keys":[],"look":[2,0]}',
    '{"t":"in","id":1,"keys":[],"mouse":[0]}', '{"t":"in","id":4294967296,"keys":[]}', '{"t":"do","do":"quit"}', '{"t":"do","do":["save"]}',
    '{"t":"do","do":"save","slot":0}', '{"t":"do","do":"save","slot":"../1"}', '{"t":"at","epoch":0,"block":0,"frame":0,"in":0}',
    '{"t":"got","epoch":"0","block":0}', "[" * 2000, '{"t":"in","id":' + "9" * 1900 + ',"keys":[]}',
])  # fmt: skip
def test_what_makes_no_sense_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse(text, KEYS)


def test_random_bytes_are_never_anything_else_than_a_protocol_error() -> None:
    dice, good = random.Random(0), json.dumps({"t": "in", "id": 1, "keys": ["w"], "look": [0, 0.5], "mouse": [1, 2]})
    for _ in range(5000):
        text = list(good)
        for _ in range(dice.randrange(1, 6)):
            text[dice.randrange(len(text))] = dice.choice('{}[]",:0123456789eE+-.truefalsnN\\u ')
        try:
            parse("".join(text), KEYS)
        except ProtocolError:
            pass


def test_an_allowance_is_used_up_and_grows_again() -> None:
    now = [0.0]
    allowance = Allowance((2.0, 3.0), clock=lambda: now[0])
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [allowance.take() for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [allowance.take() for _ in range(4)] == [True, True, True, False], "never more than at once"


def test_whoever_is_closest_to_running_dry_goes_first() -> None:
    model, order, gate = ModelThread(), [], threading.Event()
    model.start()
    threads = [threading.Thread(target=model.take, args=(gate.wait, 0.0))]
    threads[0].start()
    time.sleep(0.05)
    for due in (3.0, 1.0, 2.0):
        threads.append(threading.Thread(target=model.take, args=(lambda due=due: order.append(due), due)))
        threads[-1].start()
    time.sleep(0.1)
    gate.set()
    for thread in threads:
        thread.join()
    assert order == [1.0, 2.0, 3.0] and model.turns == 4 and model.waited > 0
    assert model.stop()


def test_what_one_breaks_is_raised_to_that_one() -> None:
    model = ModelThread()
    model.start()
    with pytest.raises(ZeroDivisionError):
        model.take(lambda: 1 / 0, 0.0)
    assert model.take(lambda: 7, 0.0) == 7
    model.stop()
    with pytest.raises(Cancelled):
        model.take(lambda: 7, 0.0)


def screen(fps: float = 10.0) -> tuple[Screen, PageTimeline, list[dict]]:
    told: list[dict] = []
    timeline = PageTimeline(fps, most=1.2)
    return Screen(timeline, told.append, lambda: 0.2), timeline, told


def test_the_schedule_follows_the_page() -> None:
    page, timeline, _ = screen()
    assert page.at(At(0, 0, 0, 0.1, False), 100.0, newest=0, first_frame=0)
    assert timeline.shown_at(9) == pytest.approx(101.0)
    assert not page.at(At(0, 0, 0, 0.1, False), 100.0, newest=0, first_frame=0), "told twice"
    page.at(At(0, 1, 9, 0.0, True), 101.5, newest=1, first_frame=9)
    assert timeline.shown_at(9) == pytest.approx(101.5) and page.underruns == 1
    page.at(At(0, 2, 21, 0.0, False), 102.71, newest=2, first_frame=21)
    assert timeline.shown_at(21) == pytest.approx(102.7 + 0.2 * 0.01), "a small difference is drift, and followed slowly"
    timeline.delivery.add(0.05)
    timeline.queue.add(0.02)
    assert timeline.due(33) == pytest.approx(timeline.shown_at(33) - 0.07), "the way there takes time"
    for _ in range(20):
        timeline.delivery.add(60.0)
    assert timeline.due(33) == pytest.approx(timeline.shown_at(33) - 1.2), "who answers late has nothing made far ahead"


def test_a_page_can_hardly_hurry_and_tells_nothing_that_cannot_be() -> None:
    page, timeline, _ = screen()
    page.at(At(0, 0, 0, 0.0, False), 100.0, newest=0, first_frame=0)
    for block in range(1, 11):
        page.at(At(0, block, 12 * block - 3, -60.0, block % 2 == 0), 100.0, newest=block, first_frame=12 * block - 3)
    assert timeline.shown_at(0) >= 100.0 - 10 * 0.005 - 1e-9
    assert not page.at(At(0, 99, 0, 0.0, False), 100.0, newest=10, first_frame=117), "a block that was not made"
    assert not page.at(At(1, 10, 0, 0.0, False), 100.0, newest=10, first_frame=117), "another epoch"
    assert not page.at(At(0, 10, 10**6, 0.0, False), 100.0, newest=10, first_frame=117)


def test_a_frozen_page_moves_nothing() -> None:
    page, timeline, told = screen()
    page.at(At(0, 0, 0, 0.0, False), 100.0, newest=0, first_frame=0)
    page.freeze()
    page.at(At(0, 0, 5, 0.0, False), 101.0, newest=0, first_frame=0)
    assert not timeline.running and timeline.due(9) is None
    page.thaw(102.0)
    page.at(At(0, 0, 5, 0.3, False), 102.0, newest=0, first_frame=0)
    assert timeline.shown_at(5) == pytest.approx(102.3)
    assert [message["t"] for message in told] == ["freeze", "thaw"] and told[1]["lead"] == 200


class OpenLink:
    """A page that gets everything."""

    idle = True

    def deliver(self, parcel: Parcel) -> bool:
        return True

    def got(self, message: Got) -> bool:
        return True


def test_the_first_block_of_a_page_says_nothing_of_how_long_the_others_take() -> None:
    page, timeline, _ = screen()
    delivery = Delivery(timeline, page, lambda: 0.2)
    for ways in ((0.4, 0.02, 0.03, 0.01), (0.5, 0.04)):  # a page, and another after it
        delivery.link = OpenLink()
        delivery.begin()
        ahead = []
        for index, way in enumerate(ways):
            delivery.send(Block(0, index, 12 * index, Sample(Action(), 0.0), np.zeros((12, 16, 32, 3), np.uint8), 100.0))
            delivery.arrived(Got(0, index), 100.0 + way)
            ahead.append(timeline.ahead)
        assert ahead == pytest.approx([ways[0], *[max(ways[1 : at + 1]) for at in range(1, len(ways))]])


def test_frames_are_encoded_close_to_what_they_were() -> None:
    ramp = np.linspace(0, 255, 112).astype(np.uint8)
    frame = np.stack(np.broadcast_arrays(ramp[None], ramp[:64, None], np.uint8(120)), axis=-1)
    import io

    from PIL import Image

    for kind in ("jpeg", "webp"):
        again = np.asarray(Image.open(io.BytesIO(encode(frame, kind))).convert("RGB"))
        assert again.shape == frame.shape and np.abs(again.astype(int) - frame).mean() < 2


def test_a_film_that_has_grown_too_large_ends_properly(tmp_path: Path) -> None:
    from game.film import inspect_film

    config, dice = FakeConfig(), np.random.default_rng(0)
    files = SeatFiles.make(tmp_path / "seat", config, None, True, set(), Limits(film=20_000))
    film = files.film_sink
    film.wait = True
    film.open(config)
    for index in range(40):
        frames = dice.integers(0, 255, (12, config.height, config.width, 3), np.uint8)
        try:
            film.write(Block(0, index, 12 * index, Sample(Action(), 0.0), frames, 0.0))
        except Exception:
            break
    with pytest.raises(Exception, match="ends here; the session file goes on"):
        film.close()
    assert files.film_path() == files.film and 0 < inspect_film(files.film).frames < 480


def test_memory_of_a_session_is_known_before_there_is_one(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.load(tiny)
    snapshot = world.session(rewind_mb=0).snapshot()
    assert session_bytes(world) >= sum(tensor.nbytes for tensor in snapshot.tensors.values())
    assert free_bytes("cpu") is None or free_bytes("cpu") > 1_000_000
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n")
    (tmp_path / "memory.max").write_text("900000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(engine.memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(engine.memory, "CGROUP", tmp_path)
    assert free_bytes("cpu") == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes("cpu") == 1_024_000
    monkeypatch.setattr(engine.memory, "MEMINFO", tmp_path / "nothing")
    assert free_bytes("cpu") is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_weights_is_known_before_they_are_loaded(dtype: str) -> None:
    """All that the layers hold: weights, and convolutions once more as they are multiplied."""
    world = World.load("garden", dtype=dtype)
    kept = [*world.dit.parameters(), *world.vae.parameters()]
    kept += [value for module in world.vae.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    taken = sum(tensor.nbytes for tensor in kept)
    assert taken <= weights_bytes(world.config, dtype=dtype) < 2 * taken
    assert weights_bytes(world.config, dtype=dtype) > sum(file.stat().st_size for files in world.files.values() for file in files)


@pytest.mark.parametrize(("words", "told"), [
    ("--port 80", "--port goes with --serve"),
    ("--port 0", "--port goes with --serve"),
    ("--host 0.0.0.0", "--host goes with --serve"),
    ("--max-sessions 3", "goes with --serve"),
    ("--exact", "goes with --serve"),
    ("--frames webp", "--frames goes with --serve"),
    ("--serve --headless", "--serve does not go with --headless"),
    ("--serve --script w", "--serve does not go with --script"),
    ("--serve --load x", "--serve does not go with --load"),
    ("--serve --start clip.mp4", "begins with a picture"),
    ("--serve --start nothing.png", "no such file"),
    ("--serve --port 70000", "from 0 to 65535"),
    ("--serve --max-sessions 0", "from 1 to 64"),
    ("--serve --allow-host http://x/", "without port and slashes"),
    ("--serve --record walk.txt", "must end in .mp4"),
    ("--replay x --serve", "--replay does not go with --serve"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused_in_one_line(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and told in lines[0]


def test_the_device_to_decode_on_reaches_the_world(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def serve(*whatever: object) -> None:
        pass

    monkeypatch.setattr("game.commands.serve._serve", serve)
    assert cli.main(["--serve", "--world", str(tiny), "--decode-device", "nowhere"]) == 2
    assert "there is no device 'nowhere' here" in capsys.readouterr().err
