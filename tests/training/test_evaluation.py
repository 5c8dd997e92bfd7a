"""The numbers in docs/GARDEN.md are those that were measured, on the weights in the box."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from engine import load_config

ROOT = Path(__file__).parents[2]
MEASURED = json.loads((ROOT / "docs/garden.json").read_text())


def test_the_evaluation_is_of_the_weights_in_the_box() -> None:
    folder = ROOT / "assets/garden"
    assert MEASURED["weights"] == {
        f"{part}/{part}.safetensors": hashlib.sha256((folder / f"{part}.safetensors").read_bytes()).hexdigest() for part in ("dit", "vae")
    }
    assert MEASURED["sampler"] == json.loads(json.dumps(asdict(load_config("garden").sampler)))


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
