import pytest

from game.controls import MOUSE_FULL, SCANCODES, Controls
from tests.game.fake import RUN, WALK


def controls(space=WALK) -> tuple[Controls, list[float]]:
    now = [0.0]
    return Controls(space, clock=lambda: now[0]), now


def test_scancodes_are_places_not_letters() -> None:
    import pygame

    for code in (pygame.KSCAN_W, pygame.KSCAN_A, pygame.KSCAN_L):
        assert SCANCODES[code] in "wal"
    assert SCANCODES[pygame.KSCAN_W] == "w" and SCANCODES[pygame.KSCAN_1] == "1" and SCANCODES[pygame.KSCAN_0] == "0"
    assert SCANCODES[pygame.KSCAN_SPACE] == "space" and SCANCODES[pygame.KSCAN_UP] == "up"


def test_a_held_key_counts_for_every_block() -> None:
    cell, _ = controls()
    cell.press("w")
    assert [cell.sample().action.keys for _ in range(3)] == [{"w"}] * 3
    cell.release("w")
    assert cell.sample().action.keys == set()


def test_a_tap_between_two_samples_counts_once() -> None:
    cell, _ = controls()
    cell.press("j")
    cell.release("j")
    assert cell.sample().action.keys == {"j"}
    assert cell.sample().action.keys == set()


def test_a_key_released_after_the_sample_is_gone_from_the_next() -> None:
    cell, _ = controls()
    cell.press("w")
    cell.sample()
    cell.release("w")
    assert cell.sample().action.keys == set()


def test_key_repetition_is_no_new_tap_and_unknown_keys_are_ignored() -> None:
    cell, _ = controls()
    cell.press("w")
    cell.sample()
    cell.press("w")
    cell.release("w")
    cell.press("q")
    assert cell.sample().action.keys == set()
    assert cell.held == set()


def test_mouse_movement_adds_up_and_is_used_up() -> None:
    cell, _ = controls()
    cell.move_mouse(MOUSE_FULL / 4, -MOUSE_FULL / 2)
    cell.move_mouse(MOUSE_FULL / 4, 0)
    assert cell.sample().action.look == pytest.approx((0.5, 0.5))  # up is +, right is +
    assert cell.sample().action.look == (0, 0)
    cell.move_mouse(-9e9, 9e9)
    assert cell.sample().action.look == (-1, -1)


def test_a_world_without_look_has_no_mouse_and_no_look_stick() -> None:
    cell, _ = controls(RUN)
    cell.move_mouse(100, 100)
    cell.set_stick(1, 1, looks=True)
    assert cell.sample().action.look == (0, 0)


def test_losing_the_focus_lets_go_of_everything() -> None:
    cell, _ = controls()
    cell.press("w")
    cell.press("l")
    cell.release("l")
    cell.move_mouse(50, 50)
    cell.set_stick(0.8, 0, looks=True)
    cell.release_all()
    sample = cell.sample()
    assert sample.action.keys == set() and sample.action.look == (0, 0) and sample.input_at is None
    cell.release("w")  # the key comes up after the focus came back
    assert cell.sample().action.keys == set()


def test_dropping_taps_keeps_what_is_held() -> None:
    cell, _ = controls()
    cell.press("w")
    cell.press("a")
    cell.release("a")
    cell.move_mouse(50, 50)
    cell.drop_taps()
    sample = cell.sample()
    assert sample.action.keys == {"w"} and sample.action.look == (0, 0)


def test_sticks_press_keys_with_hysteresis_and_look_with_a_dead_zone() -> None:
    cell, _ = controls()
    cell.set_stick(0.2, -0.9, looks=False)
    assert cell.held == {"w"}
    cell.set_stick(0.0, -0.4, looks=False)
    assert cell.held == {"w"}
    cell.press("w")
    cell.set_stick(0.0, 0.0, looks=False)
    assert cell.held == {"w"}, "the stick's W is not the keyboard's"
    cell.set_stick(-1, 0, looks=False, source="hat")
    cell.set_stick(0.02, 0, looks=False)
    assert cell.held == {"w", "a"}, "a stick at rest does not let go of the cross"
    cell.set_stick(0.1, -0.5, looks=True)
    assert cell.sample().action.look == (0.5, 0)
    assert cell.sample().action.look == (0.5, 0), "a stick stays where it is"


def test_input_time_is_that_of_the_oldest_unseen_input() -> None:
    cell, now = controls()
    assert cell.sample().input_at is None
    now[0] = 1.0
    cell.press("w")
    now[0] = 2.0
    cell.press("a")
    now[0] = 3.0
    sample = cell.sample()
    assert (sample.input_at, sample.sampled_at) == (1.0, 3.0)
    assert cell.sample().input_at is None
