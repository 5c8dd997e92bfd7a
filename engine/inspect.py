"""What a weight file is, and how two of them differ: names and shapes against the known worlds, numbers read in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from engine.config import WorldConfig, load_config
from engine.worldfile import list_worlds
from models.checkpoint import build_empty, shapes_of
from models.dit import DiT
from models.errors import WorldError
from models.filecache import file_hash
from models.recognise import Shapes, recognise
from models.vae import VAE
from models.vision import VisionEncoder
from models.weightfile import WeightFile, open_weights

KINDS = (".safetensors", ".pth", ".pt")
PREFIXES = {"dit": "model.", "vae": "model.", "vision": "visual."}
Progress = Callable[[float], None]  # called with the part done, 0 to 1


@dataclass(frozen=True)
class Nearest:
    """The known model that a file is most like: how they differ (names as the model has them)."""

    worlds: tuple[str, ...]  # that use exactly this model
    part: str  # dit, vae or vision
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # shape in the file, shape wanted
    ignored: int  # tensors of the file beside the part that is used

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)


@dataclass(frozen=True)
class FileReport:
    """What `inspect_weights` found. ``nonfinite``: how many NaN and infinite numbers, by tensor; None where numbers were not read."""

    path: Path
    size: int  # bytes
    sha256: str | None
    tensors: int
    parameters: int
    dtypes: dict[str, int]  # parameters by stored type, such as F32
    what: str | None  # in words
    advice: str | None
    nearest: Nearest | None
    nonfinite: dict[str, int] | None


@dataclass(frozen=True)
class TensorDifference:
    """``largest``: largest |a − b|; ``relative``: ‖a − b‖ / ‖a‖ (inf where a is zero). NaN in one only makes both infinite."""

    name: str
    largest: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """Two files, names without a leading ``model.``; ``different`` the most different first, by relative difference."""

    same: int  # tensors with equal numbers
    different: tuple[TensorDifference, ...]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def equal(self) -> bool:
        return not (self.different or self.misshapen or self.only_first or self.only_second)


def inspect_weights(path: Path, worlds: Sequence[str] = (), numbers: bool = True, progress: Progress | None = None) -> FileReport:
    """Say what a weight file is, beside the bundled worlds and those of ``worlds`` (names or yaml files).

    Without ``numbers`` only its table of contents is read: neither hash nor NaN are looked for. Memory holds a few million
    numbers at a time. Raises WeightError for what is no weight file, WorldError for a world that cannot be read.
    """
    file, known = open_weights(path), known_models(worlds)  # what may be refused comes before gigabytes are read
    sizes = {name: math.prod(shape) for name, shape in file.shapes.items()}
    dtypes: dict[str, int] = {}
    for name, dtype in file.dtypes.items():
        dtypes[dtype] = dtypes.get(dtype, 0) + sizes[name]
    kind = recognise(file.shapes)
    return FileReport(
        path=path,
        size=path.stat().st_size,
        sha256=file_hash(path, fresh=True) if numbers else None,
        tensors=len(sizes),
        parameters=sum(sizes.values()),
        dtypes=dtypes,
        what=None if kind is None else kind.words,
        advice=None if kind is None else kind.advice,
        nearest=nearest_model(file.shapes, known),
        nonfinite=_nonfinite(file, progress) if numbers else None,
    )


def weight_files(folder: Path) -> list[Path]:
    """The weight files in a folder and the folders in it, sorted; what play makes of a `.pth` is not among them."""
    found = (path for path in folder.rglob("*") if path.suffix in KINDS and not path.name.endswith("reverie.safetensors"))
    return sorted(path for path in found if path.is_file())


def compare_weights(first: Path, second: Path, progress: Progress | None = None) -> Comparison:
    """How the numbers of two weight files differ, whatever their kinds and precisions. Raises WeightError as `inspect_weights`."""
    a, b = open_weights(first), open_weights(second)
    ours, theirs = ({name.removeprefix("model."): name for name in file.shapes} for file in (a, b))
    both = [name for name in ours if name in theirs]
    misshapen = {name: (a.shapes[ours[name]], b.shapes[theirs[name]]) for name in both}
    misshapen = {name: shapes for name, shapes in misshapen.items() if shapes[0] != shapes[1]}
    different, same = [], 0
    for count, name in enumerate(both, 1):
        if name not in misshapen:
            found = _difference(name, zip(a.pieces(ours[name]), b.pieces(theirs[name]), strict=True))
            same += found is None
            different += [] if found is None else [found]
        if progress is not None:
            progress(count / len(both))
    different.sort(key=lambda item: (item.relative, item.largest), reverse=True)
    only_first, only_second = (tuple(n for n in x if n not in y) for x, y in ((ours, theirs), (theirs, ours)))
    return Comparison(same, tuple(different), misshapen, only_first, only_second)


@dataclass(frozen=True)
class KnownModel:
    """One part of one or more worlds: shapes by the model's own names."""

    worlds: tuple[str, ...]
    part: str
    shapes: Shapes


