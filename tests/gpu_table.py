"""The whole table of speeds on a GPU in one run of under eight minutes, as JSON and as markdown.

    python -m tests.gpu_table [--out FOLDER] [--seconds 450] [--device cuda] [--world universal] [--only ROW …] [--cache FOLDER]

Every row is a process of its own (`reverie bench --json --random …`, so weights are random and nothing is downloaded), the checks
are one together; the compiler's cache lies in a new folder (or in --cache, which is kept: for a table in several runs): the first
compiled row starts cold, the second one warm. No row may take more than its share. Rows that no longer fit into --seconds are left out
and listed as such. Tried on a CPU at the smallest size by tests/test_gpu_table.py.
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

from tests.gpu_checks import CHECKS, Place, tried

ROOT = Path(__file__).parents[1]


SHARE, COLD = 75, 160  # seconds that a row may take, and one for which everything is compiled


@dataclass(frozen=True)
class Row:
    """A row of the table: options of `reverie bench`, or the name of a check of `tests.gpu_checks`."""

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
        Row("window 6", ("--window", "6", *fast), goal=most, blocks=40, seconds=120),
        Row("window 15", ("--window", "15", *fast), goal="≥ 45 fps", blocks=24, seconds=COLD),
        Row("window 6, against the plain variant", ("--window", "6", "--compare", "baseline", *fast), goal="≥ 3 x"),
        Row("window 6, TAEHV", ("--window", "6", "--decoder", "taehv", *fast), goal="≥ 110 fps", blocks=24, seconds=COLD),
        Row("bfloat16 against float32", check="exactness", goal="within bf16 error"),
        Row("the recordings, in float32", check="recordings", goal="within 1e-4"),
        Row("a session's file replayed", check="replay", goal="every frame as recorded"),
        Row("nothing read back inside a block", check="host_reads", goal="no synchronisation"),
        Row("kernels in use", check="kernels", goal="attention by Flash or cuDNN"),
        Row("decoder compiled", check="decoder", goal="faster than uncompiled, within bf16 error"),
        Row("pictures to the host", check="transfer", goal="pinned faster than pageable"),
        Row("decoder: stacked frames against volumes", check="layouts"),
        Row("window 6, overlap", ("--window", "6", "--overlap", *fast)),
        Row("window 6, no graphs", ("--window", "6", "--no-graphs", *fast)),
        Row("window 6, not compiled", ("--window", "6")),
        Row("window 6, float8", ("--window", "6", "--linears", "float8", *fast), seconds=COLD),
        Row("window 6, keys of the last pass", ("--window", "6", "--context", "last", *fast)),
        Row("window 15, against the plain variant", ("--window", "15", "--compare", "baseline", *fast)),
    ]


def run_row(row: Row, place: Place, seconds: float, cache: Path, own_process: bool = True) -> dict[str, Any]:
    """What the row's process printed, or ``{"error": …}``."""
    if not own_process:
        return _in_here(row, place)
    words = ["-c", "import sys; from game.cli import main; sys.exit(main(sys.argv[1:]))", "bench", *place.words(row.blocks), *row.options]
    told, problem = _child(words, seconds, cache)
    try:  # first what it told: a process that fails at its very end has measured all the same
        return json.loads(told[told.index("{") :])
    except ValueError:
        return {"error": problem or f"no JSON but {told[-200:]!r}"}


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
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)  # of which the table has the last line
    return done.stdout, (done.stderr.strip().splitlines() or ["no words"])[-1][:300] if done.returncode else ""


def _in_here(row: Row, place: Place) -> dict[str, Any]:
    from game.cli import main as reverie

    if row.check:
        return CHECKS[row.check](place)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        status = reverie(["bench", *place.words(row.blocks), *row.options])
    return json.loads(told.getvalue()) if status == 0 else {"error": f"status {status}"}


# ---- the table


def markdown(found: dict[str, dict[str, Any]], goals: dict[str, str]) -> str:
    """A line a row: rates, block times, shares of the ceilings, start-up; then what was told about the machine."""
    head = "fps | block ms median, p99 | action to frame ms | transformer | its weights and caches | decode ms | first frame s | peak GB"
    lines = [f"| row | {head} | goal |", "| --- " * 10 + "|"]
    for name, row in found.items():
        lines.append(f"| {name} | {_cells(row)} | {goals.get(name, '')} |")
    machine = next((row["machine"] for row in found.values() if row.get("machine")), {})
    return "\n".join([*lines, "", "Machine: " + ", ".join(f"{key} {value}" for key, value in machine.items())])


def _cells(row: dict[str, Any]) -> str:
    if "stages" not in row:
        words = f"{row['ratio']:.2f} x" if "ratio" in row else json.dumps(row, ensure_ascii=False).replace("|", "/")
        return f"{words} | | | | | | | "
    total, share = row["stages"]["total"], row["efficiency"]
    first = sum(row["startup"].values())
    peaks = row["peak_bytes"]
    peak = peaks.get("device", max(peaks.values(), default=0)) / 1e9
    reached = f"{share['transformer_tflops']:.3g} TFLOP/s = {share['transformer_share']:.0%} of {share['ceiling_tflops']:.3g}"
    reads = f"{share['read_gb_s']:.0f} GB/s, a copy {share['copy_gb_s']:.0f}"
    block = f"{total['median']:.1f}, {total['p99']:.1f} | {row['first_frame']['median']:.1f}"
    started = f"{first:.1f} ({', '.join(f'{name} {seconds:.1f}' for name, seconds in row['startup'].items())})"
    return f"{row['fps']:.1f} | {block} | {reached} | {reads} | {row['stages']['decode']['median']:.1f} | {started} | {peak:.1f}"


def table(
    chosen: list[Row], place: Place, out: Path, seconds: float, own_process: bool = True, kept: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Run the rows until ``seconds`` are over; write gpu_table.json and gpu_table.md into ``out`` after each of them.

    The compiler's cache lies in ``kept``, or nowhere afterwards.
    """
    found: dict[str, dict[str, Any]] = {}
    end = time.perf_counter() + seconds
    out.mkdir(parents=True, exist_ok=True)
    # What was killed may have left workers of the compiler, which still write.
    fresh = tempfile.TemporaryDirectory(prefix="reverie-table-", ignore_cleanup_errors=True)
    with fresh if kept is None else contextlib.nullcontext(kept) as cache:
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
    parser.add_argument("--only", choices=[row.name for row in rows()], action="append", metavar="ROW", help="this row, by its name; again")
    parser.add_argument("--cache", type=Path, help="folder of the compiler's cache, kept (a new one, thrown away)")
    parser.add_argument("--check", choices=CHECKS, action="append", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    place = Place(args.world, args.device, args.dtype, args.blocks)
    if args.check:
        for check in args.check:
            print(json.dumps(tried(check, place)), flush=True)
        return 0
    chosen = [row for row in rows() if args.only is None or row.name in args.only]
    found = table(chosen, place, args.out, args.seconds, kept=args.cache)
    print((args.out / "gpu_table.md").read_text(encoding="utf-8"))
    return 0 if all("error" not in row for row in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
