"""A server with a tiny world in this process, and clients that behave like the page, or do not."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from engine import load_config
from game.serve.guard import Guard
from game.serve.house import House
from game.serve.limits import Limits
from game.serve.protocol import HEADER, FrameHeader
from game.serve.server import Server
from game.serve.worlds import Offer, Worlds, start_pictures


def tiny_worlds(yaml: Path, rewind_mb: float = 16, **options: Any) -> Worlds:
    """Of one tiny world, loaded."""
    config = load_config(yaml)
    worlds = Worlds([Offer(config, start_pictures(config, None), None)], "cpu", None, rewind_mb, **options)
    worlds.load(0, lambda what, part: None)
    return worlds


@asynccontextmanager
async def served(
    worlds: Worlds, token: str | None = None, keep: Path | None = None, seed: int | None = None, frames: str = "jpeg", **limits: Any
) -> AsyncIterator[Site]:
    """A running server; all of it is gone afterwards."""
    house = House(worlds, Limits(**limits), seed, keep, frames)
    server = Server(house, Guard("127.0.0.1" if token is None else "0.0.0.0", token))
    port = await server.listen("127.0.0.1", 0)
    client = aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"Origin": f"http://127.0.0.1:{port}"})
    try:
        yield Site(server, house, client, port)
    finally:
        await client.close()
        await server.close()


class Running:
    """The same on a thread of its own, for a test that drives a browser meanwhile: ``with Running(worlds) as running``."""

    def __init__(self, worlds: Worlds, **options: Any) -> None:
        self._worlds, self._options = worlds, options
        self._ready, self._thread = threading.Event(), threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.url = ""

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with served(self._worlds, **self._options) as self.site:
            self.url = f"http://127.0.0.1:{self.site.port}/"
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)


class Site:
    def __init__(self, server: Server, house: House, client: aiohttp.ClientSession, port: int) -> None:
        self.server, self.house, self.client, self.port = server, house, client, port

    async def begin(self, body: bytes | None = None, **query: Any) -> str:
        """A new session; its id."""
        async with self.client.post("/sessions", params={"film": 0} | query, data=body) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return answer["session"]

    @asynccontextmanager
    async def player(self, id: str | None = None, reads: str = "jpeg", **query: Any) -> AsyncIterator[Player]:
        """``reads``: the kinds of frames, as the page tells them."""
        id = id or await self.begin(**query)
        async with self.client.ws_connect(f"/sessions/{id}/play?format={reads}", max_msg_size=1 << 22) as socket:
            player = Player(self, id, socket)
            task = asyncio.create_task(player.run())
            try:
                yield player
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def get(self, path: str) -> bytes:
        async with self.client.get(path) as response:
            assert response.status == 200, (path, response.status)
            return await response.read()

    async def metrics(self) -> dict[str, float]:
        lines = (await self.get("/metrics")).decode().splitlines()
        return {name.removeprefix("reverie_"): float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


class Player:
    """Shows frames when they are due, as the page does, and keeps what it was sent."""

    def __init__(self, site: Site, id: str, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.site, self.id, self.socket = site, id, socket
        self.world: dict[str, Any] = {}
        self.messages: list[dict[str, Any]] = []
        self.toasts: list[str] = []
        self.pictures: dict[tuple[int, int], list[bytes]] = {}  # encoded frames by (epoch, block)
        self.headers: list[FrameHeader] = []  # of the first frame of each block
        self.shown_at: list[float] = []
        self.stills = 0
        self.latencies: list[float] = []
        self.state: dict[str, Any] = {}
        self.closed: int | None = None
        self.tells = True  # of blocks that have arrived
        self.untold: list[dict[str, Any]] = []
        self.epoch = 0
        self._frozen, self._until = False, None
        self._origin: float | None = None
        self._position: tuple[int, int] | None = None  # (block, number of the frame after it)
        self._input = 0
        self._pressed: tuple[int, float] | None = None

    async def send(self, message: Any) -> None:
        await self.socket.send_str(message if isinstance(message, str) else json.dumps(message))

    async def hold(self, *keys: str, look: tuple[float, float] = (0, 0)) -> None:
        self._input += 1
        self._pressed = self._input, time.perf_counter()
        await self.send({"t": "in", "id": self._input, "keys": list(keys), "look": list(look), "mouse": [0, 0]})

    async def do(self, command: str, slot: int = 1) -> None:
        await self.send({"t": "do", "do": command, "slot": slot})

    async def until(self, true: Callable[[], object], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"it never happened: {self.headers[-1:]} {self.messages[-3:]} {self.toasts} {self.closed}"
            await asyncio.sleep(0.005)

    async def blocks(self, count: int) -> None:
        """Wait for so many more blocks."""
        goal = len(self.headers) + count
        await self.until(lambda: len(self.headers) >= goal)

    async def run(self) -> None:
        async for message in self.socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                await self._frame(message.data)
            else:
                await self._hear(json.loads(message.data))
        self.closed = self.socket.close_code

    async def _hear(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        match message["t"]:
            case "hello":
                self.world = message["world"]
            case "epoch":
                self.epoch, self._frozen, self._until, self._origin, self._position = message["epoch"], False, None, None, None
            case "freeze":
                self._frozen, self._until, self._origin = True, None, None
            case "thaw":
                self._frozen, self._until = False, message["until"]
                if self._position is not None:
                    block, frame = self._position
                    hold = message["lead"] / 1000
                    self._origin = time.perf_counter() + hold - frame / self.world["fps"]
                    await self._at(block, frame, hold, False)
            case "toast":
                self.toasts.append(message["words"])
            case "state":
                self.state = message

    async def _frame(self, data: bytes) -> None:
        header, picture = FrameHeader.unpack(data[: HEADER.size]), data[HEADER.size :]
        if header.still:
            self.stills += 1
            return
        self.pictures.setdefault((header.epoch, header.block), []).append(picture)
        if header.index == header.count - 1:
            self.untold.append({"t": "got", "epoch": header.epoch, "block": header.block})
            await self.tell()
        if header.index == 0 and header.epoch == self.epoch:
            asyncio.get_running_loop().create_task(self._show(header))

    def forget(self) -> int:
        """Let go of all that was kept; how many blocks that were."""
        made = len(self.headers)
        for kept in (self.messages, self.toasts, self.pictures, self.headers, self.shown_at, self.latencies):
            kept.clear()
        return made

    async def tell(self) -> None:
        """Of the blocks that have arrived, unless that is held back."""
        while self.tells and self.untold:
            await self.send(self.untold.pop(0))

    async def _show(self, header: FrameHeader) -> None:
        while self._frozen and self._until is None and header.epoch == self.epoch:  # kept until it is to go on
            await asyncio.sleep(0.01)
        now, fps = time.perf_counter(), self.world["fps"]
        late = False
        if self._origin is None:
            self._origin = now + header.hold / 1000 - header.frame / fps
        elif now > self._origin + header.frame / fps:
            self._origin, late = now - header.frame / fps, True
        else:
            await asyncio.sleep(self._origin + header.frame / fps - now)
        if header.epoch != self.epoch or self.socket.closed:
            return
        self._position = header.block, header.frame + header.count
        self.headers.append(header)
        self.shown_at.append(time.perf_counter())
        if self._pressed is not None and header.input >= self._pressed[0]:
            self.latencies.append(time.perf_counter() - self._pressed[1])
            self._pressed = None
        await self._at(header.block, header.frame, header.hold / 1000 if self._origin else 0.0, late)
        if self._until is not None and header.block >= self._until:
            self._frozen, self._origin = True, None
            await self.send({"t": "frozen", "epoch": self.epoch})

    async def _at(self, block: int, frame: int, wait: float, late: bool) -> None:
        await self.send({"t": "at", "epoch": self.epoch, "block": block, "frame": frame, "in": round(wait * 1000, 1), "late": late})
