from __future__ import annotations

import json

import pytest

from engine import Action, World, benchmark


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


def test_no_blocks(tiny_world: World) -> None:
    with pytest.raises(ValueError, match="at least one block, got -3"):
        benchmark(tiny_world.session(), blocks=-3)
