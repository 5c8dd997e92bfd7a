from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import Action, World, benchmark, load_config
from engine.bench import _efficiency
from engine.bench_flops import block_work
from engine.bench_machine import Ceiling


def test_report_as_text_and_json(tiny_world: World) -> None:
    session = tiny_world.session()
    report = benchmark(session, blocks=5, warmup=1)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["blocks"] == 5 and data["frames"] == 60 and session.clock.block == 6
    assert data["fps"] == pytest.approx(60 / data["seconds"]) and data["speed"] == pytest.approx(data["fps"] / 16)
    assert list(data["stages"])[-1] == "total" and "decode" in data["stages"]
    for stage in data["stages"].values():
        assert 0 < stage["median"] <= stage["p90"] <= stage["p99"]
    text = report.to_text()
    assert "tiny on cpu, float32: 60 frames" in text and "denoise 3" in text
    assert not session.precise_timings


def test_actions_can_be_given(tiny_world: World) -> None:
    asked: list[int] = []
    benchmark(tiny_world.session(), blocks=2, warmup=1, action_of=lambda block: asked.append(block) or Action())
    assert asked == [0, 1, 2]


def test_blocks_that_are_held_still_have_no_commit(tiny_yaml: Path) -> None:
    world = World.load(load_config(tiny_yaml, {"sampler.hold_still": True}))
    held, ceiling = [], Ceiling(tflops=1.0, copy_gb_s=1.0)
    session = world.session()

    def choose(block: int) -> Action:
        held.append(session.clock.still)
        return Action(frozenset("w")) if block == 8 else Action()

    report = benchmark(session, blocks=6, warmup=5, action_of=choose, ceiling=ceiling)
    assert held[6] > held[5], "the first measured block is held"
    assert held[-1] - held[5] < 5, "and not all are"
    names = list(report.stages)
    assert names[-4:] == ["decode", "transfer", "commit", "total"] and report.efficiency.transformer_tflops > 0
    assert "commit" in benchmark(world.session(), blocks=6, warmup=0, action_of=lambda block: Action()).stages
    walking = benchmark(world.session(), blocks=8, warmup=1, action_of=lambda block: Action(frozenset("w")))
    commit = walking.stages["commit"].median
    assert walking.first_frame.median < walking.stages["total"].median - commit / 2, "frames are there before the commit is done"

    # the second of two blocks committed nothing: half of a commit counts
    laps = [{"denoise 1": 2.0, "commit": 1.0, "decode": 1.0, "total": 4.0}, {"denoise 1": 2.0, "decode": 1.0, "total": 3.0}]
    work, found = block_work(world.config, world.dtype), _efficiency(session, laps, ceiling)
    assert found.transformer_tflops == pytest.approx((work.passes * work.denoise_pass + work.commit / 2) / 2.5 / 1e12)
    assert found.read_gb_s == pytest.approx((work.passes + 0.5) * (work.dit_bytes + work.cache_bytes) / 2.5 / 1e9)


def test_no_blocks(tiny_world: World) -> None:
    with pytest.raises(ValueError, match="at least one block, got -3"):
        benchmark(tiny_world.session(), blocks=-3)
