"""From the press of a key to the picture, with the real threads and a world of known speed."""

from __future__ import annotations

import statistics
import time

from engine import Action
from game.controls import Sample
from game.pacing import Timeline
from game.presenter import Presenter
from game.worldthread import WorldThread
from tests.game.fake import FakeConfig, FakeSession

SECONDS, FPS, BLOCKS = 0.05, 25, 7


def test_an_action_is_taken_as_late_as_can_be() -> None:
    """From taking an action to showing it: what a block takes, and no more than a frame. Before, a press waits half a block in the mean."""
    session, shown = FakeSession(FakeConfig(fps=FPS), seconds=SECONDS), []
    timeline = Timeline(FPS)
    world = WorldThread(lambda report: session, lambda block: Sample(Action(), time.perf_counter()), timeline, BLOCKS)
    presenter = Presenter(
        world.blocks, timeline, lambda: world.estimate.lead, lambda block: shown.append(time.perf_counter() - block.sample.sampled_at)
    )
    world.start()
    most_ready = 0
    try:
        end = time.perf_counter() + 20
        while len(shown) < BLOCKS and time.perf_counter() < end:
            if presenter.poll(time.perf_counter()):
                presenter.seen(time.perf_counter())
            most_ready = max(most_ready, world.blocks.qsize())
            time.sleep(0.002)
    finally:
        assert world.stop()
    assert len(shown) == BLOCKS and most_ready <= 1, "no queue beyond one block"
    assert SECONDS < statistics.median(shown[2:]) < SECONDS + 1 / FPS
