"""Write what was measured into docs/GARDEN.md: the tables between its two marks, from docs/garden.json and docs/garden_float32.json.

    python -m training.page

Both come from `training.evaluate`; `tests/training/test_evaluation.py` holds the page, the files and the weights in the box together.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- measured: python -m training.page -->", "<!-- end of what was measured -->"
LOOKS = ("sharpness", "contrast", "saturation")
FULL = (*LOOKS[:1], "edges", *LOOKS[1:], "motion")
Table = dict[str, Any]


def tables(ours: Table, wide: Table) -> str:
    """Markdown of two evaluations by `training.evaluate`, in bfloat16 and in float32, of the same weights."""
    weights = ", ".join(f"`{Path(name).name}` {digest[:16]}…" for name, digest in ours["weights"].items())
    lines = [f"Measured on {weights} (SHA-256).", "", "| | measured | target |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(ours)]
    head = "1 s | 4 s | 16 s | first frame | 4 s, many starts | a turn | still for two minutes | keys, at once"
    walks = [walk for walk in _walks(ours["stable"]) if "stable" in wide and walk in _walks(wide["stable"])]
    lines += ["", "The same in float32, in which a processor without bfloat16 of its own plays"]
    lines += ["(in brackets means of each start's PSNR; of the second halves of walks sharpness, contrast and saturation):", ""]
    lines += [f"| {' | '.join(['', head, *walks])} |", "| --- " * (9 + len(walks)) + "|"]
    for table in (ours, wide):
        seen = [_three(_walks(table["stable"])[walk]) for walk in walks]
        lines.append(f"| {' | '.join([table['dtype'], *_numbers(table), *seen])} |")
    return "\n".join(lines)


def _rows(found: Table) -> list[tuple[str, str, str]]:
    parts = ("faithful", "many", "turning", "quiet", "stable", "obedient")
    faithful, many, turning, quiet, stable, obedient = (found[part] for part in parts)
    starts = f"{faithful['starts']} starts"
    share = f"**{100 * obedient['share']:.3g} %** ({round(obedient['share'] * _asked(obedient))} of {_asked(obedient)})"
    rows = [
        (
            f"holding a key for four blocks moves the picture the right way ({obedient['starts']} starts a key)",
            f"{share}, and {100 * obedient['share_at_once']:.3g} % within the block that got the key", "≥ 98 %",
        )
    ]  # fmt: skip
    for seconds, target in ((1, 26), (4, 22), (16, 18)):
        name = f"psnr_{seconds}s"
        words = f"PSNR of the mean error after {seconds} s / repeating the first frame ({starts})"
        each = f"{faithful[f'{name}_mean_of_starts']:.1f} as a mean of each start's PSNR, median {faithful[f'{name}_median']:.1f}"
        rows.append((words, f"{faithful[name]:.1f} / {faithful[f'repeat_first_{seconds}s']:.1f} dB ({each})", f"≥ {target} dB"))
        if name in many:
            words = f"PSNR of the mean error after {seconds} s ({many['starts']} starts, these among them)"
            each = f"{many[f'{name}_mean_of_starts']:.1f} as a mean of each start's PSNR, median {many[f'{name}_median']:.1f}"
            groups = ", ".join(f"{group:.1f}" for group in many[f"{name}_of_groups"])
            rows.append((words, f"**{many[name]:.1f} dB** ({each}; of each {faithful['starts']}: {groups})", f"≥ {target} dB"))
    still = " / ".join(f"{faithful[f'idle_{seconds}s']:.1f}" for seconds in (1, 4, 16))
    free = f"{quiet['mean_drift_if_remembered']:.1f} if it were remembered (`--no-hold-still`, {quiet['starts_if_remembered']} starts)"
    each = f"{turning['psnr_to_start_mean_of_starts']:.1f} as a mean of each start's, median {turning['psnr_to_start_median']:.1f}"
    rows += [
        ("first frame", f"{faithful['psnr_first_frame']:.1f} dB", ""),
        (f"standing still for 1 s / 4 s / 16 s ({starts})", f"{still} dB", ""),
        (
            f"standing still for two minutes: mean difference of the last second from the first ({quiet['starts']} starts)",
            f"**{quiet['mean_drift']:.1f} grey levels** (worst {quiet['worst_drift']:.1f}); {free}", "≤ 2",
        ),
        (f"a full turn: PSNR to the start picture ({turning['starts']} starts)", f"{turning['psnr_to_start']:.1f} dB ({each})", "≥ 20 dB"),
    ]  # fmt: skip
    for walk, table in _walks(stable).items():
        parts = ", ".join(f"{name} {'**' * (name == 'sharpness')}{table[name]:.2f}{'**' * (name == 'sharpness')}" for name in FULL)
        rows.append((f"random play of {walk}: its second half against the simulator's", f"{parts} ×", "0.85–1.15 × (motion, edges: none)"))
    return rows


def _walks(stable: Table) -> dict[str, dict[str, float]]:
    """What is told of each long walk, by what the page calls it: the looks' ratios in its second half."""
    found = {(float(stable["minutes"]), 1): {name: stable[name]["ratio"] for name in FULL}}
    for name, table in stable.items():
        if match := re.fullmatch(r"(?:walk (\d+))? ?(?:after ([\d.]+) min)?", name):
            found[float(match[2] or stable["minutes"]), int(match[1] or 1)] = table
    return {f"{minutes:g} minutes{f', walk {number}' if number > 1 else ''}": found[minutes, number] for minutes, number in sorted(found)}


def _numbers(found: Table) -> list[str]:
    """A cell for each measure of both tables but the walks; of float32 not all need have been measured."""
    faithful, many, turning, quiet, obedient = (found.get(part) for part in ("faithful", "many", "turning", "quiet", "obedient"))
    said = ["not measured"] * 8
    if faithful is not None:
        said[:3] = [f"{faithful[f'psnr_{s}s']:.1f} ({faithful[f'psnr_{s}s_mean_of_starts']:.1f})" for s in (1, 4, 16)]
        said[3] = f"{faithful['psnr_first_frame']:.1f}"
    if many is not None:
        said[4] = f"{many['psnr_4s']:.1f} ({many['psnr_4s_mean_of_starts']:.1f}), {many['starts']} starts"
    if turning is not None:
        said[5] = f"{turning['psnr_to_start']:.1f} ({turning['psnr_to_start_mean_of_starts']:.1f})"
    if quiet is not None:
        said[6] = f"{quiet['mean_drift']:.1f}, {quiet['starts']} starts"
    if obedient is not None:
        said[7] = f"{100 * obedient['share']:.3g} %, {100 * obedient['share_at_once']:.3g} % of {_asked(obedient)}"
    return said


def _asked(obedient: Table) -> int:
    """How often a key was held."""
    return sum(int(obedient[key].split(",")[0].split("/")[1]) for key in "wsadjlik")


def _three(looks: dict[str, float]) -> str:
    return ", ".join(f"{looks[name]:.2f}" for name in LOOKS)


def measured() -> tuple[Table, Table]:
    """Both evaluations of the weights in the box."""
    ours, wide = (json.loads((DOCS / name).read_text()) for name in ("garden.json", "garden_float32.json"))
    return ours, wide


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    page = DOCS / "GARDEN.md"
    text = page.read_text()
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{tables(*measured())}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
