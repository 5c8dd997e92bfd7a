"""Where worlds are described: finding a yaml, reading it within bounds, and laying one over the world it extends."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from models.errors import WorldError, one_line

YAML_LIMIT = 32 << 10  # bytes; a world's yaml has a few thousand, and PyYAML takes a second for a hundred thousand
BASES_LIMIT = 8  # worlds that extend one another
NESTING_LIMIT = 12  # of anything in a yaml
TABLE_DEPTH = 3  # how deep tables of a world lie in one another (model.action.heads): deeper ones are replaced whole


@dataclass(frozen=True)
class Layer:
    """Settings from one place: a yaml file, or (``file`` None) the options ``label`` of whoever calls."""

    label: str  # for messages
    file: Path | None
    settings: Mapping[Any, Any]

    def has(self, path: str) -> bool:
        """Whether the setting at the dotted ``path`` was given here."""
        here: Any = self.settings
        for name in path.partition("[")[0].split("."):
            if not isinstance(here, Mapping) or name not in here:
                return False
            here = here[name]
        return True


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


def read_layers(name_or_yaml: str | Path) -> tuple[Layer, ...]:
    """The yaml of a world and those it extends, nearest first.

    Raises WorldError for an unknown name, a file that cannot be read or is no yaml, and bases that are unknown, go round in
    a circle or are too many.
    """
    file = _find(str(name_or_yaml))
    layers: list[Layer] = []
    while True:
        settings = load_yaml(file)
        base = settings.pop("extends", None) if isinstance(settings, dict) else None
        if layers and not isinstance(settings, dict):
            raise WorldError(f"{layers[-1].label}: extends {file.name}, which is no table of settings")
        layers.append(Layer(file.name, file, settings))
        if base is None:
            return tuple(layers)
        file = _base(base, file)
        chain = " → ".join([*(layer.label for layer in layers), file.name])
        if any(layer.file == file for layer in layers):
            raise WorldError(f"{layers[0].label}: extends goes round in a circle: {chain}")
        if len(layers) > BASES_LIMIT:
            raise WorldError(f"{layers[0].label}: extends goes through more than {BASES_LIMIT} worlds: {chain}")


def merged(layers: Sequence[Layer]) -> Any:
    """Settings of all layers, nearest first: tables are merged, anything else (lists too) replaces what lies below."""
    result: Any = layers[-1].settings
    for layer in reversed(layers[:-1]):
        result = _laid_over(result, layer.settings, TABLE_DEPTH)
    return result


def layer_of(layers: Sequence[Layer], path: str) -> Layer:
    """The layer that the setting at ``path`` comes from; the nearest where none gives it."""
    return next((layer for layer in layers if path and layer.has(path)), layers[0])


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tables from dotted names: {"model.dim": 8} -> {"model": {"dim": 8}}."""
    tables: dict[str, Any] = {}
    for path, value in values.items():
        *folders, name = path.split(".")
        here = tables
        for folder in folders:
            here = here.setdefault(folder, {})
        here[name] = value
    return tables


def _laid_over(below: Any, above: Any, depth: int) -> Any:
    if depth == 0 or not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{name: _laid_over(below[name], value, depth - 1) if name in below else value for name, value in above.items()}}


def _find(name: str) -> Path:
    worlds = list_worlds()
    if name in worlds:
        return config_folder() / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        if not os.path.isfile(name):  # unlike Path's own, it takes names of any length
            raise WorldError(f"there is no world file {one_line(name, 200)}; give a yaml file, or one of the worlds {', '.join(worlds)}")
        return Path(name).resolve()
    guess = difflib.get_close_matches(name[:80], worlds, n=1)
    hint = f"did you mean {guess[0]}? " if guess else ""
    raise WorldError(f"unknown world {one_line(name, 80)!r}; {hint}there are {', '.join(worlds)}, or give the path of a yaml file")


def _base(name: Any, file: Path) -> Path:
    """The yaml that ``file`` extends: a bundled world, or a path seen from ``file``."""
    if not isinstance(name, str) or not name:
        raise WorldError(f"{file.name}: extends must name one world or yaml file, such as universal; got {one_line(repr(name)[:200], 80)}")
    is_file = name.endswith((".yaml", ".yml"))
    try:
        return _find(str(file.parent / name) if is_file and name not in list_worlds() else name)
    except WorldError as error:
        raise WorldError(f"{file.name}: extends: {error}") from None


def load_yaml(file: Path) -> Any:
    """The plain values in a yaml file of at most `YAML_LIMIT` bytes, without aliases and without a name set twice. Raises WorldError."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(YAML_LIMIT + 1)
        if len(data) > YAML_LIMIT:
            raise WorldError(f"{file} is more than {YAML_LIMIT} bytes long; a yaml of settings has a few thousand")
        return yaml.load(data.decode("utf-8-sig"), _Loader)
    except OSError as error:
        raise WorldError(f"cannot read {file}: {error.strerror or error}") from None
    except WorldError:
        raise
    except _Twice as error:
        raise WorldError(f"{file}: {error}") from None
    except Exception as error:  # PyYAML fails in many ways on values that are not what their tag says
        raise WorldError(f"{file} is not a yaml file: {one_line(error)}") from None


class _Twice(ValueError):
    """A name that a table has twice: PyYAML would take the last one without a word."""


class _Loader(yaml.SafeLoader):
    """Plain values only. Aliases (and with them merge keys) could make a small file endless, and no world needs them."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            words = f"aliases such as *{one_line(alias.anchor, 40)} are not read in a world: write it out"
            raise yaml.composer.ComposerError(problem=words, problem_mark=alias.start_mark)
        if self.depth > NESTING_LIMIT:
            raise yaml.composer.ComposerError(problem="its tables lie too deep in one another", problem_mark=self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[Any, int] = {}  # by name, where it stands
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise _Twice(f"{one_line(key.value, 80)} is set in line {lines[name]} and again in line {line}; leave one of them out")
            lines[name] = line
        return super().construct_mapping(node, deep)
