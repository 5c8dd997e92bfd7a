from pathlib import Path

import numpy as np
import pytest

from engine import Action
from game.headless import play_headless
from game.replay import Check, Plan, ReplaySession, psnr
from game.sessionfile import SessionError, read_session
from game.sessionsink import SessionSink
from game.sinks import Origin
from tests.game.dream import Dream, Saved, Table, header, walk


def replay(path: Path, rewindable: int, snapshots: dict | None = None, seed: int = 7, sinks: tuple = ()) -> tuple[Check, Dream]:
    plan, dream = Plan(read_session(path)), Dream(seed, rewindable)
    check = Check(plan)
    play_headless(ReplaySession(dream, plan, None, snapshots), dream.config, plan, len(plan), [check, *(make(plan) for make in sinks)])
    return check, dream


@pytest.mark.parametrize("rewindable", [0, 1, 1000], ids=["by playing again", "one block back", "by rewinding"])
def test_restarts_and_rewinds_are_followed(tmp_path: Path, rewindable: int) -> None:
    check, dream = replay(walk(tmp_path / "a.session.jsonl"), rewindable)
    assert (check.compared, check.different, check.first) == (10, 0, None)
    assert (dream.steps == 10) == (rewindable == 1000)


@pytest.mark.parametrize("rewindable", [0, 1000])
def test_loads_are_followed(tmp_path: Path, rewindable: int) -> None:
    saved = Saved(99, (Action("w"), Action("s")))
    table = Table(tmp_path / "a.session.jsonl", seed=7)
    table.play(Action("w"), Action("a"))
    table.load(saved)
    table.play(Action("d"), Action("l"), Action("l"))
    table.rewind(2)
    table.play(Action("j"))
    table.restart()  # keeps the seed of what was loaded
    table.play(Action("w"), Action("w"))
    table.epoch += 1
    table.dream.seed = 7
    table.dream._go((Action("w"),))
    table.origin = Origin("rewind", 1, 0)  # back to before the load
    table.play(Action("k"))
    table.sink.close()
    with pytest.raises(SessionError, match="--snapshot"):
        replay(tmp_path / "a.session.jsonl", rewindable)
    check, _ = replay(tmp_path / "a.session.jsonl", rewindable, {saved.sha256: saved})
    assert (check.compared, check.different) == (9, 0)


def test_a_session_may_begin_with_a_load(tmp_path: Path) -> None:
    saved = Saved(99, (Action("w"), Action("s")))
    table = Table(tmp_path / "a.session.jsonl", seed=7)
    table.load(saved)
    table.play(Action("d"), Action("l"))
    table.rewind(1)
    table.play(Action("j"))
    table.sink.close()
    for rewindable in (0, 9):
        check, _ = replay(tmp_path / "a.session.jsonl", rewindable, {saved.sha256: saved})
        assert (check.compared, check.different) == (3, 0)


def test_a_replay_writes_the_session_it_plays(tmp_path: Path) -> None:
    path, again = walk(tmp_path / "a.session.jsonl"), tmp_path / "b.session.jsonl"
    replay(path, 0, sinks=(lambda plan: SessionSink(again, lambda: header(seed=7), original=plan.original),))
    assert read_session(again).blocks == read_session(path).blocks
    check, _ = replay(again, 1000)
    assert check.different == 0


def test_the_first_different_block_is_named(tmp_path: Path) -> None:
    check, _ = replay(walk(tmp_path / "a.session.jsonl"), 0, seed=8)
    assert check.different == 10 and str(check.first) == "block 0"
    plan, dream = Plan(read_session(tmp_path / "a.session.jsonl")), Dream(7)
    check = Check(plan)
    check.stop = True
    session = ReplaySession(dream, plan)
    step = dream.step
    dream.step = lambda action, ready=None: step(action, ready) ^ (dream.steps == 4)
    tally = play_headless(session, dream.config, plan, len(plan), [check], stop=lambda: check.done)
    assert str(check.first) == "block 0 of epoch 1" and (check.different, tally.blocks) == (1, 4)


def test_keys_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    path = walk(tmp_path / "a.session.jsonl")
    path.write_text("\n".join(path.read_text().splitlines()[:-1]).replace('"keyboard":[1.0', '"keyboard":[0.5') + "\n")
    with pytest.raises(SessionError, match="block 0: its keys mean something else"):
        replay(path, 0)


def test_psnr() -> None:
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    assert psnr(a, a) == float("inf") and psnr(a, a + 1) == pytest.approx(48.13, abs=0.01)
