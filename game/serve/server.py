"""HTTP and WebSocket: the page, its sessions, uploads and downloads. `docs/SERVE.md` lists the routes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from importlib import resources
from typing import Any

from aiohttp import WSMsgType, web

from engine import Snapshot, WorldError
from game.serve.guard import Door, Guard
from game.serve.house import Full, House
from game.serve.limits import Allowance
from game.serve.link import Link
from game.serve.metrics import metrics
from game.serve.protocol import KINDS, ProtocolError, parse
from game.serve.seat import Seat
from game.serve.upload import UploadError
from game.serve.video import choose

LOG = logging.getLogger("reverie.serve")
STATIC = {
    "index.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    "app.js": "text/javascript",
    "screen.js": "text/javascript",
    "pictures.js": "text/javascript",
    "controls.js": "text/javascript",
    "start.js": "text/javascript",
    "graph.js": "text/javascript",
}
LINGER_SECONDS = 1.0  # to read on from somebody who was refused while sending, so that he gets to read why
MAX_SEED = 2**53 - 1  # what a page can write down exactly
Route = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The routes, for one house."""

    def __init__(self, house: House, guard: Guard) -> None:
        self.house, self.guard = house, guard
        self.limits = house.limits
        self.app = web.Application(client_max_size=self.limits.upload)
        times = {"keepalive_timeout": self.limits.silent, "lingering_time": LINGER_SECONDS, "shutdown_timeout": 5}
        self.runner = web.AppRunner(self.app, access_log=None, **times)
        self.door: Door | None = None
        self._files = {name: (resources.files("game.serve") / "static" / name).read_bytes() for name in STATIC}
        self._watch: asyncio.Task[None] | None = None
        self._listener: asyncio.Server | None = None
        self._readings = 0
        routes = [
            ("GET", "/", self._page),
            ("GET", "/static/{name}", self._static),
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._metrics),
            ("GET", "/worlds", self._worlds),
            ("GET", "/worlds/{world}/starts/{start}", self._start_picture),
            ("POST", "/sessions", self._begin),
            ("GET", "/sessions/{id}", self._about),
            ("GET", "/sessions/{id}/play", self._play),
            ("GET", "/sessions/{id}/session.jsonl", self._session_file),
            ("GET", "/sessions/{id}/film.mp4", self._film),
            ("GET", "/sessions/{id}/saves/{slot}", self._saved),
            ("PUT", "/sessions/{id}/saves/{slot}", self._take_save),
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
        offer = self.house.worlds.offers[self._number(request.match_info["world"], len(self.house.worlds.offers))]
        path = offer.starts[self._number(request.match_info["start"], len(offer.starts))]  # one of our own, by its place in the list
        return web.FileResponse(path)

    # ---- sessions

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        """``world``, ``start``: places in the lists of `/worlds`; ``seed``; ``film``: 1 or 0. The body, if any, is a start picture."""
        query, worlds = request.query, self.house.worlds.offers
        world = self._number(query.get("world", "0"), len(worlds))
        start = None if "start" not in query else self._number(query["start"], len(worlds[world].starts))
        seed = None if "seed" not in query else self._number(query["seed"], MAX_SEED + 1)
        try:
            self.house.check_room(world)  # before a byte of the upload is read
            upload = await self._upload(request)
            if upload is None and not worlds[world].starts:
                raise UploadError("this world has no start picture of its own; send one")
            seat = await self.house.admit(world, start, seed, query.get("film", "1") == "1", upload)
        except Full as full:
            self.house.counts["full"] += 1
            return _refusal(503, str(full))
        except UploadError as error:
            self.house.counts["uploads refused"] += 1
            LOG.info("upload refused: %s", error)
            return _refusal(415, str(error))
        LOG.info("session %s begins in %s", seat.id[:6], seat.config.name)
        return web.json_response({"session": seat.id, "resume": self.limits.vanished})

    async def _upload(self, request: web.Request) -> bytes | None:
        """The start picture in the body, if there is one."""
        data = bytearray()
        if request.can_read_body:
            async with aclosing(self._body(request, self.limits.upload, "the picture")) as chunks:
                async for chunk in chunks:
                    data += chunk
        return bytes(data) or None

    async def _body(self, request: web.Request, limit: int, what: str) -> AsyncIterator[bytes]:
        """The body as it comes, as far as it may go: what says that it is too large is not read at all. Raises Full, UploadError, 413."""
        if (request.content_length or 0) > limit:
            self._too_large(request, limit, what)
        if self._readings >= 4:
            raise Full("other uploads are being received; try again in a moment")
        self.house.counts["uploads"] += 1
        self._readings += 1
        size = 0
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                async for chunk in request.content.iter_chunked(1 << 16):
                    size += len(chunk)
                    if size > limit:
                        self._too_large(request, limit, what)
                    yield chunk
        except TimeoutError:
            raise UploadError(f"{what} took too long to arrive") from None
        finally:
            self._readings -= 1

    def _too_large(self, request: web.Request, limit: int, what: str) -> None:
        self.house.counts["uploads refused"] += 1
        LOG.info("upload refused: too large")
        body = json.dumps({"error": f"{what} is too large; at most {limit // 1_000_000} MB are taken"})
        refusal = web.HTTPRequestEntityTooLarge(limit, request.content_length or 0, text=body, content_type="application/json")
        refusal.force_close()  # the rest is not read
        raise refusal

    async def _about(self, request: web.Request) -> web.StreamResponse:
        """Whether a page that was here before can go on."""
        seat = self._seat(request)
        return web.json_response({"playing": not seat.ended_at, "reason": seat.over})

    async def _play(self, request: web.Request) -> web.StreamResponse:
        seat = self._seat(request)
        if seat.ended_at:
            raise web.HTTPGone
        reads = request.query.get("format", "jpeg").split(",")
        if not KINDS.keys() >= set(reads):
            raise web.HTTPBadRequest
        limits = self.limits
        socket = web.WebSocketResponse(max_msg_size=limits.message, heartbeat=limits.heartbeat, compress=False, timeout=3.0)
        await socket.prepare(request)
        kind = choose(self.house.frames, reads, seat.config.width)
        link = Link(socket, self.house.encoder, kind, limits, seat.config.fps)
        sender = asyncio.create_task(link.run())
        seat.attach(link)
        reason = "gone"
        try:
            reason = await self._listen_to(socket, link, seat)
        except Exception as error:  # a fault of ours: this session's alone
            reason = f"failed: {type(error).__name__}: {error}"
            self.house.end(seat, reason)
        finally:
            LOG.info("session %s: page %s", seat.id[:6], reason)
            seat.detach(link)
            if not sender.done() and socket.closed:
                sender.cancel()
            await asyncio.wait([sender], timeout=5)
            sender.cancel()
        return socket

    async def _listen_to(self, socket: web.WebSocketResponse, link: Link, seat: Seat) -> str:
        """Take messages until the connection ends; why it did."""
        counts, limits = self.house.counts, self.limits
        allowance, excess, malformed = Allowance(limits.messages), 0, 0
        async for message in socket:
            if message.type == WSMsgType.ERROR:
                return "gone"
            if not allowance.take():
                excess, counts["excess"] = excess + 1, counts["excess"] + 1
                if excess > limits.excess:
                    link.close(1008, "too many messages")
                    return "sent too many messages"
                continue
            try:
                if message.type != WSMsgType.TEXT:
                    raise ProtocolError("not text")
                found = parse(message.data, seat.config.actions.keys)
            except ProtocolError as error:
                malformed, counts["malformed"] = malformed + 1, counts["malformed"] + 1
                if malformed >= limits.malformed:
                    link.close(1008, "messages that make no sense")
                    return f"sent {malformed} messages that make no sense, the last: {error}"
                continue
            if seat.ended_at or seat.link is not link:
                continue
            seat.receive(found)
            seat.turn_soon()
        return "gone"

    # ---- downloads

    async def _session_file(self, request: web.Request) -> web.StreamResponse:
        seat = self._seat(request)
        if not seat.ended_at:
            await seat.files.written(seat.blocks)
        data = await asyncio.to_thread(seat.files.read_session)
        if data is None:
            raise web.HTTPNotFound
        return web.Response(body=data, content_type="application/jsonl", headers=_attachment(seat.files.session_path.name))

    async def _film(self, request: web.Request) -> web.StreamResponse:
        seat = self._seat(request)
        path = seat.files.film_path()
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path, headers=_attachment(seat.files.film.name) | {"Content-Type": "video/mp4"})

    async def _saved(self, request: web.Request) -> web.StreamResponse:
        seat = self._seat(request)
        path = seat.saves.path(self._number(request.match_info["slot"], 10))
        if not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path, headers=_attachment(path.name) | {"Content-Type": "application/octet-stream"})

    # ---- a saved game that somebody sends

    async def _take_save(self, request: web.Request) -> web.StreamResponse:
        """The body becomes the saved game of a slot. Whether it can be loaded is found out when it is (`Snapshot.load`)."""
        seat, slot = self._seat(request), self._number(request.match_info["slot"], 10)
        limit = self.house.save_limit(seat)
        if seat.ended_at or not limit:
            raise web.HTTPGone
        if not 1 <= slot <= seat.slots:
            return _refusal(400, f"there is room for {seat.slots} saved games here, choose slot 1 to {seat.slots}")
        if not seat.may_upload():
            return _refusal(429, "too many at once; try again in a moment")
        try:
            await self._receive_save(request, seat, slot, limit)
        except Full as full:
            return _refusal(503, str(full))
        except UploadError as error:
            self.house.counts["uploads refused"] += 1
            LOG.info("upload refused: %s", error)
            return _refusal(415, str(error))
        seat.look_for_saves()
        seat.turn_soon()
        return web.json_response({"slot": slot})

    async def _receive_save(self, request: web.Request, seat: Seat, slot: int, limit: int) -> None:
        """Into a file of our own, which takes the slot's place when it is whole and of this world by its header."""
        path = seat.saves.path(slot)
        part = path.with_name(f"upload-{secrets.token_hex(8)}")
        try:
            await asyncio.to_thread(path.parent.mkdir, exist_ok=True)
            with open(part, "xb") as file:
                async with aclosing(self._body(request, limit, "the saved game")) as chunks:
                    async for chunk in chunks:
                        await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(Snapshot.check_name, part, seat.config)
            os.replace(part, path)
        except WorldError:  # its words say where the file lies
            raise UploadError(f"this is no saved game of the world {seat.config.name}") from None
        except FileNotFoundError:  # the session has ended meanwhile, and its folder with it
            raise web.HTTPGone from None
        finally:
            part.unlink(missing_ok=True)

    def _seat(self, request: web.Request) -> Seat:
        """By the id in the address, which nobody can guess."""
        seat = self.house.seats.get(request.match_info["id"])
        if seat is None:
            raise web.HTTPNotFound
        return seat

    @staticmethod
    def _number(text: str, below: int) -> int:
        if not (text.isascii() and text.isdecimal()) or len(text) > 16 or int(text) >= below:
            raise web.HTTPBadRequest
        return int(text)


def _refusal(status: int, words: str) -> web.Response:
    response: Any = web.json_response({"error": words}, status=status)
    response.force_close()  # an upload may still be on its way
    return response


def _attachment(name: str) -> dict[str, str]:
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in name)
    return {"Content-Disposition": f'attachment; filename="{safe}"'}
