"""A world's yaml, read strictly: every setting has a name, a type and a place, and a wrong one is named."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from engine.actions import ActionSpace
from engine.clock import BlockClock
from engine.conditioning import HISTORY
from engine.worldfile import Layer, asset_folder, config_folder, layer_of, merged, nested, read_layers
from models.dit_config import DiTConfig
from models.errors import WorldError, one_line
from models.float8 import SIDES
from models.flow import FlowSchedule
from models.taehv import TAEHVConfig
from models.vae import VAEConfig
from models.vision import VisionConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")
SIDE_LIMIT = 2048  # pixels
SIZE_LIMIT = 1 << 20  # any whole number, unless listed here
WINDOW_LIMIT = 15  # latents of local attention
SEED_LIMIT = 2**63 - 1
LIMITS = {
    "num_layers": 256, "num_res_blocks": 16, "local_attn_size": WINDOW_LIMIT, "num_frame_per_block": 15, "windows_size": 16,
    "seed": SEED_LIMIT,
}  # fmt: skip
LIST_LIMIT = 256
PARTS = ("dit", "vae", "vision", "taehv")  # that have weight files
DECODERS = ("vae", "taehv")
CONTEXTS = ("clean", "last")
LINEARS = ("exact", "float8")
Layers = Sequence[Layer]


@dataclass(frozen=True)
class SamplerConfig:
    """Denoising steps (of 1000, falling) and the schedule's shift; see `models.flow`.

    ``context`` says whose keys and values a block leaves to later ones: those of a "clean" pass of their own, as the models were trained,
    or those of the "last" denoising pass, an approximation that saves a pass. ``hold_still``: who has done nothing for two blocks and
    goes on doing nothing is shown a block after the second one again and again, with new noise, and none of them is remembered, so that
    nothing adds up while one stands still. For worlds in which nothing moves by itself.

    ``last_noise``, 0 to 1: the part of its noise that the last step begins with, x = (1 - σ) x0 + last_noise σ ε. Less of it keeps more
    of what the steps before have found. The published models get all of it; a step that begins from noise alone always does.
    """

    steps: tuple[int, ...] = (1000, 666, 333)
    shift: float = 5.0
    context: str = "clean"
    hold_still: bool = False
    last_noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.last_noise <= 1:
            raise ValueError(f"last_noise must be 0 to 1, got {self.last_noise}")
        if self.context not in CONTEXTS:
            raise ValueError(f"context is one of {', '.join(CONTEXTS)}; got {self.context!r}")
        FlowSchedule(self.shift).timesteps(self.steps)


@dataclass(frozen=True)
class WeightFiles:
    """Files of each part, in shards, relative to the weights folder; ``source`` says where to get those not bundled.

    ``folders`` are those of the yaml files that name a part's files, ``added`` the parts that a yaml changed in the world it extends.
    """

    dit: tuple[str, ...]
    vae: tuple[str, ...]
    vision: tuple[str, ...] = ()
    taehv: tuple[str, ...] = ()
    source: str | None = None
    folders: Mapping[str, Path] = field(default_factory=dict, metadata={"yaml": False}, compare=False)
    added: frozenset[str] = field(default=frozenset(), metadata={"yaml": False})

    def __post_init__(self) -> None:
        for part in PARTS:
            if any(not name.strip() for name in getattr(self, part)):
                raise ValueError(f"{part} must list names of files, got {list(getattr(self, part))}")


@dataclass(frozen=True)
class WorldConfig:
    """Everything about a world except its weights. What is not in the yaml comes from where it was read.

    ``start`` is the default start picture: relative to the assets, or to the folder of a yaml of the user's own. ``seed`` is
    that of a session for which none is asked. ``decoder`` "taehv" makes the pictures with the tiny decoder: quicker, not the same.
    ``linears`` "float8" makes the denoiser's large products in float8 (`models.float8`): quicker on a GPU that has it, not the same.
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
    seed: int = 0
    decoder: str = "vae"
    linears: str = "exact"
    taehv: TAEHVConfig = field(default_factory=TAEHVConfig)
    name: str = field(default="", metadata={"yaml": False})
    file: Path = field(default=Path(), metadata={"yaml": False})

    def __post_init__(self) -> None:
        problem = next((text for right, text in self._demands() if not right), None)
        if problem:
            raise ValueError(problem)

    @property
    def folder(self) -> Path:
        """What file names in the yaml are relative to: the assets, or the folder of a yaml of the user's own."""
        return _folder(self.file)

    @property
    def start_file(self) -> Path | None:
        """The world's own start picture."""
        return None if self.start is None else self.folder / self.start

    @property
    def clock(self) -> BlockClock:
        """The first block of a session."""
        return BlockClock(n=self.model.num_frame_per_block, r=self.model.action.vae_time_ratio)

    def start_missing(self) -> str:
        """What to say where a start picture must be given."""
        pictures = sorted((asset_folder() / "garden").glob("start_*.png"))
        bundled = f"; any photo will do, and there are {pictures[0]} to {pictures[-1].name}" if pictures else ""
        return f"the world {self.name} has no start picture of its own; give one with --start FILE{bundled}"

    def weight_folders(self, part: str, weights: Path | None = None) -> tuple[Path, ...]:
        """Where to look for the files of a part (dit, vae, vision), in this order; ``weights`` is the folder the player named.

        Files that a yaml puts in the place of those of the world it extends may also lie beside that yaml.
        """
        own = self.weights.folders.get(part, self.folder)
        if weights is None:
            return (own,)
        return (weights, own) if part in self.weights.added else (weights,)

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
        fitting, sizes = not (model.dim % SIDES or model.ffn_dim % SIDES), f"they are {model.dim} and {model.ffn_dim}"
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
            (self.start is None or bool(self.start.strip()), f"start must be the name of a picture (or left out), got {self.start!r}"),
            (bool(self.weights.dit and self.weights.vae), "weights needs at least one file for dit and one for vae"),
            (self.vision is None or bool(self.weights.vision), "weights needs a file for vision"),
            (self.decoder in DECODERS, f"decoder is one of {', '.join(DECODERS)}; got {self.decoder!r}"),
            (self.linears in LINEARS, f"linears is one of {', '.join(LINEARS)}; got {self.linears!r}"),
            (self.linears == "exact" or fitting, f"float8 wants model.dim and model.ffn_dim in multiples of {SIDES}: {sizes}"),
            (self.decoder == "vae" or bool(self.weights.taehv), f"the world {self.name} has no file for the decoder taehv (weights.taehv)"),
            (self.decoder == "vae" or self._fits_taehv(), "taehv must have the z_dim and the ratios of the vae"),
        ]

    def _fits_taehv(self) -> bool:
        ours, theirs = self.taehv, self.vae
        sizes = (theirs.z_dim, theirs.spatial_ratio, theirs.temporal_ratio)
        return (ours.z_dim, ours.spatial_ratio, ours.temporal_ratio) == sizes

    @staticmethod
    def _fits(length: int, side: int) -> bool:
        return 0 < length <= SIDE_LIMIT and length % side == 0


