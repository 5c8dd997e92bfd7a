"""What travels between page and server: frames as binary with a fixed header, all else as small JSON objects."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
HEADER = struct.Struct("<2sBBIIIIIIHBB")
MAGIC = b"RV"
KINDS = {"jpeg": 1, "webp": 2, "h264": 3, "h264-444": 4}  # H.264 with colours in half and in full size
STILL = 1 << 7  # of ``kind``: a picture to stand still at, no part of a block
MAX_ID = 2**32 - 1
MAX_KEYS = 16
MAX_MOUSE = 10_000.0  # pixels in one message
COMMANDS = ("pause", "resume", "step", "restart", "save", "load", "rewind", "rewind end", "leave")


class ProtocolError(ValueError):
    """A message that makes no sense; one line."""


@dataclass(frozen=True)
class FrameHeader:
    """What stands before every picture, 32 bytes, little endian."""

    kind: str  # one of KINDS
    still: bool
    epoch: int
    block: int
    frame: int  # number in the epoch
    input: int  # newest input the block has seen
    generation: int  # microseconds the world took for the block
    lost: int  # blocks this page has not been sent so far
    hold: int  # milliseconds to hold the first frame of an epoch, so that the block after it can be in time
    index: int  # of the frame in its block
    count: int  # frames in the block

    def pack(self) -> bytes:
        kind = KINDS[self.kind] | (STILL if self.still else 0)
        numbers = (self.epoch, self.block, self.frame, self.input, min(self.generation, MAX_ID), min(self.lost, MAX_ID))
        return HEADER.pack(MAGIC, VERSION, kind, *numbers, min(self.hold, 0xFFFF), self.index, self.count)

    @classmethod
    def unpack(cls, data: bytes) -> FrameHeader:
        """Of the first 32 bytes; what follows is the picture. Raises ProtocolError."""
        if len(data) < HEADER.size:
            raise ProtocolError(f"{len(data)} bytes are no frame, its header has {HEADER.size}")
        magic, version, kind, *numbers, hold, index, count = HEADER.unpack_from(data)
        names = {number: name for name, number in KINDS.items()}
        if magic != MAGIC or version != VERSION or kind & ~STILL not in names:
            raise ProtocolError(f"not a frame of version {VERSION}")
        return cls(names[kind & ~STILL], bool(kind & STILL), *numbers, hold, index, count)


@dataclass(frozen=True)
class Input:
    """The state of all controls. Only ``mouse`` is a change: movement in pixels since the message before."""

    id: int
    keys: frozenset[str]
    look: tuple[float, float]  # (pitch, yaw) of a stick or touch pad, in [-1, 1]
    mouse: tuple[float, float]  # right, down


@dataclass(frozen=True)
class Got:
    """A block has arrived whole, its first frame ``spread`` seconds before its last."""

    epoch: int
    block: int
    spread: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class At:
    """``frame``, of ``block``, is on screen in ``seconds`` from now (or has just been put there). ``late``: the picture stood meanwhile."""

    epoch: int
    block: int
    frame: int
    seconds: float
    late: bool


@dataclass(frozen=True)
class Frozen:
    """The page has shown the single block it was asked for."""

    epoch: int


@dataclass(frozen=True)
class Do:
    """A command; ``slot`` is for saving and loading."""

    command: str
    slot: int


Message = Input | Got | At | Frozen | Do


def parse(text: str, keys: tuple[str, ...]) -> Message:
    """A page's message, every field checked; ``keys`` are those of the world. Raises ProtocolError."""
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(found, dict):
        raise ProtocolError("not an object")
    read = _READERS.get(found.get("t")) if isinstance(found.get("t"), str) else None
    if read is None:
        raise ProtocolError("of no known kind")
    return read(found, keys)


def _input(found: dict[str, Any], keys: tuple[str, ...]) -> Input:
    held = found.get("keys")
    if not isinstance(held, list) or len(held) > MAX_KEYS or not all(isinstance(key, str) and key in keys for key in held):
        raise ProtocolError("keys must be a list of the world's keys")
    return Input(_whole(found, "id"), frozenset(held), _pair(found, "look", 1.0), _pair(found, "mouse", MAX_MOUSE))


def _got(found: dict[str, Any], keys: tuple[str, ...]) -> Got:
    spread = _number(found.get("spread", 0), "spread", 60_000.0) / 1000
    return Got(_whole(found, "epoch"), _whole(found, "block"), max(0.0, spread))


def _at(found: dict[str, Any], keys: tuple[str, ...]) -> At:
    if type(found.get("late")) is not bool:
        raise ProtocolError("late must be true or false")
    seconds = _number(found.get("in"), "in", 60_000.0) / 1000
    return At(_whole(found, "epoch"), _whole(found, "block"), _whole(found, "frame"), seconds, found["late"])


def _do(found: dict[str, Any], keys: tuple[str, ...]) -> Do:
    if found.get("do") not in COMMANDS:
        raise ProtocolError("no such command")
    slot = found.get("slot", 1)
    if type(slot) is not int or not 1 <= slot <= 9:
        raise ProtocolError("slot must be from 1 to 9")
    return Do(found["do"], slot)


_READERS: dict[str, Callable[[dict[str, Any], tuple[str, ...]], Message]] = {
    "in": _input,
    "got": _got,
    "at": _at,
    "frozen": lambda found, keys: Frozen(_whole(found, "epoch")),
    "do": _do,
}


def _whole(found: dict[str, Any], name: str) -> int:
    value = found.get(name)
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise ProtocolError(f"{name} must be a whole number from 0 to {MAX_ID}")
    return value


def _number(value: Any, name: str, limit: float) -> float:
    if type(value) not in (int, float) or not abs(value) <= limit or not math.isfinite(value):
        raise ProtocolError(f"{name} must be a number from -{limit:g} to {limit:g}")
    return float(value)


def _pair(found: dict[str, Any], name: str, limit: float) -> tuple[float, float]:
    pair = found.get(name, [0, 0])
    if not isinstance(pair, list) or len(pair) != 2:
        raise ProtocolError(f"{name} must be two numbers")
    return _number(pair[0], name, limit), _number(pair[1], name, limit)


def _no_constant(name: str) -> float:
    raise ValueError(name)
