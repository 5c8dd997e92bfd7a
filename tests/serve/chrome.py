"""A real Chromium, where this machine has one. Nothing is ever downloaded for it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --force-device-scale-factor=1"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Keeps what is shown: of each frame its place and its pixels, so that a test can look at them afterwards.
WATCH = """
window.seen = [];
const {screen} = reverie, before = screen.onFrame;
screen.onFrame = (frame, now) => {
  before(frame, now);
  const canvas = screen.picture();
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const grey = Array.from({length: canvas.width * canvas.height}, (_, at) => data[at * 4] + data[at * 4 + 1] + data[at * 4 + 2]);
  const {epoch, block, index, input} = frame;
  if (seen.length < 3000) seen.push({epoch, block, index, input, grey});
};
"""


@contextmanager
def browser(folder: Path, size: tuple[int, int] = (1280, 800), phone: bool = False) -> Iterator[Page]:
    """A fresh browser, with an empty profile in ``folder``. Skips the test, with a reason, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="driving a browser needs selenium: pip install 'reverie[dev]'")
    from selenium.webdriver.chrome.service import Service

    binary, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.add_argument(f"--window-size={size[0]},{size[1]}")
    (folder / "downloads").mkdir(parents=True)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if phone:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 2, "touch": True, "mobile": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        chrome.set_script_timeout(60)
        yield Page(chrome, folder / "downloads")
    finally:
        chrome.quit()


class Page:
    """The page, as a person has it: keys, clicks and what is seen."""

    def __init__(self, chrome: Any, downloads: Path) -> None:
        self.chrome, self.downloads = chrome, downloads

    def open(self, url: str) -> None:
        self.chrome.get(url)
        self.until("!document.getElementById('start').hidden || !document.getElementById('game').hidden")

    def play(self, **fields: str) -> None:
        for name, value in fields.items():
            self(f"document.getElementById('{name}').value = arguments[0]", value)
        self.click("play")
        self.until("window.reverie.session.world")
        self(WATCH)

    def __call__(self, script: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(script, *arguments)

    def value(self, expression: str) -> Any:
        return self(f"return {expression}")

    def until(self, expression: str | Callable[[], object], seconds: float = 90.0) -> Any:
        """Wait until the page, or a function, says so."""
        ask = expression if callable(expression) else lambda: self.value(expression)
        end = time.monotonic() + seconds
        while not (found := ask()):
            told = "it never happened"
            assert time.monotonic() < end, f"{told}: {expression}; {self.value('[reverie.stats, reverie.screen.epoch]')}; {self.errors()}"
            time.sleep(0.05)
        return found

    def click(self, id: str) -> None:
        self.chrome.find_element("id", id).click()

    def key(self, key: str, code: str, down: bool = True, up: bool = True) -> None:
        """A key as the browser's own input gives it, by what is written on it and where it lies."""
        for kind in ["keyDown"] * down + ["keyUp"] * up:
            numbers = {"Backspace": 8, "Enter": 13, "F1": 112, "F2": 113, "F3": 114, "F4": 115, "F8": 119}
            event = {"type": kind, "key": key, "code": code, "windowsVirtualKeyCode": numbers.get(key, ord(key[0].upper()))}
            if len(key) == 1 and kind == "keyDown":
                event["text"] = key
            self.chrome.execute_cdp_cmd("Input.dispatchKeyEvent", event)

    def hold(self, letter: str) -> None:
        self.key(letter, f"Key{letter.upper()}", up=False)

    def let_go(self, letter: str) -> None:
        self.key(letter, f"Key{letter.upper()}", down=False)

    def blocks(self, count: int, seconds: float = 120.0) -> None:
        """Wait for so many more blocks."""
        goal = self.value("reverie.stats.blocks") + count
        self.until(f"reverie.stats.blocks >= {goal}", seconds)

    def seen(self) -> list[dict[str, Any]]:
        return json.loads(self.value("JSON.stringify(seen)"))

    def download(self, id: str, suffix: str) -> Path:
        self(f"document.getElementById('{id}').click()")
        return self.until(lambda: next(iter(sorted(self.downloads.glob(f"*{suffix}"))), None), 30)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.chrome.get_log("browser") if entry["level"] == "SEVERE"]
