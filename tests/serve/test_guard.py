"""Who may come in: Host, Origin, token; what every answer carries."""

from __future__ import annotations

import asyncio
import re
from importlib import resources

import aiohttp
import pytest

from game.serve.guard import Guard, is_loopback
from game.serve.server import STATIC
from game.serve.worlds import Worlds
from tests.serve.table import served

HOSTS = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost:8765@evil", "[::2]"]


@pytest.mark.parametrize("host", HOSTS)
def test_another_host_is_refused(worlds: Worlds, host: str) -> None:
    async def ask() -> None:
        async with served(worlds) as site:
            async with site.client.get("/", headers={"Host": host}) as response:
                assert response.status == 403
            for name in ("localhost", f"127.0.0.1:{site.port}", "[::1]:1"):
                async with site.client.get("/", headers={"Host": name, "Origin": f"http://{name}"}) as response:
                    assert response.status == 200

    asyncio.run(ask())


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example", "file://127.0.0.1", "http://[", None])
def test_another_origin_can_neither_begin_nor_play(worlds: Worlds, origin: str | None) -> None:
    async def ask() -> None:
        async with served(worlds) as site:
            id = await site.begin()
            headers = {} if origin is None else {"Origin": origin}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{site.port}", headers=headers) as stranger:
                async with stranger.post("/sessions") as response:
                    assert response.status == 403
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await stranger.ws_connect(f"/sessions/{id}/play")
                assert refused.value.status == 403
            assert site.house.counts["started"] == 1
            assert 'reverie_refused_total{reason="origin"} 2' in (await site.get("/metrics")).decode()

    asyncio.run(ask())


def test_without_the_token_there_is_nothing(worlds: Worlds) -> None:
    async def ask() -> None:
        async with served(worlds, token="s3cret-word") as site:
            for path in ("/", "/worlds", "/metrics", "/static/app.js", "/worlds/0/starts/0", "/nothing"):
                for wrong in ("", "?token=", "?token=s3cret-worD", "?token=s3cret-wor", "?token=%ff%00"):
                    async with site.client.get(path + wrong) as response:
                        assert response.status == 401, (path, wrong)
            async with site.client.post("/sessions", cookies={f"reverie-{site.port}": "guess"}) as response:
                assert response.status == 401
            async with site.client.get("/health") as response:
                assert response.status == 200, "a proxy may ask whether it is alive"
            async with site.client.get("/metrics", headers={"Authorization": "Bearer s3cret-word"}) as response:
                assert response.status == 200
            assert not list(site.client.cookie_jar)
            jar = aiohttp.CookieJar(unsafe=True)  # for addresses that are numbers
            here = f"http://127.0.0.1:{site.port}"
            async with aiohttp.ClientSession(here, cookie_jar=jar, headers={"Origin": here}) as page:
                async with page.get("/?token=s3cret-word") as response:
                    cookie = response.headers["Set-Cookie"]
                    assert response.status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
                async with page.get("/worlds") as response:
                    assert response.status == 200
                async with page.post("/sessions?film=0") as response:
                    id = (await response.json())["session"]
                async with page.ws_connect(f"/sessions/{id}/play") as socket:
                    assert (await socket.receive_json())["t"] in ("hello", "loading")

    asyncio.run(ask())


def test_a_machine_that_others_reach_is_known_by_numbers_and_its_own_names(worlds: Worlds) -> None:
    guard = Guard("0.0.0.0", "t", names=("play.example",))
    assert guard._is_ours("192.0.2.7:8765") and guard._is_ours("[2001:db8::1]:80") and guard._is_ours("play.example")
    assert not guard._is_ours("rebound.example") and not guard._is_ours("192.0.2.7:8765/")
    assert not Guard("127.0.0.1", None)._is_ours("192.0.2.7")
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


def test_every_answer_has_its_policy_and_unknown_addresses_are_nothing(worlds: Worlds) -> None:
    async def ask() -> None:
        async with served(worlds) as site:
            id = await site.begin()
            paths = ["/", "/static/app.js", "/worlds", "/worlds/0/starts/0", f"/sessions/{id}"]
            nothing = ["/static/../guard.py", "/static/%2e%2e%2fguard.py", "/static/app.js/x", "/worlds/0/starts/99"]
            nothing += ["/worlds/-1/starts/0", "/worlds/9/starts/0", "/sessions/guess", f"/sessions/{id}x/film.mp4"]
            nothing += [f"/sessions/{id}/film.mp4", f"/sessions/{id}/saves/1", f"/sessions/{id}/saves/..%2f1"]
            for path in paths + nothing:
                async with site.client.get(path) as response:
                    assert (response.status == 200) == (path in paths), (path, response.status)
                    assert response.status in (200, 400, 404)
                    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
                    assert "unsafe" not in response.headers["Content-Security-Policy"]
                    assert response.headers["X-Content-Type-Options"] == "nosniff"
            for query in ("world=1", "world=x", "start=5", "start=/etc/passwd", "seed=-1", "seed=1e9", f"seed={2**60}"):
                async with site.client.post(f"/sessions?{query}") as response:
                    assert response.status == 400, query

    asyncio.run(ask())


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    folder = resources.files("game.serve") / "static"
    assert {path.name for path in folder.iterdir()} == set(STATIC)
    for name in STATIC:
        text = (folder / name).read_text()
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], name
        assert "eval(" not in text and "innerHTML" not in text, name
    page = (folder / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|javascript:", page)
