from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import WorldError, list_worlds, load_config
from models.dit import DiTConfig
from models.vae import VAEConfig
from models.vision import VisionConfig
from tests.tiny_world import SETTINGS

FIXTURES = Path(__file__).parents[1] / "fixtures"
BUNDLED = ("garden", "gta_drive", "templerun", "universal")


def refusal(path: Path | str) -> str:
    with pytest.raises(WorldError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 500
    return message


def write(folder: Path, edit: Any = None, text: str | None = None) -> Path:
    settings = json.loads(json.dumps(SETTINGS))
    if edit is not None:
        edit(settings)
    path = folder / "mine.yaml"
    path.write_text(text if text is not None else yaml.safe_dump(settings))
    return path


def test_the_bundled_worlds() -> None:
    assert list_worlds() == BUNDLED
    for name in BUNDLED:
        config = load_config(name)
        assert config.name == name and config.title and config.about
        assert config.folder.name == "assets"


@pytest.mark.parametrize(("name", "window"), [("universal", 6), ("gta_drive", 4), ("templerun", 6)])
def test_published_worlds_have_published_sizes(name: str, window: int) -> None:
    config, published = load_config(name), DiTConfig.from_name(name)
    assert config.model.action == published.action
    assert config.model == DiTConfig(action=published.action, local_attn_size=window)
    assert config.vae == VAEConfig() and config.vision == VisionConfig()
    assert (config.height, config.width) == (352, 640)
    assert config.sampler.steps == ((1000, 750, 500, 250) if name == "templerun" else (1000, 666, 333))


def test_the_garden_is_as_agreed() -> None:
    config = load_config("garden")
    assert (config.height, config.width, config.fps) == (64, 112, 16)
    assert config.model.local_attn_size == 15 and config.model.img_dim == 0 and config.vision is None
    assert config.vae.spatial_ratio == 8 and config.vae.temporal_ratio == 4 and config.vae.z_dim == 16


def test_a_yaml_of_ones_own(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert config.name == "mine" and config.folder == tmp_path and config.fps == 16
    assert config.model.action.keyboard_dim == 4  # a default


def test_unknown_world() -> None:
    assert refusal("gardn") == (
        "unknown world 'gardn'; did you mean garden? there are garden, gta_drive, templerun, universal, or give the path of a yaml file"
    )
    assert "there is no world file nowhere/mine.yaml" in refusal("nowhere/mine.yaml")
    assert "unknown world" in refusal("x" * 10_000)
    assert "there is no world file" in refusal("x" * 10_000 + ".yaml")
    assert "unknown world" in refusal("two\nlines")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update(fsp=3), "mine.yaml: there is no setting fsp; did you mean fps?"),
        (lambda s: s["model"].update(num_layer=3), "mine.yaml: there is no setting model.num_layer; did you mean model.num_layers?"),
        (lambda s: s["model"]["action"].update(head=3), "there is no setting model.action.head; did you mean model.action.heads?"),
        (lambda s: s["actions"]["keyboard"][0].update(keys="w"), "actions.keyboard[0].keys; did you mean actions.keyboard[0].key?"),
        (lambda s: s.update(name="x"), "there is no setting name"),
        (lambda s: s.pop("fps"), "mine.yaml: the setting fps is missing"),
        (lambda s: s["weights"].pop("vae"), "mine.yaml: the setting weights.vae is missing"),
        (lambda s: s.update(fps="fast"), "mine.yaml: fps must be a whole number from 0 to 1048576, got 'fast'"),
        (lambda s: s.update(fps=True), "fps must be a whole number"),
        (lambda s: s.update(fps=16.5), "fps must be a whole number"),
        (lambda s: s.update(fps=0), "fps must be 1 to 240, got 0"),
        (lambda s: s.update(height=-16), "height must be a whole number"),
        (lambda s: s.update(height=20), "height must be a multiple of 16 up to 2048, got 20"),
        (lambda s: s.update(title=["a"]), "title must be a text, got a list"),
        (lambda s: s.update(model=[1]), "model must be a table of settings, got a list"),
        (lambda s: s["model"].update(patch_size=2), "model.patch_size must be a list, got 2"),
        (lambda s: s["model"].update(patch_size=[1, 2]), "model.patch_size must have 3 entries, got 2"),
        (lambda s: s["vae"].update(dim_mult=[1, "x", 1]), "vae.dim_mult[1] must be a whole number"),
        (lambda s: s["vae"].update(temporal_downsample=[1, 1]), "vae.temporal_downsample[0] must be true or false, got 1"),
        (lambda s: s.update(sampler={"shift": float("nan")}), "sampler.shift must be a finite number, got nan"),
        (lambda s: s.update(sampler={"shift": -5}), "mine.yaml: sampler: shift must be positive"),
        (lambda s: s.update(sampler={"last_noise": 1.5}), "mine.yaml: sampler: last_noise must be 0 to 1, got 1.5"),
        (lambda s: s.update(sampler={"steps": [333, 666]}), "mine.yaml: sampler: denoising steps must be whole numbers falling"),
        (lambda s: s.update(sampler={"steps": []}), "denoising steps"),
        (lambda s: s["model"].update(num_heads=3), "mine.yaml: model: dim 32 does not divide into 3 heads"),
        (lambda s: s["model"].update(num_heads=0), "mine.yaml: model: num_heads must be above 0, got 0"),
        (lambda s: s["model"].update(num_frame_per_block=0), "mine.yaml: model: num_frame_per_block must be above 0, got 0"),
        (lambda s: s["model"].update(patch_size=[1, 0, 2]), "mine.yaml: model: patch_size must be above 0, got [1, 0, 2]"),
        (lambda s: s["model"].update(eps=-1), "mine.yaml: model: eps must be above 0, got -1.0"),
        (lambda s: s["model"]["action"].update(heads=0), "mine.yaml: model.action: heads must be above 0, got 0"),
        (lambda s: s["vae"].update(patch_size=0), "mine.yaml: vae: patch_size must be above 0, got 0"),
        (lambda s: s["vae"].update(dim_mult=[]), "mine.yaml: vae: dim_mult must have at least one number"),
        (lambda s: s["vae"].update(latents_std=[1, 1, 0, 1]), "mine.yaml: vae: latents_std must be above 0, got [1.0, 1.0, 0.0, 1.0]"),
        (lambda s: s.update(taehv={"widths": [8, 0]}), "mine.yaml: taehv: widths must be above 0, got [8, 0]"),
        (lambda s: s.update(vision={"num_heads": 0}), "mine.yaml: vision: num_heads must be above 0, got 0"),
        (lambda s: s["weights"].update(dit=[""]), "mine.yaml: weights: dit must list names of files, got ['']"),
        (lambda s: s.update(start=" "), "mine.yaml: start must be the name of a picture (or left out), got ' '"),
        (lambda s: s["model"].update(num_layers=10**6), "model.num_layers must be a whole number from 0 to 256"),
        (lambda s: s["model"].update(prediction="noise"), "prediction"),
        (lambda s: s["model"].update(in_dim=36), "model.in_dim must be 12"),
        (lambda s: s["model"]["action"].update(keyboard_dim=5), "actions.keyboard must list 5 keys"),
        (lambda s: s["model"]["action"].update(mouse_dim=0), "model.action.mouse_dim is 0, actions.look_scale calls for 2"),
        (lambda s: s["model"].update(img_dim=64), "vision"),
        (lambda s: s["actions"].update(look_scale=None), "mine.yaml: actions: look keys need a look_scale"),
        (lambda s: s["weights"].update(dit=[]), "weights needs at least one file"),
        (lambda s: s.update(dtype="int8"), "dtype is one of auto, float32, bfloat16, float16; got 'int8'"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, edit: Any, message: str) -> None:
    assert message in refusal(write(tmp_path, edit))


def test_a_name_that_a_table_has_twice(tmp_path: Path) -> None:
    said = refusal(write(tmp_path, text="extends: garden\nfps: 3\ntitle: x\nfps: 4\n"))
    assert said == f"{tmp_path}/mine.yaml: fps is set in line 2 and again in line 4; leave one of them out"
    assert "dim is set in line 2 and again in line 2" in refusal(write(tmp_path, text="extends: garden\nmodel: {dim: 24, dim: 24}\n"))
    load_config(write(tmp_path, text="extends: garden\nfps: 3\nvae: {}\nmodel: {}\n"))


@pytest.mark.parametrize(
    "text",
    [
        "", "just text", "[1, 2]", "a: [", "\t", "a: b: c", "!!python/object:os.system {}", "? [x]\n: 1", "3: 4", "null: 1",
        "fps: &x [*x]", "x: " + "[" * 5000, "a: 2001-13-45", "{}", "\ufeff{", "fps: 0x" + "f" * 5000,
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_no_world_at_all(tmp_path: Path, text: str) -> None:
    refusal(write(tmp_path, text=text))


def test_binary_huge_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(bytes(range(256)))
    refusal(tmp_path / "b.yaml")
    (tmp_path / "big.yaml").write_text("a: 1\n" * 300_000)
    assert "bytes long" in refusal(tmp_path / "big.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "no world file" in refusal(tmp_path / "folder.yaml")


def test_the_reduced_universal_is_the_published_one_with_fewer_layers() -> None:
    """What docs/PERFORMANCE.md compares on a CPU."""
    reduced, whole = load_config(FIXTURES / "reduced_universal.yaml"), load_config("universal")
    assert reduced.model == replace(whole.model, num_layers=2, action=replace(whole.model.action, blocks=(0, 1)))
    assert reduced.vae == whole.vae and (reduced.height, reduced.width, reduced.sampler) == (352, 640, whole.sampler)
