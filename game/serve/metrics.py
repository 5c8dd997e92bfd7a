"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from game.serve.guard import Door, Guard
from game.serve.house import House

Line = tuple[str, str, float, str]  # (name, counter or gauge, value, what it is)


def metrics(house: House, guard: Guard, door: Door) -> str:
    """The text format, version 0.0.4."""
    lines = []
    for name, kind, value, what in _values(house, door):
        lines += [f"# HELP reverie_{name} {what}", f"# TYPE reverie_{name} {kind}", f"reverie_{name} {value:.10g}"]
    lines += ["# HELP reverie_refused_total Requests refused, by reason.", "# TYPE reverie_refused_total counter"]
    refused = guard.refused | {"connections": door.refused}
    lines += [f'reverie_refused_total{{reason="{reason}"}} {count}' for reason, count in sorted(refused.items())]
    return "\n".join(lines) + "\n"


def _values(house: House, door: Door) -> Iterator[Line]:
    live = [seat for seat in house.seats.values() if not seat.ended_at]
    model, encoder, counts = house.model, house.encoder, house.counts
    yield "sessions", "gauge", house.playing, "Sessions that take a place."
    yield "sessions_limit", "gauge", house.limits.sessions, "Places there are."
    yield "pages", "gauge", sum(seat.link is not None for seat in live), "Sessions with a page that plays them."
    yield "sessions_started_total", "counter", counts["started"], "Sessions begun."
    yield "sessions_failed_total", "counter", counts["failed"], "Sessions that broke down."
    yield "sessions_full_total", "counter", counts["full"], "Sessions refused because there was no room."
    yield "blocks_total", "counter", counts["blocks"] + sum(seat.blocks for seat in live), "Blocks made."
    lost = counts["lost"] + sum(seat.lost + (seat.link.lost if seat.link else 0) for seat in live)
    yield "blocks_lost_total", "counter", lost, "Blocks that a slow page was not sent."
    late = counts["underruns"] + sum(seat.screen.underruns for seat in live)
    yield "underruns_total", "counter", late, "Blocks that were not there when they were due, as pages tell."
    yield "messages_malformed_total", "counter", counts["malformed"], "Messages that made no sense."
    yield "messages_excess_total", "counter", counts["excess"], "Messages thrown away unread, there were too many."
    yield "uploads_total", "counter", counts["uploads"], "Start pictures received."
    yield "uploads_refused_total", "counter", counts["uploads refused"], "Uploads that were too large or no picture."
    yield "model_turns_total", "counter", model.turns, "Pieces of work the model has done."
    yield "model_busy_seconds_total", "counter", model.busy, "Time the model was at work."
    yield "model_wait_seconds_total", "counter", model.waited, "Time that work waited for its turn."
    yield "encoded_frames_total", "counter", encoder.frames, "Frames encoded."
    yield "encoded_bytes_total", "counter", encoder.bytes, "Bytes they took."
    yield "encode_seconds_total", "counter", encoder.seconds, "Time from asking for an encoded frame to having it."
    resident = _resident()
    if resident is not None:
        yield "resident_bytes", "gauge", resident, "Memory of the process."


def _resident() -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
