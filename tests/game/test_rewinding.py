"""Rewinding in the window, on a fake world: taps, held keys, branches, and all of it at once."""

import numpy as np
import pygame
import pytest

from game.controls import Controls
from game.events import Command, EventReader, help_columns
from game.saves import FOLDER
from game.sinks import Origin
from tests.game.fake import RUN, WALK, FakeConfig, FakeSession
from tests.game.table import BACKSPACE, F2, F4, lift, picture, press, shown, tape, told
from tests.game.test_presenter import Stage, block


def test_one_tap_goes_back_to_the_end_of_the_block_before(taped) -> None:
    play = taped(FakeSession(FakeConfig(fps=200), seconds=0.1))
    play.until(lambda: shown(play, 2))
    at = play.game.presenter.block.index
    press(play, BACKSPACE)
    lift(play, BACKSPACE)
    play.until(lambda: play.game.presenter.epoch == 1)
    assert picture(play) == 12 * at - 3 - 1
    play.until(lambda: len(tape(play).blocks) > at + 4)
    assert tape(play).origins == {0: Origin("start"), 1: Origin("rewind", block=at, parent=0)}
    tape(play).check()


@pytest.mark.parametrize(("key", "mod"), [(BACKSPACE, 0), (pygame.K_z, pygame.KMOD_LCTRL)])
def test_held_it_goes_on_block_by_block(taped, key: int, mod: int) -> None:
    play = taped()
    play.until(lambda: shown(play, 8))
    at = play.game.presenter.block.index
    press(play, key, mod)
    seen, made = [], []

    def back_far_enough() -> bool:
        seen.append(picture(play))
        made.append(len(play.session.actions))
        return play.session.clock.block <= at - 4

    play.until(back_far_enough)
    assert {12 * (at - back) - 4 for back in range(4)} <= set(seen) and play.game.rewinder.words.startswith("Rewinding")
    assert made[-1] <= made[0] + 1, "nothing was made meanwhile but what had been begun"
    lift(play, key)
    play.until(lambda: not play.game.rewinder.active)
    made = len(tape(play).blocks)
    play.until(lambda: len(tape(play).blocks) > made + 2)
    (_, start), (_, branch) = tape(play).origins.items()
    assert start == Origin("start") and branch == Origin("rewind", block=branch.block, parent=0) and branch.block <= at - 4
    tape(play).check()


def test_a_branch_of_a_branch_knows_its_parent(taped) -> None:
    play = taped()
    play.until(lambda: shown(play, 4))
    for _ in range(2):
        epochs = len(tape(play).origins)
        press(play, BACKSPACE)
        lift(play, BACKSPACE)
        play.until(lambda epochs=epochs: len(tape(play).origins) > epochs)
        made = tape(play).blocks[-1].index
        play.until(lambda made=made: shown(play, made + 2))
    origins = tape(play).origins
    assert [origin.kind for origin in origins.values()] == ["start", "rewind", "rewind"]
    assert [origin.parent for origin in origins.values()] == [None, *list(origins)[:-1]]
    tape(play).check()


def test_rewinding_a_paused_game_leaves_it_paused(taped) -> None:
    play = taped()
    play.until(lambda: shown(play, 3) and picture(play) >= 33)  # in block 3; the presenter may hold a block before its first frame is due
    play.key(pygame.K_p)
    at = (picture(play) + 3) // 12
    press(play, BACKSPACE)
    lift(play, BACKSPACE)
    play.until(lambda: play.game.presenter.epoch == 1)
    play.for_(0.1)
    assert play.game.world.paused and play.session.clock.block == at and picture(play) == 12 * at - 4
    play.key(pygame.K_p)
    play.until(lambda: shown(play, at + 1))
    tape(play).check()


def test_the_end_of_the_past_is_told_once_and_harms_nothing(taped) -> None:
    play = taped(FakeSession(FakeConfig(fps=200), kept=2))
    play.until(lambda: shown(play, 6))
    press(play, BACKSPACE)
    play.until(lambda: told(play, "Not rewound: cannot rewind"))
    play.for_(0.15)
    assert sum("Not rewound" in toast for toast in play.game.window.toasts()) == 1
    lift(play, BACKSPACE)
    made = len(tape(play).blocks)
    play.until(lambda: len(tape(play).blocks) > made + 2)
    tape(play).check()


