"""Make a recording (mp4 and session file) of any film and a table of actions, for a world of your own.

    python -m training.convert drive.mp4 drive.csv --world mine.yaml --out recordings/drive.mp4

The table has lines ``frame,keys,pitch,yaw`` (see `training.sessions.read_csv`): what is done from that frame of the film on. Frames are
cut and scaled like a start picture and taken at the world's rate. The session file says what each frame was made under; as such
a film was not played, it cannot be replayed, but `training.encode` reads it like any that `--record` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_right
from itertools import groupby
from pathlib import Path

from engine.actions import Action
from engine.config import WorldConfig, load_config
from engine.picture import fit_frame
from models.errors import WorldError, one_line
from training.arguments import in_a_line, new_folder
from training.sessions import MAX_FRAMES, Film, read_csv, session_of


def convert(film: Path, table: Path, config: WorldConfig, target: Path) -> int:
    """Write ``target`` and its session file; how many frames they have. Raises WorldError."""
    actions = read_csv(table)
    for _, action in actions:
        config.actions.check(action.keys)
    if target.suffix != ".mp4":
        raise WorldError(f"a recording's name ends with .mp4, got {target.name}")
    if target.exists() or session_of(target).exists():
        raise WorldError(f"{target} or its session file is there already; choose another --out")
    frames = Film(film)
    new_folder(target.parent)
    part = target.with_name(f".{target.stem}.unfinished.mp4")  # not the name of a recording's part, which play would take for its own
    try:
        done = _write_film(part, frames, actions, config)
        _write_session(session_of(target), config, done)
        part.replace(target)
    except BaseException as error:  # another try is to find nothing in its way
        part.unlink(missing_ok=True)
        session_of(target).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WorldError(f"{one_line(target, 200)}: cannot be written: {one_line(error.strerror or error, 120)}") from None
        raise
    return len(done)


def _write_film(path: Path, frames: Film, actions: list[tuple[int, Action]], config: WorldConfig) -> list[Action]:
    """The film at the world's size and rate; what is done in each of its frames. Raises OSError where it could not be written whole."""
    import imageio_ffmpeg  # there, or Film would have said so

    begins, done = [frame for frame, _ in actions], []
    output = imageio_ffmpeg.write_frames(
        str(path), (config.width, config.height), fps=config.fps, codec="libx264", macro_block_size=1,
        output_params=["-crf", "12"], ffmpeg_log_level="quiet", ffmpeg_timeout=0,
    )  # fmt: skip
    output.send(None)
    try:
        for number, frame in enumerate(frames):
            while len(done) * frames.fps / config.fps < number + 1 - 1e-6:  # this frame is the one that is seen at that time
                place = bisect_right(begins, number) - 1
                done.append(actions[place][1] if place >= 0 else Action())
                try:
                    output.send(fit_frame(frame, config.height, config.width).tobytes())
                except OSError:  # its words are ffmpeg's whole command
                    raise OSError("ffmpeg gave up; is the disk full?") from None
    finally:
        output.close()
    if not done:
        raise WorldError(f"{one_line(frames.path, 200)}: no frame can be read from it")
    try:
        Film(path)
    except WorldError:  # ffmpeg could not write its end
        raise OSError("ffmpeg did not finish it; is the disk full?") from None
    return done


def _write_session(path: Path, config: WorldConfig, actions: list[Action]) -> None:
    """One line for every run of frames under one action."""
    lines: list[dict] = [{"reverie": "session", "version": 1, "app": "training.convert", "world": config.name}]
    for action, run in groupby(actions):
        left = len(list(run))
        while left:
            frames = min(left, MAX_FRAMES)
            block = {"epoch": 0, "block": len(lines) - 1, "keys": sorted(action.keys), "look": list(action.look), "frames": frames}
            lines.append(block)
            left -= frames
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path)
    parser.add_argument("actions", type=Path, help="lines frame,keys,pitch,yaw")
    parser.add_argument("--world", default="garden", help="whose size, rate and keys it is for")
    parser.add_argument("--out", type=Path, required=True, help="a new .mp4")
    args = parser.parse_args()
    count = convert(args.film, args.actions, load_config(args.world), args.out)
    print(f"{args.out} and {session_of(args.out)}: {count} frames")


if __name__ == "__main__":
    sys.exit(main())
