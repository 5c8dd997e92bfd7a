"""Measure the shipped garden against the simulator: obedience, faithfulness, stability, speed.

    python -m training.evaluate                       # everything, as a table; about 20 minutes on two cores
    python -m training.evaluate --only faithful --starts 8
    python -m training.evaluate --sheet docs/garden_sheet.png

Plays through the engine (`World.session`), as a player does. Starts and actions come from seeds that no training uses.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from engine import Action, ActionSpace, World
from training.flow_sign import motion
from training.latents import FULL_LOOK
from training.simulator import FPS, Pose, is_free, random_poses, render, step

SEED = 990_000  # trainers use seeds below 900,000
WALK_BLOCKS = 6  # 69 frames: past four seconds
AXES = {"w": 2, "s": 2, "a": 0, "d": 0, "j": 0, "l": 0, "i": 1, "k": 1}  # what a key moves: horizontal, vertical, zoom


def simulator_rows(space: ActionSpace, action: Action) -> tuple[torch.Tensor, torch.Tensor]:
    """An action as the simulator takes it: keyboard `[1, 4]`, mouse `[1, 2]`."""
    keyboard, mouse = (torch.as_tensor(v, dtype=torch.float32)[None] for v in space.to_model(action))
    return keyboard, mouse / FULL_LOOK


def simulate(world: World, pose: Pose, actions: list[Action]) -> tuple[np.ndarray, Pose]:
    """The simulator's frames `[9 + 12 (blocks-1), H, W, 3]` under one action a block, and the last pose."""
    frames, space = [render(pose)], world.config.actions
    for block, action in enumerate(actions):
        keyboard, mouse = simulator_rows(space, action)
        for _ in range(9 if block == 0 else 12):  # a block's rows take its first frame to the next block's first
            pose = step(pose, keyboard, mouse)
            frames.append(render(pose))
    return torch.cat(frames[:-1]).permute(0, 2, 3, 1).numpy(), pose


def play(world: World, start: np.ndarray, actions: list[Action], seed: int = 0) -> np.ndarray:
    session = world.session(seed=seed, start=start)
    return np.concatenate([session.step(action) for action in actions])


def starts(count: int, seed: int) -> list[tuple[Pose, np.ndarray]]:
    poses = random_poses(count, torch.Generator().manual_seed(seed))
    pictures = render(poses).permute(0, 2, 3, 1).numpy()
    return [(Pose(*(v[i : i + 1] for v in (poses.x, poses.y, poses.yaw, poses.pitch))), pictures[i]) for i in range(count)]


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


def faithful(world: World, count: int) -> dict:
    """PSNR against the simulator under the same actions after 1 s and 4 s, beside repeating the first frame."""
    ours, still, idle = [], [], []
    for i, (pose, picture) in enumerate(starts(count, SEED)):
        rng = np.random.default_rng(SEED + i)
        actions = random_walk(WALK_BLOCKS, rng)
        if all(not a.keys for a in actions[:2]):  # someone who stands still asks nothing of the world
            actions[0] = actions[1] = Action(frozenset("l"))
        truth, _ = simulate(world, pose, actions)
        ours.append(mean_square(play(world, picture, actions, seed=i), truth))
        still.append(mean_square(np.broadcast_to(picture, truth.shape), truth))
        if i < 8:
            quiet = play(world, picture, [Action()] * WALK_BLOCKS, seed=i)
            idle.append(mean_square(quiet, np.broadcast_to(picture, quiet.shape)))
    ours, still, idle = np.array(ours), np.array(still), np.array(idle)
    table = {}
    for seconds in (1, 2, 4):
        frame = seconds * FPS
        near = slice(frame - 2, frame + 3)
        table[f"psnr_{seconds}s"] = round(decibel(ours[:, near]), 2)
        table[f"psnr_{seconds}s_median"] = round(float(np.median(-10 * np.log10(ours[:, near].mean(1)))), 2)
        table[f"repeat_first_{seconds}s"] = round(decibel(still[:, near]), 2)
        table[f"idle_{seconds}s"] = round(decibel(idle[:, near]), 2)
    table["psnr_first_frame"] = round(decibel(ours[:, 0]), 2)
    return table


def possible(world: World, pose: Pose, action: Action, axis: int) -> bool:
    """Whether the simulator still moves under ``action`` after four blocks (no wall in the way)."""
    keyboard, mouse = simulator_rows(world.config.actions, action)
    after = pose
    for _ in range(45):
        before, after = after, step(after, keyboard, mouse)
    still_moves = sum(float((getattr(after, n) - getattr(before, n)).abs()) for n in ("x", "y", "yaw", "pitch"))
    looks = axis != 2 and bool(mouse.any())
    return bool(is_free(after.x, after.y).all()) and (still_moves > 0.01 if looks else still_moves > 0.04)


def obedient(world: World, count: int) -> dict:
    """Share of held keys under which the picture moves as the simulator's does: sign of mean shift or zoom over four blocks."""
    table, right, asked = {}, 0, 0
    for key, axis in AXES.items():
        action = Action(frozenset(key))
        hits = tried = 0
        for i, (pose, picture) in enumerate(starts(4 * count, SEED + 1)):
            if tried == count:
                break
            if axis == 1:  # pitch saturates: begin at the other stop
                pose = Pose(pose.x, pose.y, pose.yaw, pose.pitch * 0 + (-0.2 if key == "i" else 0.2))
                picture = render(pose)[0].permute(1, 2, 0).numpy()
            elif not possible(world, pose, action, axis):
                continue
            truth, _ = simulate(world, pose, [action] * 4)
            ours = play(world, picture, [action] * 4, seed=i)
            wanted, got = (motion(f[: 24 if axis == 1 else None])[:, axis].mean() for f in (truth, ours))
            if abs(wanted) < (0.02 if axis < 2 else 0.001):
                continue  # the simulator's own picture hardly moves there: nothing to compare
            tried += 1
            hits += int(np.sign(wanted) == np.sign(got))
        table[key] = f"{hits}/{tried}"
        right, asked = right + hits, asked + tried
    table["share"] = round(right / max(asked, 1), 4)
    return table


