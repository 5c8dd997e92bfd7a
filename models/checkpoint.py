"""The one door for weight files. Names and shapes are checked before any number is read; every refusal is one line."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.errors import WeightError, one_line

FLOATS = {"F64", "F32", "F16", "BF16"}
Shapes = Mapping[str, Sequence[int]]
Module = TypeVar("Module", bound=nn.Module)
Progress = Callable[[float], None]  # called with the part done, 0 to 1


class WeightFile(Protocol):
    """A file whose table of contents is known and whose tensors are read one at a time."""

    path: Path
    shapes: dict[str, tuple[int, ...]]  # by the name in the file

    def read(self, name: str) -> Tensor: ...


def build_empty(kind: Callable[[Any], Module], config: object) -> Module:
    """``kind(config)`` on the meta device: names and shapes without memory, and without the cost of random start values."""
    with torch.device("meta"), _SkipInit():
        return kind(config)


def load_into(
    module: nn.Module, paths: Path | Sequence[Path], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    prefix: str = "model.", only: bool = False, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Give ``module`` (best made by `build_empty`) the weights of ``paths``, frozen, in ``dtype`` on ``device``.

    Arguments and errors as `read_weights`.
    """
    tensors = read_weights(paths, _shapes(module), prefix, only, dtype, device, progress)
    module.load_state_dict(tensors, assign=True)
    module.requires_grad_(False)


def check_weights(module: nn.Module, paths: Path | Sequence[Path], prefix: str = "model.", only: bool = False) -> None:
    """Raise what `load_into` would, as far as it can be told without reading a number: files, names and shapes."""
    _find(paths, _shapes(module), prefix, only)


def read_weights(
    paths: Path | Sequence[Path], expected: Shapes, prefix: str = "model.", only: bool = False, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu", progress: Progress | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Exactly the ``expected`` tensors from one file or its shards, each cast to ``dtype`` on ``device`` as it is read.

    ``prefix`` is stripped where it is present; with ``only``, names without it are ignored (one part of a larger file).
    Files are `.safetensors`, or `.pth` / `.pt` holding nothing but tensors. Raises WeightError for a file that is missing, damaged
    or truncated, for missing, unexpected, doubled or misshapen tensors, and for numbers that are not finite.
    """
    places = _find(paths, expected, prefix, only)
    tensors: dict[str, Tensor] = {}
    for count, name in enumerate(expected, 1):
        file, stored = places[name]
        tensor = file.read(stored)
        tensor = tensor.to(device).to(dtype, copy=True)  # never a view of the mapped file, which may change or vanish
        if not torch.isfinite(tensor).all():
            raise WeightError(f"{file.path}: {stored} holds NaN or infinite numbers as {_word(dtype)}; get a sound copy of the file")
        tensors[name] = tensor
        if progress is not None:
            progress(count / len(expected))
    return tensors


def sha256(path: Path | str) -> str:
    """Hash of a file, hexadecimal, read in pieces."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightError(f"cannot read {path}: {error.strerror}") from None


class _SkipInit(TorchFunctionMode):
    """Turns `torch.nn.init` off. On the meta device it does nothing, but some of it imports torch's compiler for that: 2 s."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = safe_open(str(path), framework="pt")
            slices = {name: self.file.get_slice(name) for name in self.file.keys()}  # noqa: SIM118 - not a mapping
            self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            stored = {name: part.get_dtype() for name, part in slices.items()}
        except (SafetensorError, OSError, ValueError, MemoryError) as error:
            raise _damaged(path, error) from None
        odd = next((name for name, kind in stored.items() if kind not in FLOATS), None)
        if odd is not None:
            raise WeightError(f"{path}: {one_line(odd, 80)} is stored as {stored[odd]}; only {', '.join(sorted(FLOATS))} can be used")

    def read(self, name: str) -> Tensor:
        try:
            return self.file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise _damaged(self.path, error) from None


class _Pickle:
    def __init__(self, path: Path) -> None:
        self.path = path
        data = _load_pickle(path)
        if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
            raise WeightError(f"{path} holds no table of tensors; give the published file")
        self.tensors = {name: tensor for name, tensor in data.items() if isinstance(tensor, Tensor) and tensor.is_floating_point()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def _load_pickle(path: Path) -> object:
    """A `.pth` file, mapped rather than read where its format allows. A damaged pickle can fail in almost any way."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):  # written by torch before 1.6
            raise _damaged(path, error) from None
    except Exception as error:
        raise _damaged(path, error) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _damaged(path, error) from None


def _open(path: Path) -> WeightFile:
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise WeightError(f"there is no weight file {path}") from None
    except OSError as error:
        raise WeightError(f"cannot read the weight file {path}: {error.strerror}") from None
    if not head:
        raise WeightError(f"{path} is empty: the download did not finish; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightError(f"{path} is a Git-LFS pointer, not the weights; run 'git lfs pull' or download the file itself")
    if head.lstrip()[:1] == b"<":
        raise WeightError(f"{path} is a web page, not weights; download the file itself")
    if path.suffix == ".safetensors":
        return _Safetensors(path)
    if path.suffix in (".pth", ".pt"):
        return _Pickle(path)
    raise WeightError(f"{path}: weights are .safetensors or .pth files, not '{path.suffix}'")


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _find(paths: Path | Sequence[Path], expected: Shapes, prefix: str, only: bool) -> dict[str, tuple[WeightFile, str]]:
    """Open the files and find every expected tensor in them, at its shape."""
    files = [_open(Path(path)) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    places = _places(files, prefix, only)
    _check(files, {name: file.shapes[stored] for name, (file, stored) in places.items()}, expected)
    return places


def _places(files: Sequence[WeightFile], prefix: str, only: bool) -> dict[str, tuple[WeightFile, str]]:
    """Where each tensor lies: name without prefix -> (file, name in the file)."""
    places: dict[str, tuple[WeightFile, str]] = {}
    for file in files:
        for stored in file.shapes:
            if only and not stored.startswith(prefix):
                continue
            name = stored.removeprefix(prefix)
            if name in places:
                other = places[name][0].path.name
                raise WeightError(f"{file.path}: {one_line(name, 80)} is also in {other}; each tensor belongs in one file")
            places[name] = (file, stored)
    return places


def _check(files: Sequence[WeightFile], found: Shapes, expected: Shapes) -> None:
    """Raise WeightError unless names and shapes are exactly those expected."""
    where = ", ".join([str(files[0].path), *(file.path.name for file in files[1:])]) if files else "no file at all"
    missing = [name for name in expected if name not in found]
    strange = [name for name in found if name not in expected]
    if missing:
        near = difflib.get_close_matches(missing[0], strange, n=1) or strange[:1]
        has = f" but has {one_line(near[0], 80)}" if near else ""
        counts = f"{len(missing)} of {len(expected)} tensors missing, {len(strange)} unknown"
        raise WeightError(f"{where} lacks {missing[0]}{has} ({counts}): these are not the weights of this world")
    if strange:
        what = f"{one_line(strange[0], 80)}, which this world's model does not ({len(strange)} unknown)"
        raise WeightError(f"{where} has {what}: weights of another world?")
    wrong = [name for name in expected if tuple(found[name]) != tuple(expected[name])]
    if wrong:
        shapes = f"{list(found[wrong[0]])} instead of {list(expected[wrong[0]])}"
        raise WeightError(f"{where}: {wrong[0]} is {shapes} ({len(wrong)} tensors differ in shape): weights of another world or size")


def _damaged(path: Path, error: BaseException) -> WeightError:
    return WeightError(f"{path} is damaged or not a weight file ({one_line(error, 120)}); fetch it again")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
