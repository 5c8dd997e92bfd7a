"""The loading screen before there is a game."""

import time

import pygame
import pytest

from game.splash import wait_behind
from game.window import Window


def test_a_pad_that_is_there_from_the_start_is_left_for_the_game(window: Window) -> None:
    pygame.event.clear()
    pygame.event.post(pygame.event.Event(pygame.JOYDEVICEADDED, device_index=0))  # as SDL tells it, once, before the game begins
    assert wait_behind(window, lambda: time.sleep(0.1), "waking up")
    assert pygame.event.get(pygame.JOYDEVICEADDED)


@pytest.mark.parametrize(
    "event", [pygame.event.Event(pygame.QUIT), pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE)], ids=["close", "Esc"]
)
def test_leaving_while_it_wakes_up(window: Window, event: pygame.event.Event) -> None:
    pygame.event.post(event)
    assert not wait_behind(window, lambda: time.sleep(0.5), "waking up")


def test_what_goes_wrong_behind_it_is_raised(window: Window) -> None:
    with pytest.raises(ZeroDivisionError):
        wait_behind(window, lambda: 1 / 0, "waking up")
