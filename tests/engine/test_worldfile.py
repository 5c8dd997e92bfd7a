"""Worlds that extend others, options laid over them, and files that want to be a world and are not."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import World, WorldError, load_config
from engine.worldfile import config_folder
from models.errors import WeightError
from tests.tiny_world import SETTINGS, write_tiny_world

LONG = bool(os.environ.get("REVERIE_LONG"))


def write(path: Path, settings: dict[str, Any] | str) -> Path:
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


def refusal(path: Path | str, options: dict[str, Any] | None = None) -> str:
    with pytest.raises(WorldError) as caught:
        load_config(path, options)
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 700
    return message


def test_extending_a_bundled_world(tmp_path: Path) -> None:
    mine = {
        "extends": "universal",
        "title": "Mine",
        "fps": 16,
        "seed": 7,
        "sampler": {"steps": [1000, 500]},
        "model": {"local_attn_size": 12},
    }
    config, base = load_config(write(tmp_path / "mine.yaml", mine)), load_config("universal")
    assert (config.name, config.title, config.fps, config.seed) == ("mine", "Mine", 16, 7)
    assert config.sampler.steps == (1000, 500) and config.sampler.shift == base.sampler.shift  # lists replaced, tables merged
    assert config.model.local_attn_size == 12 and config.model.action == base.model.action and config.actions == base.actions
    assert config.weights.dit == base.weights.dit and config.weight_folders("dit") == base.weight_folders("dit")
    assert config.weight_folders("dit", tmp_path) == (tmp_path,)


def test_a_chain_of_worlds(tmp_path: Path) -> None:
    """Names of files belong to the yaml that gives them."""
    for folder in ("base", "middle", "top"):
        (tmp_path / folder).mkdir()
    write_tiny_world(tmp_path / "base")
    write_tiny_world(tmp_path / "middle", seed=1)
    middle = write(tmp_path / "middle" / "m.yaml", {"extends": "../base/tiny.yaml", "weights": {"dit": ["dit.safetensors"]}, "fps": 20})
    top = write(tmp_path / "top" / "t.yaml", {"extends": str(middle), "model": {"action": {"rope_theta": 300.0}}})
    world = World.load(top)
    assert world.files == {"dit": [tmp_path / "middle/dit.safetensors"], "vae": [tmp_path / "base/vae.safetensors"], "vision": []}
    assert world.config.start_file == tmp_path / "base" / "start.png" and world.config.fps == 20
    assert world.config.model.action.rope_theta == 300 and world.config.model.action.heads == 2
    assert world.session().step().shape == (9, 16, 32, 3)
    weights = tmp_path / "weights"
    weights.mkdir()
    with pytest.raises(WeightError, match=r"no vae.safetensors in .*weights"):  # the folder named by the player is where to look
        World.load(top, weights=weights)
    (tmp_path / "base" / "vae.safetensors").rename(weights / "vae.safetensors")
    assert World.load(top, weights=weights).files["dit"] == [tmp_path / "middle/dit.safetensors"]  # beside its yaml


def test_a_world_may_lose_its_start_picture(tmp_path: Path) -> None:
    base = write_tiny_world(tmp_path)
    world = World.load(write(tmp_path / "m.yaml", {"extends": base.name, "start": None}))
    with pytest.raises(WorldError, match=r"m has no start picture of its own; give one with --start FILE; .*start_1.png to start_8.png"):
        world.session()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extends": "universl"}, "mine.yaml: extends: unknown world 'universl'; did you mean universal?"),
        ({"extends": "gone.yaml"}, "mine.yaml: extends: there is no world file"),
        ({"extends": ["universal"]}, "mine.yaml: extends must name one world or yaml file, such as universal; got ['universal']"),
        ({"extends": 3}, "extends must name one world"),
        ({"extends": ""}, "extends must name one world"),
        ({"extends": "a\x00.yaml"}, "extends: there is no world file"),
        ({"extends": "mine.yaml"}, "mine.yaml: extends goes round in a circle: mine.yaml → mine.yaml"),
        ({"extends": "text.yaml"}, "mine.yaml: extends text.yaml, which is no table of settings"),
        ({"extends": "universal", "fsp": 3}, "mine.yaml: there is no setting fsp; did you mean fps?"),
        ({"extends": "universal", "model": 3}, "mine.yaml: model must be a table of settings, got 3"),
        ({"extends": "universal", "model": {"local_attn_size": 16}}, "model.local_attn_size must be a whole number from 0 to 15"),
        ({"extends": "universal", "model": {"local_attn_size": 2}}, "local_attn_size 2 is smaller than a block of 3 latents"),
        ({"extends": "universal", "height": 350}, "mine.yaml: height must be a multiple of 16 up to 2048, got 350"),
        ({"extends": "universal", "sampler": {"steps": [1, 2]}}, "mine.yaml: sampler: denoising steps must be whole numbers falling"),
        ({"extends": "universal", "seed": -1}, "mine.yaml: seed must be a whole number from 0 to 9223372036854775807, got -1"),
        ({"extends": "universal", "actions": {"one_hot": True}}, "mine.yaml: actions: a one_hot keyboard needs exactly one entry"),
        ({"extends": "universal", "actions": {"keyboard": [{"kee": "w"}]}}, "no setting actions.keyboard[0].kee"),
        ({"extends": "bad.yaml", "fps": 3}, "bad.yaml: there is no setting fsp"),
    ],
)  # fmt: skip
def test_what_cannot_be_extended_or_laid_over(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write(tmp_path / "text.yaml", "just text")
    write(tmp_path / "bad.yaml", {"extends": "universal", "fsp": 3})
    assert message in refusal(write(tmp_path / "mine.yaml", settings))


def test_circles_and_towers_of_worlds(tmp_path: Path) -> None:
    for here, there in ("ab", "bc", "ca"):
        write(tmp_path / f"{here}.yaml", {"extends": f"{there}.yaml"})
    assert "a.yaml: extends goes round in a circle: a.yaml → b.yaml → c.yaml → a.yaml" in refusal(tmp_path / "a.yaml")
    for floor in range(20):
        write(tmp_path / f"{floor}.yaml", {"extends": f"{floor + 1}.yaml" if floor < 19 else "universal"})
    assert "more than 8 worlds: 0.yaml → 1.yaml" in refusal(tmp_path / "0.yaml")
    assert load_config(tmp_path / "13.yaml").fps == 25  # eight of them may


def test_options(tmp_path: Path) -> None:
    options = {"fps": 24, "sampler.steps": [1000, 500], "model.local_attn_size": 9, "height": 160, "width": 320}
    config = load_config("universal", options)
    assert (config.fps, config.sampler.steps, config.model.local_attn_size, config.height, config.width) == (24, (1000, 500), 9, 160, 320)
    assert config.name == "universal" and config.weight_folders("dit") == load_config("universal").weight_folders("dit")
    assert load_config("universal", {}) == load_config("universal")
    assert "options: height must be a multiple of 16 up to 2048, got 350" in refusal("universal", {"height": 350})
    assert "options: model.local_attn_size must be a whole number from 0 to 15, got 20" in refusal("garden", {"model.local_attn_size": 20})
    broken = write(tmp_path / "broken.yaml", {"extends": "garden", "fps": 0})
    assert "broken.yaml: fps must be 1 to 240" in refusal(broken, {"fps": 16})  # the yaml's own fault stays the yaml's


def test_the_seed_of_a_yaml(tmp_path: Path) -> None:
    base = write_tiny_world(tmp_path)
    world = World.load(write(tmp_path / "m.yaml", {"extends": base.name, "seed": 2**40 + 5}))
    assert world.session().seed == 2**40 + 5 and world.session(seed=0).seed == 0


BOMBS = {
    "aliases": "\n".join(["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]),
    "tables": "\n".join(["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 40)]),
    "merge keys": "\n".join(["a0: &a0 {x: 1}"] + [f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]),
    "itself": "a: &a [*a]",
    "brackets": "x: " + "[" * 30_000,
    "braces": "{a: " * 8000,
    "indents": "\n".join(" " * i + "a:" for i in range(250)),
    "dashes": "x: " + "- " * 15_000,
    "questions": "? " * 16_000,
    "a huge number": "fps: 0x" + "f" * 30_000,
    "a huge name": "0x" + "f" * 30_000 + ": 1",
    "a huge decimal": "fps: " + "9" * 30_000,
    "base sixty": "fps: 1" + ":1" * 15_000,
    "dots": "fps: 1." + "0" * 30_000 + "e" + "9" * 1000,
    "many names": "\n".join(f"a{i}: 1" for i in range(4000)),
    "many tags": "x: " + "!!str " * 5000,
    "an empty number": "fps: !!int ''",
    "no bool": "fps: !!bool maybe",
    "no time": "fps: !!timestamp soon",
    "no binary": "fps: !!binary ü",
    "a set": "fps: !!set {a, b}",
    "pairs": "fps: !!pairs [a: 1]",
    "python": "fps: !!python/object/apply:os.system ['true']",
    "control characters": "fps: \x01",
    "percent": "%YAML 9.9\n---\na: 1",
    "documents": "---\n" * 1000,
    "too long": "a: 1\n" * 10_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path: Path, name: str) -> None:
    write(tmp_path / "plain.yaml", BOMBS[name])
    write(tmp_path / "over.yaml", f"{BOMBS[name]}\nextends: plain.yaml")
    for file in ("plain.yaml", "over.yaml"):
        begun = time.process_time()
        tracemalloc.start()
        refusal(tmp_path / file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50e6, peak
        assert time.process_time() - begun < 5  # tracing takes several times as long; the fuzz below asks for one second


BITS = ["", ":", "-", "\n", "0", "[", "}", "é", "  ", "9999999", "&a ", "*a", "<<: ", "null", "-1", "\x00", "!!int ", "{", "? ", "|", "'"]
BITS += ['"', "#", "extends: garden\n", "extends: mine.yaml\n", "1e999", ".nan", "0x" + "f" * 5000, "~", "%", "---\n", "model:\n"]


def mutate(rng: random.Random, text: str) -> str:
    letters = list(text)
    for _ in range(rng.choice((1, 1, 2, 4, 30))):
        place = rng.randrange(len(letters))
        match rng.randrange(4):
            case 0:
                letters[place : place + rng.randrange(3)] = rng.choice(BITS)
            case 1:
                letters[place : place + rng.choice((1, 5, 200))] = []
            case 2:  # a piece said again, elsewhere
                end = place + rng.choice((3, 30, 300))
                letters[rng.randrange(len(letters)) : 0] = letters[place:end]
            case _:
                letters[place] = chr(rng.choice((rng.randrange(32, 127), rng.randrange(1, 0xD800), 9, 10)))
        letters = letters or ["x"]
    return "".join(letters)


def test_mutated_files_give_only_our_own_error(tmp_path: Path) -> None:
    """Files that are no longer what they were: a config or our own error, within a second; 10,000 of them with REVERIE_LONG=1."""
    rng, path = random.Random(0), tmp_path / "mine.yaml"
    texts = [file.read_text() for file in sorted(config_folder().glob("*.yaml"))]
    texts += [yaml.safe_dump(SETTINGS), "extends: universal\nfps: 16\nmodel: {local_attn_size: 9}\nsampler: {steps: [1000, 500]}\n"]
    played = refused = 0
    for i in range(10_000 if LONG else 150):
        path.write_text(mutate(rng, texts[-1 if i % 3 == 0 else i % len(texts)]), encoding="utf-8", errors="replace")
        begun = time.process_time()
        try:
            load_config(path, {"fps": 20} if i % 5 == 0 else None)
            played += 1
        except WorldError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            refused += 1
        assert time.process_time() - begun < 1
    assert played > 5 and refused > 10
