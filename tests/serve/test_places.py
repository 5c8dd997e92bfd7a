"""How many may come, and stay: connections, places, memory, time."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

from game.serve.worlds import Worlds
from tests.long import times
from tests.serve.bystander import beside_a_player
from tests.serve.table import Site, served, tiny_worlds


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

    gc.collect()
    gc.freeze()  # or the collection above goes through all that earlier tests have left, while the bystander's page stands still
    try:
        beside_a_player(worlds, trouble)
    finally:
        gc.unfreeze()


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


def test_a_session_takes_one_start(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds, sessions=10, starts=(0.0, 2.0)) as site:
            for _ in range(2):
                await site.begin()
            async with site.client.post("/sessions") as response:
                assert response.status == 503 and "too many sessions" in (await response.json())["error"]

    asyncio.run(play())


def test_who_does_nothing_for_long_has_to_go(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds, idle=1.0) as site, site.player() as player:
            await player.until(lambda: player.closed is not None, 20)
            assert player.messages[-1]["reason"] == "idle" and site.house.playing == 0

    asyncio.run(play())
