"""Standing still in a world that holds still: nothing is remembered, so nothing adds up, and all else goes on as ever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import engine.session
from engine import Action, Overlap, Session, Snapshot, World, WorldError, load_config
from engine.clock import BlockClock
from engine.exact import settings
from tests.engine.test_rewind import equal, state
from tests.engine.test_session import same, state_of
from tests.engine.test_snapshot import rewrite, setting
from tests.tiny_world import write_tiny_world

IDLE, WALKING, TURNING = Action(), Action(frozenset("w")), Action(look=(0.0, 1.0))
# twice around the ring of five blocks; held still: 5 to 8, 14 and 15, 19 to 24
WALK = [WALKING, IDLE, TURNING, *[IDLE] * 6, *[WALKING] * 3, *[IDLE] * 4, TURNING, *[IDLE] * 8, *[WALKING] * 7]
HELD = [5, 6, 7, 8, 14, 15, 19, 20, 21, 22, 23, 24]


class NoiseOfPlaces:
    """The same noise whenever the model is at the same place."""

    def noise(self, clock: BlockClock, step: int, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(10 * clock.place + step))


@pytest.fixture(scope="module")
def still_world(tiny_yaml: Path) -> World:
    return World.load(load_config(tiny_yaml, {"sampler.hold_still": True}))


def play(session: Session, actions: Sequence[Action]) -> list[np.ndarray]:
    return [session.step(action) for action in actions]


@pytest.fixture(scope="module")
def base(still_world: World) -> tuple[list[np.ndarray], list[dict[str, Tensor]], list[BlockClock]]:
    """The walk's pictures; state and clock before each of its blocks."""
    session = still_world.session(seed=3)
    blocks, states, clocks = [], [], []
    for action in WALK:
        states.append(state(session))
        clocks.append(session.clock)
        blocks += play(session, [action])
    return blocks, states, clocks


def test_a_clock_that_is_held() -> None:
    clock = BlockClock(block=4)
    held = clock.held()
    assert (held.block, held.still, held.place) == (5, 1, 4)
    assert (held.latents, held.slots(15), held.filled(15)) == (clock.latents, clock.slots(15), clock.filled(15))
    assert (held.first_row, held.rows) == (clock.first_row, clock.rows) == (clock.frames.start, clock.frames.stop)
    assert held.frames.start == clock.frames.stop and len(held.frames) == 12, "pictures go on"
    assert held.noise_seed(0, 0) == BlockClock(block=5).noise_seed(0, 0) != clock.noise_seed(0, 0), "with new noise"
    assert held.next() == BlockClock(block=6, still=1) and held.restarted() == BlockClock(epoch=1)
    for block, still in ((0, 1), (3, 3), (3, -1)):
        with pytest.raises(ValueError, match=f"of {block} blocks"):
            BlockClock(block=block, still=still)


def test_when_it_is_held(base) -> None:
    _, _, clocks = base
    counts = [clock.still for clock in clocks]
    assert [block for block in range(len(WALK) - 1) if counts[block + 1] > counts[block]] == HELD
    assert clocks[-1].place == clocks[-1].block - len(HELD)


@pytest.mark.parametrize("quiet", [IDLE, Action(frozenset("ws")), Action(look=(0.0, 0.0))])
def test_what_counts_as_doing_nothing(still_world: World, quiet: Action) -> None:
    session = still_world.session()
    play(session, [quiet] * 6)
    assert session.clock.still == 3, "the first three blocks of a game are remembered"
    for action in (WALKING, TURNING, Action(look=(0.001, 0.0))):
        session.step(action)
        assert session.clock.still == 3
        play(session, [quiet] * 2)
    assert session.clock.still == 3


def test_held_blocks_leave_no_trace(still_world: World) -> None:
    """All that the transformer remembers, and so what it imagines next, is as if they had never been."""
    quiet, short = (Session(still_world, noise=NoiseOfPlaces()) for _ in range(2))
    ours = [quiet.imagine_only(action) for action in WALK]
    theirs = [short.imagine_only(action) for block, action in enumerate(WALK) if block not in HELD]
    kept = [latents for block, latents in enumerate(ours) if block not in HELD]
    assert all(torch.equal(a, b) for a, b in zip(kept, theirs, strict=True))
    one, other = state(quiet), state(short)
    assert quiet.clock.place == short.clock.place == short.clock.block
    assert all(torch.equal(one[name], other[name]) for name in one if name.startswith(("cache.", "rows.")))


def test_it_goes_on_with_new_noise_and_without_the_clean_pass(still_world: World, base) -> None:
    blocks, states, _ = base
    assert not np.array_equal(blocks[6], blocks[7]), "not a frozen picture"
    names = [name for name in states[0] if name.startswith(("cache.", "rows."))]
    assert all(torch.equal(states[5][name], states[9][name]) for name in names)
    session = still_world.session()
    play(session, [IDLE] * 3)
    assert "commit" in session.timings
    session.step()
    assert "commit" not in session.timings and {"denoise 3", "decode"} <= session.timings.keys()


def test_memory_does_not_grow(still_world: World) -> None:
    session = still_world.session()
    play(session, [WALKING] * 6 + [IDLE] * 4)
    before = state_of(session)
    play(session, [IDLE] * 100)
    assert state_of(session) == before and session.clock.still == 102


