"""H.264: each block stands alone, is near the frames the session made, and plays in a browser that reads it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from game import cli
from game.serve import video
from game.serve.link import Link, Parcel
from game.serve.video import H264, MATRIX_BT601, choose
from game.serve.worlds import Worlds
from tests.serve.chrome import Page, browser
from tests.serve.table import Running, served, tiny_worlds
from tests.tiny_world import write_tiny_world

NOISE = 20.0  # decibels: the tiny world's frames are noise, which a codec keeps 24 of; from one frame to the next it is 10
READS = "jpeg,webp,h264,h264-444"
Truth = dict[tuple[int, int], np.ndarray]  # frames by (epoch, block), as they were given to a page's connection
needs_av = pytest.mark.skipif(video.problem() is not None, reason=f"H.264 {video.problem()}")


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> Iterator[Truth]:
    found: Truth = {}
    deliver = Link.deliver

    def keep(link: Link, parcel: Parcel) -> bool:
        if not parcel.header.still:
            found[parcel.header.epoch, parcel.header.block] = parcel.frames
        return deliver(link, parcel)

    monkeypatch.setattr(Link, "deliver", keep)
    yield found


def new_decoder() -> Any:
    import av

    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1  # more of them hold frames back
    return decoder


def decoded(units: list[bytes], decoder: Any = None) -> np.ndarray:
    """Frames [F, H, W, 3] uint8 of access units, each of which must give its own at once."""
    import av
    from av.video.reformatter import ColorRange, Interpolation

    rounded = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

    decoder = decoder or new_decoder()
    frames = []
    for unit in units:
        (frame,) = decoder.decode(av.Packet(unit))
        assert (frame.color_range, frame.colorspace) == (ColorRange.JPEG, MATRIX_BT601), "or a browser shows other colours"
        frames.append(frame.reformat(format="rgb24", interpolation=rounded, threads=1).to_ndarray())
    return np.stack(frames)


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal to noise."""
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


def units_of(data: bytes) -> list[int]:
    """Types of the NAL units of an access unit in Annex B."""
    return [data[found.end()] & 31 for found in re.finditer(rb"\x00\x00\x01", data)]


def smooth(frames: int, height: int, width: int) -> np.ndarray:
    """Coloured waves that move, [F, H, W, 3] uint8."""
    t, y, x = np.mgrid[:frames, :height, :width].astype(np.float64)
    return np.stack([127 + 100 * np.sin(x / 9 + t / 5 + c) * np.cos(y / 7 - t / 9 + 2 * c) for c in range(3)], -1).astype(np.uint8)


def test_what_a_page_gets_is_what_it_reads() -> None:
    everything = READS.split(",")
    assert choose("jpeg", everything, 112) == "jpeg" and choose("webp", everything, 112) == "webp"
    assert choose("h264", everything, 112) == "h264-444" and choose("h264", everything, 640) == "h264"
    assert choose("h264", ["jpeg", "h264"], 112) == "h264", "half the colours are better than none"
    assert choose("h264", ["jpeg", "h264-444"], 640) == "jpeg" and choose("h264", ["webp"], 112) == "webp"
    assert choose("jpeg", ["webp"], 112) == "webp"
    assert choose("jpeg", ["h264"], 112) == "jpeg", "no page makes the server take the expensive way"


@needs_av
@pytest.mark.parametrize(("height", "width", "full_colour"), [(16, 32, True), (64, 112, True), (352, 640, False)])
def test_a_block_alone_decodes_and_is_near_what_it_was(height: int, width: int, full_colour: bool) -> None:
    frames = smooth(36, height, width)
    codec = H264(height, width, 16, full_colour)
    units = [codec.encode(frame, index % 12 == 0) for index, frame in enumerate(frames)]
    for index, unit in enumerate(units):
        kinds = units_of(unit)
        assert (kinds[:2] == [7, 8] and 5 in kinds) if index % 12 == 0 else 5 not in kinds, f"frame {index}: {kinds}"
    whole = decoded(units)
    assert min(decibels(one, other) for one, other in zip(whole, frames, strict=True)) > 31
    assert np.array_equal(decoded(units[24:]), whole[24:]), "the last block needs nothing of those before it"
    assert np.array_equal(decoded(units[:12] + units[24:])[12:], whole[24:]), "and is not troubled by what is missing"


@needs_av
def test_a_frame_of_the_wrong_size_does_not_pass() -> None:
    import av

    with pytest.raises((av.FFmpegError, ValueError)):
        H264(15, 31, 16, False).encode(smooth(1, 15, 31)[0], True)


@needs_av
def test_the_stream_is_the_sessions_frames_also_after_lost_blocks_a_restart_and_a_load(worlds: Worlds, truth: Truth) -> None:
    async def play() -> None:
        async with served(worlds, frames="h264") as site, site.player(seed=7, reads=READS) as player:
            await player.blocks(3)
            await player.do("save")
            await player.until(lambda: player.toasts)
            player.tells = False
            link = site.house.seats[player.id].link
            await player.until(lambda: link.lost >= 2)
            player.tells = True
            await player.tell()
            await player.blocks(3)
            await player.do("restart")
            await player.until(lambda: player.epoch == 1)
            await player.blocks(2)
            await player.do("load")
            await player.until(lambda: player.epoch == 2)
            await player.blocks(2)
            assert link.kind == "h264-444" and player.headers[-1].lost >= 2
            assert {header.kind for header in player.headers} == {"h264-444"}
        decoder = new_decoder()
        blocks = [key for key in player.pictures if key[0] == 0]
        numbers = [block for _, block in blocks]
        assert numbers != list(range(len(numbers))) and numbers == sorted(numbers), "blocks were lost"
        for key, units in player.pictures.items():  # one decoder for all of it, as in the page
            assert units_of(units[0])[0] == 7, f"block {key} does not begin with a key frame"
            assert decibels(decoded(units, decoder), truth[key][: len(units)]) > NOISE
        epochs = {epoch for epoch, _ in player.pictures}
        assert epochs == {0, 1, 2}

    asyncio.run(play())


