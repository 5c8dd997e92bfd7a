"""What does recording take from the rate? Stretches with a film and a session file, and without, in turn, in one process.

python -m tests.recording_cost [--world garden] [--rounds 8] [--blocks 20] [--overlap]

Needs cores that nothing else uses. As fast as it goes is the worst case: a player's blocks come at the world's own rate. Prints JSON:
frames a second of both, and the ratio round by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch

from engine import Session, World, share_threads
from game.headless import play_headless
from game.recorder import film_recorder
from game.script import demo_script
from game.sessionheader import Header, build_header
from game.sessionsink import SessionSink
from game.sinks import Background


def play(session: Session, blocks: int, overlap: bool, place: Path | None) -> float:
    """Frames a second over a stretch, recorded into the folder ``place`` if there is one; what ends a film afterwards is not counted."""
    config, sinks = session.world.config, []
    if place is not None:
        header = Header()
        header.fields = build_header(session.world, session, None)
        log = Background(SessionSink(place / "walk.session.jsonl", header.get), wait=True, keep_actions=True)
        sinks = [log, Background(film_recorder(place / "walk.mp4", False, header.identity, False), wait=True)]
    return play_headless(session, config, demo_script(config.actions.keys), blocks, sinks, overlap=overlap).fps


def compare(world: World, rounds: int, blocks: int, overlap: bool) -> dict[str, object]:
    """Both kinds of stretch in turn, the order changing from round to round."""
    plain, recorded = [], []
    session = world.session(rewind_mb=0)
    play(session, 8, overlap, None)  # until the window is full
    with tempfile.TemporaryDirectory(prefix="reverie-cost-") as folder:
        for index in range(rounds):
            place = Path(folder) / str(index)
            place.mkdir()
            for film in (True, False) if index % 2 else (False, True):
                session.reset()
                (recorded if film else plain).append(play(session, blocks, overlap, place if film else None))
    ratios = [ours / theirs for ours, theirs in zip(recorded, plain, strict=True)]
    return {
        "world": world.config.name, "threads": torch.get_num_threads(), "overlap": overlap, "blocks": blocks,
        "fps_plain": round(statistics.median(plain), 1), "fps_recorded": round(statistics.median(recorded), 1),
        "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="garden")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--overlap", action="store_true", help="decoder and transformer side by side, a thread each on two cores")
    args = parser.parse_args()
    world = World.load(args.world)
    if args.overlap:
        share_threads(world)
    print(json.dumps(compare(world, args.rounds, args.blocks, args.overlap)))


if __name__ == "__main__":
    main()