def look(frames: np.ndarray) -> dict[str, float]:
    """Sharpness (variance of the Laplacian), contrast (deviation of grey), saturation (mean of max - min), motion (frame difference)."""
    grey = frames.astype(np.float32).mean(-1)
    laplacian = -4 * grey[:, 1:-1, 1:-1] + grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return {
        "sharpness": float(laplacian.var(axis=(1, 2)).mean()),
        "contrast": float(grey.std(axis=(1, 2)).mean()),
        "saturation": float((frames.max(-1).astype(np.float32) - frames.min(-1)).mean()),
        "motion": float(np.abs(np.diff(grey, axis=0)).mean()),
    }


def stable(world: World, minutes: float, sheet: Path | None) -> dict:
    """The last minute of a long random walk against the simulator's own pictures on a walk of the same kind."""
    blocks = round(minutes * 60 * FPS / 12)
    pose, picture = starts(1, SEED + 2)[0]
    actions = random_walk(blocks, np.random.default_rng(SEED + 2))
    session, kept, last = world.session(seed=1, start=picture), [], []
    for block, action in enumerate(actions):
        frames = session.step(action)
        if block >= blocks - round(60 * FPS / 12):
            last.append(frames)
        if block % max(1, blocks // 48) == 0:
            kept.append(frames[-1])
    truth = []
    for block in range(0, blocks, 20):  # a simulated walk, sampled: a block of frames every 15 s
        part, pose = simulate(world, pose, actions[block : block + 20])
        truth.append(part[-48:])
    ours, theirs = look(np.concatenate(last)), {k: np.mean([look(t)[k] for t in truth]) for k in look(truth[0])}
    if sheet is not None:
        contact_sheet(np.array(kept[:48]), 8, sheet)
    return {
        k: {"world": round(ours[k], 2), "simulator": round(float(theirs[k]), 2), "ratio": round(ours[k] / float(theirs[k]), 3)}
        for k in ours
    }


def contact_sheet(pictures: np.ndarray, columns: int, path: Path, zoom: int = 2) -> None:
    from PIL import Image

    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * (height + 2), i % columns * (width + 2)
        canvas[y : y + height, x : x + width] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).resize((canvas.shape[1] * zoom, canvas.shape[0] * zoom), 0).save(path)


def compare_sheet(world: World, path: Path, count: int = 5) -> None:
    """Rows in pairs, simulator above world: one random walk each, every sixth frame."""
    rows = []
    for i, (pose, picture) in enumerate(starts(count, SEED + 3)):
        actions = random_walk(WALK_BLOCKS, np.random.default_rng(SEED + 30 + i))
        rows += [simulate(world, pose, actions)[0][::7], play(world, picture, actions, seed=i)[::7]]
    contact_sheet(np.concatenate(rows), len(rows[0]), path)


def film(world: World, path: Path, script: str = "wlljjwlldd", zoom: int = 3) -> None:
    """An animated GIF of a walk, at the world's rate, one key a block."""
    from PIL import Image

    session = world.session(seed=3)
    frames = np.concatenate([session.step(Action(frozenset(key))) for key in script])[::2]
    pictures = [Image.fromarray(f).resize((f.shape[1] * zoom, f.shape[0] * zoom), Image.Resampling.BICUBIC) for f in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(2000 / FPS), loop=0)


def fast(world: World, blocks: int = 40) -> dict:
    """Frames a second of model and decoder together, after eight blocks of warm-up, as a multiple of the native rate."""
    session = world.session(seed=0)
    for _ in range(8):
        session.step(Action(frozenset("w")))
    seconds = []
    for _ in range(blocks):
        begun = time.perf_counter()
        session.step(Action(frozenset("wl")))
        seconds.append(time.perf_counter() - begun)
    rate = 12 / float(np.median(seconds))
    return {"fps": round(rate, 1), "of_native": round(rate / FPS, 2), "block_ms_p90": round(1000 * float(np.quantile(seconds, 0.9)), 1),
            "threads": torch.get_num_threads(), "dtype": str(world.dtype)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="garden")
    parser.add_argument("--weights", help="folder of other weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--starts", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10, help="length of the stability walk")
    parser.add_argument("--only", choices=("fast", "faithful", "obedient", "stable", "none"), action="append")
    parser.add_argument("--sheet", type=Path, help="contact sheet of the stability walk")
    parser.add_argument("--compare-sheet", type=Path, help="contact sheet of walks, simulator above world")
    parser.add_argument("--film", type=Path, help="animated GIF of a walk")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    world = World.load(args.world, weights=args.weights, device=args.device)
    parts = {
        "fast": lambda: fast(world),
        "faithful": lambda: faithful(world, args.starts),
        "obedient": lambda: obedient(world, args.starts),
        "stable": lambda: stable(world, args.minutes, args.sheet),
    }
    result = {}
    for name, measure in parts.items():
        if args.only and name not in args.only:
            continue
        begun = time.monotonic()
        result[name] = measure()
        print(f"\n{name}  ({time.monotonic() - begun:.0f} s)")
        for key, value in result[name].items():
            print(f"  {key:24s} {value}", flush=True)
    if args.compare_sheet:
        compare_sheet(world, args.compare_sheet)
    if args.film:
        film(world, args.film)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
