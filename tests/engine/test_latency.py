"""When an action first shows: two games with one seed, one action flipped at block b."""

from __future__ import annotations

import numpy as np
import pytest

from engine import Action, World

BLOCKS = 6


def play(world: World, flipped: int | None) -> list[np.ndarray]:
    session = world.session(4, rewind_mb=0)
    return [session.step(Action(frozenset("sj" if block == flipped else "w"))) for block in range(BLOCKS)]


@pytest.mark.parametrize("flipped", [0, 1, 3, 5])
def test_an_action_shows_in_the_first_frame_of_its_own_block(tiny_world: World, flipped: int) -> None:
    """The block's first latent reads three rows of it (SPEC §2), and its tokens see those of the others."""
    ours, theirs = play(tiny_world, None), play(tiny_world, flipped)
    for block in range(flipped):
        assert np.array_equal(ours[block], theirs[block])
    assert not np.array_equal(ours[flipped][0], theirs[flipped][0])
