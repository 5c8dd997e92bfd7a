"""Worlds as environments of Gymnasium: one step is one block. docs/API.md describes them.

Importing this module registers them, so ``gymnasium.make("game.environment:Reverie/Garden-v0")`` needs nothing before it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError, ResetNeeded, UnsupportedMode

from engine import Session, Snapshot, World, WorldConfig, WorldError, check_clip, load_config
from game.gymactions import GymActions, one_line
from game.worldoptions import weights_here

Picture = str | Path | np.ndarray  # a file, an array [H, W, 3], or a clip [F, H, W, 3]
Info = dict[str, Any]
# (the newest frames before the block [12, H, W, 3], those of the block [9 or 12, H, W, 3], the action, info); arrays are read only
Hook = Callable[[np.ndarray, np.ndarray, Any, Info], Any]

REGISTERED = {"Garden": "garden", "Universal": "universal", "GtaDrive": "gta_drive", "TempleRun": "templerun"}
OBSERVATIONS = ("frame", "block")

_worlds: WeakValueDictionary[tuple, World] = WeakValueDictionary()  # weak: with the last environment its weights go
_loading = threading.Lock()


@dataclass(eq=False)
class Opening:
    """What a session begins with: the start as it was given, and the pictures seen of it `[F, H, W, 3]`."""

    start: Picture | None
    frames: np.ndarray


@dataclass(frozen=True, eq=False)
class EnvironmentState:
    """All of an environment between two steps."""

    session: Snapshot
    recent: np.ndarray
    blocks: int
    over: bool
    opening: Opening
    random: Mapping[str, Any]


class WorldEnv(gymnasium.Env):
    """A world to act in; every environment has a session of its own, those of one process share the weights."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 4 / 3}  # noqa: RUF012  blocks a second, the garden's

    def __init__(
        self, world: str | Path | WorldConfig = "garden", weights: str | Path | None = None, start: Picture | None = None,
        observation: str = "frame", max_blocks: int | None = None, reward_fn: Hook | None = None, done_fn: Hook | None = None,
        render_mode: str | None = None, device: str = "cpu", dtype: str | None = None,
    ) -> None:  # fmt: skip
        """``world``, ``weights``, ``device`` and ``dtype`` are those of `World.load`.

        ``start`` is what an episode begins with unless `reset` is told otherwise (None: the world's own picture). An observation is
        the last "frame" or the whole "block". An episode is truncated after ``max_blocks`` steps (None: never); ``reward_fn`` and
        ``done_fn`` say after each step what it was worth (0 without one) and whether the episode is over.
        Raises WorldError, one line, for a world, weights or a setting that cannot be used.
        """
        if observation not in OBSERVATIONS:
            raise WorldError(f"observation is one of {', '.join(OBSERVATIONS)}; got {observation!r}")
        if max_blocks is not None and (not isinstance(max_blocks, (int, np.integer)) or max_blocks < 1):
            raise WorldError(f"max_blocks is a whole number from 1, or None for no end; got {max_blocks!r}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UnsupportedMode(f"render_mode is one of {', '.join(self.metadata['render_modes'])}; got {render_mode!r}")
        if render_mode == "human":
            from game.window import display_missing

            _refuse_human(display_missing())
        config = world if isinstance(world, WorldConfig) else load_config(world)
        self.world: World | None = _shared_world(config, weights, device, dtype)
        self.config = config
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": config.fps / config.block_frames[1]}
        self._actions = GymActions(config.actions)
        self._start = _checked_start(start)
        self._observation, self._max_blocks = observation, max_blocks
        self._reward_fn, self._done_fn = reward_fn, done_fn
        self._session: Session | None = None
        self._opening: Opening | None = None  # of episodes that begin with the environment's own start
        self._begun: Opening | None = None  # of this episode
        self._recent = np.empty(0, np.uint8)  # the newest frames [12, H, W, 3]
        self._blocks, self._over = 0, False  # of this episode
        self._view: Any = None
        picture = (config.height, config.width, 3)
        self.action_space = self._actions.space
        self.observation_space = spaces.Box(0, 255, picture if observation == "frame" else (config.block_frames[1], *picture), np.uint8)

    @property
    def keys(self) -> tuple[str | None, ...]:
        """What the entries of an action's ``keys`` (or of a Discrete action) are on the keyboard; None does nothing."""
        return self._actions.keys

    @property
    def axes(self) -> tuple[str, ...]:
        """What the numbers of an action's ``look`` are: pitch (+ is up), yaw (+ is right)."""
        return self._actions.axes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Begin an episode; the observation is the start picture.

        ``seed`` is the dream's: the same seed, start and actions give the same bits. Without one it is drawn from the environment's
        generator. ``options={"start": …}`` begins this episode elsewhere: a picture's file, an array `[H, W, 3]`, or a clip
        `[F, H, W, 3]` to go on from. Raises WorldError, and goes on as before, when that cannot be used.
        """
        world = self._open_world()
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**63 - 1))
        start = _start_of(options)
        if start is not None:
            self._session, self._begun = self._begin(world, start, seed)
        elif self._session is None or self._opening is None or self._begun is not self._opening:
            self._session, self._begun = self._begin(world, self._start, seed)
            self._opening = self._begun
        else:
            self._session.reset(seed=seed)
        self._blocks, self._over = 0, False
        count, seen = self.config.block_frames[1], self._begun.frames
        self._recent = _read_only(np.concatenate([seen[:1]] * count + [seen])[-count:])
        self._show(self._recent[-1:])
        return self._observed(), {"seed": seed, "blocks": self._session.clock.block}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Play one block. ``info`` has all its ``frames`` (uint8 `[H, W, 3]` each) and how many ``blocks`` the session has lived.

        Raises InvalidAction, and plays nothing, for an action that is not in the action space.
        """
        session = self._playing()
        if self._over:
            raise ResetNeeded("this episode is over; begin the next one with reset()")
        frames = _read_only(session.step(self._actions.to_engine(action)))  # hooks, info and the next step look at the same memory
        before = self._recent
        self._recent = _read_only(np.concatenate([before, frames])[-len(before) :])
        self._blocks += 1
        info: Info = {"blocks": session.clock.block, "frames": tuple(frames)}  # a tuple: a vector of environments can hold several lengths
        truncated = self._max_blocks is not None and self._blocks >= self._max_blocks
        self._over = truncated
        reward = 0.0 if self._reward_fn is None else _reward(self._reward_fn(before, frames, action, info))
        terminated = self._done_fn is not None and bool(self._done_fn(before, frames, action, info))
        self._over = truncated or terminated
        self._show(frames)
        return self._observed(), reward, terminated, truncated, info

    def snapshot(self) -> EnvironmentState:
        """Everything, to come back to as often as wanted with `restore`: for planning."""
        session = self._playing()
        return EnvironmentState(
            session.snapshot(), self._recent, self._blocks, self._over, self._begun, self.np_random.bit_generator.state
        )  # fmt: skip

    def restore(self, state: EnvironmentState) -> np.ndarray:
        """Go back to ``state``, which may be another environment's of the same world; returns the observation there.

        The same actions then give the same bits. Raises WorldError, and changes nothing, for a state of another world.
        """
        world = self._open_world()
        if self._session is None:
            self._session = world.resume(state.session, rewind_mb=0)
        else:
            self._session.restore(state.session)
        self._recent, self._blocks, self._over, self._begun = state.recent, state.blocks, state.over, state.opening
        self.np_random.bit_generator.state = state.random
        self._show(self._recent[-1:])
        return self._observed()

    def render(self) -> np.ndarray | None:
        """The last frame with render_mode "rgb_array"; with "human" `step` has shown them all already."""
        self._playing()
        if self.render_mode is None:
            gymnasium.logger.warn("there is nothing to render to; make the environment with render_mode='rgb_array' or 'human'")
        return self._recent[-1].copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Let go of session, window and (with the last environment of its world) weights."""
        if self._view is not None:
            self._view.close()
        self.world = self._session = self._view = self._opening = self._begun = None

    def _open_world(self) -> World:
        if self.world is None:
            raise ClosedEnvironmentError("this environment is closed; make another one")
        return self.world

    def _playing(self) -> Session:
        self._open_world()
        if self._session is None:
            raise ResetNeeded("no episode has begun; call reset() first")
        return self._session

    def _begin(self, world: World, start: Picture | None, seed: int) -> tuple[Session, Opening]:
        if start is None and self.config.start is None:
            give = "give one with start=FILE, or reset(options={'start': FILE})"
            raise WorldError(f"the world {self.config.name} has no start picture of its own; {give}")
        if not (isinstance(start, np.ndarray) and start.ndim == 4):
            return world.session(seed=seed, start=start, rewind_mb=0), Opening(start, world.start_pixels(start)[None])
        check_clip(start, self.config.clock)
        session = world.session(seed=seed, start=start[0], rewind_mb=0)
        return session, Opening(start, np.concatenate(session.prefill(start)[-2:]))

    def _observed(self) -> np.ndarray:
        return (self._recent[-1] if self._observation == "frame" else self._recent).copy()

    def _show(self, frames: np.ndarray) -> None:
        if self.render_mode != "human":
            return
        if self._view is None:
            from game.blockview import BlockView
            from game.window import NoDisplay

            try:
                self._view = BlockView(self.config.title, self.config.width, self.config.height, self.config.fps)
            except NoDisplay as problem:
                _refuse_human(str(problem))
        self._view.show(frames)


def _shared_world(config: WorldConfig, weights: str | Path | None, device: str, dtype: str | None) -> World:
    """The world, loaded if no environment of this process has it yet."""
    if weights is None and config.weights.source is not None and not weights_here(config):
        raise WorldError(f"the weights of {config.name} are not bundled: get {config.weights.source}, then give weights=FOLDER")
    key = (config, None if weights is None else Path(weights).absolute(), device, dtype)
    with _loading:
        world = _worlds.get(key)
        if world is None:
            world = _worlds[key] = World.load(config, weights, device, dtype)
        return world


def _refuse_human(reason: str | None) -> None:
    if reason:
        raise UnsupportedMode(f"render_mode='human' needs a display ({reason}); use 'rgb_array'")


def _start_of(options: Mapping[str, Any] | None) -> Picture | None:
    """The start among the options of `reset`; None if there is none."""
    strange = [name for name in options or {} if name != "start"]
    if strange:
        raise WorldError(f"reset knows the option 'start', not {strange[0]!r}")
    return _checked_start((options or {}).get("start"))


def _checked_start(start: Any) -> Picture | None:
    if start is not None and not isinstance(start, (str, Path, np.ndarray)):
        raise WorldError(f"a start is a picture's file, an array [H, W, 3] or a clip [F, H, W, 3]; got {type(start).__name__}")
    return start.copy() if isinstance(start, np.ndarray) else start  # whoever gave it may paint on it


def _read_only(frames: np.ndarray) -> np.ndarray:
    frames.flags.writeable = False
    return frames


def _reward(value: Any) -> float:
    try:
        reward = float(value)
    except (TypeError, ValueError):
        reward = math.nan
    if not math.isfinite(reward):
        raise ValueError(f"reward_fn must return a finite number, got {one_line(value)}")
    return reward


for _name, _world in REGISTERED.items():
    gymnasium.register(id=f"Reverie/{_name}-v0", entry_point="game.environment:WorldEnv", kwargs={"world": _world})
