"""A world's yaml, read strictly: every setting has a name, a type and a place, and a wrong one is named."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from engine.actions import ActionSpace
from engine.clock import BlockClock
from engine.conditioning import HISTORY
from models.dit import DiTConfig
from models.errors import WorldError, one_line
from models.flow import FlowSchedule
from models.vae import VAEConfig
from models.vision import VisionConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")
YAML_LIMIT = 1 << 20  # bytes; a world's yaml is a few thousand
SIDE_LIMIT = 2048  # pixels
SIZE_LIMIT = 1 << 20  # any whole number, unless listed here
LIMITS = {"num_layers": 256, "num_res_blocks": 16, "local_attn_size": 256, "num_frame_per_block": 16, "windows_size": 16}
LIST_LIMIT = 256


@dataclass(frozen=True)
class SamplerConfig:
    """Denoising steps (of 1000, falling) and the schedule's shift; see `models.flow`."""

    steps: tuple[int, ...] = (1000, 666, 333)
    shift: float = 5.0

    def __post_init__(self) -> None:
        FlowSchedule(self.shift).timesteps(self.steps)


@dataclass(frozen=True)
class WeightFiles:
    """Files of each part, in shards, relative to the weights folder; ``source`` says where to get those not bundled."""

    dit: tuple[str, ...]
    vae: tuple[str, ...]
    vision: tuple[str, ...] = ()
    source: str | None = None


@dataclass(frozen=True)
class WorldConfig:
    """Everything about a world except its weights. ``name`` and ``file`` come from where it was read, the rest from the yaml.

    ``start`` is the default start picture: relative to the assets, or to the folder of a yaml of the user's own.
    """

    title: str
    fps: int
    height: int
    width: int
    actions: ActionSpace
    weights: WeightFiles
    model: DiTConfig
    vae: VAEConfig
    vision: VisionConfig | None = None
    sampler: SamplerConfig = SamplerConfig()
    start: str | None = None
    about: str = ""
    dtype: str = "auto"
    name: str = field(default="", metadata={"yaml": False})
    file: Path = field(default=Path(), metadata={"yaml": False})

    def __post_init__(self) -> None:
        problem = next((text for right, text in self._demands() if not right), None)
        if problem:
            raise ValueError(problem)

    @property
    def folder(self) -> Path:
        """Where the files that come with the world lie: the assets, or beside a yaml of the user's own."""
        return asset_folder() if self.file.parent == config_folder() else self.file.parent

    @property
    def block_frames(self) -> tuple[int, int]:
        """Frames of the first block and of every other."""
        first = BlockClock(n=self.model.num_frame_per_block, r=self.model.action.vae_time_ratio)
        return len(first.frames), len(first.next().frames)

    def _demands(self) -> list[tuple[bool, str]]:
        """How the parts must fit together: (whether they do, what to say if not)."""
        model, action, vae, actions = self.model, self.model.action, self.vae, self.actions
        side = math.lcm(vae.spatial_ratio * model.patch_size[1], vae.spatial_ratio * model.patch_size[2])
        channels = 2 * vae.z_dim + vae.temporal_ratio  # noise, start picture, mask
        mouse = 2 if actions.look_scale is not None else 0
        return [
            (1 <= self.fps <= 240, f"fps must be 1 to 240, got {self.fps}"),
            (self._fits(self.height, side), f"height must be a multiple of {side} up to {SIDE_LIMIT}, got {self.height}"),
            (self._fits(self.width, side), f"width must be a multiple of {side} up to {SIDE_LIMIT}, got {self.width}"),
            (self.dtype in DTYPES, f"dtype is one of {', '.join(DTYPES)}; got {self.dtype!r}"),
            (model.out_dim == vae.z_dim, f"model.out_dim {model.out_dim} must equal vae.z_dim {vae.z_dim}"),
            (model.in_dim == channels, f"model.in_dim must be {channels} (noise, mask and start picture), got {model.in_dim}"),
            (action.vae_time_ratio == vae.temporal_ratio, f"model.action.vae_time_ratio must be the VAE's {vae.temporal_ratio}"),
            (action.rows <= HISTORY, f"a latent may read {HISTORY} condition rows, model.action asks for {action.rows}"),
            (action.keyboard_dim == len(actions.keyboard), f"actions.keyboard must list {action.keyboard_dim} keys, as model.action says"),
            (action.mouse_dim == mouse, f"model.action.mouse_dim is {action.mouse_dim}, actions.look_scale calls for {mouse}"),
            (bool(model.img_dim) == (self.vision is not None), f"model.img_dim is {model.img_dim}: vision goes with image tokens only"),
            (self.vision is None or self.vision.dim == model.img_dim, f"vision.dim must equal model.img_dim {model.img_dim}"),
            (bool(self.weights.dit and self.weights.vae), "weights needs at least one file for dit and one for vae"),
            (self.vision is None or bool(self.weights.vision), "weights needs a file for vision"),
        ]

    @staticmethod
    def _fits(length: int, side: int) -> bool:
        return 0 < length <= SIDE_LIMIT and length % side == 0


