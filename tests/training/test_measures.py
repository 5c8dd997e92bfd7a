"""The measures measure: what the simulator itself would get, and what a world that does nothing would."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import Action, World, load_config
from training import measures
from training.simulator import rollout


class Perfect:
    """A world that is the simulator; ``lazy`` ones show their first picture for ever."""

    def __init__(self, count: int, seed: int, lazy: bool = False) -> None:
        self.config, self.lazy, self.places = load_config("garden"), lazy, measures.starts(count, seed)

    def session(self, seed: int = 0, start: np.ndarray | None = None, rewind_mb: float = 0) -> SimpleNamespace:
        pose = next(p for p, picture in self.places if same(picture, start))
        state = {"pose": pose, "block": 0}

        def step(action: Action) -> np.ndarray:
            poses = measures.walk(self, state["pose"], [Action()] * bool(state["block"]) + [action])
            poses = poses[measures.FIRST :] if state["block"] else poses
            state["pose"], state["block"] = poses[-1], 1
            frames = measures.pictures(poses[:-1])
            return np.broadcast_to(start, frames.shape) if self.lazy else frames

        return SimpleNamespace(step=step, start=start)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a == b).all())


def test_a_walk_is_the_simulators() -> None:
    world = Perfect(1, measures.SEED)
    pose, picture = world.places[0]
    frames = measures.simulate(world, pose, [Action(frozenset("wl"))] * 2)
    keyboard = torch.tensor([1.0, 0, 0, 0]).repeat(1, 20, 1)
    mouse = torch.tensor([0.0, 0.1]).repeat(1, 20, 1)
    assert same(frames, rollout(pose, keyboard, mouse)[0][0].permute(0, 2, 3, 1).numpy()) and same(frames[0], picture)


def test_a_perfect_world_is_true_and_obeys_and_a_lazy_one_does_not() -> None:
    table = measures.faithful(Perfect(2, measures.SEED), 2, seconds=(1,))
    assert table["psnr_1s"] > 60 and table["repeat_first_1s"] < 25 and table["idle_1s"] > 60
    lazy = measures.faithful(Perfect(2, measures.SEED, lazy=True), 2, seconds=(1,))
    assert lazy["psnr_1s"] == pytest.approx(lazy["repeat_first_1s"])


def test_many_starts_are_those_of_the_table_and_others() -> None:
    """A world that is perfect on all but one group's starts: of that group alone the error is large, and it is in that of all."""
    world = Perfect(2, measures.SEED)
    first, *others = (Perfect(2, seed) for seed in (measures.SEED, measures.MORE_SEEDS, measures.MORE_SEEDS + 1000))
    world.places = [place for one in (first, *others) for place in one.places]
    begun, lost = world.session, others[1].places

    def session(seed: int = 0, start: np.ndarray | None = None, rewind_mb: float = 0) -> SimpleNamespace:
        world.lazy = any(same(picture, start) for _, picture in lost)
        return begun(seed, start, rewind_mb)

    world.session = session
    table = measures.many(world, 2, seconds=(1,), groups=3)
    lazy = measures.faithful(Perfect(2, measures.MORE_SEEDS + 1000, lazy=True), 2, seconds=(1,), seed=measures.MORE_SEEDS + 1000)["psnr_1s"]
    assert table["starts"] == 6 and table["psnr_1s_of_groups"][2] == lazy and min(table["psnr_1s_of_groups"][:2]) > 60
    assert table["psnr_1s"] == pytest.approx(lazy + 10 * np.log10(3), abs=0.02)  # a third of its mean error


def test_a_start_picture_is_encoded_once() -> None:
    world = World.load("garden", dtype="float32")
    picture = measures.starts(1, measures.SEED)[0][1]
    actions = [Action(frozenset("w"))] * 2
    session = world.session(seed=3, start=picture)
    plainly = np.concatenate([session.step(action) for action in actions])
    assert same(measures.play(world, picture, actions, seed=3), plainly)
    encoded = measures.begin(world, picture).start
    assert measures.begin(world, picture, 3).start is encoded
    assert same(measures.play(world, picture, actions, seed=3), plainly)


def test_holding_still_is_quiet() -> None:
    assert measures.quiet(Perfect(1, measures.SEED + 5), 1, 0.1) == {"mean_drift": 0.0, "worst_drift": 0.0, "brightness_drift": 0.0}


def test_a_long_walk_of_the_simulator_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MINUTE", 2)  # blocks
    monkeypatch.setattr(measures, "FPS", 1)
    tables, kept = measures.stable(Perfect(1, measures.SEED + 2), (3, 6))
    assert len(tables) == 2 and all(0.5 < table["contrast"]["ratio"] < 2 for table in tables)
    alone = measures.stable(Perfect(1, measures.SEED + 2), (3,))[0][0]
    assert tables[0] == alone, "a half is held against itself, whatever else is measured"
    pose, _ = measures.starts(1, measures.SEED + 2)[0]
    walked = measures.simulate(Perfect(1, 0), pose, measures.random_walk(12, np.random.default_rng(measures.SEED + 2)))
    assert len(kept) == 8 + 8 + 32 and len(walked) == 141
    assert all(same(picture, walked[-1]) for picture in kept[-8:])  # at one frame a second three minutes have more than there are
    assert not same(kept[-9], walked[-1])
    assert [same(kept[i], walked[at]) for i, at in ((7, 9), (15, 59), (16, 5), (27, 66))] == [True] * 4
    rows = measures.stable(Perfect(1, measures.SEED + 2, lazy=True), (6,))[0][0]
    assert rows["motion"]["ratio"] == 0 < rows["contrast"]["ratio"]
    seed = measures.SEED + 1002
    other = measures.stable(Perfect(1, seed), (3,), number=1)[1]
    walked = measures.simulate(Perfect(1, 0), measures.starts(1, seed)[0][0], measures.random_walk(6, np.random.default_rng(seed)))
    assert same(other[7], walked[9]) and not same(other[7], kept[7])


def test_a_mesh_is_sharp_and_has_no_edges() -> None:
    """What alternates from pixel to pixel is detail to the Laplacian; an edge is detail with and without it."""
    mesh = np.full((2, 64, 112, 3), 100, np.uint8)
    mesh[:, ::2, ::2] += 8
    mesh[:, 1::2, 1::2] += 8
    edge = np.full((2, 64, 112, 3), 100, np.uint8)
    edge[:, :, 56:] += 80
    assert measures.look(mesh)["sharpness"] > 100 and measures.look(mesh)["edges"] == pytest.approx(0, abs=1e-6)
    assert measures.look(edge)["edges"] > 1
