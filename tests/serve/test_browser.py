"""The page in a real Chromium: what a player does, done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import fit_picture, load_config
from game import cli
from game.serve.worlds import Offer, Worlds, start_pictures
from game.sessionfile import read_session
from game.sessionheader import pixels_hash
from tests.long import times
from tests.serve.chrome import Page, browser
from tests.serve.table import Running, tiny_worlds
from tests.tiny_world import write_tiny_world


def tiny(folder: Path, title: str, fps: int) -> Path:
    folder.mkdir()

    def change(settings: dict[str, Any]) -> None:
        settings |= {"fps": fps, "title": title}

    return write_tiny_world(folder, change=change)


@pytest.fixture(scope="module")
def yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A block in half a second."""
    return tiny(tmp_path_factory.mktemp("browser") / "calm", "Calm", 24)


@pytest.fixture(scope="module")
def quick(yaml: Path) -> Path:
    """A block in an eighth of one."""
    return tiny(yaml.parents[1] / "quick", "Quick", 96)


@pytest.fixture(scope="module")
def running(yaml: Path, quick: Path) -> Iterator[Running]:
    worlds = tiny_worlds(yaml)
    config = load_config(quick)
    worlds.offers.append(Offer(config, start_pictures(config, None), None))
    with Running(worlds, sessions=30) as running:  # pages that are left keep their places for a minute
        yield running


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chrome")) as page:
        yield page


@pytest.fixture
def page(chrome: Page, running: Running) -> Iterator[Page]:
    """At the first page, with nothing kept from before."""
    chrome.open(running.url)
    chrome("sessionStorage.clear()")
    chrome.open(running.url)
    chrome.errors()
    yield chrome
    assert chrome.errors() == []


def frames_of(seen: list[dict[str, Any]], epoch: int, block: int) -> dict[int, list[int]]:
    return {frame["index"]: frame["grey"] for frame in seen if (frame["epoch"], frame["block"]) == (epoch, block)}


def assert_same(seen: list[dict[str, Any]], one: int, other: int) -> None:
    """Blocks of two epochs, as far as frames of both were painted; a slow machine skips some."""
    blocks = {frame["block"] for frame in seen if frame["epoch"] == other}
    pairs = [(frames_of(seen, one, block), frames_of(seen, other, block)) for block in blocks]
    both = [(here[index], there[index]) for here, there in pairs for index in here.keys() & there.keys()]
    assert both and all(here == there for here, there in both)


