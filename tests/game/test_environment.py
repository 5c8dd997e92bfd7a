"""Worlds as environments of Gymnasium: what its own checks say, exactness, hooks, shared weights, refusals."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Action, World, WorldError, load_config
from tests.tiny_world import write_tiny_world

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'reverie[gym]'")

from gymnasium import spaces  # noqa: E402
from gymnasium.error import ClosedEnvironmentError, InvalidAction, ResetNeeded, UnsupportedMode  # noqa: E402
from gymnasium.utils.env_checker import check_env  # noqa: E402
from gymnasium.vector import SyncVectorEnv  # noqa: E402

import game.environment  # noqa: E402
from game.environment import WorldEnv  # noqa: E402
from game.gymactions import GymActions  # noqa: E402

ROOT = Path(__file__).parents[2]
GARDEN = "Reverie/Garden-v0"
WALK = {"look": np.zeros(2, np.float32), "keys": np.array([1, 0, 0, 0], np.int8)}
TURN = {"look": np.array([0, 1], np.float32), "keys": np.zeros(4, np.int8)}
BACK = {"look": np.array([-0.5, 0.25], np.float32), "keys": np.array([0, 1, 1, 0], np.int8)}
LEFT, RIGHT = np.full((16, 32, 3), 40, np.uint8), np.full((16, 32, 3), 200, np.uint8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def kept(tiny: Path) -> Iterator[World]:
    """The world of `tiny`, so that no test but the one about it loads it again."""
    env = WorldEnv(tiny)
    yield env.world
    env.close()


@pytest.fixture
def make(tiny: Path, kept: World) -> Iterator[Callable[..., WorldEnv]]:
    made: list[WorldEnv] = []

    def one(**settings: Any) -> WorldEnv:
        made.append(WorldEnv(tiny, **settings))
        return made[-1]

    yield one
    for env in made:
        env.close()


def frames_of(env: WorldEnv, *actions: Any) -> list[np.ndarray]:
    """The frames of each block."""
    return [np.stack(env.step(action)[4]["frames"]) for action in actions]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


# ---- what Gymnasium asks for


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


# ---- what is seen


def test_a_step_is_a_block_as_the_engine_plays_it(make: Callable[..., WorldEnv], kept: World) -> None:
    env = make()
    assert env.observation_space == spaces.Box(0, 255, (16, 32, 3), np.uint8)
    picture, info = env.reset(seed=7)
    assert np.array_equal(picture, kept.start_pixels()) and info == {"seed": 7, "blocks": 0}
    session = kept.session(seed=7)
    engine = [Action({"w"}), Action(look=(0, 1)), Action({"s", "a"}, (-0.5, 0.25))]
    for block, (action, same_action) in enumerate(zip([WALK, TURN, BACK], engine, strict=True)):
        frame, reward, terminated, truncated, info = env.step(action)
        expected = session.step(same_action)
        assert np.array_equal(frame, expected[-1]) and np.array_equal(np.stack(info["frames"]), expected)
        assert (reward, terminated, truncated, info["blocks"]) == (0.0, False, False, block + 1)


def test_a_block_as_observation_is_the_newest_twelve_frames(make: Callable[..., WorldEnv], kept: World) -> None:
    env = make(observation="block")
    assert env.observation_space.shape == (12, 16, 32, 3)
    picture = kept.start_pixels()
    observed, _ = env.reset(seed=1)
    assert np.array_equal(observed, np.stack([picture] * 12))
    observed, *_, info = env.step(WALK)
    assert len(info["frames"]) == 9 and np.array_equal(observed, np.stack([picture] * 3 + [*info["frames"]]))
    observed, *_, info = env.step(WALK)
    assert len(info["frames"]) == 12 and np.array_equal(observed, np.stack(info["frames"]))


def test_what_is_handed_out_is_never_changed_again(make: Callable[..., WorldEnv]) -> None:
    env = make(observation="block")
    observed, _ = env.reset(seed=1)
    observed[:] = 0
    seen, *_, info = env.step(WALK)
    assert seen[:3].any() and not info["frames"][0].flags.writeable
    state = env.snapshot()
    env.step(TURN)
    seen[:] = 0
    assert np.array_equal(env.restore(state)[3:], np.stack(info["frames"]))


# ---- seeds and starts


def test_the_same_seed_and_actions_are_the_same_bits(make: Callable[..., WorldEnv]) -> None:
    env, other = make(), make()
    env.reset(seed=3)
    first = frames_of(env, WALK, TURN, BACK)
    env.reset(seed=4)
    assert not same(first, frames_of(env, WALK, TURN, BACK))
    for again in (env, other):
        again.reset(seed=3)
        assert same(first, frames_of(again, WALK, TURN, BACK))


def test_without_a_seed_the_next_one_is_drawn(make: Callable[..., WorldEnv]) -> None:
    seeds = []
    for env in (make(), make()):
        env.reset(seed=5)
        seeds.append([env.reset()[1]["seed"] for _ in range(3)])
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 3
    assert make().reset()[1]["seed"] != make().reset()[1]["seed"]


def test_starting_elsewhere_is_for_one_episode(make: Callable[..., WorldEnv], kept: World, tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "right.png"
    Image.fromarray(RIGHT).save(file)
    env = make(start=LEFT)
    base = {}
    for name, picture in {"left": LEFT, "right": RIGHT}.items():
        session = kept.session(seed=2, start=picture)
        base[name] = [session.step(Action({"w"})) for _ in range(2)]
    assert np.array_equal(env.reset(seed=2)[0], LEFT)
    assert same(base["left"], frames_of(env, WALK, WALK))
    for start in (file, str(file), RIGHT):
        assert np.array_equal(env.reset(seed=2, options={"start": start})[0], RIGHT)
        assert same(base["right"], frames_of(env, WALK, WALK))
    for _ in range(2):
        assert np.array_equal(env.reset(seed=2)[0], LEFT)
        assert same(base["left"], frames_of(env, WALK, WALK))


def test_going_on_from_a_clip(make: Callable[..., WorldEnv], kept: World) -> None:
    played = kept.session(seed=1)
    clip = np.concatenate([played.step(Action({"w"})) for _ in range(2)])
    session = kept.session(seed=6)
    seen = session.prefill(clip)
    expected = session.step(Action({"w"}))
    env = make(observation="block", start=clip)
    for _ in range(2):  # the second time without encoding it again
        observed, info = env.reset(seed=6)
        assert np.array_equal(observed, seen[-1]) and info["blocks"] == 2
        assert same([expected], frames_of(env, WALK))
    short = make(observation="block", start=clip[:9]).reset(seed=6)[0]
    assert np.array_equal(short[:4], np.stack([short[3]] * 4)), "the first frame stands for what was before it"


# ---- planning


def test_snapshot_and_restore(make: Callable[..., WorldEnv]) -> None:
    env, other = make(max_blocks=4, observation="block"), make(max_blocks=4, observation="block")
    env.reset(seed=8)
    env.step(WALK)
    state = env.snapshot()
    futures = []
    for actions in ((WALK, TURN, BACK), (BACK, BACK, WALK), (WALK, TURN, BACK)):
        assert np.array_equal(env.restore(state), state.recent)
        futures.append(frames_of(env, *actions))
        with pytest.raises(ResetNeeded, match="over"):
            env.step(WALK)
    assert same(futures[0], futures[2]) and not same(futures[0], futures[1])
    other.restore(state)  # another environment, not even reset
    assert same(futures[0], frames_of(other, WALK, TURN, BACK))
    assert other.reset()[1]["seed"] == env.reset()[1]["seed"]
    other.restore(state)
    assert np.array_equal(other.reset(seed=8)[0], env.reset(seed=8)[0])


def test_a_restored_start_does_not_become_the_environments_own(make: Callable[..., WorldEnv]) -> None:
    left, right = make(start=LEFT), make(start=RIGHT)
    left.reset(seed=1)
    right.reset(seed=1)
    right.restore(left.snapshot())
    assert np.array_equal(right.reset(seed=1)[0], RIGHT)
    first = frames_of(right, WALK)
    assert same(first, frames_of_new(make, start=RIGHT)) and not same(first, frames_of_new(make, start=LEFT))


def frames_of_new(make: Callable[..., WorldEnv], **settings: Any) -> list[np.ndarray]:
    env = make(**settings)
    env.reset(seed=1)
    return frames_of(env, WALK)


def test_a_state_of_another_world_is_refused(make: Callable[..., WorldEnv], tmp_path: Path) -> None:
    stranger = WorldEnv(write_tiny_world(tmp_path, "other"))
    stranger.reset(seed=1)
    env = make()
    env.reset(seed=1)
    with pytest.raises(WorldError, match="belongs to the world 'other'"):
        env.restore(stranger.snapshot())
    assert len(frames_of(env, WALK)[0]) == 9
    stranger.close()


# ---- hooks and ends


def test_hooks_see_both_blocks_the_action_and_info(make: Callable[..., WorldEnv], kept: World) -> None:
    calls: list[tuple] = []

    def reward(previous: np.ndarray, frames: np.ndarray, action: Any, info: dict[str, Any]) -> float:
        calls.append((previous, frames, action, info["blocks"]))
        return np.float32(frames.mean() - previous[-1].mean())

    env = make(reward_fn=reward, done_fn=lambda previous, frames, action, info: np.bool_(info["blocks"] == 2))
    env.reset(seed=1)
    _, reward_1, done_1, *_, info_1 = env.step(WALK)
    _, _, done_2, cut_2, info_2 = env.step(TURN)
    assert (done_1, done_2, cut_2) == (False, True, False) and type(reward_1) is float and type(done_2) is bool
    assert reward_1 == pytest.approx(np.stack(info_1["frames"]).mean() - kept.start_pixels().mean(), rel=1e-5)
    assert [(len(previous), len(frames), blocks) for previous, frames, _, blocks in calls] == [(12, 9, 1), (12, 12, 2)]
    assert calls[0][2] is WALK and np.array_equal(calls[1][0][3:], np.stack(info_1["frames"]))
    assert np.array_equal(calls[1][1], np.stack(info_2["frames"])) and not calls[0][0].flags.writeable
    with pytest.raises(ResetNeeded, match="over"):
        env.step(WALK)


@pytest.mark.parametrize("value", [None, "much", float("nan"), float("inf"), np.zeros(2)])
def test_a_reward_that_is_no_number_is_named(make: Callable[..., WorldEnv], value: Any) -> None:
    env = make(reward_fn=lambda *_: value)
    env.reset(seed=1)
    with pytest.raises(ValueError, match="reward_fn must return a finite number"):
        env.step(WALK)


def test_max_blocks_truncates(make: Callable[..., WorldEnv]) -> None:
    env = make(max_blocks=2)
    for _ in range(2):
        env.reset(seed=1)
        assert [env.step(WALK)[2:4] for _ in range(2)] == [(False, False), (False, True)]


# ---- actions


def test_the_spaces_of_the_published_modes() -> None:
    universal, gta, temple = (GymActions(load_config(name).actions) for name in ("universal", "gta_drive", "templerun"))
    assert universal.space == spaces.Dict(look=spaces.Box(-1, 1, (2,), np.float32), keys=spaces.MultiBinary(4))
    assert (universal.keys, universal.axes) == (("w", "s", "a", "d"), ("pitch", "yaw"))
    assert gta.space == spaces.Dict(look=spaces.Box(-1, 1, (1,), np.float32), keys=spaces.MultiBinary(2))
    assert gta.axes == ("yaw",) and gta.to_engine({"look": [0.5], "keys": [1, 0]}) == Action({"w"}, (0.0, 0.5))
    assert temple.space == spaces.Discrete(7) and temple.keys == (None, "w", "s", "z", "c", "a", "d")
    for index, key in enumerate(temple.keys):
        expected = Action(frozenset({key} - {None}))
        assert temple.to_engine(index) == temple.to_engine(np.int64(index)) == temple.to_engine(np.array(index)) == expected
    for actions in (universal, gta, temple):
        actions.space.seed(0)
        for _ in range(20):
            actions.to_engine(actions.space.sample())


NAN = float("nan")


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (None, "a dict of 'keys' and 'look', got None"),
        (3, "got 3"),
        ({}, "got an empty one"),
        ({"keys": [0, 0, 0, 0]}, "got 'keys'"),
        ({**WALK, "jump": 1}, "and 'jump'"),
        ({**WALK, "look": [0.0]}, "look is 2 numbers from -1 to 1 (pitch, yaw), got an array of shape [1]"),
        ({**WALK, "look": 0.0}, "shape []"),
        ({**WALK, "look": [NAN, 0]}, "nan"),
        ({**WALK, "look": [0, float("-inf")]}, "inf"),
        ({**WALK, "look": [0, 1.01]}, "1.01"),
        ({**WALK, "look": ["up", "left"]}, "'up'"),
        ({**WALK, "look": [[0], [0, 1]]}, "[[0], [0, 1]]"),
        ({**WALK, "keys": [0, 0, 0]}, "keys are 4 zeros or ones (w, s, a, d), got an array of shape [3]"),
        ({**WALK, "keys": np.zeros((2, 4))}, "[2, 4]"),
        ({**WALK, "keys": [0, 0, 0, 2]}, "[0, 0, 0, 2]"),
        ({**WALK, "keys": [0, 0, 0, NAN]}, "nan"),
        ({**WALK, "keys": {"w"}}, "{'w'}"),
        ({**WALK, "keys": "w" * 500}, "www…"),
    ],
)
def test_a_bad_action_is_refused_in_a_line_and_plays_nothing(make: Callable[..., WorldEnv], action: Any, words: str) -> None:
    env = make()
    env.reset(seed=1)
    with pytest.raises(InvalidAction) as caught:
        env.step(action)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert len(frames_of(env, WALK)[0]) == 9


@pytest.mark.parametrize("action", [7, -1, 1.0, NAN, None, "w", np.array([1, 2]), np.array([1]), np.array(1.0), np.array(NAN), {"keys": 1}])
def test_a_bad_discrete_action_is_refused(action: Any) -> None:
    temple = GymActions(load_config("templerun").actions)
    with pytest.raises(InvalidAction, match=r"an action is a whole number from 0 to 6 \(nothing, w, s, z, c, a, d\), got"):
        temple.to_engine(action)


def test_a_one_hot_world_plays(tmp_path: Path) -> None:
    def temple(settings: dict[str, Any]) -> None:
        keyboard = [{"does": "run on"}, {"key": "w", "does": "jump"}, {"key": "z", "does": "turn left"}]
        settings["actions"] = {"one_hot": True, "keyboard": keyboard}
        settings["model"]["action"].update(keyboard_dim=3, mouse_dim=0)

    env = WorldEnv(write_tiny_world(tmp_path, change=temple))
    env.reset(seed=1)
    session = env.world.session(seed=1)
    assert same(frames_of(env, 2, 0, 1), [session.step(Action(keys)) for keys in ({"z"}, set(), {"w"})])
    env.close()


# ---- refusals


def test_before_reset_and_after_close(make: Callable[..., WorldEnv]) -> None:
    env = make(render_mode="rgb_array")
    for call in (lambda: env.step(WALK), env.snapshot, env.render):
        with pytest.raises(ResetNeeded, match="call reset"):
            call()
    env.reset(seed=1)
    state = env.snapshot()
    env.close()
    env.close()
    for call in (lambda: env.step(WALK), env.reset, env.snapshot, env.render, lambda: env.restore(state)):
        with pytest.raises(ClosedEnvironmentError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(observation="video"), "observation is one of frame, block; got 'video'"),
        (dict(max_blocks=0), "max_blocks is a whole number from 1"),
        (dict(max_blocks=2.5), "max_blocks"),
        (dict(start=3), "a start is a picture's file"),
        (dict(device="abacus"), "abacus"),
        (dict(dtype="int3"), "int3"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[..., WorldEnv], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(WorldError, match=words):
        make(**settings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 3}, "got int"),
        ({"begin": LEFT}, "not 'begin'"),
        ({"start": "gone.png"}, "there is no start picture gone.png"),
        ({"start": LEFT[:2]}, "at least 16x16"),
        ({"start": np.stack([LEFT] * 3)}, "at least 9 are needed"),
    ],
)
def test_a_start_that_cannot_be_used_ends_nothing(make: Callable[..., WorldEnv], options: dict[str, Any], words: str) -> None:
    env, calm = make(), make()
    for one in (env, calm):
        one.reset(seed=1)
    with pytest.raises(WorldError, match=words):
        env.reset(seed=2, options=options)
    assert same(frames_of(env, WALK), frames_of(calm, WALK))


@pytest.mark.parametrize("name", ["Universal", "GtaDrive", "TempleRun"])
def test_published_worlds_say_that_they_need_weights(name: str, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"are not bundled: get Skywork/\S+ from huggingface.co, then give weights=FOLDER"):
        gymnasium.make(f"Reverie/{name}-v0")
    with pytest.raises(WorldError, match=r"there is no \S+ in "):
        gymnasium.make(f"Reverie/{name}-v0", weights=tmp_path)


def test_a_world_without_a_start_picture_asks_for_one(tmp_path: Path) -> None:
    env = WorldEnv(write_tiny_world(tmp_path, change=lambda settings: settings.pop("start")))
    with pytest.raises(WorldError, match=r"no start picture of its own; give one with start=FILE, or reset\(options="):
        env.reset()
    assert np.array_equal(env.reset(options={"start": LEFT})[0], LEFT)
    env.close()


# ---- many, and watched


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


def test_rgb_array_is_the_last_frame(make: Callable[..., WorldEnv]) -> None:
    env = make(render_mode="rgb_array", observation="block")
    observed, _ = env.reset(seed=1)
    assert np.array_equal(env.render(), observed[-1])
    observed, *_ = env.step(WALK)
    assert np.array_equal(env.render(), observed[-1])


def test_human_shows_every_frame_and_survives_a_closed_window(make: Callable[..., WorldEnv], monkeypatch: pytest.MonkeyPatch) -> None:
    import pygame

    from game.window import Window

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown: list[np.ndarray] = []
    monkeypatch.setattr(Window, "set_picture", lambda self, frame: shown.append(frame))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    env, calm = make(render_mode="human"), make()
    start = env.reset(seed=1)[0]
    calm.reset(seed=1)
    blocks = frames_of(calm, WALK, TURN, BACK)
    assert same(blocks[:2], frames_of(env, WALK, TURN)) and env.render() is None
    assert same([np.stack(shown)], [np.concatenate([start[None], *blocks[:2]])])
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert same(blocks[2:], frames_of(env, BACK)) and len(shown) == 22 and not env._view.open
    env.close()
    assert pygame.display.get_surface() is None


def test_human_keeps_the_worlds_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from game.blockview import BlockView

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    now, times = [100.0], []
    monkeypatch.setattr("game.blockview.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("game.blockview.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    view = BlockView("test", 32, 16, fps=10)
    monkeypatch.setattr(view._window, "draw", lambda: times.append(now[0]))
    view.show([LEFT] * 3)
    now[0] += 5.0  # a slow block is not caught up with
    view.show([LEFT] * 2)
    assert times == pytest.approx([100.0, 100.1, 100.2, 105.2, 105.3])
    view.close()


def test_human_without_a_display_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(game.environment.World, "load", None)
    with pytest.raises(UnsupportedMode, match="needs a display"):
        WorldEnv("garden", render_mode="human")
    with pytest.raises(UnsupportedMode, match="render_mode is one of rgb_array, human; got 'ansi'"):
        WorldEnv("garden", render_mode="ansi")
