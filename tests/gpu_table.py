"""The whole table of speeds on a GPU in one run of under eight minutes, as JSON and as markdown.

    python -m tests.gpu_table [--out FOLDER] [--seconds 450] [--device cuda] [--world universal]

Every row is a process of its own (`reverie bench --json --random …`, so weights are random and nothing is downloaded), the checks
are one together; the compiler's cache lies in a new folder: the first compiled row starts cold, the second one warm. No row may take
more than its share. Rows that no longer fit into --seconds are left out and listed as such. Tried on a CPU at the smallest size by
tests/test_gpu_table.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


SHARE, COLD = 75, 160  # seconds that a row may take, and one for which everything is compiled


@dataclass(frozen=True)
class Row:
    """A row of the table: options of `reverie bench`, or the name of a check in this file."""

    name: str
    options: tuple[str, ...] = ()
    check: str = ""
    goal: str = ""
    blocks: int = 12
    seconds: float = SHARE


def rows(compile_layers: bool = True) -> list[Row]:
    """In order of importance, so that what is cut off at the end matters least."""
    fast = ("--compile",) if compile_layers else ()
    most = "≥ 60 fps, p99 ≤ 1.25 x median, ≥ 45 % of the ceiling; first frame ≤ 15 s"
    return [
        Row("window 6, cold start", ("--window", "6", *fast), goal="first frame ≤ 90 s", blocks=4, seconds=COLD),
        Row("window 6", ("--window", "6", *fast), goal=most, blocks=40),
        Row("window 15", ("--window", "15", *fast), goal="≥ 45 fps", blocks=24, seconds=COLD),
        Row("window 6, against the plain variant", ("--window", "6", "--compare", "baseline", *fast), goal="≥ 3 x"),
        Row("window 6, TAEHV", ("--window", "6", "--decoder", "taehv", *fast), goal="≥ 110 fps", blocks=24, seconds=COLD),
        Row("bfloat16 against float32", check="exactness", goal="within bf16 error"),
        Row("nothing read back inside a block", check="host_reads", goal="no synchronisation"),
        Row("kernels in use", check="kernels", goal="attention by Flash or cuDNN"),
        Row("decoder compiled", check="decoder", goal="faster than uncompiled, within bf16 error"),
        Row("pictures to the host", check="transfer", goal="pinned faster than pageable"),
        Row("decoder: stacked frames against volumes", check="layouts"),
        Row("window 6, overlap", ("--window", "6", "--overlap", *fast)),
        Row("window 6, not compiled", ("--window", "6")),
        Row("window 6, float8", ("--window", "6", "--linears", "float8", *fast), seconds=COLD),
        Row("window 6, keys of the last pass", ("--window", "6", "--context", "last", *fast)),
        Row("window 15, against the plain variant", ("--window", "15", "--compare", "baseline", *fast)),
    ]


@dataclass(frozen=True)
class Place:
    """What is measured and where. ``blocks``: as many at most in each row."""

    world: str
    device: str
    dtype: str
    blocks: int = 1000

    def words(self, blocks: int) -> list[str]:
        words = [
            "--random",
            "--world",
            self.world,
            "--device",
            self.device,
            "--dtype",
            self.dtype,
            "--blocks",
            str(min(blocks, self.blocks)),
        ]
        return [*words, "--json"]


def run_row(row: Row, place: Place, seconds: float, cache: Path, own_process: bool = True) -> dict[str, Any]:
    """What the row's process printed, or ``{"error": …}``."""
    if not own_process:
        return _in_here(row, place)
    words = ["-c", "import sys; from game.cli import main; sys.exit(main(sys.argv[1:]))", "bench", *place.words(row.blocks), *row.options]
    told, problem = _child(words, seconds, cache)
    try:
        return {"error": problem} if problem else json.loads(told[told.index("{") :])
    except ValueError:
        return {"error": f"no JSON but {told[-200:]!r}"}


def run_checks(checks: list[Row], place: Place, seconds: float, cache: Path, own_process: bool = True) -> dict[str, dict[str, Any]]:
    """By name, what the checks found, all in one process; those it did not come to have what stopped it."""
    if not own_process:
        return {row.name: _in_here(row, place) for row in checks}
    words = ["-m", "tests.gpu_table", "--world", place.world, "--device", place.device, "--dtype", place.dtype]
    told, problem = _child([*words, *(word for row in checks for word in ("--check", row.check))], seconds, cache)
    found = [json.loads(line) for line in told.splitlines() if line.startswith("{")][: len(checks)]
    found += [{"error": problem or "no words"}] * (len(checks) - len(found))
    return {row.name: it for row, it in zip(checks, found, strict=True)}


