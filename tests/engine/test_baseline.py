"""The plain variant that speeds are compared with gives the numbers of the session: neither may drift from the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import Action, World, load_config
from engine.baseline import Baseline
from engine.bench import compare
from engine.session import Session
from tests.recordings import relative_error
from tests.tiny_world import write_tiny_world

WALK = [Action(frozenset("w")), Action(frozenset("wl")), Action(frozenset("aj")), Action(), Action(frozenset("si")), Action(frozenset("w"))]


def with_image(settings: dict[str, Any]) -> None:
    settings["vision"] = {"image_size": 28, "patch_size": 14, "dim": 16, "num_heads": 2, "num_layers": 2}
    settings["weights"]["vision"] = ["clip.pth"]
    settings["model"].update(img_dim=16, prediction="velocity", local_attn_size=4, num_layers=3)
    settings["model"]["action"]["blocks"] = [0, 1]


def mouseless(settings: dict[str, Any]) -> None:
    settings["actions"].update(look=[], look_scale=None)
    settings["model"].update(local_attn_size=6, num_layers=2)
    settings["model"]["action"].update(mouse_dim=0, blocks=[0, 1])


def still(settings: dict[str, Any]) -> None:
    settings["sampler"] = {"hold_still": True}


@pytest.mark.parametrize("change", [None, with_image, mouseless, still])
def test_same_latents_and_pictures(tmp_path: Path, change: Any) -> None:
    world = World.untrained(load_config(write_tiny_world(tmp_path, change=change)), dtype="float32")
    start = world.random_start()
    session, plain = Session(world, 3, start), Baseline(world, 3, start)
    made: list[torch.Tensor] = []
    make = session._make
    session._make = lambda *inputs: (made.append((got := make(*inputs))[0]), got)[1]  # type: ignore[method-assign]
    keys = set(world.config.actions.keys)
    for action in [*WALK, *[Action()] * 4, *WALK] if change is still else WALK:
        action = Action(action.keys & keys)
        ours, theirs = session.step(action), plain.step(action)
        assert relative_error(made[-1], plain.latents) < 1e-5
        assert ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).max() <= 1
    assert session.clock == plain.clock and (session.clock.still > 0) == (change is still)
    assert made[-1].std() > 0.1 and ours.std() > 5  # something was compared


def test_the_comparison_takes_turns(tiny_world: World) -> None:
    report = compare(tiny_world.session(rewind_mb=0), Baseline(tiny_world), blocks=3, warmup=1)
    assert report.blocks == 3 and report.ratio == pytest.approx(report.baseline.median / report.ours.median, rel=0.5)
    assert len(report.ratios) == 3 and min(report.ratios) <= report.ratio <= max(report.ratios)
    assert "x the plain variant" in report.to_text()
