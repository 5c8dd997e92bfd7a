"""Fetching against a small server that speaks as much of the hub's HTTP as huggingface_hub asks for: HEAD, redirect, GET with Range."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from game import cli
from game.fetch import FetchError, fetch, repository
from tests.tiny_world import write_tiny_world

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "assets" / "garden"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed: pip install '.[hub]'"
)


@dataclass
class FakeHub:
    """Repositories as {name: {file: bytes}}, and what was asked of them. ``breaks``: how many bytes the next downloads give, then stop."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)  # of the next downloads, in place of an answer
    lies: bool = False
    port: int = 0

    def downloads(self) -> list[tuple[str, str | None]]:
        """(file, Range) of every download; the library also asks for a thing or two of its own."""
        files = [(path, headers) for method, path, headers in self.asked if method == "GET" and "/cdn/" in path]
        return [(path.rpartition("/")[2], headers.get("range")) for path, headers in files]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._note()
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        name = rest.partition("/")[2]
        if repo not in self.hub.repos:
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        if name not in self.hub.repos[repo]:
            return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        data = self.hub.repos[repo][name]
        place = f"http://localhost:{self.hub.port}/cdn/{repo}/{name}"  # another host by name, as the hub's own storage is
        headers = {"ETag": '"other"', "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        return self._answer(302, {"Location": place, "X-Repo-Commit": COMMIT, **headers})

    def do_GET(self) -> None:
        self._note()
        if not self.path.startswith("/cdn/"):
            return self._answer(404, {})
        if self.hub.status:
            return self._answer(self.hub.status.pop(0), {})
        _, _, owner, repo, name = self.path.split("/", 4)
        data = self.hub.repos[f"{owner}/{repo}"][name]
        if self.hub.lies:
            data = bytes(len(data))
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = start + self.hub.breaks.pop(0) if self.hub.breaks else len(data)
        self.wfile.write(data[start:end])
        if end < len(data):
            self.close_connection = True

    def _note(self) -> None:
        self.hub.asked.append((self.command, self.path, {key.lower(): value for key, value in self.headers.items()}))

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Handler]]:
    """The library reads its environment when it is first imported, so one server and one cache serve all tests here."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    Handler.hub = FakeHub(port=httpd.server_port)
    home = tmp_path_factory.mktemp("hf")
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{httpd.server_port}", "HF_HOME": str(home), "HF_TOKEN": "secret", "no_proxy": "*"}
    before = {name: os.environ.get(name) for name in (*settings, "HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    os.environ.update(settings)
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        os.environ.pop(name, None)
    assert "huggingface_hub" not in sys.modules
    yield Handler
    httpd.shutdown()
    httpd.server_close()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture
def hub(server: type[Handler], monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)  # what has not filled a piece is lost; usually 10 MB
    server.hub = FakeHub(port=server.hub.port)
    return server.hub


def numbers(count: int, seed: int = 0) -> bytes:
    return b"".join(hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(count // 32))


@HUB
def test_only_the_files_asked_for_and_each_once(hub: FakeHub) -> None:
    hub.repos["me/once"] = {"deep/a.safetensors": numbers(6400), "b.pth": numbers(320, 1), "c.bin": b"not wanted"}
    folder = fetch("me/once", ["deep/a.safetensors", "b.pth"])
    assert (folder / "deep" / "a.safetensors").read_bytes() == numbers(6400) and (folder / "b.pth").read_bytes() == numbers(320, 1)
    assert folder.name == COMMIT and sorted(file.name for file in folder.rglob("*") if file.is_file()) == ["a.safetensors", "b.pth"]
    assert hub.downloads() == [("a.safetensors", None), ("b.pth", None)]
    assert all("authorization" not in headers for _, path, headers in hub.asked if "/cdn/" in path)  # a token stays with the hub
    assert any(headers.get("authorization") == "Bearer secret" for method, _, headers in hub.asked if method == "HEAD")
    assert fetch("me/once", ["deep/a.safetensors", "b.pth"]) == folder
    assert len(hub.downloads()) == 2


@HUB
def test_a_dropped_connection_goes_on_where_it_was(hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.repos["me/drop"] = {"a.safetensors": numbers(64000)}
    hub.breaks = [10_000]
    folder = fetch("me/drop", ["a.safetensors"])
    assert (folder / "a.safetensors").read_bytes() == numbers(64000)
    (_, first), (_, second) = hub.downloads()
    assert first is None and second.startswith("bytes=") and 0 < int(second[6:-1]) <= 10_000
    assert "fetching 1 of 1: me/drop/a.safetensors" in capfd.readouterr().err


@HUB
def test_the_next_try_goes_on_where_the_last_one_broke_off(hub: FakeHub) -> None:
    hub.repos["me/again"] = {"a.safetensors": numbers(64000)}
    hub.breaks, hub.status = [20_000], []
    calls = []

    def fail_after_the_first(handler: Handler) -> None:
        calls.append(handler.path)
        if len(calls) == 1:
            get(handler)
        else:
            handler.send_error(500)

    get = Handler.do_GET
    Handler.do_GET = fail_after_the_first  # type: ignore[method-assign]
    try:
        with pytest.raises(FetchError, match=r"fetching me/again/a\.safetensors broke off .*run the same command again"):
            fetch("me/again", ["a.safetensors"])
    finally:
        Handler.do_GET = get  # type: ignore[method-assign]
    hub.status, hub.asked = [], []
    folder = fetch("me/again", ["a.safetensors"])
    assert (folder / "a.safetensors").read_bytes() == numbers(64000)
    ((_, wanted),) = hub.downloads()
    assert wanted is not None and int(wanted[6:-1]) > 0


@HUB
def test_bytes_that_are_not_the_announced_ones(hub: FakeHub) -> None:
    hub.repos["me/lies"] = {"a.safetensors": numbers(6400)}
    hub.lies = True
    with pytest.raises(FetchError, match=r"a\.safetensors arrived damaged"):
        fetch("me/lies", ["a.safetensors"])
    hub.lies = False
    assert (fetch("me/lies", ["a.safetensors"]) / "a.safetensors").read_bytes() == numbers(6400)


@HUB
def test_what_is_not_there(hub: FakeHub) -> None:
    hub.repos["me/half"] = {"a.safetensors": numbers(320)}
    with pytest.raises(FetchError, match=r"me/half has no file b\.safetensors"):
        fetch("me/half", ["a.safetensors", "b.safetensors"])
    with pytest.raises(FetchError, match=r"there is no me/nothing on huggingface\.co"):
        fetch("me/nothing", ["a.safetensors"])


@HUB
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids fetching it"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach huggingface.co"),
    ],
    ids=["offline", "no network"],
)
def test_without_a_network(hub: FakeHub, setting: dict[str, str], words: str) -> None:
    """What is in the cache will do; what is not is one line. In a process of its own: these settings are read at import."""
    hub.repos["me/kept"] = {"a.safetensors": numbers(320)}
    folder = fetch("me/kept", ["a.safetensors"])
    code = "import sys; from game.fetch import fetch; print(fetch('me/kept', sys.argv[1:]))"
    for files, status in ((["a.safetensors"], 0), (["a.safetensors", "b.safetensors"], 1)):
        command = [sys.executable, "-c", code, *files]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **setting}, capture_output=True, text=True, timeout=120)
        assert done.returncode == status, done.stderr
        assert done.stdout.strip() == str(folder) if status == 0 else words in done.stderr


@HUB
def test_fetched_and_played(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def published(settings: dict) -> None:
        settings["weights"] = {"source": "me/tiny from huggingface.co", "dit": ["dit.safetensors"], "vae": ["vae.safetensors"]}

    world = write_tiny_world(tmp_path, change=published)
    names = ("dit.safetensors", "vae.safetensors")
    hub.repos["me/tiny"] = {name: (tmp_path / name).read_bytes() for name in names} | {"README.md": b"-"}
    for name in names:
        (tmp_path / name).unlink()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--world", str(world), "--fetch", "--headless", "--blocks", "1", "--dump", "frames"]) == 0
    assert len(list((tmp_path / "frames").glob("*.png"))) == 9
    assert sorted(name for name, _ in hub.downloads()) == sorted(names)


@HUB
def test_nothing_is_fetched_for_what_cannot_begin(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published worlds have no start picture: that is told before their gigabytes come, not after."""
    hub.repos["Skywork/Matrix-Game-2.0"] = {"README.md": b"-"}
    assert cli.main(["--world", "universal", "--fetch", "--headless"]) == 2
    assert "has no start picture of its own; give one with --start FILE" in capsys.readouterr().err
    (tmp_path / "torn.png").write_bytes((ASSETS / "start_1.png").read_bytes()[:90])
    assert cli.main(["--world", "universal", "--fetch", "--bench", "--start", str(tmp_path / "torn.png")]) == 2
    assert "torn.png" in capsys.readouterr().err
    assert not hub.downloads()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # type: ignore[arg-type] - how Python marks what cannot be imported
    assert cli.main(["--world", "universal", "--fetch", "--headless", "--start", str(ASSETS / "start_1.png")]) == 2
    assert "huggingface_hub is not installed: pip install 'reverie[hub]'" in capsys.readouterr().err


def test_worlds_that_cannot_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--fetch", "--headless"]) == 2
    assert "the weights of the world garden come with it" in capsys.readouterr().err
    assert cli.main(["--world", "universal", "--fetch", "--weights", "x"]) == 2
    assert "leave --weights out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "repo"),
    [
        ("Skywork/Matrix-Game-2.0 from huggingface.co", "Skywork/Matrix-Game-2.0"),
        ("https://huggingface.co/Skywork/Matrix-Game-2.0", "Skywork/Matrix-Game-2.0"),
        ("https://huggingface.co/Skywork/Matrix-Game-2.0.git", "Skywork/Matrix-Game-2.0"),
        ("a friend", None),
        ("some/where", None),
        ("https://example.org/a/b", None),
        (None, None),
    ],
)
def test_repository_of_a_source(source: str | None, repo: str | None) -> None:
    assert repository(source) == repo


def test_the_library_is_not_imported_unasked() -> None:
    assert isinstance(sys.modules.get("game.fetch"), ModuleType)
    code = "import sys, game.fetch, game.commands.play; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
