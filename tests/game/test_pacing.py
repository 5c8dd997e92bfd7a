import pytest

from game.pacing import Estimate, Rate, Spread, Timeline


def test_a_timeline_is_absolute_and_does_not_drift() -> None:
    timeline = Timeline(fps=16)
    assert timeline.due(0) is None and not timeline.running
    timeline.start(0, at=100.0)
    assert timeline.due(0) == 100.0
    assert timeline.due(16 * 3600) == pytest.approx(3700.0, abs=1e-9)
    timeline.start(160, at=200.0)
    assert timeline.due(160) == 200.0 and timeline.due(176) == 201.0


def test_every_move_is_told() -> None:
    timeline, moves = Timeline(fps=10), []
    timeline.on_move = lambda: moves.append(timeline.running)
    timeline.start(0, 1.0)
    timeline.stop()
    assert moves == [True, False]


def test_a_spread_is_of_the_latest() -> None:
    spread = Spread(window=100)
    assert spread.last is None and spread.below(0.5) is None
    for hundredths in range(150):
        spread.add(hundredths / 100)
    assert spread.count == 150 and spread.last == 1.49
    assert (spread.below(0), spread.below(0.5), spread.below(0.99), spread.below(1)) == (0.5, 1.0, 1.49, 1.49)


def test_the_estimate_is_the_slow_end_of_the_last_blocks() -> None:
    estimate = Estimate(window=10)
    assert estimate.seconds == 0 and estimate.lead == estimate.margin > 0
    for _ in range(9):
        estimate.add(0.1)
    estimate.add(0.4)
    assert estimate.seconds == 0.4 and estimate.last == 0.4
    estimate.add(0.1)
    estimate.add(0.1)
    assert 0.4 < estimate.lead < 0.6
    for _ in range(10):
        estimate.add(0.1)
    assert estimate.seconds == 0.1


def test_one_slow_block_in_a_hundred_is_no_rule_and_two_are() -> None:
    estimate = Estimate()
    estimate.add(0.5)
    for _ in range(99):
        estimate.add(0.1)
    assert estimate.seconds == 0.5
    estimate.add(0.1)
    assert estimate.seconds == 0.1
    estimate.add(0.4)
    assert estimate.seconds == 0.4
    estimate.forget()
    assert estimate.seconds == 0.4, "until there is another"
    estimate.add(0.05)
    assert estimate.seconds == 0.05


def test_the_margin_learns() -> None:
    """Steady blocks shrink it to the least, a late one widens it by more than it was late, and there is a most."""
    estimate = Estimate()
    first = estimate.margin
    estimate.add(0.1)
    assert estimate.margin == first  # nothing was due
    for _ in range(200):
        estimate.add(0.1, spare=0.01)
    assert estimate.margin == estimate.LEAST_MARGIN and estimate.lead == pytest.approx(0.1 + estimate.LEAST_MARGIN)
    estimate.add(0.1, spare=-0.02)
    assert estimate.margin > 0.02 + estimate.LEAST_MARGIN
    for _ in range(10):
        estimate.add(0.1, spare=-0.1)
    assert estimate.margin == estimate.MOST_MARGIN


def test_rate_counts_the_last_seconds_only() -> None:
    rate = Rate(span=2.0)
    assert rate.value == 0
    for i in range(100):
        rate.tick(i / 16)
    assert rate.value == pytest.approx(16)
    for i in range(40):
        rate.tick(100 + i / 8)
    assert rate.value == pytest.approx(8)
