"""What the garden is measured by: how it obeys, how true, how steady and how fast it is, against the simulator.

Every measure plays through the engine (`World.session`), as a player does, and returns a table. Starts and actions come from
seeds that no training uses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch

from engine import Action, ActionSpace, Session, World
from engine.clock import BlockClock
from engine.conditioning import StartCondition
from training.flow_sign import motion
from training.latents import FULL_LOOK
from training.simulator import FPS, Pose, is_free, random_poses, render, step

SEED = 990_000  # trainers use seeds below 900,000
MORE_SEEDS = 1_000_000  # of `many`
FIRST, NEXT = 9, 12  # frames of block 0 and of every other
MINUTE = 60 * FPS // NEXT  # blocks
AT_ONCE = 4 * NEXT  # of a long walk's pictures by the simulator
AXES = {"w": 2, "s": 2, "a": 0, "d": 0, "j": 0, "l": 0, "i": 1, "k": 1}  # what a key moves: horizontal, vertical, zoom

Table = dict[str, object]


def simulator_rows(space: ActionSpace, action: Action) -> tuple[torch.Tensor, torch.Tensor]:
    """An action as the simulator takes it: keyboard `[1, 4]`, mouse `[1, 2]`."""
    keyboard, mouse = (torch.as_tensor(v, dtype=torch.float32)[None] for v in space.to_model(action))
    return keyboard, mouse / FULL_LOOK


def pictures(poses: list[Pose]) -> np.ndarray:
    """What is seen from single poses: uint8 `[N, H, W, 3]`."""
    fields = (torch.cat([getattr(pose, name) for pose in poses]) for name in ("x", "y", "yaw", "pitch"))
    return render(Pose(*fields)).permute(0, 2, 3, 1).numpy()


def walk(world: World, pose: Pose, actions: list[Action]) -> list[Pose]:
    """Poses under one action a block, the start first: one more than there are frames."""
    poses = [pose]
    for block, action in enumerate(actions):
        keyboard, mouse = simulator_rows(world.config.actions, action)
        for _ in range(NEXT if block else FIRST):  # a block's rows take its first frame to the next block's first
            poses.append(step(poses[-1], keyboard, mouse))
    return poses


def simulate(world: World, pose: Pose, actions: list[Action]) -> np.ndarray:
    """The simulator's frames `[9 + 12 (blocks-1), H, W, 3]` under one action a block."""
    return pictures(walk(world, pose, actions)[:-1])


_encoded: WeakKeyDictionary[World, dict[bytes, StartCondition]] = WeakKeyDictionary()  # of each world, what start pictures have become


def begin(world: World, start: np.ndarray | None, seed: int = 0) -> Session:
    """A session from a picture, or from the world's own (None). Whoever begins with the same picture again need not encode it once more,
    which takes as long as ten blocks."""
    if start is None:
        return world.session(seed=seed, rewind_mb=0)
    known, picture = _encoded.setdefault(world, {}), start.tobytes()
    session = world.session(seed=seed, start=known.get(picture, start), rewind_mb=0)
    known[picture] = session.start
    return session


def play(world: World, start: np.ndarray | None, actions: list[Action], seed: int = 0) -> np.ndarray:
    session = begin(world, start, seed)
    return np.concatenate([session.step(action) for action in actions])


def starts(count: int, seed: int) -> list[tuple[Pose, np.ndarray]]:
    poses = random_poses(count, torch.Generator().manual_seed(seed))
    single = [Pose(*(v[i : i + 1] for v in (poses.x, poses.y, poses.yaw, poses.pitch))) for i in range(count)]
    return list(zip(single, pictures(single), strict=True))


def random_walk(blocks: int, rng: np.random.Generator) -> list[Action]:
    """One action a block: keys held for one to four blocks, alone or together with a look, sometimes nothing."""
    actions: list[Action] = []
    while len(actions) < blocks:
        keys = set()
        if rng.random() < 0.6:
            keys.add(rng.choice(list("wwwsad")))
        if rng.random() < 0.55:
            keys.add(rng.choice(list("jljljlik")))
        actions += [Action(frozenset(str(k) for k in keys))] * int(rng.integers(1, 5))
    return actions[:blocks]


