"""What is seen, seeds and starts, planning, hooks and ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from engine import Action, World, WorldError
from game.environment import WorldEnv
from tests.game.environment.steps import BACK, LEFT, RIGHT, TURN, WALK, frames_of, frames_of_new, same
from tests.tiny_world import write_tiny_world


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


def test_a_state_of_another_world_is_refused(make: Callable[..., WorldEnv], tmp_path: Path) -> None:
    stranger = WorldEnv(write_tiny_world(tmp_path, "other"))
    stranger.reset(seed=1)
    env = make()
    env.reset(seed=1)
    with pytest.raises(WorldError, match="belongs to the world 'other'"):
        env.restore(stranger.snapshot())
    assert len(frames_of(env, WALK)[0]) == 9
    stranger.close()


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
