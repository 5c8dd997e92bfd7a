"""What Gymnasium asks for, and what it makes of a world: checks, names, vectors, films."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv

import game.environment
from engine import World, load_config
from game.environment import WorldEnv
from tests.game.environment.steps import WALK
from tests.tiny_world import write_tiny_world

ROOT = Path(__file__).parents[3]
GARDEN = "Reverie/Garden-v0"


@pytest.mark.parametrize("observation", ["frame", "block"])
def test_gymnasiums_own_check_has_nothing_to_say(tiny: Path, kept: World, observation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(GARDEN, world=tiny, observation=observation, render_mode="rgb_array")
        check_env(env.unwrapped)
        env.close()


@pytest.mark.parametrize("name", ["Garden", "Universal", "GtaDrive", "TempleRun"])
def test_registered_under_the_names_of_the_worlds(name: str) -> None:
    spec = gymnasium.spec(f"Reverie/{name}-v0")
    assert load_config(spec.kwargs["world"]).name.replace("_", "") == name.lower()
    assert spec.to_json()


def test_made_in_a_fresh_process_that_imported_nothing_of_ours(tiny: Path, tmp_path: Path) -> None:
    code = f"""
import gymnasium
env = gymnasium.make("game.environment:Reverie/Garden-v0", world={str(tiny)!r}, max_blocks=1)
env.reset(seed=1)
*_, truncated, info = env.step(env.action_space.sample())
assert truncated and len(info["frames"]) == 9
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 0


def test_importing_the_game_does_not_need_gymnasium() -> None:
    files = [file for file in (ROOT / "game").rglob("*.py") if file.name not in ("environment.py", "gymactions.py")]
    assert not [file for file in files if "gymnasium" in file.read_text() or "game.environment" in file.read_text()]


def test_a_vector_of_environments_shares_the_weights(tiny: Path, kept: World) -> None:
    ends = (3, 5, 2)
    envs = SyncVectorEnv([lambda end=end: gymnasium.make(GARDEN, world=tiny, max_blocks=end) for end in ends])
    worlds = [env.unwrapped.world for env in envs.envs]
    assert all(world is kept for world in worlds)
    observed, info = envs.reset(seed=[1, 2, 1])
    assert observed.shape == (3, 16, 32, 3) and list(info["seed"]) == [1, 2, 1]
    sessions = [env.unwrapped._session for env in envs.envs]
    caches = [{tensor.data_ptr() for tensor in session._cache.tensors().values()} for session in sessions]
    assert not caches[0] & caches[1] and not caches[1] & caches[2], "each its own memory of the past"
    weights = [{parameter.data_ptr() for parameter in session.world.dit.parameters()} for session in sessions]
    assert weights[0] == weights[1] == weights[2]
    actions = {"look": np.stack([WALK["look"]] * 3), "keys": np.stack([WALK["keys"]] * 3)}
    lengths = []
    for _ in range(6):  # they end at different times, so first blocks of 9 frames meet others of 12
        observed, _, _, _, info = envs.step(actions)
        lengths.append([len(frames) if there else 0 for frames, there in zip(info["frames"], info["_frames"], strict=True)])
    assert lengths == [[9, 9, 9], [12, 12, 12], [12, 12, 0], [0, 12, 9], [9, 12, 12], [12, 0, 0]]
    envs.reset(seed=[1, 2, 1])
    observed, *_ = envs.step(actions)
    assert np.array_equal(observed[0], observed[2]) and not np.array_equal(observed[0], observed[1])
    envs.close()


def test_weights_are_loaded_once_and_go_with_the_last_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = World.load
    monkeypatch.setattr(game.environment.World, "load", lambda *args: loaded.append(args) or load(*args))
    path = write_tiny_world(tmp_path, "once")
    one, two = WorldEnv(path), WorldEnv(load_config(path))
    assert one.world is two.world and len(loaded) == 1
    assert WorldEnv(path, dtype="bfloat16").world is not one.world
    one.close()
    gc.collect()
    assert WorldEnv(path).world is two.world and len(loaded) == 2
    two.close()
    gc.collect()
    assert not [key for key in game.environment._worlds if key[0].name == "once"]


def test_a_film_by_record_video(tiny: Path, kept: World, tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="moviepy, which gymnasium's RecordVideo films with, is not installed")
    import imageio.v3 as iio

    env = gymnasium.make(GARDEN, world=tiny, max_blocks=3, render_mode="rgb_array")
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path / "films"), episode_trigger=lambda episode: True)
    env.reset(seed=1)
    truncated = False
    while not truncated:
        *_, truncated, _ = env.step(WALK)
    env.close()
    (film,) = (tmp_path / "films").glob("*.mp4")
    assert sum(1 for _ in iio.imiter(film)) == 4 and iio.immeta(film)["fps"] == pytest.approx(16 / 12, abs=0.01)