@needs_av
def test_a_still_is_a_picture(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds, frames="h264") as site:
            async with site.player(reads=READS) as player:
                await player.blocks(2)
            async with site.client.ws_connect(f"/sessions/{player.id}/play?format={READS}") as socket:
                while (message := await socket.receive()).type.name != "BINARY":
                    pass
                assert message.data[3] == 128 + 1 and message.data[32:35] == b"\xff\xd8\xff"

    asyncio.run(play())


@needs_av
def test_an_encoder_that_breaks_down_is_followed_by_jpeg(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode = H264.encode

    def fail(self: H264, frame: np.ndarray, key: bool) -> bytes:
        if self._count == 15:
            raise RuntimeError("out of everything")
        return encode(self, frame, key)

    monkeypatch.setattr(H264, "encode", fail)

    async def play() -> None:
        async with served(worlds, frames="h264") as site, site.player(reads=READS) as player:
            await player.blocks(4)
            assert player.pictures[0, 1][5][:4] == b"\0\0\0\1" and player.pictures[0, 1][6][:3] == b"\xff\xd8\xff"
            assert [header.kind for header in player.headers[:4]] == ["h264-444", "h264-444", "jpeg", "jpeg"]

    with caplog.at_level(logging.WARNING):
        asyncio.run(play())
    assert [record.message for record in caplog.records] == ["no H.264 for a page, it gets JPEG: RuntimeError: out of everything"]


def test_without_pyav_the_option_is_refused_and_all_else_is_as_before(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert cli.main(["--serve", "--frames", "h264"]) == 2
    assert "--frames h264 needs PyAV: pip install 'reverie[h264]'" in capsys.readouterr().err

    async def play() -> None:
        async with served(worlds) as site, site.player(reads=READS) as player:
            await player.blocks(2)
            assert {header.kind for header in player.headers} == {"jpeg"}

    asyncio.run(play())


# ---- in the page


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    def change(settings: dict[str, Any]) -> None:
        settings |= {"fps": 24, "title": "Film"}

    with Running(tiny_worlds(write_tiny_world(tmp_path_factory.mktemp("video"), change=change)), frames="h264") as running:
        yield running


@pytest.fixture
def page(tmp_path: Path, running: Running) -> Iterator[Page]:
    """Plays; skipped where the browser was built without H.264."""
    with browser(tmp_path / "chrome") as page:
        page.open(running.url)
        reads = page("const {readable} = await import('/static/pictures.js'); return await readable()")
        if "h264-444" not in reads:
            pytest.skip(f"this browser does not decode H.264 in full colour, only {reads}")
        page.play()
        page("""window.kinds = []; const {screen} = reverie, before = screen.onFrame;
        screen.onFrame = (frame, now) => (kinds.push(frame.kind), before(frame, now))""")
        yield page
        assert page.errors() == []


@needs_av
def test_the_page_shows_the_sessions_frames(page: Page, truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[bytes, np.ndarray]] = []
    encode = H264.encode

    def keep(self: H264, frame: np.ndarray, key: bool) -> bytes:
        unit = encode(self, frame, key)
        sent.append((unit, frame))
        return unit

    monkeypatch.setattr(H264, "encode", keep)
    page.hold("w")
    page.blocks(6)
    page.key("Enter", "Enter")
    page.until("reverie.screen.epoch === 1")
    page.blocks(3)
    seen = page.seen()
    assert set(page.value("kinds")) == {"h264-444"}
    monkeypatch.undo()
    while units_of(sent[0][0])[0] != 7:  # it began in the middle of a block
        sent.pop(0)
    decoder = new_decoder()
    pictures: dict[bytes, list[np.ndarray]] = {}  # after the restart the same frames come again, coded in another way
    for unit, frame in sent:
        pictures.setdefault(frame.tobytes(), []).append(decoded([unit], decoder)[0])
    compared, epochs = 0, set()
    for frame in seen:
        true = truth.get((frame["epoch"], frame["block"]))
        if true is None or true[frame["index"]].tobytes() not in pictures:
            continue
        true = true[frame["index"]]
        shown = np.array(frame["grey"]) / 3
        where = frame["epoch"], frame["block"], frame["index"]
        nearest = max(decibels(shown, picture.mean(-1).ravel()) for picture in pictures[true.tobytes()])
        assert nearest > 40, f"{where} is not what was sent: {nearest}"
        assert decibels(shown, true.mean(-1).ravel()) > NOISE, where
        compared, epochs = compared + 1, epochs | {frame["epoch"]}
    assert compared > 30 and epochs == {0, 1}


@needs_av
def test_a_page_whose_decoder_gives_up_goes_on_with_jpeg(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    page.blocks(2)
    monkeypatch.setattr(H264, "encode", lambda self, frame, key: b"\0\0\0\1\x67" + bytes(200))
    page.until("kinds.at(-1) === 'jpeg'")
    page.blocks(3)
    kinds = page.value("kinds")
    assert kinds[0] == "h264-444" and set(kinds[kinds.index("jpeg") :]) == {"jpeg"}
    assert page.value("reverie.session.socket.url").endswith("format=jpeg%2Cwebp")
