"""Playing over the wire: the same session code as the window's, so what is downloaded replays bit for bit."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from game import cli
from game.serve.worlds import Worlds
from game.sessionfile import read_session
from tests.serve.table import Site, served


def replay(tiny: Path, path: Path, *more: object) -> int:
    return cli.main(["replay", str(path), "--world", str(tiny), "--verify", *map(str, more)])


async def download(site: Site, id: str, folder: Path, what: str = "session.jsonl") -> Path:
    path = folder / what.replace("/", "-")
    path.write_bytes(await site.get(f"/sessions/{id}/{what}"))
    return path


def test_a_session_of_everything_replays_bit_for_bit(
    worlds: Worlds, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play() -> None:
        async with served(worlds) as site, site.player(seed=7, film=1) as player:
            await player.blocks(2)
            await player.hold("w", "l")
            await player.blocks(2)
            await player.do("save", slot=2)
            await player.until(lambda: player.toasts)
            assert player.toasts == ["Saved in slot 2: tiny-2.safetensors"], "and not where"
            await player.hold(look=(0.5, -1.0))
            await player.blocks(2)
            await player.do("pause")
            await player.until(lambda: player.state.get("paused"))
            await player.do("step")
            await player.blocks(1)
            await player.do("resume")
            await player.blocks(2)
            await player.do("rewind")
            await asyncio.sleep(0.5)
            await player.do("rewind end")
            await player.blocks(2)
            await player.do("load", slot=2)
            await player.until(lambda: len(player.toasts) == 2)
            await player.blocks(2)
            await player.do("restart")
            await player.blocks(2)
            assert [header.block for header in player.headers[-2:]] == [0, 1]
            await download(site, player.id, tmp_path)
            saved = await download(site, player.id, tmp_path, "saves/2")
            assert saved.stat().st_size > 1000
            await player.do("leave")
            await player.until(lambda: player.closed is not None)
            (last,) = [message for message in player.messages if message["t"] == "over"]
            assert last == {"t": "over", "reason": "left", "files": {"session": True, "film": True, "saved": [2]}}
            whole = tmp_path / "whole.session.jsonl"
            whole.write_bytes(await site.get(f"/sessions/{player.id}/session.jsonl"))
            (tmp_path / "whole.mp4").write_bytes(await site.get(f"/sessions/{player.id}/film.mp4"))

    asyncio.run(play())
    kinds = [block.origin.kind for block in read_session(tmp_path / "whole.session.jsonl").blocks if block.origin]
    assert kinds[0] == "start" and kinds[-1] == "start" and "load" in kinds and "rewind" in kinds
    broken_off, whole = tmp_path / "session.jsonl", tmp_path / "whole.session.jsonl"
    assert read_session(broken_off).end is None and read_session(whole).end == "left"
    for path in (broken_off, whole):
        assert replay(tiny, path, "--snapshot", tmp_path / "saves-2") == 0
        assert "every frame as recorded" in capsys.readouterr().out
    import imageio.v3 as iio

    assert len(iio.imread(tmp_path / "whole.mp4")) == sum(block.frames for block in read_session(whole).blocks)


def test_frames_carry_block_frame_and_newest_input(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds) as site, site.player() as player:
            await player.blocks(3)
            assert [(header.block, header.frame, header.count) for header in player.headers] == [(0, 0, 9), (1, 9, 12), (2, 21, 12)]
            assert player.headers[-1].input == 0
            await player.hold("w")
            await player.until(lambda: player.headers[-1].input == 1)
            await player.send({"t": "in", "id": 1, "keys": ["s"], "look": [0, 0], "mouse": [0, 0]})  # old news
            await player.hold("d")
            await player.until(lambda: player.headers[-1].input == 2)
            assert site.house.seats[player.id].controls.held == {"d"}
            assert len(player.latencies) == 2
            picture = np.asarray(Image.open(io.BytesIO(player.pictures[0, 2][0])))
            assert picture.shape == (16, 32, 3) and picture.std() > 0

    asyncio.run(play())


def test_the_same_seed_is_the_same_dream_and_another_is_not(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds, seed=3) as site:
            async with site.player() as one, site.player(seed=3) as same, site.player(seed=4) as other:
                for player in (one, same, other):
                    await player.until(lambda player=player: len(player.pictures.get((0, 2), ())) == 12)
                assert one.pictures[0, 2] == same.pictures[0, 2] != other.pictures[0, 2]
            assert (await site.metrics())["sessions_started_total"] == 3

    asyncio.run(play())


def test_an_upload_becomes_the_start_picture(worlds: Worlds, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(file, "PNG")
    (tmp_path / "photo.png").write_bytes(file.getvalue())

    async def play() -> None:
        async with served(worlds) as site:
            id = await site.begin(file.getvalue())
            async with site.player(id) as player, site.player() as own:
                for one in (player, own):
                    await one.until(lambda one=one: len(one.pictures.get((0, 1), ())) == 12)
                assert player.pictures[0, 0] != own.pictures[0, 0]
                await download(site, id, tmp_path)
            assert not list(site.house._folder.glob("*/upload")), "what was sent is not kept"

    asyncio.run(play())
    assert replay(tiny, tmp_path / "session.jsonl") == 0, "the picture travels in the session file"
    assert replay(tiny, tmp_path / "session.jsonl", "--start", tmp_path / "photo.png") == 0
    capsys.readouterr()


def test_a_saved_game_is_taken_along_and_brought_to_another_session(
    worlds: Worlds, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play() -> None:
        async with served(worlds) as site:
            async with site.player(seed=7) as player:
                await player.hold("w")
                await player.blocks(3)
                assert player.state["saved"] == []
                await player.do("save", slot=2)
                await player.until(lambda: player.state["saved"] == [2])
                saved = await download(site, player.id, tmp_path, "saves/2")
                await player.until(lambda: len(player.pictures.get((0, 7), ())) == 12)
            async with site.player(seed=1) as other:
                await other.hold("w")
                await other.blocks(2)
                async with site.client.put(f"/sessions/{other.id}/saves/1", data=saved.read_bytes()) as response:
                    assert response.status == 200 and await response.json() == {"slot": 1}
                await other.until(lambda: other.state["saved"] == [1])
                await other.do("load", slot=1)
                await other.until(lambda: len(other.pictures.get((1, 7), ())) == 12)
                assert other.toasts[0].startswith("Loaded slot 1: block ")
                assert other.pictures[1, 7] == player.pictures[0, 7] and (1, 0) not in other.pictures
                await download(site, other.id, tmp_path)

    asyncio.run(play())
    assert replay(tiny, tmp_path / "session.jsonl", "--snapshot", tmp_path / "saves-2") == 0
    assert "every frame as recorded" in capsys.readouterr().out


def test_webp_where_the_page_asks_for_it(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds) as site:
            id = await site.begin()
            async with site.client.ws_connect(f"/sessions/{id}/play?format=webp") as socket:
                while (message := await socket.receive()).type.name != "BINARY":
                    pass
                assert Image.open(io.BytesIO(message.data[32:])).format == "WEBP"

    asyncio.run(play())


def test_a_page_that_comes_back_goes_on_and_one_that_does_not_is_forgotten(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds, vanished=1.0, kept=1.0) as site:
            async with site.player() as player:
                await player.blocks(3)
            seat = site.house.seats[player.id]
            await asyncio.sleep(0.4)
            made = seat.blocks
            await asyncio.sleep(0.4)
            assert seat.blocks == made and not seat.ended_at, "nobody plays, nothing is made"
            async with site.player(player.id) as again:
                await again.blocks(2)
                assert again.stills == 1 and again.headers[0].block == made and again.epoch == 0
            for _ in range(200):
                await asyncio.sleep(0.05)
                if player.id not in site.house.seats:
                    break
            assert site.house.seats == {} and site.house.playing == 0 and list(site.house._folder.iterdir()) == []

    asyncio.run(play())


def test_another_tab_takes_over(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds) as site, site.player() as one:
            await one.blocks(1)
            async with site.player(one.id) as two:
                await one.until(lambda: one.closed == 4001)
                await two.blocks(2)
                assert site.house.seats[one.id].left_at is None

    asyncio.run(play())


def test_a_paused_page_comes_back_paused_and_goes_on(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds) as site:
            async with site.player() as player:
                await player.blocks(2)
                await player.do("pause")
                await player.until(lambda: player.state.get("paused"))
            async with site.player(player.id) as again:
                await again.until(lambda: again.state.get("paused"))
                await asyncio.sleep(0.4)
                assert again.headers == []
                await again.do("resume")
                await again.blocks(2)

    asyncio.run(play())


def test_films_that_are_to_stay_get_names_of_their_own(worlds: Worlds, tmp_path: Path) -> None:
    async def play() -> None:
        async with served(worlds, keep=tmp_path / "walk.mp4") as site, site.player() as one, site.player() as two:
            await one.blocks(2)
            await two.blocks(2)

    asyncio.run(play())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["walk-2.mp4", "walk-2.session.jsonl", "walk.mp4", "walk.session.jsonl"]


def test_a_session_that_breaks_down_is_alone_with_it(worlds: Worlds) -> None:
    async def play() -> None:
        async with served(worlds) as site, site.player() as well, site.player() as ill:
            await ill.blocks(2)

            def step(action: object, ready: object) -> None:
                raise RuntimeError("the model fell over in /secret/place")

            site.house.seats[ill.id].world.session.step = step
            await ill.until(lambda: ill.closed is not None)
            over = ill.messages[-1]
            assert over["t"] == "over" and over["reason"] == "this session broke down; others play on"
            await well.blocks(3)
            assert not site.house.seats[well.id].ended_at and site.house.playing == 1
            assert (await site.metrics())["sessions_failed_total"] == 1

    asyncio.run(play())