def known_models(worlds: Iterable[str] = ()) -> list[KnownModel]:
    """The parts of the bundled worlds and of ``worlds``; equal ones once."""
    found: dict[tuple[str, frozenset], KnownModel] = {}
    for name in dict.fromkeys((*list_worlds(), *worlds)):
        config = load_config(name)
        for part, shapes in _parts(config).items():
            key = part, frozenset(shapes.items())
            before = found[key].worlds if key in found else ()
            found[key] = KnownModel((*before, config.name), part, shapes)
    return list(found.values())


def nearest_model(shapes: Shapes, models: Iterable[KnownModel]) -> Nearest | None:
    """The model that shares most tensors (name and shape) with the file; None where no name is shared."""
    best, best_score = None, (0.0, 0)
    for model in models:
        prefix = PREFIXES[model.part]
        only = model.part == "vision" and any(name.startswith(prefix) for name in shapes)
        own = {name.removeprefix(prefix): tuple(shape) for name, shape in shapes.items() if not only or name.startswith(prefix)}
        named = own.keys() & model.shapes.keys()
        alike = sum(own[name] == tuple(model.shapes[name]) for name in named)
        score = alike / len(own.keys() | model.shapes.keys()), len(named)
        if score > best_score:
            best_score = score
            best = Nearest(
                worlds=model.worlds,
                part=model.part,
                missing=tuple(name for name in model.shapes if name not in own),
                unexpected=tuple(name for name in own if name not in model.shapes),
                misshapen={n: (own[n], tuple(s)) for n, s in model.shapes.items() if n in own and own[n] != tuple(s)},
                ignored=len(shapes) - len(own),
            )
    return best


def _parts(config: WorldConfig) -> dict[str, Shapes]:
    parts = {"dit": (DiT, config.model), "vae": (VAE, config.vae), "vision": (VisionEncoder, config.vision)}
    try:
        return {part: _shapes(kind, sizes) for part, (kind, sizes) in parts.items() if sizes is not None}
    except (RuntimeError, ValueError, OverflowError) as error:
        raise WorldError(f"no model can be built of the sizes in {config.file}: {str(error)[:120]}") from None


@lru_cache(maxsize=64)
def _shapes(kind: type, sizes: Hashable) -> Shapes:
    """Worlds share their parts, and a folder has many files: each model is built once."""
    return shapes_of(build_empty(kind, sizes))


def _nonfinite(file: WeightFile, progress: Progress | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for count, name in enumerate(file.shapes, 1):
        bad = sum(int((~torch.isfinite(piece.float())).sum()) for piece in file.pieces(name))
        if bad:
            found[name] = bad
        if progress is not None:
            progress(count / len(file.shapes))
    return found


def _difference(name: str, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> TensorDifference | None:
    largest = apart = own = 0.0
    for a, b in pairs:
        a, b = a.double(), b.double()
        gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b)  # equal infinities and NaN in both are no difference
        gap = torch.where(gap.isfinite(), gap.abs(), math.inf)
        largest = max(largest, float(gap.max()) if len(gap) else 0.0)
        apart += float(gap.square().sum())
        own += float(a.square().nan_to_num(0, 0, 0).sum())
    if largest == 0:
        return None
    return TensorDifference(name, largest, math.sqrt(apart / own) if own else math.inf)
