"""How often a test repeats itself: a little by default, all of it with REVERIE_LONG=1."""

from __future__ import annotations

import os

LONG = os.environ.get("REVERIE_LONG", "") not in ("", "0")


def times(few: int, many: int) -> int:
    return many if LONG else few
