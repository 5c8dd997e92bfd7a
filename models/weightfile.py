"""One weight file: its table of contents first, then its tensors one at a time.

Nothing of a safetensors file is mapped: pages of a mapped file count as this process's memory for as long as the mapping
lives, and a float32 file is twice the model that comes out of it. So the header is read and checked here, and every
tensor is then read into memory of its own.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.errors import WeightError, one_line
from models.telltale import broken_end, refuse_other_kinds

HEADER_LIMIT = 16 << 20  # bytes; the published files have a few hundred thousand
SIDE_LIMIT = 1 << 48
PIECE = 4 << 20  # numbers
PICKLE_PAGES = 256 << 20  # bytes read from a mapped `.pth` before it is mapped anew, which gives its pages back
NEEDS_CODE = re.compile(r"GLOBAL (\S+)")  # in torch's words about a pickle: what it would have run, or made an object of
REASON = re.compile(r".*(?:WeightsUnpickler error:|trusted source\.)\s+(.+?)\s+Check the documentation", re.DOTALL)
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16, "I32": torch.int32,
    "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
WORDS = {dtype: word for word, dtype in DTYPES.items()}

Shapes = Mapping[str, Sequence[int]]


class WeightFile(Protocol):
    """A file whose table of contents is known and whose tensors are read one at a time."""

    path: Path
    shapes: dict[str, tuple[int, ...]]  # by the name in the file
    dtypes: dict[str, str]  # the same, in the words of safetensors: F32, BF16, …
    metadata: dict[str, str]

    def pieces(self, name: str, count: int = PIECE) -> Iterator[Tensor]:
        """A tensor's numbers in order, flat, at most ``count`` at a time, in memory that belongs to the caller alone.

        Raises WeightError when the file cannot be read (any more).
        """
        ...


def open_weights(path: Path) -> WeightFile:
    """The table of contents of a `.safetensors`, `.pth` or `.pt` file.

    Raises WeightError, one line that says what the file is instead, where it is missing, damaged, half a download, a web
    page, a Git-LFS pointer and so on.
    """
    refuse_other_kinds(path)
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickleFile(path)


@dataclass(frozen=True)
class Entry:
    """A tensor in the file: where its bytes lie, counted from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A `.safetensors` file, read without mapping it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._stat = _identity(file.fileno())
                self._entries, self.metadata = _read_table(path, file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise WeightError(f"cannot read the weight file {path}: {error.strerror or error}") from None
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}

    def pieces(self, name: str, count: int = PIECE) -> Iterator[Tensor]:
        return self._runs(self._entries[name], count)

    def _runs(self, entry: Entry, count: int) -> Iterator[Tensor]:
        dtype, at = DTYPES[entry.dtype], entry.begin
        try:
            with open(self.path, "rb", buffering=0) as file:
                if _identity(file.fileno()) != self._stat:
                    raise WeightError(f"{self.path} was changed while it was being read; start again")
                file.seek(at)
                while at < entry.end or entry.begin == entry.end:
                    data = _pages(min(entry.end - at, count * dtype.itemsize))
                    _fill(self.path, file, memoryview(data.numpy()))
                    at += len(data)
                    yield data.view(dtype)
                    if entry.begin == entry.end:
                        return
        except OSError as error:
            raise WeightError(f"cannot read the weight file {self.path}: {error.strerror or error}") from None


def _pages(size: int) -> Tensor:
    """``size`` bytes straight from the kernel, which has them back with the tensor.

    Taken from the C library's heap and freed between tensors that stay, they would leave holes no later one fits into: half as much
    memory again as the weights.
    """
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)


class PickleFile:
    """A `.pth` file: only tensors and plain containers are let in (``weights_only``)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._tensors = self._load()
        self._touched = 0
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: WORDS.get(tensor.dtype, str(tensor.dtype)) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor, in memory that belongs to the caller alone."""
        return self._tensor(name).clone(memory_format=torch.contiguous_format)  # a mapped file may change or vanish

    def pieces(self, name: str, count: int = PIECE) -> Iterator[Tensor]:
        for start in range(0, math.prod(self.shapes[name]), count):
            tensor = self._tensor(name, count)
            piece = tensor.contiguous().view(-1)[start : start + count]
            yield _pages(piece.nbytes).view(piece.dtype).copy_(piece)  # a mapped file may change or vanish

    def _tensor(self, name: str, count: int | None = None) -> Tensor:
        tensor = self._tensors[name]
        size = min(tensor.numel(), count or tensor.numel()) * tensor.element_size()
        if self._touched and self._touched + size > PICKLE_PAGES:
            del tensor
            self._tensors, self._touched = {}, 0  # lets go of the mapping
            self._tensors = self._load()
            if {key: tuple(value.shape) for key, value in self._tensors.items()} != self.shapes:
                raise WeightError(f"{self.path} was changed while it was being read; start again")
        self._touched += size
        return self._tensors[name]

    def _load(self) -> dict[str, Tensor]:
        data = load_pickle(self.path)
        if not isinstance(data, Mapping) or not all(isinstance(name, str) and name.isprintable() for name in data):
            raise WeightError(f"{self.path} holds no table of tensors; give the published file")
        tensors = {name: tensor for name, tensor in data.items() if isinstance(tensor, Tensor) and tensor.is_floating_point()}
        size = self.path.stat().st_size
        for name, tensor in tensors.items():
            if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() * tensor.element_size() > size:
                raise WeightError(f"{self.path}: {one_line(name, 80)} is no plain tensor that lies in this file; get the published file")
        return tensors


