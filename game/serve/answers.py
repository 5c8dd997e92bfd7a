"""What a request asks for, and how it is refused."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from game.serve.house import House
from game.serve.seat import Seat


def seat_of(house: House, request: web.Request) -> Seat:
    """By the id in the address, which nobody can guess."""
    seat = house.seats.get(request.match_info["id"])
    if seat is None:
        raise web.HTTPNotFound
    return seat


def number(text: str, below: int) -> int:
    """A whole number from 0, as it is written; 400 for any other."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 16 or int(text) >= below:
        raise web.HTTPBadRequest
    return int(text)


def refusal(status: int, words: str) -> web.Response:
    response: Any = web.json_response({"error": words}, status=status)
    response.force_close()  # an upload may still be on its way
    return response


def attachment(name: str) -> dict[str, str]:
    """The header that has a browser save what comes under that name."""
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in name)
    return {"Content-Disposition": f'attachment; filename="{safe}"'}
