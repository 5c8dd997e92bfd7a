"""Pages that mean no good, or cannot do better: the others play on, a line is logged, nothing is left."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket as sockets
import time

import aiohttp
import pytest

from game.serve.worlds import Worlds
from tests.long import times
from tests.serve.bystander import beside_a_player
from tests.serve.table import Site, served


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