@pytest.mark.parametrize("at", [len(WALK), 22, 7])
def test_rewound_and_played_again_is_the_same(still_world: World, base, at: int) -> None:
    blocks, states, clocks = base
    session = still_world.session(seed=3)
    play(session, WALK[:at])
    for back in range(1, at + 1, 1 if at < 10 else 3):
        session.rewind(back)
        clock = clocks[at - back]
        assert (session.clock.block, session.clock.still) == (clock.block, clock.still)
        assert equal(state(session), states[at - back]), back
        assert same(blocks[at - back : at], play(session, WALK[at - back : at])), back


def test_rewinding_with_room_for_a_few_blocks_only(still_world: World, base) -> None:
    """The oldest blocks are forgotten one after another, held ones too: what is left can still be taken back."""
    blocks, states, _ = base
    one = still_world.session(seed=3)
    play(one, WALK[:16])
    session = still_world.session(seed=3, rewind_mb=one._history.nbytes / 2 / 1e6)
    for block, action in enumerate(WALK):
        session.step(action)
        back = session.rewindable
        if block > 16:
            assert 2 < back < block
        session.rewind(back)
        assert equal(state(session), states[block + 1 - back]), block
        assert same(blocks[block + 1 - back : block + 1], play(session, WALK[block + 1 - back : block + 1])), block


@pytest.mark.parametrize("block", [5, 6, 9, 15, 25])
def test_saved_and_loaded_goes_on_with_the_same_bits(still_world: World, base, tmp_path: Path, block: int) -> None:
    blocks, states, clocks = base
    session = still_world.session(seed=3)
    play(session, WALK[:block])
    session.snapshot().save(tmp_path / "s")
    loaded = Snapshot.load(tmp_path / "s", still_world)
    assert (loaded.block, loaded.still) == (block, clocks[block].still) and equal(loaded.tensors, states[block])
    assert same(blocks[block:], play(still_world.resume(loaded), WALK[block:]))
    session.reset()
    assert session.clock == BlockClock(epoch=1) and same(blocks, play(session, WALK))


def test_files_that_lie_about_it(still_world: World, base, tmp_path: Path) -> None:
    session = still_world.session(seed=3)
    play(session, WALK[:9])
    for value in (9, -1, True, "4", None):
        session.snapshot().save(tmp_path / "s")
        rewrite(tmp_path / "s", setting("still", value))
        for world in (still_world, None):
            with pytest.raises(WorldError, match="still must be a whole number from 0 to 8"):
                Snapshot.load(tmp_path / "s", world)
    assert session.clock.still == 4


def test_a_state_held_still_is_for_worlds_that_hold_still(tiny_world: World, tmp_path: Path) -> None:
    session = tiny_world.session()
    play(session, [IDLE] * 6)
    session.snapshot().save(tmp_path / "s")
    rewrite(tmp_path / "s", setting("still", 2))
    with pytest.raises(WorldError, match="still must be a whole number from 0 to 0, got 2"):
        session.restore(Snapshot.load(tmp_path / "s"))  # read before it was known for which world
    assert session.clock == BlockClock(block=6)


def test_beside_a_decoder_of_its_own(still_world: World, base) -> None:
    blocks, _, _ = base
    session = still_world.session(seed=3)
    played = list(Overlap(session).play(WALK[:22]))
    assert same(blocks[:22], [block.frames for block in played])
    assert [block.clock.block for block in played] == list(range(22))
    assert same(blocks[22:], play(session, WALK[22:]))


def test_a_failed_block_changes_nothing(still_world: World, base, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, states, clocks = base
    session = still_world.session(seed=3)
    play(session, WALK[:7])

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine.session, "to_uint8", fail)
        for action in (IDLE, WALKING):
            with pytest.raises(MemoryError):
                session.step(action)
    assert session.clock == clocks[7] and equal(state(session), states[7])
    assert same(blocks[7:], play(session, WALK[7:]))


def test_other_windows_and_other_blocks(tmp_path: Path) -> None:
    """Rewinding and resuming where a ring is no multiple of a block, or a block is one latent."""
    for change in ({"local_attn_size": 4}, {"num_frame_per_block": 1}, {"local_attn_size": 6}):
        yaml = write_tiny_world(tmp_path, change=lambda settings, change=change: settings["model"].update(change))
        world = World.load(load_config(yaml, {"sampler.hold_still": True}))
        session = world.session()
        walk = [WALKING, *[IDLE] * 9, *[TURNING] * 3, *[IDLE] * 8]
        blocks = play(session, walk)
        assert session.clock.still > 3, change
        for back in (3, 8, 20):
            session.rewind(back)
            saved = world.resume(session.snapshot())
            assert same(blocks[-back:], play(session, walk[-back:])), (change, back)
            assert back != 8 or same(blocks[-back:], play(saved, walk[-back:])), change


def test_only_where_the_world_says_so(tiny_world: World, tiny_yaml: Path) -> None:
    session = tiny_world.session()
    play(session, [IDLE] * 6)
    assert session.clock == BlockClock(block=6)
    assert {name: load_config(name).sampler.hold_still for name in ("garden", "universal", "gta_drive", "templerun")} == {
        "garden": True, "universal": False, "gta_drive": False, "templerun": False,
    }  # fmt: skip
    assert "sampler.hold_still" not in settings(load_config(tiny_yaml)), "what was saved before still belongs to the same world"
    assert settings(load_config(tiny_yaml, {"sampler.hold_still": True}))["sampler.hold_still"] is True
    with pytest.raises(WorldError, match=r"sampler\.hold_still must be true or false"):
        load_config(tiny_yaml, {"sampler.hold_still": 1})
