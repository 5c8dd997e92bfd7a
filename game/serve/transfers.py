"""Files that come in and go out: start pictures, saved games, films and session files. None is opened by a name that a client gave."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing

from aiohttp import web

from engine import Snapshot, WorldError
from game.serve.answers import attachment, number, refusal, seat_of
from game.serve.house import Full, House
from game.serve.seat import Seat
from game.serve.upload import UploadError

LOG = logging.getLogger("reverie.serve")
READINGS = 4  # uploads, of all clients together, that are received at once


class Transfers:
    """The routes of a session's files, and what is read of a request's body."""

    def __init__(self, house: House) -> None:
        self.house, self.limits = house, house.limits
        self._readings = 0

    # ---- going out

    async def session_file(self, request: web.Request) -> web.StreamResponse:
        seat = seat_of(self.house, request)
        if not seat.ended_at:
            await seat.files.written(seat.blocks)
        data = await asyncio.to_thread(seat.files.read_session)
        if data is None:
            raise web.HTTPNotFound
        return web.Response(body=data, content_type="application/jsonl", headers=attachment(seat.files.session_path.name))

    async def film(self, request: web.Request) -> web.StreamResponse:
        seat = seat_of(self.house, request)
        path = seat.files.film_path()
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path, headers=attachment(seat.files.film.name) | {"Content-Type": "video/mp4"})

    async def saved(self, request: web.Request) -> web.StreamResponse:
        seat = seat_of(self.house, request)
        path = seat.saves.path(number(request.match_info["slot"], 10))
        if not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path, headers=attachment(path.name) | {"Content-Type": "application/octet-stream"})

    # ---- coming in

    async def take_save(self, request: web.Request) -> web.StreamResponse:
        """The body becomes the saved game of a slot. Whether it can be loaded is found out when it is (`Snapshot.load`)."""
        seat, slot = seat_of(self.house, request), number(request.match_info["slot"], 10)
        limit = self.house.save_limit(seat)
        if seat.ended_at or not limit:
            raise web.HTTPGone
        if not 1 <= slot <= seat.slots:
            return refusal(400, f"there is room for {seat.slots} saved games here, choose slot 1 to {seat.slots}")
        if not seat.may_upload():
            return refusal(429, "too many at once; try again in a moment")
        try:
            await self._receive_save(request, seat, slot, limit)
        except Full as full:
            return refusal(503, str(full))
        except UploadError as error:
            return self.refused(error)
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

    async def start_picture(self, request: web.Request) -> bytes | None:
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
        if self._readings >= READINGS:
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

    def refused(self, error: UploadError) -> web.Response:
        """The answer to what is no file that can be taken; one line is logged."""
        self.house.counts["uploads refused"] += 1
        LOG.info("upload refused: %s", error)
        return refusal(415, str(error))

    def _too_large(self, request: web.Request, limit: int, what: str) -> None:
        self.house.counts["uploads refused"] += 1
        LOG.info("upload refused: too large")
        body = json.dumps({"error": f"{what} is too large; at most {limit // 1_000_000} MB are taken"})
        answer = web.HTTPRequestEntityTooLarge(limit, request.content_length or 0, text=body, content_type="application/json")
        answer.force_close()  # the rest is not read
        raise answer
