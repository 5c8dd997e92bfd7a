"""What is remembered about large files between two starts: hashes, and `.pth` files rewritten as safetensors.

Both belong to a file only as long as its size and the time of its last change stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from models.errors import WeightError
from models.weightfile import DTYPES, PickleFile, SafetensorsFile

SETTLED = 2_000_000_000  # ns: a file younger than this may change again without its time of change showing it
HASHES = "hashes.json"
MOST_HASHES = 1000
TABLE_LIMIT = 4 << 20  # bytes of the table of hashes


def cache_folder() -> Path:
    """The folder for what can be made anew: $REVERIE_CACHE, or ~/.cache/reverie."""
    given = os.environ.get("REVERIE_CACHE")
    return Path(given) if given else Path("~/.cache/reverie").expanduser()


def sha256(path: Path | str) -> str:
    """Hash of a file, hexadecimal, read in pieces. Raises WeightError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightError(f"cannot read {path}: {error.strerror or error}") from None


def file_hash(path: Path, fresh: bool = False) -> str:
    """sha256 of a file, taken from the cache while size and time of change are those of then; ``fresh`` always reads the file."""
    stamp = _stamp(path)
    if stamp is None:
        return sha256(path)  # says what is wrong
    key, known = os.path.abspath(path), _known_hashes()
    entry = known.get(key)
    if not fresh and entry is not None and entry[:2] == [*stamp]:
        return entry[2]
    found = sha256(path)
    if _stamp(path) == stamp and _settled(stamp):
        known.pop(key, None)
        known[key] = [*stamp, found]
        kept = dict(list(known.items())[-MOST_HASHES:])
        _replace(cache_folder() / HASHES, lambda file: file.write(json.dumps(kept, indent=0).encode()))
    return found


def find_rewritten(path: Path, part: str = "") -> SafetensorsFile | None:
    """The safetensors made of a `.pth` by `rewrite` with the same ``part``, if it still fits; its tensors are checked like any other's."""
    stamp = _stamp(path)
    if stamp is None:
        return None
    for place in _places(path, part):
        try:
            file = SafetensorsFile(place)
        except WeightError:
            continue
        if {key: file.metadata.get(key) for key in ("part", "size", "mtime_ns")} == _notes(part, stamp):
            return file
    return None


def rewrite(file: PickleFile, part: str = "") -> SafetensorsFile | None:
    """Write the tensors of a `.pth` whose names begin with ``part`` as safetensors: beside it, or else into the cache folder.

    Numbers are kept as they are, precision too. Afterwards `find_rewritten` finds the file. None where nothing could be
    written, or where the original is so young that its next version could not be told from it.
    """
    stamp = _stamp(file.path)
    if stamp is None or not _settled(stamp):
        return None
    names = {name: (file.dtypes[name], shape) for name, shape in file.shapes.items() if name.startswith(part)}
    for place in _places(file.path, part):
        if write_safetensors(place, names, file.read, {**_notes(part, stamp), "made_from": file.path.name, "by": "reverie"}):
            return find_rewritten(file.path, part)
    return None


def write_safetensors(
    path: Path, table: Mapping[str, tuple[str, tuple[int, ...]]], read: Callable[[str], Tensor], notes: Mapping[str, str] | None = None
) -> bool:
    """Write tensors one at a time as they are read; ``table`` gives the (dtype, shape) of each name. Whole, or not at all.

    Returns whether it could be written.
    """
    order = sorted(table, key=lambda name: (-DTYPES[table[name][0]].itemsize, name))  # wide numbers first: all stay aligned
    header: dict[str, object] = {"__metadata__": dict(notes)} if notes else {}
    end = 0
    for name in order:
        dtype, shape = table[name]
        begin, end = end, end + DTYPES[dtype].itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(memoryview(read(name).contiguous().reshape(-1).view(torch.uint8).numpy()))

    return _replace(path, write)


def _places(path: Path, part: str) -> list[Path]:
    """Where the rewritten file may lie. A link is not written beside: its folder is somebody's cache, such as huggingface's."""
    name = f"{path.stem}.{part}reverie.safetensors"
    whole = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:16]
    return [*([] if path.is_symlink() else [path.with_name(name)]), cache_folder() / "rewritten" / whole / name]


def _notes(part: str, stamp: tuple[int, int]) -> dict[str, str | None]:
    return {"part": part, "size": str(stamp[0]), "mtime_ns": str(stamp[1])}


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _settled(stamp: tuple[int, int]) -> bool:
    return abs(time.time_ns() - stamp[1]) > SETTLED


def _known_hashes() -> dict[str, list]:
    """The table of hashes; entries that are not of our making are dropped, and a damaged table is an empty one."""
    try:
        with open(cache_folder() / HASHES, "rb") as file:
            table = json.loads(file.read(TABLE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: entry for key, entry in table.items() if _is_hash(entry)} if isinstance(table, dict) else {}


def _is_hash(entry: object) -> bool:
    match entry:
        case [int(), int(), str(digest)]:
            return len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    return False


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> bool:
    """``write`` into a file that takes its name only when it is whole and on the disk. False where that is not possible."""
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f".{path.name}.*.tmp"):  # of a run that was killed
            if time.time() - old.stat().st_mtime > 3600:
                old.unlink()
        with open(half, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            half.unlink()
    return True
