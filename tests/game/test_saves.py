"""Saving and loading from the window, on a fake world: slots, toasts, epochs and where they come from."""

import threading
import time
from collections.abc import Callable

import pygame
import pytest

from engine import Action
from game.headless import play_headless
from game.saves import FOLDER
from game.script import parse_script
from game.sinks import Origin
from game.window import Window
from game.worldthread import Errand
from tests.game.fake import WALK, FakeConfig, FakeSession
from tests.game.table import BACKSPACE, F2, F4, Table, Tape, lift, picture, press, shown, tape, told
from tests.game.test_worldthread import Player


def test_save_and_load(taped) -> None:
    play = taped()
    play.until(lambda: shown(play, 3))
    play.key(F2)
    play.until(lambda: told(play, f"Saved in slot 1: {FOLDER / 'fake-1.safetensors'}"))
    at = int((FOLDER / "fake-1.safetensors").read_text())
    play.until(lambda: shown(play, at + 3))
    play.key(F4)
    play.until(lambda: told(play, f"Loaded slot 1: block {at}"))
    play.until(lambda: play.game.presenter.epoch == 1)
    play.until(lambda: play.game.presenter.block is not None)
    play.until(lambda: len(tape(play).blocks) > at + 8)
    assert tape(play).origins == {0: Origin("start"), 1: Origin("load", block=at, snapshot="ab" * 32)}
    tape(play).check()


def test_the_picture_of_the_loaded_state_is_shown_before_there_is_another(taped) -> None:
    play = taped()
    play.playing()
    FOLDER.mkdir()
    (FOLDER / "fake-1.safetensors").write_text("10")
    play.key(pygame.K_p)
    play.key(F4)
    play.until(lambda: play.game.presenter.epoch == 1)
    play.for_(0.1)
    assert picture(play) == 12 * 10 - 3 - 1 and play.game.world.paused and play.session.clock.block == 10
    play.key(pygame.K_PERIOD, 0)
    play.until(lambda: shown(play, 10) and play.game.presenter.frozen)
    assert play.session.clock.block == 11 and play.game.world.paused
    play.key(pygame.K_p)
    play.until(lambda: shown(play, 12))
    tape(play).check()


def test_a_paused_game_can_be_saved(taped) -> None:
    play = taped()
    play.playing()
    play.key(pygame.K_p)
    play.key(F2)
    play.until(lambda: told(play, "Saved in slot 1"))
    assert play.game.world.paused


def test_slots_are_chosen_with_shift_and_a_digit(taped) -> None:
    play = taped()
    play.playing()
    press(play, pygame.K_3, pygame.KMOD_LSHIFT, pygame.KSCAN_3)
    play.until(lambda: told(play, "Slot 3 (empty)"))
    play.key(F4)
    assert told(play, "Slot 3 is empty")
    play.key(F2)
    play.until(lambda: told(play, "Saved in slot 3"))
    press(play, pygame.K_9, pygame.KMOD_LSHIFT, pygame.KSCAN_9)
    press(play, pygame.K_3, pygame.KMOD_LSHIFT, pygame.KSCAN_3)
    play.until(lambda: play.game.window.toasts()[-1] == "Slot 3")
    assert [path.name for path in FOLDER.iterdir()] == ["fake-3.safetensors"]


@pytest.mark.parametrize(
    ("spoil", "key", "words"),
    [
        (lambda: FOLDER.write_text("in the way"), F2, "Not saved: "),
        (lambda: (FOLDER / "fake-1.safetensors").mkdir(parents=True), F2, "Not saved: cannot write"),
        (lambda: (FOLDER.mkdir(), (FOLDER / "fake-1.safetensors").write_text("rubbish")), F4, "is no snapshot"),
    ],
)
def test_what_fails_is_a_toast_and_the_game_goes_on(taped, spoil: Callable[[], object], key: int, words: str) -> None:
    play = taped()
    play.playing()
    spoil()
    play.key(key)
    play.until(lambda: told(play, words))
    at = len(tape(play).blocks)
    play.until(lambda: len(tape(play).blocks) > at + 3)
    assert play.game.presenter.epoch == 0
    play.key(key)
    play.until(lambda: sum(words in toast for toast in play.game.window.toasts()) == 2)