def _child(words: list[str], seconds: float, cache: Path) -> tuple[str, str]:
    """What a python told, and what went wrong, if anything did."""
    environment = {**os.environ, "REVERIE_CACHE": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "compiled")}
    try:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode(errors="replace"), f"more than {seconds:.0f} s"
    return done.stdout, (done.stderr.strip().splitlines() or ["no words"])[-1][:300] if done.returncode else ""


def _in_here(row: Row, place: Place) -> dict[str, Any]:
    from game.cli import main as reverie

    if row.check:
        return CHECKS[row.check](place)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        status = reverie(["bench", *place.words(row.blocks), *row.options])
    return json.loads(told.getvalue()) if status == 0 else {"error": f"status {status}"}


# ---- checks


def exactness(place: Place) -> dict[str, Any]:
    """Blocks up to a full window and one more, latents and pictures, against float32 that is not compiled: same weights and noise.

    Relative errors in the place's dtype, not compiled and compiled (`compiled` begins when the window is full), and whether compiling adds
    nothing that the dtype does not take anyway.
    """
    import torch

    from engine import Action, World, compile_world
    from engine.session import Session

    def played(world: World) -> list[tuple[torch.Tensor, torch.Tensor]]:
        session, model = Session(world, 0, world.random_start(), rewind_mb=0), world.config.model
        made = []
        for _ in range(-(-model.local_attn_size // model.num_frame_per_block) + 1):
            latents = session.imagine_only(Action(frozenset("w")))
            made.append((latents.float().cpu(), torch.from_numpy(session.develop_only(latents)).float()))
        return made

    def errors(ours: list[tuple[torch.Tensor, torch.Tensor]], exact: list[tuple[torch.Tensor, torch.Tensor]], part: int) -> list[float]:
        pairs = [(mine[part], theirs[part]) for mine, theirs in zip(ours, exact, strict=True)]
        return [float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs]

    exact = played(_world(place, "float32", window=6))
    world = _world(place, place.dtype, window=6)
    found: dict[str, Any] = {}
    for name in ("eager", "compiled"):
        if name == "compiled":
            world.adopt(compile_world(world))
        made = played(world)
        found |= {f"{name}_latents": errors(made, exact, 0), f"{name}_pictures": errors(made, exact, 1)}
    parts = ("latents", "pictures")
    found["within"] = all(max(found[f"compiled_{part}"]) <= 1.5 * max(found[f"eager_{part}"]) for part in parts)
    return found


def _world(place: Place, dtype: str, window: int | None = None) -> Any:
    """Untrained, with ``window`` latents in view where the model has more; not warmed up by playing, but with exact kernels."""
    from engine import World, load_config

    config = load_config(place.world)
    if window is not None and window < config.model.local_attn_size:
        config = load_config(place.world, {"model.local_attn_size": window})
    world = World.untrained(config, place.device, dtype)
    world.warm_up(play=False)
    return world


def host_reads(place: Place) -> dict[str, Any]:
    """Whether a block waits for the device, from the action to bytes that are ready to be copied: compiled, the window full."""
    import torch

    from engine import Action, compile_world
    from engine.frames import to_bytes
    from engine.session import Session
    from engine.stopwatch import Stopwatch

    world = _world(place, place.dtype, window=6)
    world.adopt(compile_world(world))
    session = Session(world, 0, world.random_start(), rewind_mb=0)

    @torch.inference_mode()
    def block() -> None:
        latents = session.imagine_only(Action(frozenset("w")))
        to_bytes(session._decode(latents, Stopwatch()))
        session._decoder.commit()

    for _ in range(4):
        block()
    if world.device.type != "cuda":
        return {"synchronisations": "not known: no GPU"}
    torch.cuda.set_sync_debug_mode("error")
    try:
        block()
        return {"synchronisations": 0}
    except RuntimeError as error:
        return {"synchronisations": str(error)[:200]}
    finally:
        torch.cuda.set_sync_debug_mode("default")


def kernels(place: Place) -> dict[str, Any]:
    """The kernels that take most of a block's time, in milliseconds; what every choice of attention comes to."""
    from torch.profiler import profile

    from engine import Action, World, WorldError
    from engine.attention import KERNELS, choose_attention
    from engine.device import synchronize
    from engine.session import Session

    world = World.untrained(place.world, place.device, place.dtype)
    world.warm_up()
    session = Session(world, 0, world.random_start(), rewind_mb=0)
    session.step(Action())
    with profile() as seen:
        session.step(Action())
    on_gpu = world.device.type == "cuda"
    time_of = (lambda event: event.self_device_time_total) if on_gpu else (lambda event: event.self_cpu_time_total)
    slowest = sorted(seen.key_averages(), key=time_of, reverse=True)[:15]
    found: dict[str, Any] = {"kernels_ms": {event.key[:90]: round(time_of(event) / 1000, 3) for event in slowest}}
    found["attention"] = {"auto": str(world.attention), **world.describe()["attention of"]}
    for name in KERNELS:
        try:
            choose_attention(name, world.device, world.dtype, world.config)
        except WorldError as refused:
            found[f"attention {name}"] = str(refused)
            continue
        for _ in range(2):  # the first one makes plans
            begun = time.perf_counter()
            session.imagine_only(Action())
            synchronize(world.device)
            spent = 1000 * (time.perf_counter() - begun)
        found[f"attention {name}"] = {"transformer_ms": spent, **world.describe()["attention of"]}
    choose_attention("auto", world.device, world.dtype, world.config)
    return found


def decoder(place: Place) -> dict[str, Any]:
    """Milliseconds to decode a block as it is and compiled, how long the compiler took, and how far the pictures are apart."""
    import torch

    from engine import World, compile_world
    from engine.device import synchronize

    world = World.untrained(place.world, place.device, place.dtype)
    world.warm_up()
    generator = torch.Generator().manual_seed(0)
    shape = world.random_start().latents[:, :, :3].shape
    blocks = [torch.randn(shape, generator=generator).to(world.decode_device) for _ in range(8)]

    def play() -> tuple[float, torch.Tensor]:
        cache, spent = world.decoder.new_decoder_cache(), []
        for latents in blocks:
            synchronize(world.decode_device)
            begun = time.perf_counter()
            with torch.inference_mode():
                frames = world.decoder.decode_block(latents, cache)
            synchronize(world.decode_device)
            spent.append(1000 * (time.perf_counter() - begun))
        return sorted(spent[2:])[3], frames.float()

    plain_ms, plain = play()
    begun = time.perf_counter()
    world.adopt(compile_world(world, decoder=True))
    compiler = time.perf_counter() - begun
    compiled_ms, compiled = play()
    error = float((compiled - plain).norm() / plain.norm())
    return {"plain_ms": plain_ms, "compiled_ms": compiled_ms, "compiler_s": compiler, "relative_error": error}


def transfer(place: Place) -> dict[str, Any]:
    """Milliseconds to bring a block's uint8 pictures to the host: as a session does (pinned, from a GPU) and by a plain copy."""
    import torch

    from engine import load_config
    from engine.device import synchronize
    from engine.frames import Arriving

    config, device = load_config(place.world), torch.device(place.device)
    pictures = torch.randint(0, 256, (config.block_frames[1], config.height, config.width, 3), dtype=torch.uint8, device=device)
    found: dict[str, Any] = {}
    for name, copy in (("session", lambda pictures: Arriving(pictures).wait()), ("plain", lambda pictures: pictures.to("cpu", copy=True))):
        spent = []
        for _ in range(12):
            synchronize(device)
            begun = time.perf_counter()
            host = copy(pictures)
            spent.append(1000 * (time.perf_counter() - begun))
        found[f"{name}_ms"] = sorted(spent[2:])[5]
        found[f"{name}_pinned"] = host.is_pinned()
        found[f"{name}_same"] = bool((host == pictures.cpu()).all())
    return found


def layouts(place: Place) -> dict[str, Any]:
    """Milliseconds to decode a block with causal convolutions over stacked frames, and over volumes (`models.vae_layers.VOLUMES`)."""
    import torch

    import models.vae_layers
    from engine import World
    from engine.device import synchronize

    found: dict[str, Any] = {}
    kept = dict(models.vae_layers.VOLUMES)
    try:
        for name, kinds in (("stacked", ()), ("volumes", (torch.bfloat16, torch.float16, torch.float32))):
            models.vae_layers.VOLUMES[place.device.split(":")[0]] = kinds
            world = World.untrained(place.world, place.device, place.dtype)
            latents, cache, spent = world.random_start().latents[:, :, :3], world.vae.new_decoder_cache(), []
            for _ in range(8):
                synchronize(world.device)
                begun = time.perf_counter()
                with torch.inference_mode():
                    world.vae.decode_block(latents, cache)
                synchronize(world.device)
                spent.append(1000 * (time.perf_counter() - begun))
            found[f"{name}_ms"] = sorted(spent[2:])[3]
    finally:
        models.vae_layers.VOLUMES.clear()
        models.vae_layers.VOLUMES.update(kept)
    return found


CHECKS = {
    "exactness": exactness,
    "host_reads": host_reads,
    "kernels": kernels,
    "decoder": decoder,
    "transfer": transfer,
    "layouts": layouts,
}


def _tried(check: str, place: Place) -> dict[str, Any]:
    """What the check found; an error of one is no reason to leave the others out."""
    import torch

    try:
        return CHECKS[check](place)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        if place.device.startswith("cuda"):
            with contextlib.suppress(Exception):  # after an error of the device's everything fails
                torch.cuda.empty_cache()


# ---- the table


def markdown(found: dict[str, dict[str, Any]], goals: dict[str, str]) -> str:
    """A line a row: rates, block times, shares of the ceiling, start-up; then what was told about the machine."""
    head = "fps | block ms median, p99 | transformer | decode ms | first frame s | peak GB"
    lines = [f"| row | {head} | goal |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name, row in found.items():
        lines.append(f"| {name} | {_cells(row)} | {goals.get(name, '')} |")
    machine = next((row["machine"] for row in found.values() if row.get("machine")), {})
    return "\n".join([*lines, "", "Machine: " + ", ".join(f"{key} {value}" for key, value in machine.items())])


def _cells(row: dict[str, Any]) -> str:
    if "stages" not in row:
        words = f"{row['ratio']:.2f} x" if "ratio" in row else json.dumps(row, ensure_ascii=False).replace("|", "/")
        return f"{words} | | | | | "
    total, share = row["stages"]["total"], row["efficiency"]
    first = sum(row["startup"].values())
    peak = max(row["peak_bytes"].values(), default=0) / 1e9
    reached = f"{share['transformer_tflops']:.3g} TFLOP/s = {share['transformer_share']:.0%} of {share['ceiling_tflops']:.3g}"
    decode = row["stages"]["decode"]["median"]
    return f"{row['fps']:.1f} | {total['median']:.1f}, {total['p99']:.1f} | {reached} | {decode:.1f} | {first:.1f} | {peak:.1f}"


def table(chosen: list[Row], place: Place, out: Path, seconds: float, own_process: bool = True) -> dict[str, dict[str, Any]]:
    """Run the rows until ``seconds`` are over; write gpu_table.json and gpu_table.md into ``out`` after each of them."""
    found: dict[str, dict[str, Any]] = {}
    end = time.perf_counter() + seconds
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="reverie-table-") as cache:
        for together, group in itertools.groupby(chosen, lambda row: bool(row.check) or row.name):
            rows = list(group)
            begun = time.perf_counter()
            share = min(end - begun, sum(row.seconds for row in rows) if together is not True else COLD)
            if end - begun <= 5:
                found |= {row.name: {"error": "left out: no time"} for row in rows}
            elif together is True:
                found |= run_checks(rows, place, share, Path(cache), own_process)
            else:
                found[rows[0].name] = run_row(rows[0], place, share, Path(cache), own_process)
            for row in rows:
                problem = found[row.name].get("error", "done")
                print(f"{row.name}: {problem} ({time.perf_counter() - begun:.0f} s)", file=sys.stderr, flush=True)
            (out / "gpu_table.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
            (out / "gpu_table.md").write_text(markdown(found, {row.name: row.goal for row in chosen}), encoding="utf-8")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_table"))
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--world", default="universal")
    parser.add_argument("--blocks", type=int, default=1000, help="at most so many in each row")
    parser.add_argument("--check", choices=CHECKS, action="append", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    place = Place(args.world, args.device, args.dtype, args.blocks)
    if args.check:
        for check in args.check:
            print(json.dumps(_tried(check, place)), flush=True)
        return 0
    found = table(rows(), place, args.out, args.seconds)
    print((args.out / "gpu_table.md").read_text(encoding="utf-8"))
    return 0 if all("error" not in row for row in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