def config_folder() -> Path:
    """Folder of the bundled worlds' yaml files."""
    return Path(str(resources.files("configs")))


def asset_folder() -> Path:
    """Folder of bundled weights and start pictures."""
    return Path(str(resources.files("assets")))


def list_worlds() -> tuple[str, ...]:
    """Names of the bundled worlds, sorted, the one with its weights in the box first."""
    names = sorted(path.stem for path in config_folder().glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: name != "garden"))


def load_config(name_or_yaml: str | Path) -> WorldConfig:
    """The config of a bundled world by name, or of a yaml file by path.

    Raises WorldError for an unknown name, an unreadable file, an unknown, missing or wrong setting.
    """
    file = _find(str(name_or_yaml))
    try:
        if file.stat().st_size > YAML_LIMIT:
            raise WorldError(f"{file} is {file.stat().st_size} bytes long; a world's yaml has a few thousand")
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorldError(f"cannot read {file}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        if isinstance(error, WorldError):
            raise
        raise WorldError(f"{file} is not a yaml file: {one_line(error)}") from None
    return _read(WorldConfig, data, file.name, "", name=file.stem, file=file)


def _find(name: str) -> Path:
    worlds = list_worlds()
    if name in worlds:
        return config_folder() / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        if not os.path.isfile(name):  # unlike Path's own, it takes names of any length
            raise WorldError(f"there is no world file {one_line(name, 200)}; give a yaml file, or one of the worlds {', '.join(worlds)}")
        return Path(name).resolve()
    guess = difflib.get_close_matches(name, worlds, n=1)
    hint = f"did you mean {guess[0]}? " if guess else ""
    raise WorldError(f"unknown world {one_line(name, 80)!r}; {hint}there are {', '.join(worlds)}, or give the path of a yaml file")


def _read(cls: type, data: Any, source: str, path: str, **given: Any) -> Any:
    """A ``cls`` from the mapping ``data`` found at ``path`` in the file ``source``."""
    if not isinstance(data, Mapping):
        raise WorldError(f"{source}: {path or 'the file'} must be a table of settings, got {_show(data)}")
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cls) if item.metadata.get("yaml", True)}
    for key in data:
        if key not in known:
            guess = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise WorldError(f"{source}: there is no setting {_join(path, one_line(key, 80))}; did you mean {_join(path, guess[0])}?")
    for name, item in known.items():
        if name in data:
            given[name] = _value(hints[name], data[name], source, _join(path, name))
        elif item.default is MISSING and item.default_factory is MISSING:
            raise WorldError(f"{source}: the setting {_join(path, name)} is missing")
    try:
        return cls(**given)
    except (ValueError, ArithmeticError) as error:
        raise WorldError(f"{source}: {f'{path}: ' if path else ''}{one_line(error)}") from None


def _value(hint: Any, value: Any, source: str, path: str) -> Any:
    """``value`` as the type ``hint`` asks for; WorldError where it is not."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        hint = next(argument for argument in arguments if argument is not NoneType)
        return _value(hint, value, source, path)
    if origin is Literal:
        if value not in arguments:
            raise WorldError(f"{source}: {path} is one of {', '.join(map(str, arguments))}; got {_show(value)}")
        return value
    if is_dataclass(hint):
        return _read(hint, value, source, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise WorldError(f"{source}: {path} must be a list, got {_show(value)}")
        if len(value) > LIST_LIMIT:
            raise WorldError(f"{source}: {path} has {len(value)} entries; at most {LIST_LIMIT} can be used")
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            raise WorldError(f"{source}: {path} must have {len(arguments)} entries, got {len(value)}")
        return tuple(_value(kind, item, source, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= SIZE_LIMIT:
        return float(value)
    limit = LIMITS.get(path.rpartition(".")[2], SIZE_LIMIT)
    words = {int: f"a whole number from 0 to {limit}", float: "a finite number", str: "a text", bool: "true or false"}
    right = {int: lambda: 0 <= value <= limit, float: lambda: math.isfinite(value), str: lambda: len(value) < 1000, bool: lambda: True}
    if type(value) is not hint or not right[hint]():
        raise WorldError(f"{source}: {path} must be {words[hint]}, got {_show(value)}")
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _show(value: Any) -> str:
    """The value for a message; containers by their kind alone (a hostile yaml can make them endless)."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple, set)):
        return "a list"
    return one_line(repr(value)[:200], 80)
