"""The first layers alone: the same network, the same weights, and clips that another process draws."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from models.dit import DiT
from tests.training.test_trainers import random_clips, small_dit
from training import localise
from training.deepen import deepened
from training.guide import Guides, pose_features
from training.latents import cut_windows, joined
from training.localise import Localiser, write_whole
from training.make_clips import ClipFeed, next_number, write_shard
from training.objectives.view import View
from training.train_dit import as_batch


def whole_and_first(layers: int = 1) -> tuple[DiT, DiT]:
    """A small denoiser, and its first layers."""
    whole = small_dit()
    first = DiT(replace(whole.config, num_layers=layers, action=replace(whole.config.action, blocks=(0,))))
    weights = whole.state_dict()
    first.load_state_dict({name: weights[name] for name in first.state_dict()})
    return whole, first


def test_the_first_layers_hear_what_those_of_the_whole_hear() -> None:
    """The clean half of forcing's view, up to the guide's layer."""
    whole, first = whole_and_first()
    windows = cut_windows(random_clips(2), torch.tensor([0, 1]), torch.tensor([0, 0]), 9)
    localiser = Localiser(first, 9, torch.device("cpu"), 0.0)
    guides = Guides(whole, 0, 1)
    guides.seen.load_state_dict(localiser.guide.state_dict())
    view = View(12, 3, 15, "clean", torch.device("cpu"))
    batch = as_batch(cut_windows(random_clips(2), torch.tensor([0, 1]), torch.tensor([0, 0]), 12), torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        sigma = torch.ones(2, 1, 12, 1, 1)
        view.x0(whole, torch.randn_like(batch.latents), torch.full((2, 12), 1000.0), sigma, batch, batch.latents)
    with torch.no_grad():
        localiser.look(windows)
        mine, theirs = localiser.guide.told(), guides.seen.told()[:, :9]
    torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)


def test_two_guides_ask_two_layers() -> None:
    whole = small_dit()
    guides = Guides(whole, 0, 1)
    tokens = {layer: torch.randn(2, 15, 6, whole.config.dim) for layer in (0, 1)}
    pose = torch.rand(2, 9, 4)
    guides.seen._tokens, guides.told._tokens = tokens[0], tokens[1]
    seen, told = guides.loss(pose, 6)
    assert seen.shape == (2, 6) and told.shape == (2, 9)
    for guide, heard, errors, part in ((guides.seen, tokens[0], seen, slice(0, 6)), (guides.told, tokens[1], told, slice(6, 15))):
        wanted = pose_features(torch.cat([pose[:, :6], pose], 1)[:, part])[:, :, None]
        off = guide.read(guide.norm(heard[:, part])) - wanted
        torch.testing.assert_close(errors, ((off.square() + 0.02**2).sqrt() - 0.02).mean((2, 3)))
    with pytest.raises(RuntimeError, match="run the denoiser first"):
        guides.loss(pose, 6)


def test_it_learns_and_the_later_layers_stay(tmp_path) -> None:
    whole, first = whole_and_first()
    localiser = Localiser(first, 9, torch.device("cpu"), 0.1)
    optimizer = torch.optim.AdamW(localiser.parameters(), lr=2e-3)
    clips, losses = random_clips(2), []
    for _ in range(30):
        loss = localiser.loss(cut_windows(clips, torch.tensor([0, 1]), torch.tensor([0, 0]), 9))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    write_whole(first, localiser.guide, dict(whole.state_dict()), tmp_path / "whole.pt")
    written = torch.load(tmp_path / "whole.pt", weights_only=True)
    before = whole.state_dict()
    assert set(written["averaged"]) == set(before)
    same = {name for name, value in written["averaged"].items() if torch.equal(value, before[name])}
    assert {name for name in before if name.startswith(("blocks.1.", "head."))} <= same
    assert "blocks.0.ffn.0.weight" not in same
    Guides(whole, 0, 1).load_state_dict(written["helper"])
    assert "held out: first" in localise.report(localiser, clips) and localiser.noise == 0.1


def test_strays_are_degrees_and_cells() -> None:
    _, first = whole_and_first()
    localiser = Localiser(first, 3, torch.device("cpu"), 0.0)
    windows = cut_windows(random_clips(1), torch.tensor([0]), torch.tensor([0]), 3)
    off = windows.pose.clone()
    off[..., 2] += 0.1
    off[..., 0] += 0.3
    localiser.guide.told = lambda: pose_features(off)[:, :, None].expand(-1, -1, 6, -1)
    turned, away = localiser.strays(windows)
    torch.testing.assert_close(turned, torch.full((1, 3), 0.1 * 180 / torch.pi), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(away, torch.full((1, 3), 0.3), rtol=1e-4, atol=1e-4)


def test_weights_of_another_depth_are_refused_at_once(tmp_path, monkeypatch, capsys) -> None:
    """Not by what begins with `whole.pt`, an hour later."""
    write_shard(random_clips(1), tmp_path, 0)
    garden = localise.garden_dit()
    layers = len(garden.blocks)
    torch.save({"averaged": deepened(garden.state_dict(), layers - 1, [layers - 1])}, tmp_path / "deeper.pt")
    words = ["--start-from", tmp_path / "deeper.pt", "--feed", tmp_path, "--out", tmp_path / "run", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["x", *map(str, words)])
    assert localise.main() == 2
    assert re.search(rf"deeper\.pt holds blocks\.{layers}\..*: --start-from takes weights of this network", capsys.readouterr().err)


def test_no_shard_takes_the_place_of_another(tmp_path) -> None:
    """Whoever has taken some of them away, and whatever else lies there."""
    clips = random_clips(1)
    for wanted in ("7_00000", "7_00001", "7_00002"):
        assert write_shard(clips, tmp_path, 7).stem == wanted
    for gone in ("7_00000", "7_00001"):
        (tmp_path / f"{gone}.safetensors").unlink()
    (tmp_path / "7_merged.safetensors").touch()
    (tmp_path / "17_00008.safetensors").touch()
    assert write_shard(clips, tmp_path, 7).stem == "7_00003"
    assert next_number(tmp_path, 7) == 4 and next_number(tmp_path, 8) == 0


def test_shards_are_read_once_and_whole(tmp_path) -> None:
    clips = random_clips(5)
    first, second = clips.oldest(2), clips.newest(3)
    assert write_shard(first, tmp_path, 7).name == "7_00000.safetensors"
    feed = ClipFeed(tmp_path)
    (only,) = feed.new()
    assert torch.equal(only.latents, first.latents) and feed.new() == []
    (tmp_path / "7_00009.part").write_bytes(b"half of a shard")
    assert write_shard(second, tmp_path, 7).name == "7_00001.safetensors"
    (more,) = feed.new()
    assert torch.equal(joined([only, more]).pose, clips.pose)
    assert len(ClipFeed(tmp_path).new()) == 2
    with pytest.raises(FileNotFoundError):
        ClipFeed(tmp_path / "nowhere").new()
