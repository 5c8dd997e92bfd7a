"""What is quicker and not the same: the tiny decoder, keys of the last pass. Off unless asked for, and whose saved games are their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine import Action, Snapshot, World, WorldError, load_config
from engine.exact import settings
from game.cli import main
from models.float8 import why_not
from models.taehv import TAEHV
from tests.tiny_world import random_weights, write_tiny_world

WALK = [Action(frozenset(keys)) for keys in ("w", "wl", "", "a", "sj", "d", "w")]


def tiny_decoder(config: dict[str, Any]) -> None:
    config["decoder"] = "taehv"
    config["taehv"] = {"z_dim": 4, "widths": [8, 4, 4, 4]}
    config["weights"]["taehv"] = ["taehv.safetensors"]


@pytest.fixture(scope="module")
def taehv_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taehv")
    path = write_tiny_world(folder, change=tiny_decoder)
    torch.manual_seed(4)  # a module's start values are drawn from the one generator of the process
    weights = random_weights(TAEHV(load_config(path).taehv), torch.Generator().manual_seed(1))
    strangers = {"encoder.0.weight": torch.zeros(3)}  # the published file has more in it than is needed
    save_file(weights | strangers, folder / "taehv.safetensors")
    return path


@pytest.fixture(scope="module")
def taehv_world(taehv_yaml: Path) -> World:
    return World.load(taehv_yaml)


def test_it_plays_saves_and_rewinds(taehv_world: World, tmp_path: Path) -> None:
    session = taehv_world.session(3)
    frames = [session.step(action) for action in WALK]
    assert [len(block) for block in frames] == [9, *[12] * 6] and frames[0].shape[1:] == (16, 32, 3) and frames[-1].std() > 1
    session.rewind(4)
    snapshot = session.snapshot()
    for action, block in zip(WALK[3:], frames[3:], strict=True):
        assert np.array_equal(session.step(action), block)
    snapshot.save(tmp_path / "saved.safetensors")
    again = taehv_world.resume(Snapshot.load(tmp_path / "saved.safetensors", taehv_world))
    for action, block in zip(WALK[3:], frames[3:], strict=True):
        assert np.array_equal(again.step(action), block)


def test_saved_games_keep_apart(taehv_world: World, tiny_world: World, tmp_path: Path) -> None:
    session = taehv_world.session()
    session.step()
    session.snapshot().save(tmp_path / "other.safetensors")
    with pytest.raises(WorldError, match=r"taehv|decoder"):
        Snapshot.load(tmp_path / "other.safetensors", tiny_world)


def test_without_its_file(taehv_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = write_tiny_world(tmp_path, change=tiny_decoder)
    with pytest.raises(WorldError, match=r"taehv\.safetensors"):
        World.load(bare)
    assert main(["--world", str(bare), "--headless", "--blocks", "1"]) == 2
    assert main(["--decoder", "taehv", "--headless", "--blocks", "1"]) == 2  # the garden has none
    assert "no file for the decoder taehv" in capsys.readouterr().err


def test_keys_of_the_last_pass(tiny_yaml: Path, tiny_world: World) -> None:
    quick = World.load(load_config(tiny_yaml, {"sampler.context": "last"}))
    ours, exact = quick.session(1), tiny_world.session(1)
    assert np.array_equal(ours.step(WALK[0]), exact.step(WALK[0]))  # nothing was remembered yet
    assert "commit" in exact.timings and "commit" not in ours.timings
    later = [(ours.step(action), exact.step(action)) for action in WALK[1:]]
    assert not np.array_equal(*later[0])
    with pytest.raises(WorldError, match=r"sampler\.context"):
        quick.resume(exact.snapshot())
    with pytest.raises(WorldError, match="context is one of clean, last; got 'dirty'"):
        load_config(tiny_yaml, {"sampler.context": "dirty"})


@pytest.mark.skipif(why_not(torch.device("cpu"), torch.float32) is not None, reason="torch cannot multiply float8 here")
def test_products_in_float8(tiny_yaml: Path, tiny_world: World, tmp_path: Path) -> None:
    config = load_config(tiny_yaml, {"linears": "float8"})
    quick = World.load(config)
    ours, exact = quick.session(1), tiny_world.session(1)
    both = [(ours.step(action), exact.step(action)) for action in WALK]
    first = [block[0].astype(float) for block in both[0]]  # random weights make much of little, later
    assert not np.array_equal(*first) and np.abs(first[0] - first[1]).mean() < 8 < np.abs(first[0] - tiny_world.session(2).step()[0]).mean()
    ours.rewind(3)
    snapshot = ours.snapshot()
    snapshot.save(tmp_path / "saved.safetensors")
    again = World.load(config).resume(Snapshot.load(tmp_path / "saved.safetensors", quick))  # rounded once more: to the same
    for action, (block, _) in zip(WALK[4:], both[4:], strict=True):
        assert np.array_equal(ours.step(action), block) and np.array_equal(again.step(action), block)
    with pytest.raises(WorldError, match="linears"):
        tiny_world.resume(snapshot)
    assert quick.describe()["linears"] == "float8"


def test_no_float8(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorldError, match="linears is one of exact, float8; got 'int4'"):
        load_config(tiny_yaml, {"linears": "int4"})
    with pytest.raises(WorldError, match=r"float8 wants model\.dim and model\.ffn_dim in multiples of 16: they are 32 and 40"):
        load_config(tiny_yaml, {"linears": "float8", "model.ffn_dim": 40})
    monkeypatch.setattr("engine.world.why_not", lambda device, dtype: "it is an old one")
    assert main(["--world", str(tiny_yaml), "--linears", "float8", "--headless", "--blocks", "1"]) == 2
    assert "no float8 here: it is an old one; leave --linears out" in capsys.readouterr().err
    assert main(["bench", "--world", str(tiny_yaml), "--random", "--linears", "float8", "--compare", "baseline"]) == 2
    assert "leave --decoder, --context and --linears out" in capsys.readouterr().err


def test_settings_of_before_are_those_of_now(tiny_yaml: Path, taehv_yaml: Path) -> None:
    """Saved games and sessions from before these settings existed still fit."""
    told = settings(load_config(tiny_yaml))
    assert not any(word in name for name in told for word in ("decoder", "taehv", "context", "linears"))
    assert settings(load_config(tiny_yaml, {"linears": "float8"}))["linears"] == "float8"
    assert settings(load_config(taehv_yaml))["decoder"] == "taehv"
    assert settings(load_config(tiny_yaml, {"sampler.context": "last"}))["sampler.context"] == "last"
