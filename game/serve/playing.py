"""A page's connection: what it sends is read as far as it is allowed to send it."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import WSMsgType, web

from game.serve.answers import seat_of
from game.serve.house import House
from game.serve.limits import Allowance
from game.serve.link import Link
from game.serve.protocol import KINDS, ProtocolError, parse
from game.serve.seat import Seat
from game.serve.video import choose

LOG = logging.getLogger("reverie.serve")


async def play(house: House, request: web.Request) -> web.StreamResponse:
    """The WebSocket of a session. Returns when the page has gone, or had to go."""
    seat = seat_of(house, request)
    if seat.ended_at:
        raise web.HTTPGone
    reads = request.query.get("format", "jpeg").split(",")
    if not KINDS.keys() >= set(reads):
        raise web.HTTPBadRequest
    limits = house.limits
    socket = web.WebSocketResponse(max_msg_size=limits.message, heartbeat=limits.heartbeat, compress=False, timeout=3.0)
    await socket.prepare(request)
    kind = choose(house.frames, reads, seat.config.width)
    link = Link(socket, house.encoder, kind, limits, seat.config.fps)
    sender = asyncio.create_task(link.run())
    seat.attach(link)
    reason = "gone"
    try:
        reason = await _listen_to(house, socket, link, seat)
    except Exception as error:  # a fault of ours: this session's alone
        reason = f"failed: {type(error).__name__}: {error}"
        house.end(seat, reason)
    finally:
        LOG.info("session %s: page %s", seat.id[:6], reason)
        seat.detach(link)
        if not sender.done() and socket.closed:
            sender.cancel()
        await asyncio.wait([sender], timeout=5)
        sender.cancel()
    return socket


async def _listen_to(house: House, socket: web.WebSocketResponse, link: Link, seat: Seat) -> str:
    """Take messages until the connection ends; why it did."""
    counts, limits = house.counts, house.limits
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
