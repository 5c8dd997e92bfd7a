"""Many players: fair to all, flat, and no lag that grows. All of it with REVERIE_LONG=1: ten minutes."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from game.serve.worlds import Worlds
from tests.long import LONG, times
from tests.serve.table import Player, Site, served, tiny_worlds
from tests.tiny_world import write_tiny_world


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    def change(settings: dict[str, Any]) -> None:
        settings["fps"] = 24  # a block in half a second

    return tiny_worlds(write_tiny_world(tmp_path_factory.mktemp("calm"), change=change))


@pytest.fixture(scope="module")
def quiet(calm: Worlds) -> Worlds:
    """The same, and it rewinds so little that a history is soon full."""
    worlds = Worlds(calm.offers, "cpu", None, 1.0 if LONG else 0.1)
    worlds.load(0, lambda what, part: None)
    return worlds


def slow_down(site: Site, seconds: float) -> None:
    """Every block takes so much longer, as in a world that is too large for the machine."""
    for seat in site.house.seats.values():
        session = seat.world.session
        step = session.step
        session.step = lambda action, ready=None, step=step: (time.sleep(seconds), step(action, ready))[1]


def test_two_players_of_a_world_too_slow_for_both_get_the_same(calm: Worlds) -> None:
    async def play() -> None:
        async with served(calm) as site, site.player() as one, site.player() as two:
            await one.blocks(1)
            await two.blocks(1)
            slow_down(site, 0.4)
            await asyncio.sleep(1.0)
            before = len(one.headers), len(two.headers)
            await asyncio.sleep(times(8, 60))
            made = len(one.headers) - before[0], len(two.headers) - before[1]
            assert min(made) >= 5 and abs(made[0] - made[1]) <= max(1, 0.1 * max(made)), made

    asyncio.run(play())


def test_one_who_presses_everything_takes_nothing_from_the_other(calm: Worlds) -> None:
    async def play() -> None:
        async with served(calm) as site, site.player() as calm_one, site.player() as wild:
            await calm_one.blocks(2)
            await wild.blocks(1)

            async def press() -> None:
                while True:
                    for command in ("restart", "save", "rewind", "rewind end", "step", "resume"):
                        await wild.hold("w" if command == "save" else "s")
                        await wild.do(command)
                        await asyncio.sleep(0.02)

            task = asyncio.create_task(press())
            before, since = len(calm_one.headers), time.monotonic()
            await asyncio.sleep(5)
            made = len(calm_one.headers) - before
            task.cancel()
            assert made >= 0.7 * (time.monotonic() - since) * 2, "two blocks a second are its due"
            assert calm_one.headers[-1].epoch == 0

    asyncio.run(play())


def memory() -> int:
    """Bytes of the process's own: pages of files come and go."""
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


async def press(players: list[Player], seconds: float) -> tuple[list[int], list[float]]:
    """All of them play for so long: blocks each of them saw, and the seconds from press to picture. Nothing else is kept."""
    made, latencies, end = [0] * len(players), [], time.monotonic() + seconds
    while time.monotonic() < end:
        for number, player in enumerate(players):
            await player.hold("wsad"[number % 4] if made[number] % 2 else "j")
        await asyncio.sleep(0.7)
        for number, player in enumerate(players):
            latencies += player.latencies
            made[number] += player.forget()
    return made, latencies


@pytest.mark.skipif(not LONG, reason="eight players for a quarter of a minute: REVERIE_LONG=1")
def test_eight_players(quiet: Worlds) -> None:
    """Lag is from a press to the player's screen, by the clock that both share here. Memory counts from when histories for rewinding
    are full: until then it grows, up to what was promised when the session was let in."""

    async def play() -> None:
        async with served(quiet, sessions=8) as site, AsyncExitStack() as stack:
            players = [await stack.enter_async_context(site.player(seed=seed, film=0)) for seed in range(8)]
            for player in players:
                await player.blocks(2)
            seats = list(site.house.seats.values())
            await players[0].until(lambda: all(seat.blocks > seat.world.session.rewindable + 4 for seat in seats), 120)
            await press(players, times(1, 30))
            ram = memory()
            first, second = await press(players, times(4, 300)), await press(players, times(4, 300))
            grown = memory() - ram
            made = [sum(pair) for pair in zip(first[0], second[0], strict=True)]
            if not LONG and sum(made) < 0.6 * 8 * 2 * 8:
                pytest.skip(f"this machine is too busy to run eight players and their clients: {made} of 16 blocks each")
            lags = [statistics.median(latencies) for _, latencies in (first, second)]
            print(f"\n{made} blocks, press to picture {lags[0]:.3f} then {lags[1]:.3f} s, {grown / 1e6:.1f} MB more")
            assert max(made) - min(made) <= max(2, 0.1 * max(made)), made
            assert lags[1] < 1.3 * lags[0] + 0.1, f"press to picture went from {lags[0]:.3f} to {lags[1]:.3f} s"
            assert grown < 16e6, f"{grown / 1e6:.0f} MB more"

    asyncio.run(play())
