"""The game in a window that nobody sees: SDL's dummy driver, a fake world, events posted by hand."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pygame
import pytest

from game import hud
from game.player import Game
from game.recorder import Recorder
from game.script import parse_script
from game.sinks import Background, Dump, SinkError
from game.window import NoDisplay, Window, display_missing, fit, window_size
from tests.game.fake import RUN, WALK, FakeConfig, FakeSession
from tests.game.table import Table

SCANCODE = {"w": pygame.KSCAN_W, "l": pygame.KSCAN_L, "p": pygame.KSCAN_P}


@pytest.fixture
def table(window: Window) -> Iterator[Callable[..., Table]]:
    tables: list[Table] = []

    def make(session: FakeSession | None = None, **options) -> Table:
        tables.append(Table(window, session or FakeSession(), **options))
        return tables[-1]

    yield make
    for table in tables:
        assert table.game.world.stop()


def test_it_plays_to_the_limit_and_ends(window: Window) -> None:
    session = FakeSession(FakeConfig(fps=200))
    game = Game(window, session.config, lambda report: session, limit=3)
    game.run()
    assert game.presenter.block.index == 2 and session.clock.block == 3
    assert game.presenter.shown.frames + game.presenter.shown.skipped == 33
    assert not game.world.is_alive()


def test_keys_reach_the_world_by_their_place(table) -> None:
    play = table()
    play.playing()
    play.key(pygame.K_z, SCANCODE["w"])  # a French keyboard: Z is written where W is
    play.until(lambda: any(action.keys == {"w"} for action in play.session.actions))
    play.key(pygame.K_z, SCANCODE["w"], up=True)
    play.until(lambda: play.session.actions[-1].keys == set())


def test_every_press_and_letting_go_counts_in_the_latency(table) -> None:
    play = table(FakeSession(FakeConfig(fps=50), seconds=0.02))
    play.playing()
    inputs = play.game.presenter.shown.input_latency
    for count in range(1, 5):
        play.key(pygame.K_w, SCANCODE["w"], up=count % 2 == 0)
        play.until(lambda count=count: inputs.count == count)
        assert 0.02 < inputs.last < 1, "what a block takes at least; a busy machine may be late"
    assert hud.spread(inputs).startswith(f"{1000 * inputs.last:.0f} ms, p50 ")


def test_a_tap_within_one_turn_reaches_the_world_once(table) -> None:
    play = table()
    play.playing()
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_l, scancode=SCANCODE["l"], mod=0, unicode="l"))
    play.key(pygame.K_l, SCANCODE["l"], up=True)
    play.for_(0.5)
    assert sum(action.keys == {"l"} for action in play.session.actions) == 1


def test_losing_the_focus_releases_keys_and_mouse(table) -> None:
    play = table()
    play.playing()
    pygame.event.post(pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(5, 5)))
    play.key(pygame.K_w, SCANCODE["w"])
    play.until(lambda: play.game.window.captured)
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    play.until(lambda: not play.game.window.captured)
    assert play.game.controls.held == set()


def test_the_mouse_looks_only_when_captured(table) -> None:
    play = table()
    play.playing()
    motion = pygame.event.Event(pygame.MOUSEMOTION, rel=(60, 0), pos=(0, 0), buttons=(0, 0, 0))
    pygame.event.post(motion)
    play.for_(0.3)
    assert all(action.look == (0, 0) for action in play.session.actions)
    pygame.event.post(pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(5, 5)))
    play.until(lambda: play.game.window.captured)
    pygame.event.post(motion)
    play.until(lambda: any(action.look[1] > 0 for action in play.session.actions))


def test_escape_frees_the_mouse_then_the_help_then_quits(table) -> None:
    play = table()
    play.playing()
    pygame.event.post(pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(5, 5)))
    play.until(lambda: play.game.window.captured)
    play.key(pygame.K_F1)
    play.key(pygame.K_ESCAPE)
    assert not play.game.window.captured and not play.game._over
    play.key(pygame.K_ESCAPE)
    assert not play.game._help and not play.game._over
    play.key(pygame.K_ESCAPE)
    assert play.game._over


def test_pause_holds_the_picture_and_one_block_is_one_block(table) -> None:
    play = table()
    play.playing()
    play.key(pygame.K_p)
    play.for_(0.3)
    made, number = play.session.clock.block, play.game.presenter.frame_number
    play.for_(0.3)
    assert play.session.clock.block == made and play.game.presenter.frame_number == number
    play.game.controls.press("w")
    play.key(pygame.K_PERIOD, unicode=".")
    play.until(lambda: play.game.presenter.frozen)
    assert play.session.clock.block == made + 1
    assert play.session.actions[-1].keys == {"w"}, "the held key belongs to the step"
    assert play.game.presenter.block.index == made
    play.key(pygame.K_p)
    play.until(lambda: play.session.clock.block > made + 2)


def test_a_step_pauses_first(table) -> None:
    play = table()
    play.playing()
    play.key(pygame.K_PERIOD, unicode=".")
    assert play.game.world.paused
    play.until(lambda: play.game.presenter.frozen)


def test_restart_shows_block_0_of_a_new_epoch(table) -> None:
    play = table()
    play.until(lambda: play.session.clock.block > 2)
    play.key(pygame.K_p)
    play.key(pygame.K_RETURN)
    play.until(lambda: play.game.presenter.block is not None and play.game.presenter.block.epoch == 1)
    assert play.session.resets == 1 and not play.game.world.paused


def test_a_screenshot_is_the_picture_alone(table, tmp_path: Path) -> None:
    play = table()
    play.playing()
    play.key(pygame.K_F3)
    play.key(pygame.K_p)
    play.key(pygame.K_F8)
    play.until(lambda: any("reverie-shots" in toast for toast in play.game.window.toasts()))
    (shot,) = (tmp_path / "reverie-shots").glob("fake-*.png")
    picture = iio.imread(shot)
    assert picture.shape[1] / picture.shape[0] == pytest.approx(2, rel=0.02)
    assert picture.std() < 1, "no overlay in it"


def test_a_screenshot_that_cannot_be_saved_is_only_a_toast(table, tmp_path: Path) -> None:
    (tmp_path / "reverie-shots").write_text("in the way")
    play = table()
    play.playing()
    play.key(pygame.K_F8)
    play.until(lambda: any("No screenshot" in toast for toast in play.game.window.toasts()))


def test_overlays_draw_at_every_size(table) -> None:
    play = table(sinks=[])
    play.playing()
    for key in (pygame.K_F3, pygame.K_F1, pygame.K_F1, pygame.K_p):
        play.key(key)
        for size in ((160, 90), (64, 64), (320, 200), (1280, 720), (300, 900)):
            pygame.display.set_mode(size, pygame.RESIZABLE)
            pygame.event.post(pygame.event.Event(pygame.WINDOWSIZECHANGED, x=size[0], y=size[1]))
            play.game._turn()
    play.key(pygame.K_F11)
    play.key(pygame.K_F11)
    assert not play.game.window.fullscreen


def test_a_world_without_look_keeps_its_hands_off_the_mouse(table) -> None:
    play = table(FakeSession(FakeConfig(actions=RUN)))
    play.playing()
    pygame.event.post(pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(5, 5)))
    play.key(pygame.K_F3)
    play.for_(0.1)
    assert not play.game.window.captured


def test_a_script_plays_then_hands_over(table) -> None:
    play = table(script=parse_script("w*2 j", WALK.keys))
    play.playing()
    play.key(pygame.K_l, SCANCODE["l"])
    play.until(lambda: len(play.session.actions) >= 5)
    assert [set(action.keys) for action in play.session.actions[:5]] == [{"w"}, {"w"}, {"j"}, {"l"}, {"l"}]


def test_what_is_shown_is_filmed_and_dumped(window: Window, tmp_path: Path) -> None:
    session = FakeSession(FakeConfig(fps=100))
    sinks = [Background(Recorder(tmp_path / "a.mp4"), wait=False), Background(Dump(tmp_path / "dump"), wait=False)]
    Game(window, session.config, lambda report: session, limit=2, sinks=sinks).run()
    assert len(iio.imread(tmp_path / "a.mp4")) == 21
    assert len(list((tmp_path / "dump").glob("*.png"))) == 21


def test_a_failing_film_does_not_end_the_game_but_is_told(window: Window, tmp_path: Path) -> None:
    session = FakeSession(FakeConfig(fps=100))
    sinks = [Background(Recorder(tmp_path / "gone" / "a.mp4"), wait=False)]
    game = Game(window, session.config, lambda report: session, limit=4, sinks=sinks)
    with pytest.raises(SinkError, match=r"a\.mp4"):
        game.run()
    assert game.presenter.block.index == 3


def test_a_dump_that_cannot_begin_does_not_end_the_game_either(window: Window, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    session = FakeSession(FakeConfig(fps=100))
    game = Game(window, session.config, lambda report: session, limit=2, sinks=[Background(Dump(tmp_path / "file" / "dump"), wait=False)])
    with pytest.raises(SinkError, match="cannot write"):
        game.run()
    assert game.presenter.block.index == 1


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_world_that_fails_ends_the_game_with_its_reason(window: Window, fails_at: int) -> None:
    session = FakeSession(fails_at=fails_at)
    with pytest.raises(RuntimeError, match="fell over"):
        Game(window, session.config, lambda report: session).run()


def test_loading_can_be_left(window: Window) -> None:
    def load(report):
        while True:
            report("weights", 0.3)
            time.sleep(0.005)

    game = Game(window, FakeConfig(), load)
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    game.run()
    assert not game.world.is_alive()


def test_the_picture_keeps_its_aspect() -> None:
    assert fit((112, 64), (1120, 640)) == (0, 0, 1120, 640)
    assert fit((112, 64), (1120, 1000)) == (0, 180, 1120, 640)
    assert fit((112, 64), (2000, 640)) == (440, 0, 1120, 640)
    assert fit((112, 64), (1, 1))[2:] == (1, 1)
    width, height = window_size((112, 64), (1920, 1080))
    assert width / height == pytest.approx(112 / 64, rel=0.01) and width <= 1280 and height <= 800


def test_the_picture_reaches_the_screen_in_the_middle(window: Window) -> None:
    pygame.display.set_mode((400, 400), pygame.RESIZABLE)
    window.set_picture(np.full((16, 32, 3), (200, 100, 50), np.uint8))
    window.draw()
    surface = pygame.display.get_surface()
    assert surface.get_at((200, 200))[:3] == (200, 100, 50)
    assert surface.get_at((200, 20))[:3] == surface.get_at((200, 380))[:3] != (200, 100, 50)


def test_no_display_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert display_missing()
    with pytest.raises(NoDisplay, match="DISPLAY"):
        Window("never")
    monkeypatch.setenv("DISPLAY", ":987")  # set, but nobody is there
    assert display_missing() is None
    with pytest.raises(NoDisplay):
        Window("never")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    Window("now").close()