def test_sixty_blocks_and_the_downloaded_session_replays_bit_for_bit(
    page: Page, quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page("document.querySelectorAll('.world')[1].click()")
    page.play(seed="11")
    assert page.value("reverie.session.world.title") == "Quick"
    page.blocks(20)
    page.hold("w")
    page.blocks(10)
    page.key("l", "KeyL")  # a tap
    page.blocks(15)
    page.let_go("w")
    page.hold("j")
    page.blocks(15)
    page.let_go("j")
    assert page.value("reverie.stats.blocks") >= 60 and page.value("reverie.stats.presses.length") >= 3
    page.click("b-menu")
    page.click("m-leave")
    page.until("!document.getElementById('over').hidden")
    path = page.download("o-session", ".session.jsonl")
    session = read_session(path)
    assert session.end == "left" and session.header["seed"] == 11 and len(session.blocks) >= 60
    held = [block.action.keys for block in session.blocks]
    assert {"w"} in held and {"w", "l"} in held and {"j"} in held
    assert held.count({"w", "l"}) == 1, "a tap is one block"
    assert cli.main(["replay", str(path), "--world", str(quick), "--verify"]) == 0
    assert "every frame as recorded" in capsys.readouterr().out


def test_save_then_load_gives_the_same_next_frames(page: Page) -> None:
    page.play()
    page.blocks(3)
    page.key("F2", "F2")
    page.until("document.getElementById('toasts').textContent.includes('Saved in slot 1')")
    page.blocks(5)
    page.key("F4", "F4")
    page.until("reverie.screen.epoch === 1")
    page.blocks(4)
    assert_same(page.seen(), 0, 1)


def test_a_saved_game_is_downloaded_and_brought_to_the_next_session(page: Page, running: Running) -> None:
    page.play(seed="5")
    page.blocks(3)
    page.click("b-menu")
    assert not page.chrome.find_element("id", "d-save").is_displayed()
    page.key("F2", "F2")
    page.until("!document.getElementById('d-save').hidden")
    for old in page.downloads.iterdir():
        old.unlink()
    path = page.download("d-save", ".safetensors")
    page.click("m-leave")
    page.until("!document.getElementById('over').hidden")
    assert page.value("document.querySelector('#o-saves a').textContent") == "Saved gameof slot 1"
    page.open(running.url)
    page.play(seed="6")
    page.blocks(1)
    page.chrome.find_element("id", "saved-file").send_keys(str(path))
    page.until("document.getElementById('toasts').textContent.includes('Loaded slot 1: block')")
    page.until("reverie.screen.epoch === 1 && reverie.screen.block >= 3")


def test_backspace_goes_back(page: Page) -> None:
    page.play()
    page.blocks(8)
    page.key("Backspace", "Backspace", up=False)
    page.until("reverie.screen.epoch >= 3")
    assert "Rewinding" in page.value("document.getElementById('banner').textContent")
    page.key("Backspace", "Backspace", down=False)
    page.until("document.getElementById('banner').hidden")
    page.blocks(3)
    seen = page.seen()
    epoch = seen[-1]["epoch"]
    first, last = (select(frame["block"] for frame in seen if frame["epoch"] == which) for select, which in ((min, epoch), (max, 0)))
    assert 0 < first < last
    assert_same(seen, 0, epoch)


def test_pause_one_block_restart(page: Page) -> None:
    page.play()
    page.blocks(3)
    page.key("p", "KeyP")
    page.until("reverie.session.paused && reverie.screen.frozen")
    block = page.value("reverie.screen.block")
    page.key(".", "Period")
    page.until(f"reverie.screen.block > {block} && reverie.screen.frozen")
    number = page.value("reverie.stats.frame")
    page("return new Promise((done) => setTimeout(done, 500))")
    assert page.value("reverie.stats.frame") == number, "paused again"
    page.key("Enter", "Enter")
    page.until("reverie.screen.epoch === 1 && reverie.screen.block >= 1 && !reverie.session.paused")


def test_an_upload_becomes_the_start_picture(page: Page, yaml: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(5).integers(0, 255, (120, 200, 3), np.uint8)).save(photo)
    page.chrome.find_element("id", "file").send_keys(str(photo))
    page.until("document.querySelector('.upload').getAttribute('aria-checked') === 'true'")
    page.play()
    page.blocks(2)
    for old in page.downloads.iterdir():
        old.unlink()
    session = read_session(page.download("d-session", ".session.jsonl"))
    config = load_config(yaml)
    assert session.header["start"]["pixels"] == pixels_hash(fit_picture(photo, config.height, config.width))


def test_what_is_no_picture_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>")
    page.chrome.find_element("id", "file").send_keys(str(tmp_path / "page.png"))
    page.click("play")
    page.until("document.getElementById('problem').textContent.includes('PNG, JPEG or WebP')")
    assert any("415" in error for error in page.errors())


def test_a_reload_goes_on_with_the_session(page: Page) -> None:
    page.play()
    page.blocks(5)
    before = page.value("reverie.session.id"), page.value("reverie.screen.block")
    page.chrome.refresh()
    page.until("window.reverie && reverie.session.world && reverie.screen.block !== null")
    assert page.value("reverie.session.id") == before[0] and page.value("reverie.screen.block") > before[1]


def test_two_windows_play_at_once_and_get_the_same(page: Page, running: Running) -> None:
    """Within 10 per cent, or the two blocks that may fall between two looks."""
    page.play()
    first = page.chrome.current_window_handle
    page.chrome.switch_to.new_window("window")
    second = page.chrome.current_window_handle

    def blocks(window: str) -> int:
        page.chrome.switch_to.window(window)
        return page.value("reverie.stats.blocks")

    try:
        page.open(running.url)
        page.play()
        page.blocks(2)
        before = blocks(first), blocks(second)
        time.sleep(times(6, 60))
        made = blocks(first) - before[0], blocks(second) - before[1]
        assert min(made) >= 3 and abs(made[0] - made[1]) <= max(2, 0.1 * max(made)), made
    finally:
        page.chrome.close()
        page.chrome.switch_to.window(first)
    page.blocks(3)


def test_help_numbers_screenshot_and_focus(page: Page) -> None:
    page.play()
    page.blocks(2)
    page.key("F3", "F3")
    page.until("!document.getElementById('hud').hidden && document.getElementById('n-made').textContent.includes('ms')")
    page.key("F1", "F1")
    page.until("document.getElementById('help').open")
    text = page.value("document.getElementById('help').textContent")
    assert "walk forward" in text and "Backspace" in text and "look (click the picture)" in text
    page.key("F1", "F1")
    page.until("!document.getElementById('help').open")
    for old in page.downloads.iterdir():
        old.unlink()
    page.key("F8", "F8")
    shot = page.until(lambda: next(iter(page.downloads.glob("tiny-*.png")), None))
    assert Image.open(shot).size == (32, 16)
    page.hold("w")
    page.until("reverie.controls.held.includes('w')")
    page("dispatchEvent(new Event('blur'))")
    assert page.value("reverie.controls.held.length") == 0
    page.let_go("w")


def test_the_mouse_looks_when_it_is_captured(page: Page) -> None:
    page.play()
    page.blocks(1)
    page("""Object.defineProperty(document, "pointerLockElement", {get: () => document.getElementById("picture"), configurable: true});
    for (let i = 0; i < 20; i++) dispatchEvent(new MouseEvent("mousemove", {movementX: 9, movementY: -3}))""")
    page.blocks(4)
    for old in page.downloads.iterdir():
        old.unlink()
    looks = [block.action.look for block in read_session(page.download("d-session", ".session.jsonl")).blocks]
    assert sum(yaw for _, yaw in looks) == pytest.approx(180 / 300, abs=0.01)
    assert sum(pitch for pitch, _ in looks) == pytest.approx(60 / 300, abs=0.01)


def test_a_gamepad_walks_and_looks(page: Page) -> None:
    page.play()
    page.blocks(1)
    page("""window.pad = {connected: true, index: 0, axes: [0, -0.9, 0.8, 0.1], buttons: []};
    navigator.getGamepads = () => [null, pad]""")
    page.until("reverie.controls.held.join() === 'w' && reverie.controls.look[1] === 0.8 && reverie.controls.look[0] === 0")
    held = page.value("reverie.controls.id")
    page.until(f"seen.length && seen.at(-1).input >= {held}")
    page("pad.axes = [0, 0, 0, 0]")
    page.until("reverie.controls.held.length === 0 && reverie.controls.look[1] === 0")


def test_a_phone_walks_and_looks_with_its_thumbs(running: Running, tmp_path: Path) -> None:
    with browser(tmp_path / "phone", (390, 844), phone=True) as page:
        page.open(running.url)
        assert page.value("document.documentElement.scrollWidth") <= 390
        page.play()
        page.blocks(2)
        walk, look = "reverie.controls.held.join() === 'w'", "reverie.controls.look[1] > 0.5"
        for pad, (x, y), check in (("move", (0, -50), walk), ("look", (50, 0), look)):
            box = page.value(f"document.getElementById('{pad}').getBoundingClientRect().toJSON()")
            middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            assert box["x"] >= 0 and box["right"] <= 390 and box["bottom"] <= 844
            touch = lambda kind, *points: page.chrome.execute_cdp_cmd(  # noqa: E731
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": px, "y": py} for px, py in points]}
            )
            touch("touchStart", middle)
            touch("touchMove", (middle[0] + x, middle[1] + y))
            page.until(check)
            page.blocks(2)
            touch("touchEnd")
            page.until("reverie.controls.held.length === 0 && reverie.controls.look[1] === 0")
        assert page.errors() == []


def turned(seen: list[dict[str, Any]], inputs: set[int], width: int) -> float:
    """By how many pixels the picture moved to the right from frame to frame, summed over the blocks that saw these inputs."""
    total = 0.0
    for one, other in pairwise(seen):
        if one["block"] != other["block"] or other["input"] not in inputs or one["epoch"] != other["epoch"]:
            continue
        columns = [np.array(frame["grey"], np.float64).reshape(-1, width)[:40].mean(axis=0) for frame in (one, other)]
        errors = [np.mean((np.roll(columns[0], shift) - columns[1])[8:-8] ** 2) for shift in range(-8, 9)]
        total += int(np.argmin(errors)) - 8
    return total


def test_the_garden_j_and_l_move_the_picture_opposite_ways(chrome: Page) -> None:
    config = load_config("garden")
    worlds = Worlds([Offer(config, start_pictures(config, None), None)], "cpu", None, 32)
    worlds.load(0, lambda what, part: None)
    with Running(worlds) as running:
        chrome.open(running.url)
        assert chrome.value("document.querySelectorAll('.tile img').length") == 8
        chrome.play()
        chrome.blocks(1)
        spans = {}
        for letter in "jl":
            chrome.hold(letter)
            held = chrome.value("reverie.controls.id")
            chrome.until(f"seen.length && seen.at(-1).input >= {held}")
            chrome.blocks(2)
            chrome.let_go(letter)
            spans[letter] = {held}
            chrome.blocks(1)
        seen = chrome.seen()
    left, right = (turned(seen, spans[letter], config.width) for letter in "jl")
    assert left > 5 and right < -5, f"J moved the picture by {left}, L by {right} pixels"
