"""Arrows only point down: play → game → engine → models; training → engine, models. Read from the files, not trusted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("game", "engine", "models", "training", "configs", "assets", "tests", "play")

# What each floor may use of the others, and what it may not use at all.
ALLOWED = {
    "play": {"game"},
    "game": {"game", "engine"},
    "engine": {"engine", "models"},
    "models": {"models"},
    "training": {"training", "engine", "models"},
    "configs": set(),
    "assets": set(),
}
FORBIDDEN = {
    "play": {"torch", "numpy", "pygame"},
    "game": {"torch", "torchvision", "safetensors"},
    "engine": {"pygame", "imageio", "imageio_ffmpeg", "huggingface_hub", "av"},
    "models": {"pygame", "imageio", "imageio_ffmpeg", "huggingface_hub", "av"},
    "training": {"pygame", "huggingface_hub", "av"},
}


def sources() -> list[Path]:
    return [ROOT / "play.py", *(file for floor in ALLOWED for file in sorted((ROOT / floor).rglob("*.py")))]


def floor_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in the file, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = file.relative_to(ROOT).with_suffix("").parts[: -node.level]
                yield node.lineno, ".".join((*package, node.module or ""))
            else:
                yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            argument = node.args[0] if node.args else None
            assert isinstance(argument, ast.Constant), f"{file}:{node.lineno} imports something that cannot be read here"
            yield node.lineno, str(argument.value)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_point_down(file: Path) -> None:
    floor = floor_of(file)
    for line, module in imports(file):
        top = module.split(".")[0]
        if top in FLOORS:
            assert top in ALLOWED[floor], f"{file.relative_to(ROOT)}:{line}: {floor} must not use {module}"
        assert top not in FORBIDDEN.get(floor, ()), f"{file.relative_to(ROOT)}:{line}: {floor} must not use {module}"


@pytest.mark.parametrize("file", [file for file in sources() if floor_of(file) == "game"], ids=lambda file: file.name)
def test_the_game_knows_only_the_engines_front(file: Path) -> None:
    for line, module in imports(file):
        assert not module.startswith("engine."), f"{file.name}:{line}: use what engine/__init__.py exports, not {module}"


def test_the_check_itself_sees_all_kinds_of_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "game" / "bad.py"
    file.parent.mkdir()
    file.write_text(
        "def f():\n    import torch.nn\n    from engine.world import World\n    importlib.import_module('models')\nfrom .hud import x\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert {module for _, module in imports(file)} == {"torch.nn", "engine.world", "models", "game.hud"}
