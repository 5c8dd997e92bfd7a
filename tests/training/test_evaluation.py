"""The numbers in docs/GARDEN.md are those that were measured, on the weights in the box."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine import World, load_config
from tests.training.test_measures import Perfect, same
from training import evaluate, measures, page
from training.pictures import film

ROOT = Path(__file__).parents[2]
MEASURED, IN_FLOAT32 = page.measured()


@pytest.mark.parametrize("measured", [MEASURED, IN_FLOAT32], ids=["bfloat16", "float32"])
def test_the_evaluation_is_of_the_weights_in_the_box(measured: dict[str, Any], request: pytest.FixtureRequest) -> None:
    folder = ROOT / "assets/garden"
    assert measured["weights"] == {
        f"{part}/{part}.safetensors": hashlib.sha256((folder / f"{part}.safetensors").read_bytes()).hexdigest() for part in ("dit", "vae")
    }
    assert measured["sampler"] == json.loads(json.dumps(asdict(load_config("garden").sampler)))
    assert measured["dtype"] == request.node.callspec.id


def test_all_weights_in_the_box_are_at_most_48_megabytes() -> None:
    files = [path for path in (ROOT / "assets").rglob("*") if path.suffix in (".safetensors", ".pt", ".pth")]
    assert files and sum(path.stat().st_size for path in files) <= 48_000_000


def test_the_page_says_what_was_measured() -> None:
    told = (page.DOCS / "GARDEN.md").read_text().split(page.BEGIN)[1].split(page.END)[0].strip()
    assert told == page.tables(*page.measured()), "python -m training.page"
    rows = [line.count("|") for line in told.splitlines()]
    assert all(above == 0 or below in (0, above) for above, below in pairwise(rows)), "a row with other columns"
    assert MEASURED["weights"]["dit/dit.safetensors"][:16] in told and f"{100 * MEASURED['obedient']['share']:.3g} %" in told
    for seconds in (1, 4, 16):
        numbers = [f"{found['faithful'][f'psnr_{seconds}s']:.1f}" for found in (MEASURED, IN_FLOAT32)]
        assert all(number in told for number in numbers)
    assert f"**{MEASURED['many']['psnr_4s']:.1f} dB**" in told and f"{MEASURED['many']['starts']} starts" in told
    assert all(f"{found['quiet']['starts']} starts" in told for found in (MEASURED, IN_FLOAT32) if "quiet" in found)


def test_what_was_not_measured_in_float32_is_told() -> None:
    told = page.tables(
        MEASURED, {name: table for name, table in IN_FLOAT32.items() if name not in ("many", "quiet", "stable", "turning", "obedient")}
    )
    last = [cell.strip() for cell in told.splitlines()[-1].split("|")[1:-1]]
    assert last[0] == "float32" and last[-4:] == ["not measured"] * 4 and last[4] == f"{IN_FLOAT32['faithful']['psnr_first_frame']:.1f}"


@pytest.mark.parametrize(
    ("words", "says"), [("--choose 5 --only faithful", "900000 to 989000"), ("--choose 970000", "goes with --only faithful"),
                        ("--choose 970000 --only faithful --json {}", "without --json")]
)  # fmt: skip
def test_starts_to_choose_by_are_others_and_go_into_no_table(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", *words.format(tmp_path / "x.json").split()])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert says in capsys.readouterr().err and not (tmp_path / "x.json").exists()


def test_other_starts_are_other_walks() -> None:
    world = Perfect(2, 970_000)
    assert not same(world.places[0][1], Perfect(1, measures.SEED).places[0][1])
    assert measures.faithful(world, 2, seconds=(1,), seed=970_000)["psnr_1s"] > 60


def test_a_film_begins_at_the_worlds_own_picture(tmp_path: Path) -> None:
    film(World.load("garden"), tmp_path / "walk.gif", script="wl")
    assert (tmp_path / "walk.gif").read_bytes()[:3] == b"GIF"
