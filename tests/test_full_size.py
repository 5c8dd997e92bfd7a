"""The script for full size, at the smallest: the same code writes, loads and plays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import full_size
from tests.published import write_world

PROC = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")


@PROC
def test_the_script_at_the_smallest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))
    action = {"blocks": [0], "hidden": 16, "heads": 2, "keyboard_hidden": 4, "rope_dim": 8}
    sizes: dict[str, dict[str, Any]] = {
        "model": {"dim": 32, "ffn_dim": 32, "num_heads": 2, "num_layers": 1, "img_dim": 32, "action": action},
        "vae": {"dim": 4},
        "vision": {"image_size": 28, "dim": 32, "out_dim": 8, "num_heads": 2, "num_layers": 2},
    }
    config = write_world(tmp_path, **sizes)
    full_size.write(tmp_path / "published", config, text_parameters=100)
    found = full_size.measure(config, tmp_path / "published", "cpu", "float32", blocks=2)
    assert found["frames"] == [[9, 64, 96, 3], [12, 64, 96, 3]] and found["block_count"] == 2
    assert all(found[phase]["rss_peak_bytes"] >= found[phase]["rss_before_bytes"] > 0 for phase in ("load", "start", "blocks", "hashes"))
    again = full_size.measure(config, tmp_path / "published", "cpu", "float32", blocks=0)
    assert again["weights_bytes"] == found["weights_bytes"] and {"load", "hashes"} < again.keys() and not {"start", "blocks"} & again.keys()
    assert len(list((tmp_path / "published").rglob("*.reverie.safetensors"))) == 2


@PROC
@pytest.mark.skipif(
    os.environ.get("REVERIE_LONG") != "1" or "REVERIE_FULL_SIZE" not in os.environ,
    reason="writes 15 GB and plays at 352x640: REVERIE_LONG=1 and REVERIE_FULL_SIZE=an empty folder",
)
def test_full_size() -> None:
    folder = Path(os.environ["REVERIE_FULL_SIZE"]) / "full_size"
    done = subprocess.run([sys.executable, "-m", "tests.full_size", str(folder)], stdout=subprocess.PIPE, text=True, cwd=full_size.ROOT)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    print(done.stdout)
    assert report["first"]["frames"][0] == [9, 352, 640, 3]
    assert max(report["first"][phase]["rss_peak_bytes"] for phase in ("load", "start", "blocks")) < 24 << 30
    for which in ("first", "second"):
        load = report[which]["load"]
        assert load["rss_peak_bytes"] - load["rss_before_bytes"] < report[which]["weights_bytes"] + (1 << 30)
