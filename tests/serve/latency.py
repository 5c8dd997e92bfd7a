"""`python -m tests.serve.latency`: from taking an action to its first picture, in the window and in a page of a real Chromium.

Both write it into their session files (`sampled`, `shown`), by the same clock. The window is SDL's dummy; the page gets JPEG, and H.264
where both sides can. They take turns, round after round, so that whatever else the machine does falls on all of them. The world is a tiny
one whose pictures have the garden's size.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ["SDL_VIDEODRIVER"] = "dummy"

from game import cli
from game.serve.video import problem
from tests.serve.chrome import Page, browser
from tests.serve.table import Running, tiny_worlds
from tests.tiny_world import write_tiny_world

ROUNDS, BLOCKS = 4, 24  # of each


def milliseconds(path: Path) -> list[float]:
    """Of each block but the first three: from its sample to its picture."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    blocks = [line for line in lines if line.get("shown") is not None and line["block"] >= 3]
    return [1000 * (line["shown"] - line["sampled"]) for line in blocks]


def told(what: str, values: list[float]) -> None:
    high = sorted(values)[int(0.9 * len(values))]
    print(f"{what:34} median {statistics.median(values):6.1f} ms, 90 % below {high:6.1f} ms, {len(values)} times")


def in_the_window(yaml: Path, path: Path) -> list[float]:
    assert cli.main(["--world", str(yaml), "--blocks", str(BLOCKS), "--session", str(path)]) == 0
    return milliseconds(path)


def in_the_page(page: Page, running: Running, kind: str) -> tuple[list[float], list[float], float]:
    """From sample to picture, from press to picture, and the longest encoding and way to the page, in milliseconds."""
    page.open(running.url)
    page("document.getElementById('film').checked = false")
    page.click("play")
    page.until("window.reverie.session.world")
    page("window.kinds = new Set(); const {screen} = reverie, shown = screen.onFrame;"
         "screen.onFrame = (frame, now) => (kinds.add(frame.kind), shown(frame, now))")  # fmt: skip
    page.blocks(4)
    for _ in range((BLOCKS - 4) // 2):
        page.hold("w")
        page.blocks(1)
        page.let_go("w")
        page.blocks(1)
    seat = next(seat for seat in running.site.house.seats.values() if not seat.ended_at)
    delivery = 1000 * seat.timeline.delivery.seconds
    assert page.value("[...kinds]") == [kind], "a still is no frame"
    presses = page.value("reverie.stats.presses")
    for old in page.downloads.iterdir():
        old.unlink()
    shown = milliseconds(page.download("d-session", ".session.jsonl"))
    page.click("b-menu")
    page.click("m-leave")
    page.until("!document.getElementById('over').hidden")
    page.until(lambda: running.site.house.playing == 0)
    return shown, presses, delivery


def main() -> None:
    def change(settings: dict[str, Any]) -> None:
        settings |= {"height": 64, "width": 112}

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        yaml = write_tiny_world(folder, change=change)
        worlds = tiny_worlds(yaml)
        kinds = ["jpeg"] if problem() else ["jpeg", "h264-444"]
        servers = {kind: stack.enter_context(Running(worlds, frames=kind.removesuffix("-444"))) for kind in kinds}
        page = stack.enter_context(browser(folder / "chrome"))
        window: list[float] = []
        pages: dict[str, tuple[list[float], list[float], list[float]]] = {kind: ([], [], []) for kind in kinds}
        for number in range(ROUNDS):
            window += in_the_window(yaml, folder / f"window-{number}.session.jsonl")
            for kind in kinds if number % 2 else reversed(kinds):
                shown, presses, delivery = in_the_page(page, servers[kind], kind)
                pages[kind][0].extend(shown)
                pages[kind][1].extend(presses)
                pages[kind][2].append(delivery)
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        told("window, sample to picture", window)
        for kind, (shown, presses, deliveries) in pages.items():
            told(f"page, {kind}, sample to picture", shown)
            told(f"page, {kind}, press to picture", presses)
            print(f"{'':34} encoding and way to the page {statistics.median(deliveries):.1f} ms (slowest of a round, median of rounds)")
        print(f"a frame is {1000 / 16:.1f} ms; load of the machine {', '.join(f'{load:.1f}' for load in os.getloadavg())}")


if __name__ == "__main__":
    main()
