import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from engine import Action, Ready
from game.controls import Sample
from game.pacing import Timeline
from game.worldthread import WorldThread
from tests.game.fake import FakeSession


class Player:
    """The window's side of the two threads, by hand."""

    def __init__(self, session: FakeSession, limit: int | None = None) -> None:
        self.session = session
        self.sampled: list[float] = []
        self.timeline = Timeline(session.config.fps)
        self.world = WorldThread(lambda report: session, self._take, self.timeline, limit)

    def _take(self, block: int) -> Sample:
        self.sampled.append(time.perf_counter())
        return Sample(Action(), self.sampled[-1])

    def __enter__(self) -> "Player":
        self.world.start()
        return self

    def __exit__(self, *_) -> None:
        assert self.world.stop(), "the thread must end when told to"

    def next(self, timeout: float = 2.0):
        return self.world.blocks.get(timeout=timeout)

    def quiet(self, seconds: float = 0.15) -> bool:
        time.sleep(seconds)
        return self.world.blocks.empty()


def test_blocks_are_begun_just_in_time_and_no_sooner() -> None:
    with Player(FakeSession(seconds=0.02)) as player:
        assert player.next().index == 0
        assert player.quiet(), "without a timeline nothing is begun ahead"
        for index in (1, 2, 3):
            lead = player.world.estimate.lead
            player.timeline.start(player.session.clock.frames.start, time.perf_counter() + lead + 0.1)
            due = player.timeline.due(player.session.clock.frames.start)
            block = player.next()
            assert block.index == index and player.world.blocks.empty()
            assert block.sample.sampled_at >= due - lead - 0.001


class Committing(FakeSession):
    """Takes its time after the frames are there, until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Semaphore(0)
        self.done = 0

    def step(self, action: Action, ready: Ready | None = None) -> np.ndarray:
        frames = super().step(action, ready)
        assert self.go_on.acquire(timeout=10)
        self.done += 1
        return frames


def test_a_block_is_handed_over_before_the_session_is_done_with_it() -> None:
    session = Committing()
    with Player(session) as player:
        player.timeline.start(0, time.perf_counter() - 1000)
        for index in range(3):
            assert player.next().index == index == session.done, "its frames are there, the block is not committed"
            assert player.quiet(0.05), "and no other is begun"
            session.go_on.release()
        session.go_on.release(9)


def test_a_session_that_fails_after_the_frames_ends_the_world_not_the_block() -> None:
    class Failing(FakeSession):
        def step(self, action: Action, ready: Ready | None = None) -> np.ndarray:
            super().step(action, ready)
            raise RuntimeError("no room to remember it")

    with Player(Failing()) as player:
        assert player.next().index == 0 and player.quiet(0.05)
        assert str(player.world.error) == "no room to remember it"


def test_a_block_that_finds_no_room_waits_until_there_is_some() -> None:
    with Player(FakeSession(), limit=6) as player:
        player.timeline.start(0, time.perf_counter() - 1000)
        time.sleep(0.2)
        assert player.world.blocks.full()
        assert [player.next().index for _ in range(6)] == list(range(6)) and player.quiet(0.05)


def test_a_late_world_works_without_a_break() -> None:
    with Player(FakeSession(seconds=0.01)) as player:
        player.next()
        player.timeline.start(0, time.perf_counter() - 1000)
        made = [player.next() for _ in range(8)]
        gaps = [after.sample.sampled_at - before.finished_at for before, after in pairwise(made)]
        assert min(gaps) < 0.01, "a loaded machine may be late, but not every time"


def test_pause_one_block_and_on() -> None:
    with Player(FakeSession()) as player:
        player.next()
        player.timeline.start(0, time.perf_counter() + 60)
        player.world.pause()
        assert player.quiet()
        assert player.world.step() == 1 and player.world.step() in (1, 2)
        assert [player.next().index, player.next().index] == [1, 2]
        assert player.quiet() and player.world.step() == 3
        assert player.next().index == 3
        player.timeline.start(0, time.perf_counter() - 60)
        assert player.quiet(), "still paused"
        player.world.resume()
        assert player.next().index == 4


def test_restart_begins_a_new_epoch_at_once() -> None:
    session = FakeSession(seconds=0.05)
    with Player(session) as player:
        player.next()
        player.timeline.start(0, time.perf_counter() - 10)
        player.next()
        player.timeline.stop()
        assert player.world.restart() == 1
        block = player.next()
        while block.epoch == 0:
            block = player.next()
        assert (block.epoch, block.index, session.resets) == (1, 0, 1)


def test_the_limit_holds() -> None:
    with Player(FakeSession(), limit=2) as player:
        player.next()
        player.timeline.start(0, time.perf_counter() - 10)
        player.next()
        assert player.quiet() and player.world.is_alive()


def test_the_queue_is_bounded() -> None:
    session = FakeSession()
    with Player(session) as player:
        time.sleep(0.05)
        player.timeline.start(0, time.perf_counter() - 10)
        time.sleep(0.2)
        assert len(session.actions) <= 4 and not player.world.error


def test_failures_are_handed_over() -> None:
    player = Player(FakeSession(fails_at=1))
    with player:
        player.next()
        player.timeline.start(0, time.perf_counter() - 10)
        player.world.join(2)
        assert isinstance(player.world.error, RuntimeError)


def test_a_failure_while_loading_is_handed_over() -> None:
    def load(report):
        report("weights", 0.5)
        raise ValueError("no weights")

    world = WorldThread(load, lambda block: None, Timeline(16))
    world.start()
    world.join(2)
    assert str(world.error) == "no weights" and world.progress == ("weights", 0.5)


def test_leaving_while_it_loads() -> None:
    def load(report):
        while True:
            report("weights", 0.5)
            time.sleep(0.005)

    world = WorldThread(load, lambda block: None, Timeline(16))
    world.start()
    time.sleep(0.02)
    assert world.stop(2) and world.error is None


@pytest.mark.parametrize("repeats", [20])
def test_hammering_the_wishes_never_hangs(repeats: int) -> None:
    with Player(FakeSession(seconds=0.001)) as player:
        for i in range(repeats):
            player.timeline.start(0, time.perf_counter() - 1)
            [player.world.pause, player.world.step, player.world.restart, player.world.resume][i % 4]()
            time.sleep(0.003)
            while not player.world.blocks.empty():
                player.next()
        assert player.world.error is None and player.world.is_alive()
