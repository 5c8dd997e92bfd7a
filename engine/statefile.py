"""Named tensors and one json text in a file that is written whole or not at all, and distrusted when it is read.

The format is safetensors, so that any tool can look inside. It is read here by hand, once and in order, so that what is hashed is
what is used, nothing is mapped, and before names, shapes and lengths have been looked at no tensor is read and no memory taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from models.errors import WorldError, one_line

KEY = "reverie"  # of the json text among the file's metadata
HEADER_LIMIT = 1 << 20  # bytes; there are some 200 tensors in the snapshot of a published world, at about 100 bytes each
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8}
WORDS = {kind: word for word, kind in DTYPES.items()}
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # of tensors, by name


def write(path: Path, tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> str:
    """Replace ``path`` in one stroke; returns the new file's sha256. ``head`` gets the sha256 of all the tensors' bytes as ``data``.

    The file is written beside its place, synced, renamed, and the folder synced: whatever happens on the way, the name holds the
    old file or the new one. Raises WorldError, and leaves nothing behind, when that cannot be done.
    """
    try:
        with _new_file(path) as file:
            return _write(file, tensors, head)
    except OSError as error:
        raise WorldError(f"cannot write {one_line(path, 200)}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Entry:
    """A tensor in the file: its first and last byte count from the first tensor's."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int
    last: int


class StateFile:
    """A file open for reading: first `head` and `layout`, then, if they please, `read`. Every method raises WorldError or OSError."""

    def __init__(self, path: str | Path) -> None:
        self.name = one_line(path, 200)
        if not stat.S_ISREG(os.stat(path).st_mode):  # others may have to be waited for
            raise WorldError(f"{self.name} is not a file")
        self._file = open(path, "rb")
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> StateFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def layout(self) -> Layout:
        return {name: (entry.dtype, entry.shape) for name, entry in self._entries.items()}

    @property
    def nbytes(self) -> int:
        """Of all tensors, as the header has it."""
        return max((entry.last for entry in self._entries.values()), default=0)

    def read(self) -> tuple[dict[str, Tensor], str]:
        """All tensors, finite and with the bytes they were written with, and the sha256 of the whole file."""
        self._check_lengths()
        tensors: dict[str, Tensor] = {}
        whole, data = self._digest, hashlib.sha256()
        for name, entry in self._entries.items():
            memory = bytearray(entry.last - entry.first)
            if self._file.readinto(memory) != len(memory):
                raise WorldError(f"{self.name} is cut short in the middle of {one_line(name, 80)}")
            whole.update(memory)
            data.update(memory)
            tensors[name] = torch.frombuffer(memory, dtype=entry.dtype).view(entry.shape)
            if entry.dtype.is_floating_point and not torch.isfinite(tensors[name]).all():
                raise WorldError(f"{self.name}: {one_line(name, 80)} holds NaN or infinite numbers")
        if self.head.get("data") != data.hexdigest():
            raise WorldError(f"{self.name} is damaged: its tensors are not those that were written")
        return tensors, whole.hexdigest()

    def _read_header(self) -> None:
        begin = self._file.read(8)
        length = int.from_bytes(begin, "little")
        text = self._file.read(length) if len(begin) == 8 and 2 <= length <= HEADER_LIMIT else b""
        if not text.startswith(b"{"):
            raise WorldError(f"{self.name} is no snapshot")
        if len(text) < length:
            raise WorldError(f"{self.name} is cut short: {len(text)} bytes of its header are there, it says {length}")
        self._digest = hashlib.sha256(begin + text)
        try:
            table = json.loads(text)
            metadata = table.pop("__metadata__", None)
            if not isinstance(metadata, dict) or not isinstance(metadata.get(KEY), str):
                raise WorldError(f"{self.name} is no snapshot of Reverie")
            self.head = json.loads(metadata[KEY])
            entries = {name: _entry(entry) for name, entry in table.items()}
        except WorldError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise WorldError(f"{self.name}: the header is damaged ({one_line(error, 80)})") from None
        if not isinstance(self.head, dict):
            raise WorldError(f"{self.name} is no snapshot of Reverie")
        self._entries = dict(sorted(entries.items(), key=lambda item: item[1].first))

    def _check_lengths(self) -> None:
        """The tensors must fill the rest of the file without gap or overlap, and not more than it has."""
        end = 0
        for name, entry in self._entries.items():
            if entry.first != end or entry.last - end != math.prod(entry.shape) * entry.dtype.itemsize:
                raise WorldError(f"{self.name}: the header is damaged (place of {one_line(name, 80)})")
            end = entry.last
        there = os.fstat(self._file.fileno()).st_size - self._file.tell()
        if there != end:
            raise WorldError(
                f"{self.name} is {'cut short' if there < end else 'too long'}: {there} bytes of tensors, its header says {end}"
            )


def _entry(entry: Any) -> Entry:
    """One line of the table of contents; raises ValueError, TypeError or KeyError where it is anything else."""
    shape, offsets = tuple(entry["shape"]), tuple(entry["data_offsets"])
    right = all(type(number) is int and 0 <= number < 1 << 48 for number in (*shape, *offsets)) and all(shape)
    if not right or len(offsets) != 2 or len(shape) > 8:
        raise ValueError("an impossible shape or place")
    return Entry(DTYPES[entry["dtype"]], shape, *offsets)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name ``path`` when all went well, and vanishes otherwise."""
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}-", suffix=".part", delete=False)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(file.name)
        raise
    with contextlib.suppress(OSError):  # the new name, too, should survive a power cut, where the system can do that
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(file: IO[bytes], tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> str:
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)  # so that every tensor lies aligned
    parts = [tensor.contiguous().flatten().view(torch.uint8).numpy().data for _, tensor in ordered]
    table: dict[str, Any] = {"__metadata__": {KEY: json.dumps({**head, "data": _sha256(parts)})}}
    end = 0
    for name, tensor in ordered:
        table[name] = {"dtype": WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    everything = [len(header).to_bytes(8, "little"), header, *parts]
    for part in everything:
        file.write(part)
    return _sha256(everything)


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
