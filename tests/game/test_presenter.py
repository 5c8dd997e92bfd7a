"""The presenter against a clock that a test turns by hand."""

import queue

import numpy as np
import pytest

from engine import Action
from engine.clock import BlockClock
from game.controls import Sample
from game.pacing import Timeline
from game.presenter import Presenter
from game.sinks import Block

FPS = 10.0


def block(index: int, finished_at: float = 0.0, epoch: int = 0, input_at: float | None = None) -> Block:
    frames = BlockClock(block=index).frames
    pixels = np.zeros((len(frames), 2, 2, 3), np.uint8) + np.array(frames, np.uint8)[:, None, None, None]
    return Block(epoch, index, frames.start, Sample(Action(), finished_at - 0.1, input_at), pixels, finished_at)


class Stage:
    def __init__(self, lead: float = 0.0) -> None:
        self.blocks: queue.Queue[Block] = queue.Queue()
        self.timeline = Timeline(FPS)
        self.begun: list[int] = []
        self.presenter = Presenter(self.blocks, self.timeline, lambda: lead, lambda block: self.begun.append(block.index))

    def play(self, start: float, stop: float, step: float = 0.01) -> list[tuple[float, int]]:
        """(time, number of the frame) of every change between two times."""
        changes = []
        for i in range(round((stop - start) / step)):
            now = start + i * step
            if self.presenter.poll(now):
                self.presenter.seen(now)
                changes.append((round(now, 3), int(self.presenter.frame[0, 0, 0])))
        return changes


def test_frames_come_at_their_rate_without_drift() -> None:
    stage = Stage()
    for index in range(3):
        stage.blocks.put(block(index))
    seen = stage.play(5.0, 9.0)
    assert [frame for _, frame in seen] == list(range(33))
    for time, frame in seen:
        assert time == pytest.approx(5.0 + frame / FPS, abs=0.011)
    assert stage.presenter.shown.underruns == 0 and stage.presenter.shown.skipped == 0
    assert stage.begun == [0, 1, 2]
    assert stage.presenter.rate.value == pytest.approx(FPS, rel=0.05)


def test_a_late_poll_does_not_move_the_schedule() -> None:
    stage = Stage()
    for index in range(3):
        stage.blocks.put(block(index))
    assert stage.play(0.0, 4.0, step=0.037)[-1] == (pytest.approx(3.2, abs=0.04), 32)


def test_the_first_picture_is_shown_at_once_and_the_clock_waits_for_the_second_block() -> None:
    stage = Stage(lead=1.5)
    stage.blocks.put(block(0))
    seen = stage.play(0.0, 1.8)
    assert seen[0] == (0.0, 0)
    assert seen[1][0] == pytest.approx(1.5 - 0.9 + 0.1, abs=0.02), "frame 9 is due 1.5 s after the start"
    assert stage.timeline.due(9) == pytest.approx(1.5)


def test_a_late_block_holds_the_frame_counts_once_and_shifts_the_schedule() -> None:
    stage = Stage()
    stage.blocks.put(block(0))
    assert stage.play(0.0, 1.5)[-1][1] == 8
    stage.blocks.put(block(1, finished_at=1.5))
    seen = stage.play(1.5, 2.5)
    assert seen[0] == (1.5, 9) and seen[1][0] == pytest.approx(1.6, abs=0.011)
    assert stage.presenter.shown.underruns == 1 and stage.presenter.shown.skipped == 0


def test_a_window_that_stood_still_catches_up_and_owns_up() -> None:
    stage = Stage()
    for index in range(2):
        stage.blocks.put(block(index))
    stage.play(0.0, 0.05)
    seen = stage.play(1.25, 1.3)
    assert seen[0] == (1.25, 12)
    assert stage.presenter.shown.skipped == 11 and stage.presenter.shown.underruns == 0
    assert stage.begun == [0, 1]


def test_frames_of_an_older_epoch_are_dropped() -> None:
    stage = Stage()
    stage.blocks.put(block(0))
    stage.play(0.0, 0.5)
    stage.blocks.put(block(1))
    stage.presenter.restart(1)
    assert stage.play(0.5, 1.0) == [] and stage.presenter.frame is not None
    stage.blocks.put(block(0, epoch=1, finished_at=1.0))
    assert stage.play(1.0, 1.05) == [(1.0, 0)]
    assert stage.presenter.shown.underruns == 0


def test_freeze_thaw_and_one_block() -> None:
    stage = Stage()
    stage.blocks.put(block(0))
    stage.play(0.0, 0.45)
    stage.presenter.freeze()
    assert stage.play(0.45, 3.0) == [] and stage.presenter.next_due is None
    stage.presenter.thaw(3.0, until=1)
    assert [frame for _, frame in stage.play(3.0, 4.0)] == [5, 6, 7, 8]
    stage.blocks.put(block(1, finished_at=4.0))
    stage.blocks.put(block(2, finished_at=4.0))
    assert [frame for _, frame in stage.play(4.0, 8.0)] == list(range(9, 21))
    assert stage.presenter.frozen and stage.presenter.shown.underruns == 0, "a step is never late"
    stage.presenter.thaw(8.0)
    assert [frame for _, frame in stage.play(8.0, 8.15)] == [21, 22]


def test_going_on_waits_until_the_next_block_can_be_there() -> None:
    stage = Stage(lead=1.0)
    stage.blocks.put(block(0))
    stage.play(0.0, 0.75)
    stage.presenter.freeze()
    stage.presenter.thaw(10.0)
    rest = 9 - stage.presenter.frame_number - 1
    assert stage.timeline.due(9) == pytest.approx(11.0) and rest > 0


def test_the_end_is_when_the_last_frame_had_its_time() -> None:
    stage = Stage()
    stage.blocks.put(block(0))
    assert not stage.presenter.ended(0.0, 1)
    stage.play(0.0, 0.85)
    assert not stage.presenter.ended(0.85, 1) and not stage.presenter.ended(0.95, 2)
    assert stage.presenter.ended(0.95, 1)


def test_latencies_are_those_of_the_first_frame() -> None:
    stage = Stage()
    stage.blocks.put(block(0, finished_at=-0.5, input_at=-0.75))
    stage.play(0.0, 0.5)
    assert stage.presenter.shown.action_latency.last == pytest.approx(0.6)
    assert stage.presenter.shown.input_latency.last == pytest.approx(0.75)


def test_a_block_that_waited_for_the_player_has_no_latency() -> None:
    stage = Stage()
    stage.blocks.put(block(0))
    stage.play(0.0, 0.5)
    stage.blocks.put(block(1, finished_at=0.5, input_at=0.3))
    stage.presenter.freeze()
    stage.presenter.thaw(60.0)
    stage.play(60.0, 62.0)
    stage.blocks.put(block(2, finished_at=62.0))
    stage.play(62.0, 64.0)
    shown = stage.presenter.shown
    assert stage.begun == [0, 1, 2] and shown.action_latency.count == 2 and shown.input_latency.last is None


def test_a_block_asked_for_alone_has_no_latency() -> None:
    stage = Stage()
    stage.blocks.put(block(0))
    stage.play(0.0, 1.0)
    stage.presenter.freeze()
    stage.presenter.thaw(60.0, until=1)
    stage.blocks.put(block(1, finished_at=60.0, input_at=1.0))
    stage.play(60.0, 62.0)
    assert stage.presenter.shown.action_latency.count == 1 and stage.presenter.shown.input_latency.last is None
