"""The first line of a session file: what was played, from where, with what; and whether this machine can play it again."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine import NOISE, Action, Session, World, WorldConfig, WorldError, check_clip, clip_limit, fingerprint, settings
from game import __version__
from game.clip import read_clip
from game.sessionfile import KIND, VERSION, SessionError, SessionFile, encode

MAX_PICTURE = 1 << 20  # bytes a start picture may have to travel in the header

_MISSING = object()
_OPTIONS = {  # settings that an option of the command line changes, and what they are where a header does not name them
    "sampler.steps": ("--steps", None), "model.local_attn_size": ("--window", None), "fps": ("--fps", None),
    "height": ("--size", None), "width": ("--size", None), "decoder": ("--decoder", "vae"), "linears": ("--linears", "exact"),
    "sampler.context": ("--context", "clean"), "sampler.hold_still": ("--hold-still", False),
}  # fmt: skip


class Header:
    """The header of a session yet to begin: the world's thread fills it in, the recording asks for it later."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def get(self) -> dict[str, Any]:
        return self.fields

    def identity(self) -> str:
        """sha256 of the header's line, as the film's metadata have it."""
        return hashlib.sha256(encode(self.fields)).hexdigest()


def replay_header(session: SessionFile, world: World) -> dict[str, Any]:
    """The header of a session that replays another one, here and now."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return session.header | {"app": __version__, "begun": now, "fingerprint": fingerprint(world)}


def build_header(
    world: World, session: Session, start: Path | None, clip: np.ndarray | None = None, past: Sequence[Action] = ()
) -> dict[str, Any]:  # fmt: skip
    """The header of a session about to be played. Reads every weight file.

    It begins from the picture ``start`` (None: the world's own), from the frames ``clip`` of the film ``start`` in which ``past`` was
    done, or from the snapshot it was restored from.
    """
    return {
        "reverie": KIND,
        "version": VERSION,
        "app": __version__,
        "begun": datetime.now(UTC).isoformat(timespec="microseconds"),
        "world": world.config.name,
        "weights": world.weight_hashes(),
        "start": _start(world, session, start, clip, past),
        "seed": session.seed,
        "noise": NOISE,
        "dtype": str(world.dtype).removeprefix("torch."),
        "settings": settings(world.config),
        "fingerprint": fingerprint(world),
    }


def _start(world: World, session: Session, start: Path | None, clip: np.ndarray | None, past: Sequence[Action]) -> dict[str, Any]:
    if getattr(session, "restored_from", None) is not None:
        return {"snapshot": session.restored_from}
    digest = None if start is None else hashlib.sha256(start.read_bytes()).hexdigest()
    if clip is None:
        pixels = world.start_pixels(start)
        return {"sha256": digest, "pixels": pixels_hash(pixels), "png": _png(pixels)}
    blocks, used = check_clip(clip, world.config.clock)
    done = [*past, *[Action()] * (blocks - len(past))]
    actions = [{"keys": sorted(action.keys), "look": list(action.look)} for action in done]
    return {"sha256": digest, "pixels": pixels_hash(clip[:used]), "png": None, "clip": actions}


def pixels_hash(pixels: np.ndarray) -> str:
    """sha256 of a start picture or clip as the model sees it: uint8 `[..., H, W, 3]`, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def start_of(session: SessionFile, world: World, given: Path | None) -> np.ndarray | None:
    """The start picture of a session: ``given`` by the user, out of the header, or the world's own (None). Checked by its hash.

    Of a session that went on from a clip it is that clip. Raises SessionError when it is not there, or not the one.
    """
    if "snapshot" in session.header["start"]:
        return None
    wanted = session.header["start"]["pixels"]
    if "clip" in session.header["start"]:
        return _clip(session, world, given, wanted)
    if given is not None:
        pixels = world.start_pixels(given)
        if pixels_hash(pixels) != wanted:
            raise SessionError(f"--start {given}: is not the picture {session.path} began with (sha256 of its pixels {wanted[:12]}…)")
        return pixels
    try:
        if pixels_hash(world.start_pixels()) == wanted:
            return None
    except WorldError:
        pass  # a world without a picture of its own
    pixels = _embedded(session, world.config.height, world.config.width)
    if pixels is None:
        raise SessionError(
            f"{session.path}: the start picture (sha256 of its pixels {wanted[:12]}…) is not in the file; give it with --start"
        )
    if pixels_hash(pixels) != wanted:
        raise SessionError(f"{session.path}: the start picture in the file is damaged; give it with --start FILE")
    return pixels


def _clip(session: SessionFile, world: World, given: Path | None, wanted: str) -> np.ndarray:
    """The frames of the clip that go in front of the session, uint8 `[F, H, W, 3]`."""
    if given is None:
        raise SessionError(f"{session.path}: went on from a clip (sha256 of its pixels {wanted[:12]}…); give it with --start FILE")
    config = world.config
    frames = read_clip(given, config.height, config.width, clip_limit(config.clock)).frames
    blocks, used = check_clip(frames, config.clock)
    if blocks != len(session.header["start"]["clip"]) or pixels_hash(frames[:used]) != wanted:
        raise SessionError(f"--start {given}: is not the clip {session.path} went on from (sha256 of its pixels {wanted[:12]}…)")
    return frames[:used]


def check_settings(session: SessionFile, config: WorldConfig) -> None:
    """Raise SessionError, naming the difference, when the world of ``config`` cannot give the same pictures. Cheap."""
    there, here = session.header["settings"] | {"noise": session.header["noise"]}, settings(config) | {"noise": NOISE}
    _refuse(session, there, here, _advice(there, here))


def check_weights(session: SessionFile, world: World) -> None:
    """The same for what is known once the world is loaded: its weights and its dtype. Reads every weight file."""
    header, dtype = session.header, str(world.dtype).removeprefix("torch.")
    here = {f"weights {name}": value for name, value in world.weight_hashes().items()}
    _refuse(session, {f"weights {name}": value for name, value in header["weights"].items()}, here)
    if header["dtype"] != dtype:
        raise SessionError(
            f"{session.path}: was played with another world: dtype is {dtype} here, {_short(header['dtype'])} in the session; "
            f"give --dtype {_short(header['dtype'])}"
        )


def _refuse(session: SessionFile, there: dict[str, Any], here: dict[str, Any], advice: str = "") -> None:
    different = _differences(there, here)
    if different:
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise SessionError(f"{session.path}: was played with another world: {different[0]}{more}{advice}")


def _advice(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The options that make these settings those of the session; nothing if there is one that no option changes."""
    words: dict[str, str] = {}
    for name in (name for name in there | here if here.get(name, _MISSING) != there.get(name, _MISSING)):
        option, usual = _OPTIONS.get(name, ("", None))
        value = there.get(name, usual)
        if value is None:
            return ""
        if option == "--size":
            value = f"{_short(there.get('width'))}x{_short(there.get('height'))}"
        elif option == "--hold-still":
            option, value = ("--hold-still" if value is True else "--no-hold-still"), ""
        words[option] = ",".join(map(_short, value)) if isinstance(value, list) else _short(value)
    return f"; give {' '.join(f'{option} {value}'.strip() for option, value in words.items())}" if words else ""


def other_machine(session: SessionFile, world: World) -> list[str]:
    """In what this machine's fingerprint differs from the session's; nothing: every bit is to be the same."""
    return _differences(session.header["fingerprint"], fingerprint(world))


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [
        f"{_short(name)} is {_short(here.get(name, 'missing'))} here, {_short(there.get(name, 'missing'))} in the session"
        for name in [*there, *(name for name in here if name not in there)]
        if here.get(name, _MISSING) != there.get(name, _MISSING)
    ]


def _short(value: object) -> str:
    text = ascii(value).strip("'")
    return text if len(text) <= 60 else text[:24] + "…"


def _png(pixels: np.ndarray) -> str | None:
    """The picture without loss as PNG in base64; None for one that would be too large."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii") if file.tell() <= MAX_PICTURE else None


def _embedded(session: SessionFile, height: int, width: int) -> np.ndarray | None:
    text = session.header["start"].get("png")
    if text is None:
        return None
    try:
        data = base64.b64decode(text if isinstance(text, str) else "!", validate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                if image.size != (width, height) or image.mode != "RGB":  # before anything is unpacked
                    raise ValueError(f"{image.size} {image.mode}")
                return np.array(image)
    except (binascii.Error, ValueError, OSError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise SessionError(f"{session.path}: the start picture in the file is damaged; give it with --start FILE") from None
