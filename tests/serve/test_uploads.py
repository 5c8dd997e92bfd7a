"""What is sent to the server as a file and is none that it takes: refused in one line, the others play on."""

from __future__ import annotations

import asyncio
import io
import logging
import struct
import zlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from PIL import Image

from game.serve.worlds import Worlds
from tests.serve.bystander import beside_a_player, somebody_plays
from tests.serve.table import Site, served


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with a little of nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(100_000), 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(file, kind)
    return file.getvalue()


BAD_PICTURES = {
    "html": b"<!doctype html><script>alert(1)</script>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "bomb": png_header(60_000, 60_000),
    "large": png_header(8000, 8000),
    "cut short": picture(64, 64)[:-30],
    "empty png": png_header(64, 64)[:40],
    "tiny": picture(3, 3),
    "gif": picture(64, 64, "GIF"),
    "tiff": picture(64, 64, "TIFF"),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) run",
    "zeros": bytes(4096),
}


def test_what_is_no_picture_is_refused_in_one_line(worlds: Worlds, caplog: pytest.LogCaptureFixture) -> None:
    async def trouble(site: Site) -> None:
        for what, data in BAD_PICTURES.items():
            async with site.client.post("/sessions", data=data) as response:
                words = (await response.json())["error"]
                assert response.status == 415, what
                assert "/" not in words.replace("PNG", "") and len(words) < 120, words
        assert site.house.playing == 1 and len(list(site.house._folder.iterdir())) == 1

    with caplog.at_level(logging.INFO, "reverie.serve"):
        beside_a_player(worlds, trouble, starts=(100.0, 100.0))
    assert sum("upload refused" in line for line in caplog.messages) == len(BAD_PICTURES)


def test_a_gigabyte_is_refused_by_its_length_before_it_is_sent(worlds: Worlds) -> None:
    async def trouble(site: Site) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        head = f"POST /sessions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Length: {1 << 30}\r\n\r\n"
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 413 ") and b"too large" in answer
        writer.close()

    beside_a_player(worlds, trouble)


def test_a_gigabyte_without_a_length_is_refused_on_its_way(worlds: Worlds) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1 << 14):
            sent += 1 << 16
            yield bytes(1 << 16)

    async def trouble(site: Site) -> None:
        try:
            async with site.client.post("/sessions", data=body()) as response:
                assert response.status == 413
        except aiohttp.ClientConnectionError:
            pass  # refused so early that the answer was lost while sending
        assert sent < 1 << 26, f"{sent} bytes were taken"
        assert site.house.counts["uploads refused"] == 1 and site.house.playing == 1

    beside_a_player(worlds, trouble)


def test_an_upload_that_trickles_is_given_up(worlds: Worlds) -> None:
    async def trouble(site: Site) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Length: 1000\r\n\r\nabc")
        for _ in range(100):
            await asyncio.sleep(0.05)
            if site.house.counts["uploads refused"]:
                break
        assert site.house.counts["uploads refused"] == 1
        writer.close()

    beside_a_player(worlds, trouble, upload_seconds=0.5)


def test_what_is_no_saved_game_of_this_world_is_refused_or_not_loaded(worlds: Worlds, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with served(worlds) as site, somebody_plays(site), site.player() as player:
            await player.blocks(2)
            await player.do("save", slot=3)
            await player.until(lambda: player.state.get("saved") == [3])
            good = await site.get(f"/sessions/{player.id}/saves/3")
            limit = site.house.save_limit(site.house.seats[player.id])
            assert len(good) < limit < len(good) * 2 + (4 << 20)

            async def put(body: bytes, slot: object = 1, id: str = player.id) -> tuple[int, str]:
                async with site.client.put(f"/sessions/{id}/saves/{slot}", data=body) as response:
                    return response.status, await response.text()

            other = good.replace(b'\\"world\\": \\"tiny\\"', b'\\"world\\": \\"tony\\"')
            assert other != good
            for body in (b"", b"<html>", bytes(1000), good[:500], other, b"\xff" * 100_000):
                status, words = await put(body)
                assert status == 415 and "this is no saved game of the world tiny" in words, words
            assert (await put(good, 0))[0] == (await put(good, 10))[0] == (await put(good, "..%2f1"))[0] == 400
            assert (await put(good, 1, "guess"))[0] == 404
            assert (await put(bytes(limit + 1)))[0] == 413
            await asyncio.sleep(2)  # there were so many that they had to be fewer

            async def endless() -> AsyncIterator[bytes]:  # without a length
                while True:
                    yield bytes(1 << 16)

            async with site.client.put(f"/sessions/{player.id}/saves/1", data=endless()) as response:
                assert response.status == 413
            assert player.state["saved"] == [3] and await site.get(f"/sessions/{player.id}/saves/3") == good
            damaged = bytearray(good)
            damaged[-5] ^= 1
            assert (await put(bytes(damaged)))[0] == 200
            player.toasts.clear()
            await player.do("load", slot=1)
            await player.until(lambda: player.toasts)
            assert player.toasts[0].startswith("Not loaded: ") and "damaged" in player.toasts[0]
            assert str(site.house._folder) not in player.toasts[0]
            for _ in range(20):
                status, _ = await put(b"")
            assert status == 429
            names = sorted(path.name for path in site.house.seats[player.id].saves.folder.iterdir())
            assert names == ["tiny-1.safetensors", "tiny-3.safetensors"], "nothing is left of what was refused"

    with caplog.at_level(logging.INFO):
        asyncio.run(play())
    assert "upload refused: this is no saved game of the world tiny" in caplog.messages
