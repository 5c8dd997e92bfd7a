"""A session put away: everything it is made of, and whose it is.

One file and not tensors beside a json text: a rename replaces one file at once, while two could be from different saves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.actions import Action
from engine.clip import MAX_BLOCKS
from engine.conditioning import HISTORY, START_LATENTS
from engine.exact import without_unused
from engine.statefile import Layout, StateFile, write
from models.checkpoint import build_empty
from models.errors import WorldError, one_line
from models.taehv import TAEHV, TAEHVConfig
from models.vae import VAE, VAEConfig

if TYPE_CHECKING:
    from engine.config import WorldConfig
    from engine.world import World

FORMAT, VERSION = "reverie-snapshot", 1
BLOCK_LIMIT = 10**9
HELD_FROM = 1  # blocks that are remembered before one can be held still, at the least
KEYS_LIMIT = 64  # of one action
BLIND_LIMIT = 1 << 34  # bytes of tensors that are read without knowing the world


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All state of a session between two blocks. ``tensors`` are on the host and belong to nobody else."""

    block: int  # the next one to be made
    seed: int
    tensors: dict[str, Tensor]
    identity: Identity
    sha256: str | None = None  # of the file it was loaded from
    past: tuple[Action, ...] = ()  # what was done in the clip that the game began with, a block each
    still: int = 0  # of the blocks before, those held still (`BlockClock.still`)

    @property
    def last_frame(self) -> np.ndarray | None:
        """`[H, W, 3]` uint8, the picture that was there; None before the first block."""
        frame = self.tensors.get("last_frame")
        return None if frame is None else frame.numpy()

    def check(self, world: World) -> None:
        """Raise WorldError, one line that names the first difference, unless a session of ``world`` can go on from here."""
        self.identity.check("the snapshot", world)
        _check_still("the snapshot", self.still, self.block, world)
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()}
        _check_layout("the snapshot", layout(world, self.block, len(self.past)), found)
        for action in self.past:
            world.config.actions.check(action.keys)

    def save(self, path: str | Path) -> str:
        """Write it into a file of its own, replacing what was there in one stroke; returns the file's sha256.

        Raises WorldError when it cannot be written: disk full, no such folder.
        """
        head = {"format": FORMAT, "version": VERSION, **self.identity.known}
        head |= {"seed": int(self.seed), "block": self.block, "still": self.still}
        head["past"] = [{"keys": sorted(action.keys), "look": list(action.look)} for action in self.past]
        return write(Path(path), self.tensors, head)

    @staticmethod
    def check_name(path: str | Path, config: WorldConfig) -> None:
        """Raise WorldError if the file's header already tells that it is no snapshot, or of another world: before weights are read."""
        try:
            with StateFile(path) as file:
                _check_head(file)
                if file.head.get("world") != config.name:
                    raise WorldError(f"{file.name} belongs to the world {_show(file.head.get('world'))}, this is {config.name}")
        except OSError as error:
            raise WorldError(f"cannot read {one_line(path, 200)}: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: str | Path, world: World | None = None) -> Snapshot:
        """Read a file and find it sound: whole, of this version, finite and, with ``world``, made for it.

        Raises WorldError with one line that names what is wrong. With ``world`` nothing is read that its shapes do not
        allow; without it at most 16 GiB are.
        """
        try:
            with StateFile(path) as file:
                block, still, seed, past, identity = _read_head(file, world)
                tensors, sha256 = file.read()
        except OSError as error:
            raise WorldError(f"cannot read {one_line(path, 200)}: {error.strerror or error}") from None
        except MemoryError:
            raise WorldError(f"{one_line(path, 200)} does not fit into memory") from None
        return cls(block, seed, tensors, identity, sha256, past, still)


class Identity:
    """What a state depends on besides itself: the world's name, the hashes of its weights, every setting that is computed with."""

    def __init__(self, world: World | None = None, known: dict[str, Any] | None = None) -> None:
        """Of a world, or as a file tells it."""
        self._world = world
        self._known = known

    @property
    def known(self) -> dict[str, Any]:
        """As json. For a world its weight files must be read, so this is left to the first who asks."""
        if self._known is None:
            self._known = _describe(self._world)
        return self._known

    def check(self, what: str, world: World) -> None:
        """Raise WorldError with the first difference from ``world``."""
        if self._world is world:
            return
        ours, theirs = _describe(world), self.known
        if theirs.get("world") != ours["world"]:
            raise WorldError(f"{what} belongs to the world {_show(theirs.get('world'))}, this is {ours['world']}")
        for place, own, other in _differences(ours["weights"], theirs.get("weights"), ""):
            raise WorldError(f"{what} was made with other weights: {place or 'weights'} is {_hash(other)} there, {_hash(own)} here")
        for place, own, other in _differences(ours["settings"], theirs.get("settings"), ""):
            raise WorldError(f"{what} was made with other settings: {place or 'settings'} is {_show(other)} there, {_show(own)} here")


def _describe(world: World) -> dict[str, Any]:
    config = world.config
    actions = asdict(config.actions)
    for entry in (*actions["keyboard"], *actions["look"]):
        del entry["does"]  # for people only
    settings = {"fps": config.fps, "height": config.height, "width": config.width, "dtype": str(world.dtype).removeprefix("torch.")}
    settings |= {"actions": actions, "sampler": asdict(config.sampler), "model": asdict(config.model), "vae": asdict(config.vae)}
    settings |= {"decoder": config.decoder, "taehv": asdict(config.taehv), "linears": config.linears}
    settings = without_unused(settings, config)
    settings["vision"] = None if config.vision is None else asdict(config.vision)
    return json.loads(json.dumps({"world": config.name, "weights": world.weight_hashes(), "settings": settings}))  # tuples become lists


def layout(world: World, block: int, past: int = 0) -> Layout:
    """Dtype and shape of every tensor of a snapshot taken before ``block``, by name; ``past`` are the blocks of a clip to begin with."""
    config, dtype = world.config, world.dtype
    model, vae = config.model, config.vae
    height, width = config.height // vae.spatial_ratio, config.width // vae.spatial_ratio
    _, down, right = model.patch_size
    cache = world.dit.new_cache(1, height // down, width // right, "meta", dtype)
    found: Layout = {f"cache.{name}": (dtype, tuple(buffer.shape)) for name, buffer in cache.tensors().items()}
    own = config.taehv if config.decoder == "taehv" else vae
    decoder = decoder_layout(own, model.num_frame_per_block, height, width, dtype, min(block, 2))
    found |= {f"decoder.{slot}": (dtype, shape) for slot, shape in decoder}
    found["rows.keyboard"] = (torch.float32, (HISTORY, model.action.keyboard_dim))
    if model.action.mouse_dim:
        found["rows.mouse"] = (torch.float32, (HISTORY, 2))
    found["start.latents"] = (torch.float32, (1, vae.z_dim, START_LATENTS, height, width))
    if past:
        found["past.latents"] = (torch.float32, (1, vae.z_dim, past * model.num_frame_per_block, height, width))
    if config.vision is not None:
        tokens = config.vision.num_tokens
        found["start.visual_context"] = (dtype, (1, tokens, config.vision.dim))
        image = (dtype, (1, model.num_heads, tokens, model.head_dim))
        found |= {f"cache.layers.{i}.image.{name}": image for i in range(model.num_layers) for name in ("k", "v")}
    if block:
        found["last_frame"] = (torch.uint8, (config.height, config.width, 3))
    return found


@lru_cache(maxsize=8)
@torch.inference_mode()
def decoder_layout(
    config: VAEConfig | TAEHVConfig, n: int, height: int, width: int, dtype: torch.dtype, blocks: int
) -> tuple[tuple[str, tuple], ...]:
    """(slot, shape) of all that the decoder remembers after so many blocks of ``n`` latents; from the second on that stays the same.

    The decoder itself is asked, without memory.
    """
    network = build_empty(TAEHV if isinstance(config, TAEHVConfig) else VAE, config).to(dtype)
    cache = network.new_decoder_cache()
    for _ in range(blocks):
        network.decode_block(torch.empty(1, config.z_dim, n, height, width, device="meta"), cache)
    return tuple((slot, tuple(frames.shape)) for slot, frames in cache.tensors().items())


def _check_head(file: StateFile) -> None:
    head, what = file.head, file.name
    if head.get("format") != FORMAT:
        raise WorldError(f"{what} is no snapshot of Reverie")
    if head.get("version") != VERSION or type(head["version"]) is not int:
        raise WorldError(f"{what} is of version {_show(head.get('version'))}, this Reverie reads version {VERSION}")


def _read_head(file: StateFile, world: World | None) -> tuple[int, int, int, tuple[Action, ...], Identity]:
    """Block, blocks held still, seed, the clip's actions and identity, after finding that the tensors may be read."""
    _check_head(file)
    head, what = file.head, file.name
    block, seed, limit = head.get("block"), head.get("seed"), BLOCK_LIMIT
    if type(block) is not int or not 0 <= block <= limit:
        raise WorldError(f"{what}: block must be a whole number from 0 to {limit}, got {_show(block)}")
    still = _check_still(what, head.get("still", 0), block, world)  # files of before there were any do not say
    if type(seed) is not int:
        raise WorldError(f"{what}: seed must be a whole number, got {_show(seed)}")
    past = _read_past(what, head.get("past"))
    if len(past) > block - still:
        raise WorldError(f"{what}: block {block} cannot lie within the clip of {len(past)} blocks that the game began with")
    told = Identity(known={key: head.get(key) for key in ("world", "weights", "settings")})
    if world is not None:
        told.check(what, world)
        _check_layout(what, layout(world, block, len(past)), file.layout)
        for action in past:
            world.config.actions.check(action.keys)
        return block, still, seed, past, Identity(world, told.known)
    if file.nbytes > BLIND_LIMIT:
        raise WorldError(f"{what} holds {file.nbytes} bytes of tensors; at most {BLIND_LIMIT} can be loaded")
    return block, still, seed, past, told


def _check_still(what: str, still: Any, block: int, world: World | None) -> int:
    """How many blocks before ``block`` were held still, after finding that there can have been so many (in ``world``)."""
    most = 0 if world is not None and not world.config.sampler.hold_still else max(0, block - HELD_FROM)
    if type(still) is not int or not 0 <= still <= most:
        raise WorldError(f"{what}: still must be a whole number from 0 to {most}, got {_show(still)}")
    return still


def _read_past(what: str, found: Any) -> tuple[Action, ...]:
    """The actions of the clip, from the header."""
    wrong = WorldError(f"{what}: past must be a list of at most {MAX_BLOCKS} actions (keys and look), got {_show(found)}")
    if not isinstance(found, list) or len(found) > MAX_BLOCKS:
        raise wrong
    actions = []
    for entry in found:
        keys, look = (entry.get("keys"), entry.get("look")) if isinstance(entry, dict) else (None, None)
        if not isinstance(keys, list) or len(keys) > KEYS_LIMIT or not all(isinstance(key, str) for key in keys):
            raise wrong
        if not isinstance(look, list) or len(look) != 2 or not all(type(value) in (int, float) and abs(value) <= 1 for value in look):
            raise wrong
        actions.append(Action(frozenset(keys), (look[0], look[1])))
    return tuple(actions)


def _differences(ours: Any, theirs: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """(where, our value, theirs) of every difference."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        if type(ours) is not type(theirs) or ours != theirs:
            yield place, ours, theirs
        return
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        inner = f"{place}.{one_line(key, 60)}" if place else one_line(key, 80)
        yield from _differences(ours.get(key), theirs.get(key), inner)


def _check_layout(what: str, expected: Layout, found: Layout) -> None:
    missing = next((name for name in expected if name not in found), None)
    if missing is not None:
        raise WorldError(f"{what} is incomplete: {missing} is missing")
    strange = next((name for name in found if name not in expected), None)
    if strange is not None:
        raise WorldError(f"{what} holds {one_line(strange, 80)}, which a state of this world does not have")
    for name, right in expected.items():
        if found[name] != right:
            has, wants = (f"{str(kind).removeprefix('torch.')} {list(shape)}" for kind, shape in (found[name], right))
            raise WorldError(f"{what}: {name} is {has}, expected {wants}")


def _hash(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else _show(value)


def _show(value: Any) -> str:
    """The value for a message."""
    return "nothing" if value is None else one_line(repr(value)[:200], 60)


def ring_copy(buffer: Tensor, latents: range) -> Tensor:
    """A host copy of a ring's buffer with nothing but these latents in it: what else lies there is past or unfinished."""
    kept = torch.zeros(buffer.shape, dtype=buffer.dtype)
    slots = [latent % buffer.shape[2] for latent in latents]
    kept[:, :, slots] = buffer[:, :, slots].cpu()
    return kept
