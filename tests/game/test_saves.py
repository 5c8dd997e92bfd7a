"""Saving, loading and rewinding from the window, on a fake world: keys, slots, toasts, epochs and where they come from."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pygame
import pytest

import game.rewinder
from engine import Action
from game.events import Command, EventReader, help_columns
from game.headless import play_headless
from game.saves import FOLDER
from game.script import parse_script
from game.sinks import Block, Origin
from game.window import Window
from game.worldthread import Errand
from tests.game.fake import RUN, WALK, FakeConfig, FakeSession
from tests.game.test_player import Table
from tests.game.test_presenter import Stage, block
from tests.game.test_worldthread import Player

BACKSPACE, F2, F4 = pygame.K_BACKSPACE, pygame.K_F2, pygame.K_F4


class Tape:
    """A sink that remembers what was shown."""

    def __init__(self) -> None:
        self.sink, self.error, self.frames, self.dropped = self, None, 0, 0
        self.blocks: list[Block] = []

    def open(self, config) -> None: ...
    def write(self, block: Block) -> None:
        self.blocks.append(block)

    def close(self, *_) -> None: ...

    @property
    def origins(self) -> dict[int, Origin]:
        return {block.epoch: block.origin for block in self.blocks if block.origin is not None}

    def check(self) -> None:
        """Every epoch begins with its origin, and goes on without a hole."""
        for before, after in zip([None, *self.blocks], self.blocks, strict=False):
            assert (after.origin is not None) == (before is None or before.epoch != after.epoch)
            if after.origin is not None:
                assert after.index == after.origin.block
            else:
                assert after.index == before.index + 1


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Window]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(game.rewinder, "BLOCK_SECONDS", 0.03)
    window = Window("test")
    yield window
    window.close()


@pytest.fixture
def table(window: Window) -> Iterator[Callable[..., Table]]:
    tables: list[Table] = []

    def make(session: FakeSession | None = None, **options) -> Table:
        tables.append(Table(window, session or FakeSession(FakeConfig(fps=200)), sinks=[Tape()], **options))
        return tables[-1]

    yield make
    for table in tables:
        assert table.game.world.stop() and table.game.world.error is None


def tape(play: Table) -> Tape:
    return play.game._sinks[0]


def told(play: Table, words: str) -> bool:
    return any(words in toast for toast in play.game.window.toasts())


def press(play: Table, key: int, mod: int = 0, scancode: int = 0) -> None:
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key, scancode=scancode, mod=mod, unicode=""))


def lift(play: Table, key: int) -> None:
    pygame.event.post(pygame.event.Event(pygame.KEYUP, key=key, scancode=0, mod=0, unicode=""))


def shown(play: Table, block: int) -> bool:
    current = play.game.presenter.block
    return current is not None and current.index >= block


def picture(play: Table) -> int:
    """The number of the frame on screen."""
    return int(play.game.presenter.frame[0, 0, 0])


# ---- saving and loading


def test_save_and_load(table) -> None:
    play = table()
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


def test_the_picture_of_the_loaded_state_is_shown_before_there_is_another(table) -> None:
    play = table()
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


def test_a_paused_game_can_be_saved(table) -> None:
    play = table()
    play.playing()
    play.key(pygame.K_p)
    play.key(F2)
    play.until(lambda: told(play, "Saved in slot 1"))
    assert play.game.world.paused


def test_slots_are_chosen_with_shift_and_a_digit(table) -> None:
    play = table()
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
def test_what_fails_is_a_toast_and_the_game_goes_on(table, spoil: Callable[[], object], key: int, words: str) -> None:
    play = table()
    play.playing()
    spoil()
    play.key(key)
    play.until(lambda: told(play, words))
    at = len(tape(play).blocks)
    play.until(lambda: len(tape(play).blocks) > at + 3)
    assert play.game.presenter.epoch == 0
    play.key(key)
    play.until(lambda: sum(words in toast for toast in play.game.window.toasts()) == 2)


def test_a_slow_disk_holds_nobody_up(table, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr("tests.game.fake.FakeSnapshot.save", lambda self, path: go.wait(20))
    play = table()
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


# ---- rewinding


def test_one_tap_goes_back_to_the_end_of_the_block_before(table) -> None:
    play = table(FakeSession(FakeConfig(fps=200), seconds=0.1))
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
def test_held_it_goes_on_block_by_block(table, key: int, mod: int) -> None:
    play = table()
    play.until(lambda: shown(play, 8))
    at = play.game.presenter.block.index
    press(play, key, mod)
    seen = []
    play.until(lambda: seen.append(picture(play)) or play.session.clock.block <= at - 4)
    assert {12 * (at - back) - 4 for back in range(4)} <= set(seen) and play.game.rewinder.words.startswith("Rewinding")
    actions = len(play.session.actions)
    lift(play, key)
    play.until(lambda: not play.game.rewinder.active)
    assert len(play.session.actions) <= actions + 1, "nothing was made meanwhile"
    made = len(tape(play).blocks)
    play.until(lambda: len(tape(play).blocks) > made + 2)
    (_, start), (_, branch) = tape(play).origins.items()
    assert start == Origin("start") and branch == Origin("rewind", block=branch.block, parent=0) and branch.block <= at - 4
    tape(play).check()


def test_a_branch_of_a_branch_knows_its_parent(table) -> None:
    play = table()
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


def test_rewinding_a_paused_game_leaves_it_paused(table) -> None:
    play = table()
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


def test_the_end_of_the_past_is_told_once_and_harms_nothing(table) -> None:
    play = table(FakeSession(FakeConfig(fps=200), kept=2))
    play.until(lambda: shown(play, 6))
    press(play, BACKSPACE)
    play.until(lambda: told(play, "Not rewound: cannot rewind"))
    play.for_(0.15)
    assert sum("Not rewound" in toast for toast in play.game.window.toasts()) == 1
    lift(play, BACKSPACE)
    made = len(tape(play).blocks)
    play.until(lambda: len(tape(play).blocks) > made + 2)
    tape(play).check()


def test_it_stops_behind_the_first_block_and_losing_the_focus_lets_go(table) -> None:
    play = table()
    play.until(lambda: shown(play, 2))
    press(play, BACKSPACE)
    play.until(lambda: told(play, "nothing to go back to"))
    assert play.session.clock.block == 1 and picture(play) == 8
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    play.until(lambda: shown(play, 2))
    tape(play).check()


def test_restart_while_rewinding_and_rewinding_after_a_load(table) -> None:
    play = table()
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


def test_the_script_and_the_limit_count_from_what_was_loaded(window: Window) -> None:
    session = FakeSession(FakeConfig(fps=200), block=40)
    play = Table(window, session, script=parse_script("w j", WALK.keys), limit=3, sinks=[Tape()])
    play.until(lambda: play.game._over)
    assert [set(action.keys) for action in session.actions] == [{"w"}, {"j"}, set()] and session.clock.block == 43
    assert tape(play).origins == {0: Origin("load", block=40, snapshot="f" * 64)}
    tape(play).check()
    assert play.game.world.stop()


# ---- the parts


@pytest.mark.parametrize("repeats", [25])
def test_hammering_all_of_it_never_hangs_and_leaves_no_hole(table, repeats: int) -> None:
    FOLDER.mkdir()
    (FOLDER / "fake-1.safetensors").write_text("3")
    play = table(FakeSession(FakeConfig(fps=400), seconds=0.002))
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
    from game.controls import Controls

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


@pytest.mark.parametrize("at", [0, 12])
def test_headless_tells_where_it_begins(at: int) -> None:
    memory = Tape()
    session = FakeSession(block=at)
    play_headless(session, session.config, parse_script("w*2", WALK.keys), 2, [memory])
    expected = Origin("load", block=12, snapshot="f" * 64) if at else Origin("start")
    assert [block.origin for block in memory.blocks] == [expected, None]
    assert [block.index for block in memory.blocks] == [at, at + 1] and session.actions == [Action({"w"})] * 2


def test_the_window_waits_for_nothing(table) -> None:
    """No turn takes longer than a moment while the world is busy with a long block and wishes wait."""
    play = table(FakeSession(FakeConfig(fps=200), seconds=0.4))
    play.playing()
    slowest = 0.0
    for key in (F2, F4, BACKSPACE, F2):
        press(play, key)
        began = time.perf_counter()
        play.game._turn()
        slowest = max(slowest, time.perf_counter() - began)
    lift(play, BACKSPACE)
    assert slowest < 0.3
