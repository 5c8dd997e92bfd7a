"""HTTP and WebSocket: the page, its sessions, uploads and downloads. `docs/SERVE.md` lists the routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import resources

from aiohttp import web

from game.serve.answers import number, refusal, seat_of
from game.serve.guard import Door, Guard
from game.serve.house import Full, House
from game.serve.metrics import metrics
from game.serve.playing import play
from game.serve.protocol import KINDS
from game.serve.transfers import Transfers
from game.serve.upload import UploadError

LOG = logging.getLogger("reverie.serve")
SCRIPTS = (
    "app", "commands", "connection", "controls", "graph", "keyboard", "numbers", "page", "pictures", "saves", "screen", "session", "start",
    "words",
)  # fmt: skip
STATIC = {"index.html": "text/html", "style.css": "text/css", "icon.svg": "image/svg+xml"}
STATIC |= {f"{name}.js": "text/javascript" for name in SCRIPTS}
LINGER_SECONDS = 1.0  # to read on from somebody who was refused while sending, so that he gets to read why
MAX_SEED = 2**53 - 1  # what a page can write down exactly
Route = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The routes, for one house."""

    def __init__(self, house: House, guard: Guard) -> None:
        self.house, self.guard = house, guard
        self.limits, self.transfers = house.limits, Transfers(house)
        self.app = web.Application(client_max_size=self.limits.upload)
        times = {"keepalive_timeout": self.limits.silent, "lingering_time": LINGER_SECONDS, "shutdown_timeout": 5}
        self.runner = web.AppRunner(self.app, access_log=None, **times)
        self.door: Door | None = None
        self._files = {name: (resources.files("game.serve") / "static" / name).read_bytes() for name in STATIC}
        self._watch: asyncio.Task[None] | None = None
        self._listener: asyncio.Server | None = None
        routes = [
            ("GET", "/", self._page),
            ("GET", "/static/{name}", self._static),
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._metrics),
            ("GET", "/worlds", self._worlds),
            ("GET", "/worlds/{world}/starts/{start}", self._start_picture),
            ("POST", "/sessions", self._begin),
            ("GET", "/sessions/{id}", self._about),
            ("GET", "/sessions/{id}/play", partial(play, house)),
            ("GET", "/sessions/{id}/session.jsonl", self.transfers.session_file),
            ("GET", "/sessions/{id}/film.mp4", self.transfers.film),
            ("GET", "/sessions/{id}/saves/{slot}", self.transfers.saved),
            ("PUT", "/sessions/{id}/saves/{slot}", self.transfers.take_save),
        ]
        for method, path, handler in routes:
            self.app.router.add_route(method, path, handler)

    async def listen(self, host: str, port: int) -> int:
        """Begin to serve; returns the port. Raises OSError where that is taken."""
        door: list[Door] = []

        @web.middleware
        async def knock(request: web.Request, handler: Route) -> web.StreamResponse:
            return await door[0].middleware(request, handler)

        self.app.middlewares.extend([knock, self.guard.middleware])
        await self.runner.setup()
        self.door = Door(self.runner.server, self.limits)
        door.append(self.door)
        self._listener = await asyncio.get_running_loop().create_server(self.door, host, port, backlog=64)
        self._watch = asyncio.create_task(self.door.watch())
        return self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._listener is not None:
            self._listener.close()
        await self.house.close()
        await self.runner.cleanup()

    # ---- the page

    async def _page(self, request: web.Request) -> web.StreamResponse:
        response = web.Response(body=self._files["index.html"], content_type="text/html", charset="utf-8")
        if self.guard.token is not None:  # so that the page's own requests, and a reload, need no token in their addresses
            response.set_cookie(self.guard.cookie(request), self.guard.token, httponly=True, samesite="Strict", path="/")
        return response

    async def _static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in STATIC:
            raise web.HTTPNotFound
        return web.Response(body=self._files[name], content_type=STATIC[name], charset="utf-8")

    async def _health(self, request: web.Request) -> web.StreamResponse:
        alive = self.house.model.is_alive()
        return web.json_response({"ok": alive}, status=200 if alive else 503)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=metrics(self.house, self.guard, self.door), content_type="text/plain", charset="utf-8")

    async def _worlds(self, request: web.Request) -> web.StreamResponse:
        house = self.house
        return web.json_response({
            "worlds": house.worlds.cards(), "playing": house.playing, "places": self.limits.sessions,
            "upload": self.limits.upload, "formats": list(KINDS),
        })  # fmt: skip

    async def _start_picture(self, request: web.Request) -> web.StreamResponse:
        offer = self.house.worlds.offers[number(request.match_info["world"], len(self.house.worlds.offers))]
        path = offer.starts[number(request.match_info["start"], len(offer.starts))]  # one of our own, by its place in the list
        return web.FileResponse(path)

    # ---- sessions

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        """``world``, ``start``: places in the lists of `/worlds`; ``seed``; ``film``: 1 or 0. The body, if any, is a start picture."""
        query, worlds = request.query, self.house.worlds.offers
        world = number(query.get("world", "0"), len(worlds))
        start = None if "start" not in query else number(query["start"], len(worlds[world].starts))
        seed = None if "seed" not in query else number(query["seed"], MAX_SEED + 1)
        try:
            self.house.ask(world)  # before a byte of the upload is read
            upload = await self.transfers.start_picture(request)
            if upload is None and not worlds[world].starts:
                raise UploadError("this world has no start picture of its own; send one")
            seat = await self.house.admit(world, start, seed, query.get("film", "1") == "1", upload)
        except Full as full:
            self.house.counts["full"] += 1
            return refusal(503, str(full))
        except UploadError as error:
            return self.transfers.refused(error)
        LOG.info("session %s begins in %s", seat.id[:6], seat.config.name)
        return web.json_response({"session": seat.id, "resume": self.limits.vanished})

    async def _about(self, request: web.Request) -> web.StreamResponse:
        """Whether a page that was here before can go on."""
        seat = seat_of(self.house, request)
        return web.json_response({"playing": not seat.ended_at, "reason": seat.over})
