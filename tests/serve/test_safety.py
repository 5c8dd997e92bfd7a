"""Clients that mean no good, or cannot do better: the others play on, a line is logged, nothing is left."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import random
import socket as sockets
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from PIL import Image

from game.serve.worlds import Worlds
from tests.long import times
from tests.serve.table import Player, Site, served, tiny_worlds


@asynccontextmanager
async def somebody_plays(site: Site) -> AsyncIterator[Player]:
    """A player who must not notice anything: his blocks keep coming, none is lost."""
    async with site.player() as player:
        await player.blocks(2)
        yield player
        before = len(player.headers)
        await player.blocks(3)
        blocks = [header.block for header in player.headers]
        assert blocks == list(range(len(blocks))) and before >= 2
        assert player.headers[-1].lost == 0 and player.toasts == []


def beside_a_player(worlds: Worlds, trouble: Callable[[Site], Awaitable[None]], **limits: Any) -> None:
    async def play() -> None:
        async with served(worlds, **limits) as site, somebody_plays(site):
            await trouble(site)

    asyncio.run(play())


# ---- who may come in


HOSTS = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost:8765@evil", "[::2]"]


@pytest.mark.parametrize("host", HOSTS)
def test_another_host_is_refused(worlds: Worlds, host: str) -> None:
    async def ask() -> None:
        async with served(worlds) as site:
            async with site.client.get("/", headers={"Host": host}) as response:
                assert response.status == 403
            for name in ("localhost", f"127.0.0.1:{site.port}", "[::1]:1"):
                async with site.client.get("/", headers={"Host": name, "Origin": f"http://{name}"}) as response:
                    assert response.status == 200

    asyncio.run(ask())


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example", "file://127.0.0.1", "http://[", None])
def test_another_origin_can_neither_begin_nor_play(worlds: Worlds, origin: str | None) -> None:
    async def ask() -> None:
        async with served(worlds) as site:
            id = await site.begin()
            headers = {} if origin is None else {"Origin": origin}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{site.port}", headers=headers) as stranger:
                async with stranger.post("/sessions") as response:
                    assert response.status == 403
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await stranger.ws_connect(f"/sessions/{id}/play")
                assert refused.value.status == 403
            assert site.house.counts["started"] == 1
            assert 'reverie_refused_total{reason="origin"} 2' in (await site.get("/metrics")).decode()

    asyncio.run(ask())


def test_without_the_token_there_is_nothing(worlds: Worlds) -> None:
    async def ask() -> None:
        async with served(worlds, token="s3cret-word") as site:
            for path in ("/", "/worlds", "/metrics", "/static/app.js", "/worlds/0/starts/0", "/nothing"):
                for wrong in ("", "?token=", "?token=s3cret-worD", "?token=s3cret-wor", "?token=%ff%00"):
                    async with site.client.get(path + wrong) as response:
                        assert response.status == 401, (path, wrong)
            async with site.client.post("/sessions", cookies={f"reverie-{site.port}": "guess"}) as response:
                assert response.status == 401
            async with site.client.get("/health") as response:
                assert response.status == 200, "a proxy may ask whether it is alive"
            async with site.client.get("/metrics", headers={"Authorization": "Bearer s3cret-word"}) as response:
                assert response.status == 200
            assert not list(site.client.cookie_jar)
            jar = aiohttp.CookieJar(unsafe=True)  # for addresses that are numbers
            here = f"http://127.0.0.1:{site.port}"
            async with aiohttp.ClientSession(here, cookie_jar=jar, headers={"Origin": here}) as page:
                async with page.get("/?token=s3cret-word") as response:
                    cookie = response.headers["Set-Cookie"]
                    assert response.status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
                async with page.get("/worlds") as response:
                    assert response.status == 200
                async with page.post("/sessions?film=0") as response:
                    id = (await response.json())["session"]
                async with page.ws_connect(f"/sessions/{id}/play") as socket:
                    assert (await socket.receive_json())["t"] in ("hello", "loading")

    asyncio.run(ask())


def test_a_machine_that_others_reach_is_known_by_numbers_and_its_own_names(worlds: Worlds) -> None:
    from game.serve.guard import Guard, is_loopback

    guard = Guard("0.0.0.0", "t", names=("play.example",))
    assert guard._is_ours("192.0.2.7:8765") and guard._is_ours("[2001:db8::1]:80") and guard._is_ours("play.example")
    assert not guard._is_ours("rebound.example") and not guard._is_ours("192.0.2.7:8765/")
    assert not Guard("127.0.0.1", None)._is_ours("192.0.2.7")
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


def test_every_answer_has_its_policy_and_unknown_addresses_are_nothing(worlds: Worlds) -> None:
    async def ask() -> None:
        async with served(worlds) as site:
            id = await site.begin()
            paths = ["/", "/static/app.js", "/worlds", "/worlds/0/starts/0", f"/sessions/{id}"]
            nothing = ["/static/../guard.py", "/static/%2e%2e%2fguard.py", "/static/app.js/x", "/worlds/0/starts/99"]
            nothing += ["/worlds/-1/starts/0", "/worlds/9/starts/0", "/sessions/guess", f"/sessions/{id}x/film.mp4"]
            nothing += [f"/sessions/{id}/film.mp4", f"/sessions/{id}/saves/1", f"/sessions/{id}/saves/..%2f1"]
            for path in paths + nothing:
                async with site.client.get(path) as response:
                    assert (response.status == 200) == (path in paths), (path, response.status)
                    assert response.status in (200, 400, 404)
                    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
                    assert "unsafe" not in response.headers["Content-Security-Policy"]
                    assert response.headers["X-Content-Type-Options"] == "nosniff"
            for query in ("world=1", "world=x", "start=5", "start=/etc/passwd", "seed=-1", "seed=1e9", f"seed={2**60}"):
                async with site.client.post(f"/sessions?{query}") as response:
                    assert response.status == 400, query

    asyncio.run(ask())


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    import re
    from importlib import resources

    from game.serve.server import STATIC

    folder = resources.files("game.serve") / "static"
    assert {path.name for path in folder.iterdir()} == set(STATIC)
    for name in STATIC:
        text = (folder / name).read_text()
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], name
        assert "eval(" not in text and "innerHTML" not in text, name
    page = (folder / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|javascript:", page)


# ---- uploads


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


# ---- pages that misbehave


def nonsense(random: random.Random) -> str | bytes:
    good = {"t": "in", "id": 5, "keys": ["w"], "look": [0, 0], "mouse": [0, 0]}
    match random.randrange(8):
        case 0:
            return random.randbytes(random.randrange(200))
        case 1:
            return json.dumps(good)[: random.randrange(1, 30)]
        case 2:
            return json.dumps(good | {random.choice(["id", "keys", "look", "mouse"]): random.choice([None, "x", -1, 1e300, [1], {}, True])})
        case 3:
            return '{"t":"in","id":1,"keys":[],"look":[NaN,Infinity]}'
        case 4:
            return "[" * 900 + "]" * 900
        case 5:
            return json.dumps({"t": random.choice(["", "exec", None, [], "do"]), "do": random.choice(["rm -rf", 7, None])})
        case 6:
            return json.dumps({"t": "at", "epoch": 2**40, "block": "0", "frame": 0, "in": 0, "late": False})
        case _:
            return json.dumps(random.choice([1, None, [], "w", True]))


def test_thousands_of_malformed_messages(worlds: Worlds, caplog: pytest.LogCaptureFixture) -> None:
    wanted, dice = times(300, 10_000), random.Random(1)

    async def trouble(site: Site) -> None:
        id, connections = await site.begin(), 0
        while site.house.counts["malformed"] < wanted:
            connections += 1
            async with site.client.ws_connect(f"/sessions/{id}/play") as socket:
                try:
                    for _ in range(50):
                        message = nonsense(dice)
                        await (socket.send_bytes if isinstance(message, bytes) else socket.send_str)(message)
                except ConnectionError:
                    pass  # it has heard enough
                while (await socket.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                    pass
                assert socket.close_code == 1008
        assert connections <= wanted // site.server.limits.malformed + 1
        assert not site.house.seats[id].ended_at, "the session itself is well"

    with caplog.at_level(logging.INFO, "reverie.serve"):
        beside_a_player(worlds, trouble)
    told = [line for line in caplog.messages if "make no sense" in line]
    assert len(told) == wanted / 20 and all("\n" not in line and len(line) < 200 for line in told)


def test_a_message_that_is_too_large_ends_the_connection(worlds: Worlds) -> None:
    async def trouble(site: Site) -> None:
        id = await site.begin()
        async with site.client.ws_connect(f"/sessions/{id}/play") as socket:
            await socket.send_str('{"t":"in","id":1,"keys":["' + "w" * 1_000_000 + '"]}')
            while (await socket.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                pass
            assert socket.close_code in (1009, 1006)

    beside_a_player(worlds, trouble)


def test_a_flood_of_inputs_is_thrown_away_and_ends(worlds: Worlds) -> None:
    async def trouble(site: Site) -> None:
        async with site.player() as player:
            try:
                for _ in range(10_000):
                    await player.hold("w")
            except ConnectionError:
                pass
            await player.until(lambda: player.closed == 1008)
        seat = site.house.seats[player.id]
        assert site.house.counts["excess"] > 2000 and seat.left_at is not None
        assert len(seat.controls._events) <= 64

    beside_a_player(worlds, trouble)


def test_a_flood_of_commands_does_nothing_to_the_others(worlds: Worlds) -> None:
    async def trouble(site: Site) -> None:
        async with site.player() as player:
            await player.blocks(1)
            turns = site.house.model.turns
            for _ in range(100):
                await player.do("restart")
            await asyncio.sleep(0.5)
            assert site.house.seats[player.id].world.epoch <= 16
            assert site.house.model.turns - turns < 60

    beside_a_player(worlds, trouble)


def test_a_client_that_never_reads_loses_blocks_and_then_its_turn(worlds: Worlds) -> None:
    async def trouble(site: Site) -> None:
        id = await site.begin()
        socket = sockets.create_connection(("127.0.0.1", site.port))
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 2048)
        head = f"GET /sessions/{id}/play HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nUpgrade: websocket\r\n"
        head += "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        socket.sendall(head.encode())
        seat = site.house.seats[id]
        for _ in range(200):
            await asyncio.sleep(0.05)
            if seat.left_at is not None and seat.blocks:
                break
        assert seat.left_at is not None, "the heartbeat has noticed"
        assert seat.blocks <= 8, "and few blocks were made for nobody"
        socket.close()

    beside_a_player(worlds, trouble, heartbeat=1.0, stalled=0.6)


def test_a_page_that_tells_nothing_is_sent_two_blocks_and_no_more(worlds: Worlds) -> None:
    async def trouble(site: Site) -> None:
        id = await site.begin()
        async with site.client.ws_connect(f"/sessions/{id}/play") as socket:
            frames = 0
            try:
                while True:
                    message = await asyncio.wait_for(socket.receive(), 2.0)
                    frames += message.type == aiohttp.WSMsgType.BINARY
            except TimeoutError:
                pass
            assert frames == 9, "the first block; the next would be due when the page tells that it is shown"

    beside_a_player(worlds, trouble)


def test_a_page_that_tells_only_when_shows_loses_whole_blocks(worlds: Worlds) -> None:
    """It never says that anything has arrived, so that its connection must be taken for a slow one."""

    async def trouble(site: Site) -> None:
        id = await site.begin()
        async with site.client.ws_connect(f"/sessions/{id}/play") as socket:
            frames: dict[int, int] = {}
            end = time.monotonic() + 3
            while time.monotonic() < end:
                try:
                    message = await asyncio.wait_for(socket.receive(), 0.5)
                except TimeoutError:
                    continue
                if message.type == aiohttp.WSMsgType.BINARY and message.data[3] < 128:
                    block = int.from_bytes(message.data[8:12], "little")
                    frames[block] = frames.get(block, 0) + 1
                    if frames[block] == 1:
                        first = int.from_bytes(message.data[12:16], "little")
                        await socket.send_json({"t": "at", "epoch": 0, "block": block, "frame": first, "in": 0, "late": False})
            assert frames == {0: 9, 1: 12}, "whole blocks or none"
            assert site.house.seats[id].link.lost > 2
        await asyncio.sleep(0.2)
        assert (await site.metrics())["blocks_lost_total"] > 2

    beside_a_player(worlds, trouble)


def test_nobody_plays_faster_than_the_world(worlds: Worlds) -> None:
    """A page that claims to have shown each block at once, and long ago."""

    async def play() -> None:
        async with served(worlds) as site:
            id = await site.begin()
            async with site.client.ws_connect(f"/sessions/{id}/play") as socket:
                blocks, begun = 0, None
                while begun is None or time.monotonic() - begun < 3:
                    message = await socket.receive()
                    if message.type == aiohttp.WSMsgType.BINARY and message.data[3] < 128:
                        begun = begun or time.monotonic()
                        block, frame = (int.from_bytes(message.data[at : at + 4], "little") for at in (8, 12))
                        if message.data[30] == 0:
                            claim = {"t": "at", "epoch": 0, "block": block, "frame": frame + 11, "in": -60_000, "late": bool(block % 2)}
                            await socket.send_json(claim)
                        if message.data[30] == message.data[31] - 1:
                            blocks += 1
                            await socket.send_json({"t": "got", "epoch": 0, "block": block})
                assert blocks <= 3 * 4 * 1.15 + 2

    asyncio.run(play())


def test_hundreds_of_connections_leave_nothing(worlds: Worlds) -> None:
    async def trouble(site: Site) -> None:
        id = await site.begin()
        tasks, threads = len(asyncio.all_tasks()), threading.active_count()
        for number in range(times(60, 200)):
            socket = await site.client.ws_connect(f"/sessions/{id}/play")
            if number % 3 == 0:
                await socket.receive()
            if number % 2:
                await socket.close()
            else:
                socket._writer.transport.abort()
        for _ in range(100):
            await asyncio.sleep(0.05)
            if len(asyncio.all_tasks()) <= tasks + 2:
                break
        gc.collect()
        assert len(asyncio.all_tasks()) <= tasks + 2 and threading.active_count() <= threads + 6
        assert site.house.seats[id].link is None

    beside_a_player(worlds, trouble)


def test_silent_connections_are_closed_and_too_many_refused(worlds: Worlds) -> None:
    async def trouble(site: Site) -> None:
        pairs = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(30)]
        ends = await asyncio.gather(*(asyncio.wait_for(reader.read(), 10) for reader, _ in pairs), return_exceptions=True)
        assert all(end == b"" or isinstance(end, ConnectionError) for end in ends)
        assert site.server.door.refused >= 10
        end = time.monotonic() + 10
        while site.server.door._silent and time.monotonic() < end:
            await asyncio.sleep(0.05)
        assert not site.server.door._silent, "those that have gone are forgotten"
        for _, writer in pairs:
            writer.close()

    beside_a_player(worlds, trouble, connections=20, silent=1.0)


def test_when_all_places_are_taken_it_says_so(worlds: Worlds, caplog: pytest.LogCaptureFixture) -> None:
    async def trouble(site: Site) -> None:
        async with site.player(), site.client.post("/sessions") as response:
            assert response.status == 503 and "all 2 places are taken" in (await response.json())["error"]
        assert site.house.counts["full"] == 1

    beside_a_player(worlds, trouble, sessions=2)


def test_memory_is_counted_before_somebody_is_let_in(tiny) -> None:
    worlds = tiny_worlds(tiny, free=lambda device: 60_000_000)  # a session: 16 MB to rewind, and a little

    async def play() -> None:
        async with served(worlds, sessions=10) as site:
            for _ in range(3):
                await site.begin()
            async with site.client.post("/sessions") as response:
                words = (await response.json())["error"]
                assert response.status == 503 and "no memory for another session" in words and "MB" in words

    asyncio.run(play())


def test_who_does_nothing_for_long_has_to_go(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds, idle=1.0) as site, site.player() as player:
            await player.until(lambda: player.closed is not None, 20)
            assert player.messages[-1]["reason"] == "idle" and site.house.playing == 0

    asyncio.run(play())


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
