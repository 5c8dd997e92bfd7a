"""The script for the GPU table, at the smallest on a CPU: every row but the compiled ones' compiler."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import compile_world
from engine.bench_machine import SIDE
from models.float8 import why_not
from tests.gpu_checks import within
from tests.gpu_table import Place, rows, run_checks, run_row, table
from tests.long import LONG
from tests.tiny_world import write_tiny_world


def tiny_decoder(config: dict[str, Any]) -> None:
    config["taehv"] = {"z_dim": 4, "widths": [8, 4, 4, 4]}
    config["weights"]["taehv"] = ["taehv.safetensors"]
    del config["start"]


def test_every_row_at_the_smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.bench_machine.SECONDS", 0.01)
    monkeypatch.setitem(SIDE, "cpu", 64)  # where bfloat16 is emulated a large product takes a second
    place = Place(str(write_tiny_world(tmp_path, change=tiny_decoder)), "cpu", "bfloat16", 1)
    monkeypatch.setattr("engine.compile_world", partial(compile_world, backend="eager"))
    found = table(rows(compile_layers=False), place, tmp_path / "out", 300, own_process=False)
    here = why_not(torch.device("cpu"), torch.bfloat16) is None  # torch's float8 on this processor
    assert len(found) == 19 and [name for name, row in found.items() if "error" in row] == ["window 6, float8"] * (not here), found
    assert found["window 6, TAEHV"]["engine"]["decoder"] == "taehv" and found["window 15"]["fps"] > 0
    assert "commit" not in found["window 6, keys of the last pass"]["stages"]
    assert not here or found["window 6, float8"]["engine"]["linears"] == "float8"
    assert found["window 6, against the plain variant"]["ratio"] > 0
    exactness = found["bfloat16 against float32"]
    assert len(exactness["eager_latents"]) == len(exactness["compiled_pictures"]) == 4 and exactness["within"] is True
    assert all(0 < error < 0.1 for name, errors in exactness.items() if name != "within" for error in errors)
    recorded = found["the recordings, in float32"]
    assert recorded["within"] is True and all(0 < recorded[part] < 1e-5 for part in ("denoiser", "encoder", "decoder", "tiny decoder"))
    assert found["a session's file replayed"] == {"replayed": "1 block, every frame as recorded"}
    kernels = found["kernels in use"]
    assert kernels["attention"] == {"auto": "torch sdpa"} | dict.fromkeys(("tokens", "mouse", "keyboard"), "plain products")
    assert kernels["attention flash"]["tokens"] == "flash" and kernels["attention flash"]["transformer_ms"] > 0
    assert "no cudnn attention" in kernels["attention cudnn"]
    assert 0 <= found["decoder compiled"]["relative_error"] < 0.02 and found["decoder compiled"]["compiled_ms"] > 0
    assert found["pictures to the host"]["session_same"] and not found["pictures to the host"]["session_pinned"]
    assert found["decoder: stacked frames against volumes"]["volumes_ms"] > 0
    assert json.loads((tmp_path / "out" / "gpu_table.json").read_text()) == found
    text = (tmp_path / "out" / "gpu_table.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 19 and "≥ 60 fps" in text and "TFLOP/s" in text and "(import " in text and " GB/s, a copy " in text
    assert {line.count(" |") for line in lines} == {10}


def test_what_is_no_number_is_not_within() -> None:
    """`max` looks past it: max([0.004, nan]) is 0.004."""
    near = {f"{name}_{part}": [0.004, 0.005] for name in ("eager", "compiled") for part in ("latents", "pictures")}
    assert within(near) and within(near | {"compiled_latents": [0.004, 0.0075]})
    for worse in ([0.004, 0.0076], [0.004, float("nan")]):
        assert not within(near | {"compiled_latents": worse}) and not within(near | {"compiled_pictures": worse})
    for wrong in ([0.004, float("nan")], [0.9, 0.9]):  # both ways alike
        assert not within(near | {"eager_latents": wrong, "compiled_latents": wrong})


def test_what_was_told_counts_though_the_process_failed_at_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place, row = Place("universal", "cuda", "bfloat16"), rows()[1]
    monkeypatch.setattr("tests.gpu_table._child", lambda *_: ('{"fps": 61.0}', "terminate called"))
    assert run_row(row, place, 1, tmp_path) == {"fps": 61.0}
    monkeypatch.setattr("tests.gpu_table._child", lambda *_: ("", "CUDA error"))
    assert run_row(row, place, 1, tmp_path) == {"error": "CUDA error"}


@pytest.mark.skipif(not LONG, reason="two processes that import torch, half a minute on a busy core: REVERIE_LONG=1")
def test_a_row_in_its_own_process(tmp_path: Path) -> None:
    place = Place(str(write_tiny_world(tmp_path, change=tiny_decoder)), "cpu", "float32", 1)
    chosen = {row.name: row for row in rows()}
    checks = [chosen["pictures to the host"], chosen["nothing read back inside a block"]]
    found = run_checks(checks, place, 100, tmp_path)
    assert found["pictures to the host"]["session_same"] and found["nothing read back inside a block"]["synchronisations"]
    assert "no world file" in run_row(chosen["window 6, not compiled"], Place("nowhere.yaml", "cpu", "float32", 1), 100, tmp_path)["error"]


def test_no_time_left(tmp_path: Path) -> None:
    found = table(rows()[:2], Place("garden", "cpu", "float32", 1), tmp_path, seconds=0)
    assert all(row["error"] == "left out: no time" for row in found.values())
