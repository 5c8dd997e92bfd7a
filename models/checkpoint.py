"""The one door for weight files. Names and shapes are checked before any number is read; every refusal is one line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.errors import WeightError, one_line
from models.filecache import find_rewritten, rewrite
from models.recognise import Shapes, recognise
from models.weightfile import PickleFile, WeightFile, open_weights

FLOATS = ("BF16", "F16", "F32", "F64")
Module = TypeVar("Module", bound=nn.Module)
Progress = Callable[[float], None]  # called with the part done, 0 to 1


def build_empty(kind: Callable[[Any], Module], config: object) -> Module:
    """``kind(config)`` on the meta device: names and shapes without memory, and without the cost of random start values."""
    with torch.device("meta"), _SkipInit():
        return kind(config)


def load_into(
    module: nn.Module, paths: Path | Sequence[Path], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    prefix: str = "model.", only: bool = False, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Give ``module`` (best made by `build_empty`) the weights of ``paths``, frozen, in ``dtype`` on ``device``.

    The module takes over the tensors as they were read, so memory holds each of them once. Arguments and errors as `read_weights`.
    """
    tensors = read_weights(paths, shapes_of(module), prefix, only, dtype, device, progress)
    module.load_state_dict(tensors, assign=True)
    module.requires_grad_(False)


def load_in_turn(
    module: nn.Module, parts: Sequence[str], paths: Path | Sequence[Path], dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu", prefix: str = "model.", only: bool = False,
) -> None:  # fmt: skip
    """As `load_into`, for a module that runs once: each submodule named in ``parts`` holds its weights only while it runs.

    Memory never holds more than one of them. A part that is not run is never read.
    """
    module.requires_grad_(False)
    places = _rewritten(_find(paths, shapes_of(module), prefix, only), prefix if only else "")

    def fill(own: nn.Module, start: str, names: Sequence[str]) -> None:
        own.load_state_dict({name.removeprefix(start): _read(places[name], dtype, device) for name in names}, strict=False, assign=True)

    def empty(own: nn.Module, *_: object) -> None:
        own.to_empty(device="meta")

    for part in parts:
        names = [name for name in places if name.startswith(f"{part}.")]
        own = module.get_submodule(part)  # the hooks are given it and do not hold it: with its last user it is gone
        own.register_forward_pre_hook(lambda own, _, start=f"{part}.", names=names: fill(own, start, names))
        own.register_forward_hook(empty)
    fill(module, "", [name for name in places if not name.startswith(tuple(f"{part}." for part in parts))])


def check_weights(module: nn.Module, paths: Path | Sequence[Path], prefix: str = "model.", only: bool = False) -> None:
    """Raise what `load_into` would, as far as it can be told without reading a number: files, names and shapes."""
    _find(paths, shapes_of(module), prefix, only)