def load_config(name_or_yaml: str | Path, options: Mapping[str, Any] | None = None) -> WorldConfig:
    """The config of a bundled world by name, or of a yaml file by path (which may extend another).

    ``options`` are laid over the yaml: values by dotted name, such as {"model.local_attn_size": 6}. Raises WorldError for an
    unknown name, an unreadable file, an unknown, missing or wrong setting.
    """
    layers = read_layers(name_or_yaml)
    config = _read_config(layers)
    if not options:
        return config
    return _read_config((Layer("options", None, nested(options)), *layers))  # second, so that it is they who are wrong


def read_settings(kind: type, settings: Any, label: str) -> Any:
    """A dataclass ``kind`` from a table that some other yaml named ``label`` holds, as strictly as a world's. Raises WorldError."""
    return _read(kind, settings, (Layer(label, None, settings),), "")


def _read_config(layers: Layers) -> WorldConfig:
    own = next(layer.file for layer in layers if layer.file is not None)
    config = _read(WorldConfig, merged(layers), layers, "", name=own.stem, file=own)
    givers = {part: layer_of(layers, f"weights.{part}") for part in PARTS}
    folders = {part: _folder(layer.file or own) for part, layer in givers.items()}
    added = frozenset(part for part, layer in givers.items() if layer is not layers[-1])
    start = layer_of(layers, "start").file or own
    return replace(
        config,
        weights=replace(config.weights, folders=folders, added=added),
        start=config.start and str(_folder(start) / config.start) if start != own else config.start,
    )


