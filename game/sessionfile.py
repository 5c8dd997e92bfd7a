"""A session as a text file, JSON lines: what is in it, and reading it back. `docs/SESSIONS.md` lists every field.

A session file may come from anybody. Nothing in it is ever used as a path or an address, every number is checked against a
limit before it is used, and whatever is wrong with it is one `SessionError`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from engine import Action
from game.sinks import Origin

KIND, VERSION = "session", 1
MAX_HEADER = 4 << 20  # bytes: the start picture is in it
MAX_LINE = 64 << 10  # bytes of any other line
MAX_BLOCKS = 1_000_000  # more than a week of the garden
MAX_BYTES = 2 << 30  # of the whole file
MAX_KEYS = 64  # held at once
MAX_EPOCH = 1 << 31
MAX_FRAMES = 256  # of a block

_HEX = re.compile(r"[0-9a-f]{64}")


class SessionError(ValueError):
    """A session file that cannot be used; one line that names the file, the line and what is wrong."""


@dataclass(frozen=True, slots=True)
class Played:
    """One block of a session as its file tells it. ``sha256`` is None where nobody hashed it."""

    epoch: int
    index: int  # from 0 at the start picture
    action: Action
    keyboard: tuple[float, ...]  # as the model got it
    mouse: tuple[float, ...] | None
    frames: int
    sha256: str | None
    origin: Origin | None  # set on the first block of each epoch


@dataclass
class SessionFile:
    """All of a session: ``blocks`` in the order they were played, ``end`` is why it ended, None for one that broke off."""

    path: Path
    header: dict[str, Any]
    identity: str  # sha256 of the header's line
    blocks: list[Played] = field(default_factory=list)
    gaps: set[tuple[int, int]] = field(default_factory=set)  # (epoch, index) of blocks that are not in the film
    end: str | None = None
    _by_epoch: dict[int, list[Played]] = field(default_factory=dict, repr=False)

    def lineage(self, epoch: int) -> list[Played]:
        """The blocks that led to the end of ``epoch``, those of its parents that stayed included."""
        parts: list[list[Played]] = []
        stop: int | None = None
        while True:
            own = self._of(epoch)
            parts.append([block for block in own if stop is None or block.index < stop])
            origin = own[0].origin
            if origin.kind != "rewind":
                return [block for part in reversed(parts) for block in part]
            stop = origin.block if stop is None else min(stop, origin.block)
            epoch = origin.parent

    def _of(self, epoch: int) -> list[Played]:
        if not self._by_epoch:
            for block in self.blocks:
                self._by_epoch.setdefault(block.epoch, []).append(block)
        return self._by_epoch[epoch]


def encode(line: dict[str, Any]) -> bytes:
    """One line of a session file."""
    return json.dumps(line, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def looks_like_session(path: Path) -> bool:
    """Whether the file begins like a session file, as opposed to a script."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip().startswith(b"{")
    except OSError:
        return False


def read_session(path: Path) -> SessionFile:
    """The session in the file ``path``; of one that broke off, everything up to there. Raises `SessionError`."""
    try:
        if not path.is_file():
            raise SessionError(f"{path}: {'is a folder, not a session file' if path.is_dir() else 'no such session file'}")
        if path.stat().st_size > MAX_BYTES:
            raise SessionError(f"{path}: {path.stat().st_size} bytes are more than any session has")
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(path: Path, file: IO[bytes]) -> SessionFile:
    first = file.readline(MAX_HEADER + 1)
    header = _header(path, first)
    session = SessionFile(path, header, hashlib.sha256(first).hexdigest())
    chain = hashlib.sha256(first)
    reader = _Blocks(session)
    for number, raw in _lines(path, file):
        line = _decode(path, number, raw)
        if session.end is not None:
            raise SessionError(f"{path}: line {number}: there is something after the session's end")
        try:
            if "end" in line:
                reader.footer(line, chain.hexdigest())
            elif "mark" in line:
                reader.mark(line)
            else:
                reader.block(line)
        except _Wrong as wrong:
            raise SessionError(f"{path}: line {number}: {wrong}") from None
        chain.update(raw)
    return session


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number, line) of every whole line after the header; a last one without its end was torn off and is left out."""
    number = 1
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            raise SessionError(f"{path}: line {number} is longer than {MAX_LINE} bytes")
        if raw.endswith(b"\n"):
            yield number, raw


def _decode(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise SessionError(f"{path}: line {number} is damaged: not JSON") from None
    if not isinstance(line, dict):
        raise SessionError(f"{path}: line {number} is damaged: not a table of fields")
    return line


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _header(path: Path, first: bytes) -> dict[str, Any]:
    if len(first) > MAX_HEADER:
        raise SessionError(f"{path}: its first line is longer than {MAX_HEADER} bytes: not a session file")
    if not first.endswith(b"\n"):
        raise SessionError(f"{path}: {'is empty' if not first else 'breaks off in its first line, or is no session file'}")
    header = _decode(path, 1, first)
    if header.get("reverie") != KIND:
        raise SessionError(f'{path}: is not a session file (its first line lacks "reverie":"{KIND}")')
    if header.get("version") != VERSION or isinstance(header["version"], bool):
        raise SessionError(f"{path}: is of version {_show(header.get('version'))}; this program reads version {VERSION}")
    kinds = {"world": str, "weights": dict, "start": dict, "seed": int, "noise": str, "dtype": str, "settings": dict, "fingerprint": dict}
    for name, kind in kinds.items():
        if type(header.get(name)) is not kind:
            raise SessionError(f"{path}: line 1: {name} must be a {kind.__name__}, not {_show(header.get(name))}")
    if not 0 <= header["seed"] < 2**63:
        raise SessionError(f"{path}: line 1: seed must be from 0 to {2**63 - 1}, not {_show(header['seed'])}")
    start = header["start"]
    name = "snapshot" if "snapshot" in start else "pixels"
    if not _HEX.fullmatch(str(start.get(name))):
        raise SessionError(f"{path}: line 1: start.{name} must be a sha256, not {_show(start.get(name))}")
    try:
        past_of(header)
    except _Wrong as wrong:
        raise SessionError(f"{path}: line 1: start.clip: {wrong}") from None
    return header


def past_of(header: dict[str, Any]) -> list[Action]:
    """What was done in the clip that a session began with, block by block; nothing where there was none."""
    clip = header["start"].get("clip", [])
    if not isinstance(clip, list) or len(clip) > MAX_BLOCKS or not all(isinstance(block, dict) for block in clip):
        raise _Wrong(f"must be a list of blocks, not {_show(clip)}")
    return [_action(block) for block in clip]


def _action(line: dict[str, Any]) -> Action:
    keys, look = _list(line, "keys", str, MAX_KEYS), _numbers(line, "look", 2, 2)
    if any(abs(value) > 1 for value in look):
        raise _Wrong(f"look must lie in [-1, 1], not {_show(look)}")
    return Action(frozenset(keys), (look[0], look[1]))


class _Wrong(Exception):
    """What is wrong with a line, without file and line number."""


class _Blocks:
    """Adds line after line to a session, checking each against those before."""

    def __init__(self, session: SessionFile) -> None:
        self.session = session
        self._begin = len(session.header["start"].get("clip", []))  # the first block after a start: 0 but for a clip
        self._spans: dict[int, tuple[int, int]] = {}  # of each epoch, its parents included: first block, last block + 1
        self._actions: dict[Action, Action] = {}  # one object for the many that are equal

    def block(self, line: dict[str, Any]) -> None:
        blocks = self.session.blocks
        if len(blocks) >= MAX_BLOCKS:
            raise _Wrong(f"more than {MAX_BLOCKS} blocks")
        epoch, index = _whole(line, "epoch", MAX_EPOCH), _whole(line, "block", MAX_BLOCKS)
        origin = self._origin(line.get("origin"), epoch, index)
        action = _action(line)
        mouse = None if line.get("mouse") is None else tuple(_numbers(line, "mouse", 2, 2))
        digest = line.get("sha256")
        if digest is not None and not (isinstance(digest, str) and _HEX.fullmatch(digest)):
            raise _Wrong(f"sha256 must be 64 hexadecimal digits, not {_show(digest)}")
        keyboard, frames = tuple(_numbers(line, "keyboard", 0, 256)), _whole(line, "frames", MAX_FRAMES)
        action = self._actions.setdefault(action, action)
        blocks.append(Played(epoch, index, action, keyboard, mouse, frames, digest, origin))
        first = self._spans[origin.parent][0] if origin is not None and origin.kind == "rewind" else index
        self._spans[epoch] = (self._spans[epoch][0] if origin is None else first, index + 1)

    def _origin(self, found: object, epoch: int, index: int) -> Origin | None:
        last = self.session.blocks[-1] if self.session.blocks else None
        if last is not None and epoch == last.epoch:
            if index != last.index + 1 or found is not None:
                raise _Wrong(f"block {index} does not follow block {last.index}")
            return None
        if last is not None and epoch < last.epoch:
            raise _Wrong(f"epoch {epoch} comes after epoch {last.epoch}")
        if not isinstance(found, dict):
            raise _Wrong(f"the first block of epoch {epoch} must say where it goes on from (origin)")
        kind, parent, snapshot = found.get("kind"), found.get("parent"), found.get("snapshot")
        if found.get("block") != index or isinstance(found["block"], bool):
            raise _Wrong(f"origin.block must be {index}, not {_show(found.get('block'))}")
        if kind == "start" and (index == 0 or index == self._begin or last is not None) and parent is None and snapshot is None:
            return Origin("start", index)
        if kind == "rewind" and snapshot is None and type(parent) is int and parent in self._spans:
            first, end = self._spans[parent]
            if first <= index <= end:
                return Origin("rewind", index, parent)
        if kind == "load" and parent is None and isinstance(snapshot, str) and _HEX.fullmatch(snapshot):
            return Origin("load", index, None, snapshot)
        raise _Wrong(f"an origin {_show(kind)} with block {index}, parent {_show(parent)} and snapshot {_show(snapshot)} makes no sense")

    def mark(self, line: dict[str, Any]) -> None:
        if not isinstance(line["mark"], str):
            raise _Wrong(f"mark must be a word, not {_show(line['mark'])}")
        if line["mark"] == "gap":
            self.session.gaps.add((_whole(line, "epoch", MAX_EPOCH), _whole(line, "block", MAX_BLOCKS)))

    def footer(self, line: dict[str, Any], chain: str) -> None:
        if not isinstance(line["end"], str):
            raise _Wrong(f"end must be a word, not {_show(line['end'])}")
        if line.get("blocks") != len(self.session.blocks):
            raise _Wrong(f"the end counts {_show(line.get('blocks'))} blocks, there are {len(self.session.blocks)}")
        if line.get("chain") != chain:
            raise _Wrong("its lines are not those it was closed with: the file was changed or damaged (an exported script may be edited)")
        self.session.end = line["end"][:200]


def _whole(line: dict[str, Any], name: str, limit: int) -> int:
    value = line.get(name)
    if type(value) is not int or not 0 <= value <= limit:
        raise _Wrong(f"{name} must be a whole number from 0 to {limit}, not {_show(value)}")
    return value


def _list(line: dict[str, Any], name: str, kind: type, limit: int) -> list[Any]:
    value = line.get(name)
    if not isinstance(value, list) or len(value) > limit or any(type(item) is not kind for item in value):
        raise _Wrong(f"{name} must be a list of at most {limit} {kind.__name__}, not {_show(value)}")
    return value


def _numbers(line: dict[str, Any], name: str, low: int, high: int) -> list[float]:
    value = line.get(name)
    if not isinstance(value, list) or not low <= len(value) <= high or any(type(item) not in (int, float) for item in value):
        raise _Wrong(f"{name} must be a list of {low} to {high} numbers, not {_show(value)}")
    if any(abs(item) > 1e30 or not math.isfinite(item) for item in value):
        raise _Wrong(f"{name} must be finite numbers of a sensible size, not {_show(value)}")
    return [float(item) for item in value]


def _show(value: object, limit: int = 40) -> str:
    """The value for a message, short and on one line; containers by their kind alone."""
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else f"a list of {len(value)}"
    text = ascii(value if not isinstance(value, str) else value[:limit])
    return text if len(text) <= limit else text[: limit - 1] + "…"
