"""The numbers in docs/GARDEN.md are those that were measured, on the weights in the box."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from engine import load_config

ROOT = Path(__file__).parents[2]
LOOKS = ("sharpness", "contrast", "saturation")
MEASURED, IN_FLOAT32 = (json.loads((ROOT / "docs" / name).read_text()) for name in ("garden.json", "garden_float32.json"))


@pytest.mark.parametrize("measured", [MEASURED, IN_FLOAT32], ids=["bfloat16", "float32"])
def test_the_evaluation_is_of_the_weights_in_the_box(measured: dict[str, Any], request: pytest.FixtureRequest) -> None:
    folder = ROOT / "assets/garden"
    assert measured["weights"] == {
        f"{part}/{part}.safetensors": hashlib.sha256((folder / f"{part}.safetensors").read_bytes()).hexdigest() for part in ("dit", "vae")
    }
    assert measured["sampler"] == json.loads(json.dumps(asdict(load_config("garden").sampler)))
    assert measured["dtype"] == request.node.callspec.id


def test_the_page_says_what_was_measured() -> None:
    page = (ROOT / "docs/GARDEN.md").read_text()
    faithful, stable = MEASURED["faithful"], MEASURED["stable"]
    said = [f"{faithful[f'psnr_{s}s']:.1f} / {faithful[f'repeat_first_{s}s']:.1f}" for s in (1, 4, 16)]
    said += [f"{stable[name]['ratio']:.2f}" for name in ("sharpness", "contrast", "saturation")]
    said += [f"{faithful[f'psnr_{s}s_mean_of_starts']:.1f} as a mean" for s in (1, 4, 16)]
    said += [f"{MEASURED['quiet']['mean_drift_if_remembered']:.1f} if it were remembered"]
    said += [f"{MEASURED['turning']['psnr_to_start']:.1f} dB", f"{MEASURED['quiet']['mean_drift']:.1f} grey levels"]
    assert [words for words in said if words not in page] == []
    assert f"{100 * MEASURED['obedient']['share']:.3g} %" in page


@pytest.mark.parametrize(("measured", "begins"), [(MEASURED, "| bfloat16 ("), (IN_FLOAT32, "| float32, ")], ids=["bfloat16", "float32"])
def test_the_rows_of_both_dtypes_say_what_was_measured(measured: dict[str, Any], begins: str) -> None:
    page = (ROOT / "docs/GARDEN.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(begins)).strip("| ").split(" | ")[1:]
    faithful, turning, stable = (measured[name] for name in ("faithful", "turning", "stable"))
    said = [f"{faithful[f'psnr_{s}s']:.1f} ({faithful[f'psnr_{s}s_mean_of_starts']:.1f})" for s in (1, 4, 16)]
    said += [f"{faithful['psnr_first_frame']:.1f}"]
    said += [f"{turning['psnr_to_start']:.1f} ({turning['psnr_to_start_mean_of_starts']:.1f})", f"{measured['quiet']['mean_drift']:.1f}"]
    said += [f"{100 * measured['obedient']['share']:.3g} %, {100 * measured['obedient']['share_at_once']:.3g} %"]
    ten = {name: stable[name]["ratio"] for name in LOOKS}
    walks = (ten, stable["walk 2"], stable["walk 3"], stable["after 30 min"])
    assert row == said + [", ".join(f"{table[name]:.2f}" for name in LOOKS) for table in walks]
