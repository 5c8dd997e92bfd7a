"""Somebody who plays on while others make trouble, and must not notice anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from game.serve.worlds import Worlds
from tests.serve.table import Player, Site, served


@asynccontextmanager
async def somebody_plays(site: Site) -> AsyncIterator[Player]:
    """A player who must not notice anything: his blocks keep coming, none is lost."""
    async with site.player() as player:
        await player.blocks(2)
        yield player
        before = len(player.headers)
        await player.blocks(3)
        blocks = [header.block for header in player.headers]
        assert before >= 2, "he had blocks before the trouble"
        assert blocks == list(range(len(blocks))), (blocks, player.headers[-1], player.toasts)
        assert player.headers[-1].lost == 0 and player.toasts == []


def beside_a_player(worlds: Worlds, trouble: Callable[[Site], Awaitable[None]], **limits: Any) -> None:
    async def play() -> None:
        async with served(worlds, **limits) as site, somebody_plays(site):
            await trouble(site)

    asyncio.run(play())
