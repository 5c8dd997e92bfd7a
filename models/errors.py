"""The two errors a user may see. Their message is one line: what is wrong, the offending value, what to do."""

from __future__ import annotations


class WorldError(ValueError):
    """A world cannot be played as asked: unknown name, bad config, bad start picture, bad weights."""


class WeightError(WorldError):
    """A weight file is missing, damaged, or not the one this model needs."""


def one_line(text: object, limit: int = 300) -> str:
    """``text`` on one line, shortened in its middle to at most ``limit`` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[: limit * 2 // 3]} ... {line[-limit // 3 + 5 :]}"