def mean_square(ours: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean square error per frame, pixels in [0, 1]."""
    return ((ours.astype(np.float32) - truth.astype(np.float32)) / 255).reshape(len(ours), -1).__pow__(2).mean(1)


def decibel(mse: np.ndarray | float) -> float:
    return float(-10 * np.log10(np.mean(mse)))


def faithful(world: World, count: int, seconds: tuple[int, ...] = (1, 2, 4, 16), seed: int = SEED) -> Table:
    """PSNR against the simulator under the same actions after some seconds, beside repeating the first frame, and when idle.

    ``psnr`` is that of the mean error, which a few lost walks decide; ``mean_of_starts`` the mean of each start's, as papers have it.
    Another ``seed`` has other starts and walks: to choose by, so that what is chosen is measured on starts that had no say in it.
    """
    blocks = _blocks(seconds[-1])
    ours, still, idle = [], [], []
    for i, (picture, truth, played) in enumerate(_played(world, count, blocks, seed)):
        ours.append(mean_square(played, truth))
        still.append(mean_square(np.broadcast_to(picture, truth.shape), truth))
        quiet = play(world, picture, [Action()] * blocks, seed=i)
        idle.append(mean_square(quiet, np.broadcast_to(picture, quiet.shape)))
    ours, still, idle = np.array(ours), np.array(still), np.array(idle)
    table: Table = {}
    for second in seconds:
        near = _around(second)
        table |= _decibels(second, ours[:, near])
        table[f"repeat_first_{second}s"] = round(decibel(still[:, near]), 2)
        table[f"idle_{second}s"] = round(decibel(idle[:, near]), 2)
    table["psnr_first_frame"] = round(decibel(ours[:, 0]), 2)
    return table


def many(world: World, count: int, seconds: tuple[int, ...] = (1, 2, 4), groups: int = 5) -> Table:
    """PSNR as `faithful` has it, over ``groups`` times ``count`` starts: its own and others. And of each group alone.

    A few walks into what is not in the picture have two fifths of the error after four seconds, so 64 starts tell the mean error there to
    within a decibel only.
    """
    seeds = [SEED, *range(MORE_SEEDS, MORE_SEEDS + 1000 * (groups - 1), 1000)]
    ours = [[mean_square(played, truth) for _, truth, played in _played(world, count, _blocks(seconds[-1]), seed)] for seed in seeds]
    each, table = np.array(ours), {"starts": groups * count}  # [groups, count, frames]
    for second in seconds:
        near = each[:, :, _around(second)]
        table |= _decibels(second, near.reshape(-1, near.shape[-1]))
        table[f"psnr_{second}s_of_groups"] = [round(decibel(group), 2) for group in near]
    return table


def _blocks(seconds: int) -> int:
    """As many as show what is to be seen after so many seconds."""
    return -(-(seconds * FPS + 3 - FIRST) // NEXT) + 1


def _around(second: int) -> slice:
    """The five frames about a moment."""
    return slice(second * FPS - 2, second * FPS + 3)


def _played(world: World, count: int, blocks: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Start picture, the simulator's frames and the world's, of random walks that begin with something."""
    for i, (pose, picture) in enumerate(starts(count, seed)):
        actions = random_walk(blocks, np.random.default_rng(seed + i))
        if all(not a.keys for a in actions[:2]):  # someone who stands still asks nothing of the world
            actions[0] = actions[1] = Action(frozenset("l"))
        yield picture, simulate(world, pose, actions), play(world, picture, actions, seed=i)


def _decibels(second: int, errors: np.ndarray) -> Table:
    """What is told of the errors [starts, frames] about a moment."""
    each = -10 * np.log10(errors.mean(1))
    name = f"psnr_{second}s"
    mean, median = round(float(each.mean()), 2), round(float(np.median(each)), 2)
    return {name: round(decibel(errors), 2), f"{name}_mean_of_starts": mean, f"{name}_median": median}


def possible(world: World, pose: Pose, action: Action, axis: int) -> bool:
    """Whether the simulator still moves under ``action`` after four blocks (no wall in the way)."""
    before, after = walk(world, pose, [action] * 4)[-2:]
    still_moves = sum(float((getattr(after, n) - getattr(before, n)).abs()) for n in ("x", "y", "yaw", "pitch"))
    looks = axis != 2 and bool(simulator_rows(world.config.actions, action)[1].any())
    return bool(is_free(after.x, after.y).all()) and (still_moves > 0.01 if looks else still_moves > 0.04)


def obedient(world: World, count: int) -> Table:
    """Share of held keys under which the picture moves as the simulator's does: sign of mean shift or zoom.

    Over four blocks (pitch, which soon stops, over two); and ``at_once``, within the block that got the action alone.
    """
    table: Table = {}
    right = prompt = asked = 0
    for key, axis in AXES.items():
        action = Action(frozenset(key))
        hits = first_hits = tried = 0
        for i, (pose, picture) in enumerate(starts(4 * count, SEED + 1)):
            if tried == count:
                break
            if axis == 1:  # pitch saturates: begin at the other stop
                pose = Pose(pose.x, pose.y, pose.yaw, pose.pitch * 0 + (-0.2 if key == "i" else 0.2))
                picture = pictures([pose])[0]
            elif not possible(world, pose, action, axis):
                continue
            truth = simulate(world, pose, [action] * 4)
            wanted, at_first = (motion(truth[: 24 if axis == 1 else None])[:, axis].mean(), motion(truth[:FIRST])[:, axis].mean())
            if abs(wanted) < (0.02 if axis < 2 else 0.001):
                continue  # the simulator's own picture hardly moves there: nothing to compare
            ours = motion(play(world, picture, [action] * 4, seed=i)[: 24 if axis == 1 else None])[:, axis]
            tried += 1
            hits += int(np.sign(wanted) == np.sign(ours.mean()))
            first_hits += int(np.sign(at_first) == np.sign(ours[: FIRST - 1].mean()))
        table[key] = f"{hits}/{tried}, at once {first_hits}"
        right, prompt, asked = right + hits, prompt + first_hits, asked + tried
    table["share"] = round(right / max(asked, 1), 4)
    table["share_at_once"] = round(prompt / max(asked, 1), 4)
    return table


def turning(world: World, count: int) -> Table:
    """A full turn at full speed comes back to the start picture: PSNR there, and of half a turn against the simulator."""
    ahead = Pose(*torch.zeros(4, 1))
    turned = step(ahead, *simulator_rows(world.config.actions, Action(frozenset("l"))))
    turn = round(2 * np.pi / float(turned.yaw))  # frames
    blocks = -(-(turn + 3 - FIRST) // NEXT) + 1
    whole, half, still = [], [], []
    for i, (pose, picture) in enumerate(starts(count, SEED + 4)):
        pose = Pose(pose.x, pose.y, pose.yaw, pose.pitch * 0)
        picture = pictures([pose])[0]
        action = [Action(frozenset("jl"[i % 2]))] * blocks
        ours, truth = play(world, picture, action, seed=i), simulate(world, pose, action)
        near = slice(turn - 2, turn + 3)
        whole.append(mean_square(ours[near], truth[near]))
        half.append(mean_square(ours[turn // 2 - 2 : turn // 2 + 3], truth[turn // 2 - 2 : turn // 2 + 3]))
        still.append(mean_square(ours[turn : turn + 1], picture[None]))
    each = -10 * np.log10(np.array(still).mean(1))
    return {
        "frames_of_a_turn": turn,
        "psnr_after_half": round(decibel(np.array(half)), 2),
        "psnr_after_turn": round(decibel(np.array(whole)), 2),
        "psnr_to_start": round(decibel(np.array(still)), 2),
        "psnr_to_start_mean_of_starts": round(float(each.mean()), 2),
        "psnr_to_start_median": round(float(np.median(each)), 2),
    }


def quiet(world: World, count: int, minutes: float) -> Table:
    """Standing still: grey levels by which the picture of the last second differs from that of the first, on average over pixels."""
    drift, slide = [], []
    for i, (_, picture) in enumerate(starts(count, SEED + 5)):
        session = begin(world, picture, i)
        blocks = [session.step(Action()) for _ in range(round(minutes * MINUTE))]
        first, last = (np.concatenate(part)[:FPS].astype(np.float32).mean(0) for part in (blocks[1:3], blocks[-2:]))
        drift.append(float(np.abs(last - first).mean()))
        slide.append(float(np.abs(last.mean() - first.mean())))
    return {
        "mean_drift": round(float(np.mean(drift)), 2),
        "worst_drift": round(max(drift), 2),
        "brightness_drift": round(float(np.mean(slide)), 2),
    }


def look(frames: np.ndarray) -> dict[str, float]:
    """Sharpness (variance of the Laplacian), edges, contrast (deviation of grey), saturation (mean of max - min), motion (of frames).

    Edges is the sharpness of what a binomial blur leaves, which takes all that alternates from pixel to pixel: a mesh has none.
    """
    grey = frames.astype(np.float32).mean(-1)
    smooth = grey
    for _ in range(2):  # [1 1] twice each way is [1 2 1]
        smooth = (smooth[:, :-1] + smooth[:, 1:]) / 2
        smooth = (smooth[:, :, :-1] + smooth[:, :, 1:]) / 2
    return {
        "sharpness": _detail(grey),
        "edges": _detail(smooth),
        "contrast": float(grey.std(axis=(1, 2)).mean()),
        "saturation": float((frames.max(-1).astype(np.float32) - frames.min(-1)).mean()),
        "motion": float(np.abs(np.diff(grey, axis=0)).mean()),
    }


def _detail(grey: np.ndarray) -> float:
    laplacian = -4 * grey[:, 1:-1, 1:-1] + grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return float(laplacian.var(axis=(1, 2)).mean())


def stable(world: World, minutes: Sequence[float], number: int = 0) -> tuple[list[Table], np.ndarray]:
    """One long random walk, the one of this ``number``: the second half of each of ``minutes``, against the simulator's of that half.

    A minute alone says little: who stands at the hedge for a minute sees a third of the detail there is. And 48 pictures on the way: 8 of
    the first ten seconds, 8 of the first minute, 32 of the first of ``minutes``.
    """
    ends = [round(m * MINUTE) for m in minutes]
    seed = SEED + 1000 * number + 2
    pose, picture = starts(1, seed)[0]
    actions = random_walk(max(ends), np.random.default_rng(seed))
    session = begin(world, picture, 1)
    kept: list[list[np.ndarray]] = [[], [], []]
    late: list[list[dict[str, float]]] = [[] for _ in ends]
    shown, whole = 0, BlockClock(block=max(ends)).frames.start
    for block, action in enumerate(actions):
        frames = session.step(action)
        for end, its in zip(ends, late, strict=True):
            if end // 2 <= block < end:
                its.append(look(frames))
        for row, seconds, count in zip(kept, (10, 60, 60 * minutes[0]), (8, 8, 32), strict=True):
            moments = np.minimum(seconds * FPS * (np.arange(count) + 1) / count, whole) - 1  # frames; the last one ends the stretch
            row += [frames[round(m) - shown] for m in moments if shown <= round(m) < shown + len(frames)]
        shown += len(frames)
    poses = walk(world, pose, actions)
    tables: list[Table] = []
    for end, its in zip(ends, late, strict=True):
        table: Table = {}
        for name, theirs in second_half(poses, end).items():
            ours = float(np.mean([one[name] for one in its]))
            table[name] = {"world": round(ours, 2), "simulator": round(theirs, 2), "ratio": round(ours / theirs, 3)}
        tables.append(table)
    return tables, np.array([picture for row in kept for picture in row])


def second_half(poses: list[Pose], blocks: int) -> dict[str, float]:
    """How the simulator's pictures `look` in the second half of the first ``blocks`` of a walk: all of them."""
    first, after = (BlockClock(block=block).frames.start for block in (blocks // 2, blocks))
    looks = [look(pictures(poses[i : min(i + AT_ONCE, after)])) for i in range(first, after, AT_ONCE)]
    return {name: float(np.mean([one[name] for one in looks])) for name in looks[0]}


def fast(world: World, blocks: int = 40) -> Table:
    """Frames a second of model and decoder together, after eight blocks of warm-up, as a multiple of the native rate."""
    session = world.session(seed=0)
    for _ in range(8):
        session.step(Action(frozenset("w")))
    seconds = []
    for _ in range(blocks):
        begun = time.perf_counter()
        session.step(Action(frozenset("wl")))
        seconds.append(time.perf_counter() - begun)
    rate = NEXT / float(np.median(seconds))
    return {"fps": round(rate, 1), "of_native": round(rate / FPS, 2), "block_ms_p90": round(1000 * float(np.quantile(seconds, 0.9)), 1),
            "threads": torch.get_num_threads(), "dtype": str(world.dtype)}  # fmt: skip