def test_it_stops_behind_the_first_block_and_losing_the_focus_lets_go(taped) -> None:
    play = taped()
    play.until(lambda: shown(play, 2))
    press(play, BACKSPACE)
    play.until(lambda: told(play, "nothing to go back to"))
    assert play.session.clock.block == 1 and picture(play) == 8
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    play.until(lambda: shown(play, 2))
    tape(play).check()


def test_restart_while_rewinding_and_rewinding_after_a_load(taped) -> None:
    play = taped()
    play.until(lambda: shown(play, 4))
    press(play, BACKSPACE)
    play.key(pygame.K_RETURN)
    play.until(lambda: shown(play, 1) and play.game.presenter.epoch >= 1)
    lift(play, BACKSPACE)
    FOLDER.mkdir()
    (FOLDER / "fake-1.safetensors").write_text("30")
    play.key(F4)
    play.until(lambda: shown(play, 32))
    press(play, BACKSPACE)
    play.until(lambda: told(play, "Not rewound: cannot rewind"))
    assert play.session.clock.block == 30, "a load is where its past begins"
    lift(play, BACKSPACE)
    play.until(lambda: shown(play, 31))
    kinds = [origin.kind for origin in tape(play).origins.values()]
    assert kinds == ["start", "start", "load", "rewind"]
    tape(play).check()


@pytest.mark.parametrize("repeats", [25])
def test_hammering_all_of_it_never_hangs_and_leaves_no_hole(taped, repeats: int) -> None:
    FOLDER.mkdir()
    (FOLDER / "fake-1.safetensors").write_text("3")
    play = taped(FakeSession(FakeConfig(fps=400), seconds=0.002))
    play.playing()
    for i in range(repeats):
        key = [BACKSPACE, F4, pygame.K_RETURN, F2, pygame.K_p, BACKSPACE, pygame.K_PERIOD][i % 7]
        press(play, key)
        play.for_(0.01 * (i % 4))
        lift(play, key)
        play.for_(0.005)
    if play.game.world.paused:
        play.key(pygame.K_p)
    made = len(tape(play).blocks)
    play.until(lambda: len(tape(play).blocks) > made + 3)
    tape(play).check()


def test_a_block_of_an_epoch_not_announced_yet_waits() -> None:
    stage = Stage()
    stage.blocks.put(block(0))
    stage.play(0.0, 0.5)
    stage.blocks.put(block(7, epoch=1, finished_at=0.5))
    assert stage.play(0.5, 1.5)[-1][1] == 8 and stage.presenter.poll(2.0) is False
    stage.presenter.restart(1, np.full((2, 2, 3), 99, np.uint8))
    assert stage.presenter.frame[0, 0, 0] == 99
    assert stage.play(2.0, 2.05) == [(2.0, 12 * 7 - 3)] and stage.presenter.first == 7
    assert stage.presenter.shown.underruns == 0


def test_the_keys_do_not_take_those_of_the_world() -> None:
    def event(code: int, mod: int, scancode: int) -> pygame.event.Event:
        return pygame.event.Event(pygame.KEYDOWN, key=code, mod=mod, scancode=scancode, unicode="")

    controls = Controls(RUN)  # Z turns left there
    reader = EventReader(controls)
    assert reader.read([event(pygame.K_z, 0, pygame.KSCAN_Z)], False) == [] and controls.held == {"z"}
    controls.release_all()
    assert reader.read([event(pygame.K_z, pygame.KMOD_LCTRL, pygame.KSCAN_Z)], False) == [Command.REWIND] and controls.held == set()
    assert reader.read([pygame.event.Event(pygame.KEYUP, key=pygame.K_z, scancode=pygame.KSCAN_Z)], False) == [Command.REWIND_END]
    assert reader.read([event(pygame.K_5, pygame.KMOD_RSHIFT, pygame.KSCAN_5)], False) == [Command.SLOT] and reader.slot == 5
    assert reader.read([event(pygame.K_5, 0, pygame.KSCAN_5), event(pygame.K_0, pygame.KMOD_LSHIFT, pygame.KSCAN_0)], False) == []
    help_texts = dict(help_columns(WALK)[1])
    assert {"Backspace", "F2", "F4", "Shift 1-9"} <= help_texts.keys()