def test_a_slow_disk_holds_nobody_up(taped, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr("tests.game.fake.FakeSnapshot.save", lambda self, path: go.wait(20))
    play = taped()
    play.playing()
    play.key(F2)
    at = len(tape(play).blocks)
    play.until(lambda: len(tape(play).blocks) > at + 4)
    play.key(F2)
    assert told(play, "Still saving")
    go.set()
    play.until(lambda: told(play, "Saved in slot 1"))


def test_saved_and_left_at_once_is_saved(window: Window) -> None:
    session = FakeSession(FakeConfig(fps=200), seconds=0.05)
    play = Table(window, session)
    play.playing()
    play.key(F2)
    assert play.game.world.stop()
    play.game.saves.close()
    assert (FOLDER / "fake-1.safetensors").read_text().isdigit()


def test_the_script_and_the_limit_count_from_what_was_loaded(window: Window) -> None:
    session = FakeSession(FakeConfig(fps=200), block=40)
    play = Table(window, session, script=parse_script("w j", WALK.keys), limit=3, sinks=[Tape()])
    play.until(lambda: play.game._over)
    assert [set(action.keys) for action in session.actions] == [{"w"}, {"j"}, set()] and session.clock.block == 43
    assert tape(play).origins == {0: Origin("load", block=40, snapshot="f" * 64)}
    tape(play).check()
    assert play.game.world.stop()


@pytest.mark.parametrize("at", [0, 12])
def test_headless_tells_where_it_begins(at: int) -> None:
    memory = Tape()
    session = FakeSession(block=at)
    play_headless(session, session.config, parse_script("w*2", WALK.keys), 2, [memory])
    expected = Origin("load", block=12, snapshot="f" * 64) if at else Origin("start")
    assert [block.origin for block in memory.blocks] == [expected, None]
    assert [block.index for block in memory.blocks] == [at, at + 1] and session.actions == [Action({"w"})] * 2


def test_the_window_waits_for_nothing(taped) -> None:
    """No turn takes longer than a moment while the world is busy with a long block and wishes wait."""
    play = taped(FakeSession(FakeConfig(fps=200), seconds=0.4))
    play.playing()
    slowest = 0.0
    for key in (F2, F4, BACKSPACE, F2):
        press(play, key)
        began = time.perf_counter()
        play.game._turn()
        slowest = max(slowest, time.perf_counter() - began)
    lift(play, BACKSPACE)
    assert slowest < 0.3


def test_errands_run_in_order_between_blocks_and_failures_are_told() -> None:
    done, failures = [], []
    with Player(FakeSession(seconds=0.02)) as player:
        player.next()
        player.world.pause()

        def errand(name: str, result: Origin | None = None) -> Errand:
            def run(session: FakeSession) -> Origin | None:
                done.append((name, session.clock.block))
                if name == "bad":
                    raise RuntimeError("no")
                return result

            return Errand(run, failures.append)

        for name in ("one", "bad", "two"):
            player.world.between_blocks(errand(name))
        assert player.quiet(0.1) and [name for name, _ in done] == ["one", "bad", "two"] and str(failures[0]) == "no"
        player.world.between_blocks(errand("go", Origin("load", block=1)))
        arrival = player.world.arrivals.get(timeout=2)
        assert (arrival.epoch, arrival.origin.kind) == (1, "load")
        player.world.hold(True)
        player.world.between_blocks(errand("moot", Origin("load", block=1)))
        assert player.world.restart() == 2
        player.world.hold(False)
        assert player.next().epoch == 2
    assert done[-1][0] == "moot"
