from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from engine.clock import BlockClock


def clocks(count: int, **kwargs: int) -> list[BlockClock]:
    found = [BlockClock(**kwargs)]
    while len(found) < count:
        found.append(found[-1].next())
    return found


def test_the_published_table() -> None:
    first, *later = clocks(500)
    assert (first.latents, first.frames, first.rows, first.is_first) == (range(0, 3), range(0, 9), 9, True)
    for k, clock in enumerate(later, 1):
        assert clock.latents == range(3 * k, 3 * k + 3) and clock.start == 3 * k
        assert clock.frames == range(12 * k - 3, 12 * k + 9)
        assert clock.rows == 12 * k + 9 == 1 + 4 * (3 * k + 3 - 1)
        assert not clock.is_first


@pytest.mark.parametrize(("n", "r"), [(3, 4), (1, 4), (4, 2), (5, 1)])
def test_latents_and_frames_follow_without_gap(n: int, r: int) -> None:
    for before, after in pairwise(clocks(50, n=n, r=r)):
        assert before.latents.stop == after.latents.start
        assert before.frames.stop == after.frames.start == before.rows
        assert len(after.frames) == n * r


def test_slots_of_a_window_that_is_no_multiple_of_the_block() -> None:
    assert [clock.slots(4) for clock in clocks(5)] == [(0, 1, 2), (3, 0, 1), (2, 3, 0), (1, 2, 3), (0, 1, 2)]
    assert [clock.filled(4) for clock in clocks(3)] == [3, 4, 4]
    assert [clock.filled(15) for clock in clocks(7)] == [3, 6, 9, 12, 15, 15, 15]
    with pytest.raises(ValueError, match="window of 2"):
        BlockClock().slots(2)


def test_noise_seeds_are_all_different_and_do_not_depend_on_the_epoch() -> None:
    seeds = {clock.noise_seed(seed, step) for seed in (0, 1, 2, -1, 2**80) for clock in clocks(1000) for step in range(4)}
    assert len(seeds) == 5 * 1000 * 4
    assert all(0 <= seed < 2**64 for seed in seeds)
    low = {seed & 0xFFFFFFFF for seed in seeds}  # torch's generator uses these bits alone
    assert len(low) > 0.9999 * len(seeds)
    assert BlockClock(epoch=5, block=7).noise_seed(3, 1) == BlockClock(epoch=0, block=7).noise_seed(3, 1)


def test_the_noise_seed_never_changes() -> None:
    """Sessions are replayed from their seed: these numbers are a promise."""
    assert BlockClock().noise_seed(0, 0) == 11866370583138464632
    assert BlockClock(block=123).noise_seed(42, 2) == 3193048404991900139


def test_a_clock_cannot_be_changed() -> None:
    clock = BlockClock(block=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        clock.block = 4  # type: ignore[misc]
    assert clock.next() == BlockClock(block=4)
    assert clock.restarted() == BlockClock(epoch=1, block=0)
    for wrong in ({"block": -1}, {"epoch": -1}, {"n": 0}, {"r": 0}):
        with pytest.raises(ValueError, match="a clock needs"):
            BlockClock(**wrong)
