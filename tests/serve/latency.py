"""`python -m tests.serve.latency`: from taking an action to its first picture, in the window and in a page of a real Chromium.

Both write it into their session files (`sampled`, `shown`), by the same clock. The window is SDL's dummy.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ["SDL_VIDEODRIVER"] = "dummy"

from game import cli
from tests.serve.chrome import browser
from tests.serve.table import Running, tiny_worlds
from tests.tiny_world import write_tiny_world

BLOCKS = 40


def milliseconds(path: Path) -> list[float]:
    """Of each block but the first three: from its sample to its picture."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    blocks = [line for line in lines if line.get("shown") is not None and line["block"] >= 3]
    return [1000 * (line["shown"] - line["sampled"]) for line in blocks]


def told(what: str, values: list[float]) -> None:
    high = sorted(values)[int(0.9 * len(values))]
    print(f"{what:24} median {statistics.median(values):6.1f} ms, 90 % below {high:6.1f} ms, {len(values)} blocks")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yaml = write_tiny_world(folder)
        assert cli.main(["--world", str(yaml), "--blocks", str(BLOCKS), "--session", str(folder / "window.session.jsonl")]) == 0
        window = milliseconds(folder / "window.session.jsonl")
        with Running(tiny_worlds(yaml)) as running, browser(folder / "chrome") as page:
            page.open(running.url)
            page("document.getElementById('film').checked = false")
            page.play()
            page.blocks(BLOCKS // 2)
            for _ in range(BLOCKS // 4):
                page.hold("w")
                page.blocks(1)
                page.let_go("w")
                page.blocks(1)
            seat = next(iter(running.site.house.seats.values()))
            delivery, lead = seat.timeline.delivery.seconds, seat.lead
            presses = page.value("reverie.stats.presses")
            shown = milliseconds(page.download("d-session", ".session.jsonl"))
        told("window", window)
        told("page", shown)
        told("page, press to picture", presses)
        print(f"encoding and way to the page {1000 * delivery:.1f} ms (90 % below), lead {1000 * lead:.1f} ms, a frame {1000 / 16:.1f} ms")


if __name__ == "__main__":
    main()