def load_pickle(path: Path, mapped: bool = True) -> object:
    """What `torch.save` has put into a file: tensors and plain containers of them, on the CPU; nothing in it is run.

    It is ``mapped`` rather than read where its format allows. Raises WeightError, one line, for everything else: a damaged pickle can
    fail in almost any way.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wonders at pickles it did not write; they are refused or read all the same
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except RuntimeError as error:
            if not mapped or "mmap" not in str(error):
                raise _no_plain_pickle(path, error) from None
        except Exception as error:
            raise _no_plain_pickle(path, error) from None
        return load_pickle(path, mapped=False)  # written by torch before 1.6


def _no_plain_pickle(path: Path, error: Exception) -> WeightError:
    """Why torch refused to read a pickle, without its advice, which is to run what is in it."""
    needs = NEEDS_CODE.search(str(error))
    if needs is not None:
        what = f"Python code or objects ({one_line(ascii(needs[1])[1:-1], 80)}), which are never run or read here"
        return WeightError(f"{path} holds {what}; give its weights alone: a .safetensors file, or a .pth of nothing but tensors")
    if _foreign_pickle(path):
        words = "may hold Python code, which is never run here"
        return WeightError(f"{path} is a pickle that torch.save did not write and {words}; save its tensors with torch.save")
    reason = REASON.search(str(error))
    return broken_end(path) or damaged(path, reason[1] if reason is not None else error)


def _foreign_pickle(path: Path) -> bool:
    """Whether it begins as a pickle of a later kind than torch's own (2)."""
    try:
        with open(path, "rb") as file:
            head = file.read(2)
    except OSError:
        return False
    return head[:1] == b"\x80" and head[1:] in (b"\3", b"\4", b"\5")


def damaged(path: Path, why: object) -> WeightError:
    return WeightError(f"{path} is damaged or not a weight file ({one_line(why, 120)}); fetch it again")


def _identity(descriptor: int) -> tuple[int, int, int]:
    stat = os.fstat(descriptor)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _fill(path: Path, file: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise WeightError(f"{path} became shorter while it was being read; fetch it again")
        done += count


def _read_table(path: Path, file: Any, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """The header of a safetensors file (8 bytes of its length, then JSON), every claim of it checked."""
    head = file.read(9)
    length = struct.unpack("<Q", head[:8])[0] if len(head) == 9 else 0
    if not 2 <= length <= HEADER_LIMIT or head[8:] != b"{":
        raise damaged(path, "no safetensors header" if len(head) == 9 else f"it ends after {len(head)} bytes")
    if 8 + length > size:
        raise _half(path, size, None)
    try:
        table = json.loads(head[8:] + file.read(length - 1), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    if not isinstance(table, dict):
        raise damaged(path, "its header is no table")
    notes = table.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise damaged(path, "its notes are no texts")
    entries = {name: _entry(path, name, claim, 8 + length) for name, claim in table.items()}
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise damaged(path, "its tensors overlap or leave holes")
        end = entry.end
    if size < end:
        raise _half(path, size, end)
    if size > end:
        raise damaged(path, f"{size - end:,} bytes more than its header says")
    return entries, notes


def _entry(path: Path, name: str, claim: Any, start: int) -> Entry:
    shown = one_line(ascii(name), 80)
    if not name.isprintable() or not isinstance(claim, dict):
        raise damaged(path, f"{shown} is no tensor")
    dtype, shape, offsets = (claim.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_whole_numbers(shape) and len(shape) <= 8 and _whole_numbers(offsets) and len(offsets) == 2):
        raise damaged(path, f"{shown} has no proper shape and place")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise damaged(path, f"{shown} has the unknown type {one_line(ascii(dtype), 40)}")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise damaged(path, f"{shown} has {offsets[1] - offsets[0]} bytes, which its shape {one_line(shape, 60)} contradicts")
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= SIDE_LIMIT for item in value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands there twice")
    return table


def _half(path: Path, size: int, end: int | None) -> WeightError:
    of = "not even its table of contents is complete" if end is None else f"its header promises {end:,}"
    return WeightError(f"{path} is a half download: {size:,} bytes are here, {of}; let the download finish, or fetch the file again")