def _folder(file: Path) -> Path:
    """What file names in a world's yaml are relative to: the assets, or the folder of a yaml of the user's own."""
    return asset_folder() if file.parent == config_folder() else file.parent


def _read(cls: type, data: Any, layers: Layers, path: str, **given: Any) -> Any:
    """A ``cls`` from the mapping ``data`` found at ``path`` in the ``layers``."""
    if not isinstance(data, Mapping):
        raise WorldError(f"{_label(layers, path)}: {path or 'the file'} must be a table of settings, got {_show(data)}")
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cls) if item.metadata.get("yaml", True)}
    for key in data:
        if key not in known:
            name = key[:80] if isinstance(key, str) else _show(key)
            guess = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            label = _label(layers, _join(path, name))
            raise WorldError(f"{label}: there is no setting {_join(path, one_line(name))}; did you mean {_join(path, guess[0])}?")
    for name, item in known.items():
        if name in data:
            given[name] = _value(hints[name], data[name], layers, _join(path, name))
        elif item.default is MISSING and item.default_factory is MISSING:
            raise WorldError(f"{_label(layers, path)}: the setting {_join(path, name)} is missing")
    try:
        return cls(**given)
    except (ValueError, ArithmeticError) as error:
        raise WorldError(f"{_label(layers, path)}: {f'{path}: ' if path else ''}{one_line(error)}") from None


def _value(hint: Any, value: Any, layers: Layers, path: str) -> Any:
    """``value`` as the type ``hint`` asks for; WorldError where it is not."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        hint = next(argument for argument in arguments if argument is not NoneType)
        return _value(hint, value, layers, path)
    if origin is Literal:
        if value not in arguments:
            raise WorldError(f"{_label(layers, path)}: {path} is one of {', '.join(map(str, arguments))}; got {_show(value)}")
        return value
    if is_dataclass(hint):
        return _read(hint, value, layers, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise WorldError(f"{_label(layers, path)}: {path} must be a list, got {_show(value)}")
        if len(value) > LIST_LIMIT:
            raise WorldError(f"{_label(layers, path)}: {path} has {len(value)} entries; at most {LIST_LIMIT} can be used")
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            raise WorldError(f"{_label(layers, path)}: {path} must have {len(arguments)} entries, got {len(value)}")
        return tuple(_value(kind, item, layers, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= SIZE_LIMIT:
        return float(value)
    limit = LIMITS.get(path.rpartition(".")[2], SIZE_LIMIT)
    words = {int: f"a whole number from 0 to {limit}", float: "a finite number", str: "a text", bool: "true or false"}
    right = {int: lambda: 0 <= value <= limit, float: lambda: math.isfinite(value), str: lambda: len(value) < 1000, bool: lambda: True}
    if type(value) is not hint or not right[hint]():
        raise WorldError(f"{_label(layers, path)}: {path} must be {words[hint]}, got {_show(value)}")
    return value


def _label(layers: Layers, path: str) -> str:
    """Which file, or that it is the options, to name in a message about the setting at ``path``."""
    return layer_of(layers, path).label


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _show(value: Any) -> str:
    """The value for a message; containers by their kind alone (a hostile yaml can make them endless)."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple, set)):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to write out the longest
        return "a number of more than 60 digits"
    return one_line(repr(value)[:200], 80)