def read_weights(
    paths: Path | Sequence[Path], expected: Shapes, prefix: str = "model.", only: bool = False, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu", progress: Progress | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Exactly the ``expected`` tensors from one file or its shards, each cast to ``dtype`` on ``device`` as it is read.

    ``prefix`` is stripped where it is present; with ``only``, names without it are ignored (one part of a larger file).
    Files are `.safetensors`, or `.pth` / `.pt` holding nothing but tensors; of those a safetensors is made at the first reading
    and used from then on (`models.filecache`). Raises WeightError for a file that is missing, damaged or truncated, for
    missing, unexpected, doubled or misshapen tensors, and for numbers that are not finite.
    """
    places = _rewritten(_find(paths, expected, prefix, only), prefix if only else "")
    tensors: dict[str, Tensor] = {}
    for count, name in enumerate(expected, 1):
        tensors[name] = _read(places[name], dtype, device)
        if progress is not None:
            progress(count / len(expected))
    return tensors


def randomise(module: nn.Module, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> None:
    """Give ``module`` (made by `build_empty`) frozen random weights: matrices keep the size of what they are given, norms 1, biases 0."""
    module.to(dtype).to_empty(device=device).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.squeeze().dim() > 1:
                drawn = torch.randn(tensor.shape, generator=generator, device=device)  # in float32: the same numbers in every dtype
                tensor.copy_(drawn * tensor[0].numel() ** -0.5)
            else:
                tensor.fill_(0.0 if name.endswith("bias") else 1.0)


def shapes_of(module: nn.Module) -> Shapes:
    """The shape of every tensor of a module, by name."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


class _SkipInit(TorchFunctionMode):
    """Turns `torch.nn.init` off. On the meta device it does nothing, but some of it imports torch's compiler for that: 2 s."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


Place = tuple[WeightFile, str]  # the file a tensor lies in, and its name there


def _read(place: Place, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A tensor, piece by piece, and looked through without anything beside it: the heap shall hold weights and no holes."""
    file, stored = place
    tensor = torch.empty(file.shapes[stored], dtype=dtype, device=device)
    flat, at = tensor.view(-1), 0
    for piece in file.pieces(stored):
        part = flat[at : at + len(piece)]
        part.copy_(piece)
        at += len(piece)
        if len(part) and not torch.isfinite(torch.stack(torch.aminmax(part))).all():  # NaN is both least and greatest
            copy = f" (or delete it: it was made from {file.metadata['made_from']})" if "made_from" in file.metadata else ""
            raise WeightError(
                f"{file.path}: {one_line(stored, 80)} holds NaN or infinite numbers as {_word(dtype)}; get a sound copy of the file{copy}"
            )
    return tensor


def _find(paths: Path | Sequence[Path], expected: Shapes, prefix: str, only: bool) -> dict[str, Place]:
    """Open the files and find every expected tensor in them, at its shape."""
    listed = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    part = prefix if only else ""
    made = {path: find_rewritten(path, part) for path in listed if path.suffix in (".pth", ".pt")}
    try:
        return _find_in([made.get(path) or open_weights(path) for path in listed], expected, prefix, only)
    except WeightError:
        if not any(made.values()):
            raise
    return _find_in([open_weights(path) for path in listed], expected, prefix, only)  # what was made of them is not trusted more


def _find_in(files: Sequence[WeightFile], expected: Shapes, prefix: str, only: bool) -> dict[str, Place]:
    places = _places(files, prefix, only)
    _check(files, {name: file.shapes[stored] for name, (file, stored) in places.items()}, expected, prefix if only else "")
    for name in expected:
        file, stored = places[name]
        if file.dtypes[stored] not in FLOATS:
            raise WeightError(
                f"{file.path}: {one_line(stored, 80)} is stored as {file.dtypes[stored]}; only {', '.join(FLOATS)} can be used"
            )
    return places


def _rewritten(places: dict[str, Place], part: str) -> dict[str, Place]:
    """The same tensors, those of `.pth` files now in safetensors files made of them, where that can be."""
    pickles = {id(file): file for file, _ in places.values() if isinstance(file, PickleFile)}
    made = {key: rewrite(file, part) for key, file in pickles.items()}
    return {name: (made.get(id(file)) or file, stored) for name, (file, stored) in places.items()}


def _places(files: Sequence[WeightFile], prefix: str, only: bool) -> dict[str, Place]:
    """Where each tensor lies: name without prefix -> (file, name in the file)."""
    places: dict[str, Place] = {}
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


def _check(files: Sequence[WeightFile], found: Shapes, expected: Shapes, part: str) -> None:
    """Raise WeightError unless names and shapes are exactly those expected."""
    missing = [name for name in expected if name not in found]
    strange = [name for name in found if name not in expected]
    wrong = [name for name in expected if name in found and tuple(found[name]) != tuple(expected[name])]
    if not (missing or strange or wrong):
        return
    where = ", ".join([str(files[0].path), *(file.path.name for file in files[1:])]) if files else "no file at all"
    if missing:
        near = difflib.get_close_matches(missing[0], [name for name in strange[:5000] if len(name) < 200], n=1) or strange[:1]
        has = f" but has {one_line(near[0], 80)}" if near else ""
        differs = f" lacks {missing[0]}{has} ({len(missing)} of {len(expected)} tensors missing, {len(strange)} unknown)"
        guess = "these are not the weights of this world"
    elif strange:
        differs = f" has {one_line(strange[0], 80)}, which this world's model does not ({len(strange)} unknown)"
        guess = "weights of another world?"
    else:
        plural = "1 tensor differs" if len(wrong) == 1 else f"{len(wrong)} tensors differ"
        differs = f": {wrong[0]} is {list(found[wrong[0]])} instead of {list(expected[wrong[0]])} ({plural} in shape)"
        guess = "weights of another world or size"
    known = _known(files, expected, part)
    raise WeightError(f"{where}{known} ({f'it{differs}'.removeprefix('it: ')})" if known else f"{where}{differs}: {guess}")


def _known(files: Sequence[WeightFile], expected: Shapes, part: str) -> str:
    """What the wrong files are, what was wanted and what to do, in words; empty where nothing gives it away."""
    kind = recognise({name: shape for file in files for name, shape in file.shapes.items()})
    wanted = recognise({part + name: shape for name, shape in expected.items()})
    if kind is None or (wanted is not None and (kind.part, kind.words) == (wanted.part, wanted.words)):
        return ""
    other = f", not {wanted.words}" if wanted is not None else ", not what this world needs"
    return f" is {kind.words}{other}: {kind.advice}"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
