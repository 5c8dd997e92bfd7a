"""All state of a session, put away and taken up again: here, in another process, and refused where it does not belong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import engine.statefile
from engine import Session, Snapshot, World, WorldError, threads_in_use
from engine.snapshot import layout
from engine.statefile import KEY
from tests.engine.test_rewind import equal, state
from tests.engine.test_session import play, same
from tests.tiny_world import write_tiny_world

LONG = bool(os.environ.get("REVERIE_LONG"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def walk(tiny_world: World) -> list[np.ndarray]:
    return play(tiny_world.session(seed=5), 24)


@pytest.fixture
def saved(tiny_world: World, tmp_path: Path) -> Path:
    """A snapshot before block 7."""
    session = tiny_world.session(seed=5)
    play(session, 7)
    session.snapshot().save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("block", [0, 1, 2, *sorted(random.Random(4).sample(range(3, 18), 3))])
def test_restored_and_loaded_go_on_with_the_same_bits(tiny_world: World, walk: list[np.ndarray], tmp_path: Path, block: int) -> None:
    session = tiny_world.session(seed=5)
    play(session, block)
    snapshot, before = session.snapshot(), state(session)
    assert snapshot.block == block and (snapshot.last_frame is None) == (block == 0)
    digest = snapshot.save(tmp_path / "s")
    play(session, 6)
    assert equal(snapshot.tensors, before), "what was put away does not move"
    session.restore(snapshot)
    assert (session.clock.epoch, session.clock.block, session.rewindable, session.restored_from) == (1, block, 0, None)
    assert same(walk[block : block + 5], play(session, 5))

    loaded = Snapshot.load(tmp_path / "s", tiny_world)
    assert equal(loaded.tensors, before) and loaded.sha256 == digest
    other = tiny_world.session(seed=77)
    play(other, 3)
    other.restore(loaded)
    assert (other.seed, other.restored_from) == (5, digest)
    assert block == 0 or np.array_equal(other.last_frame, walk[block - 1][-1])
    assert same(walk[block : block + 5], play(other, 5))
    other.rewind(5)
    assert equal(state(other), before)


FRESH = """
import sys, hashlib
from engine import Snapshot, World, pin_threads
from tests.engine.test_session import play
pin_threads(int(sys.argv[4]))
world = World.load(sys.argv[1])
snapshot = Snapshot.load(sys.argv[2], world)
for frames in play(world.resume(snapshot), int(sys.argv[3]) - snapshot.block):
    print(hashlib.sha256(frames.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("count", [10 if LONG else 1])
def test_the_rest_is_the_same_in_a_fresh_process(tiny_world: World, tiny_yaml: Path, tmp_path: Path, count: int) -> None:
    length = 60 if LONG else 20
    places = random.Random().sample(range(1, length), count)
    session = tiny_world.session(seed=9)
    hashes = []
    for block in range(length):
        if block in places:
            session.snapshot().save(tmp_path / str(block))
        hashes.append(hashlib.sha256(play(session, 1)[0].tobytes()).hexdigest())
    for block in places:
        command = [sys.executable, "-c", FRESH, str(tiny_yaml), str(tmp_path / str(block)), str(length), str(threads_in_use())]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # OMP_NUM_THREADS may be there: the number of threads shows in the bits
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.stdout.split() == hashes[block:], (block, done.stderr)


def test_restart_after_a_load_begins_at_the_snapshots_picture(tiny_world: World, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.new("L", (40, 40), 30).save(grey)
    from_grey = tiny_world.session(seed=5, start=grey)
    base = play(from_grey, 8)
    from_grey.snapshot().save(tmp_path / "s")
    session = tiny_world.session(seed=1)
    play(session, 4)
    session.restore(session.read_snapshot(tmp_path / "s"))
    session.reset()
    assert session.restored_from is None and same(base, play(session, 8))
    assert same(play(from_grey, 2), play(tiny_world.resume(Snapshot.load(tmp_path / "s")), 2))


def test_the_same_state_is_the_same_file_whatever_way_led_to_it(tiny_world: World, tmp_path: Path) -> None:
    session = tiny_world.session(seed=5)
    play(session, 9)
    digest = session.snapshot().save(tmp_path / "a")
    session.reset()
    play(session, 11)
    session.rewind(2)
    assert session.snapshot().save(tmp_path / "b") == digest
    session.restore(Snapshot.load(tmp_path / "a"))
    assert session.snapshot().save(tmp_path / "c") == digest
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_tool_reads_the_file(saved: Path, tiny_world: World) -> None:
    with safe_open(saved, "pt") as file:
        head = json.loads(file.metadata()[KEY])
        found = {name: (file.get_tensor(name).dtype, tuple(file.get_tensor(name).shape)) for name in file.keys()}  # noqa: SIM118
    assert (head["format"], head["version"], head["world"], head["block"], head["seed"]) == ("reverie-snapshot", 1, "tiny", 7, 5)
    assert head["weights"] == tiny_world.weight_hashes() and head["settings"]["sampler"]["steps"] == [1000, 666, 333]
    assert found == layout(tiny_world, 7)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["model"].update(num_frame_per_block=1),
        lambda s: s["model"].update(local_attn_size=4),
        lambda s: s.update(dtype="bfloat16", height=32, width=48),
    ],
)
@pytest.mark.parametrize("block", [0, 1, 2, 9])
def test_other_sizes_are_put_away_too(tmp_path: Path, change: Callable[[dict[str, Any]], None], block: int) -> None:
    world = World.load(write_tiny_world(tmp_path, change=change))
    session = world.session()
    play(session, block)
    session.snapshot().save(tmp_path / "s")
    assert same(play(session, 4), play(world.resume(Snapshot.load(tmp_path / "s", world)), 4))


# ---- refusals


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any], bytearray], None]) -> None:
    """Change (head, table of contents, tensor bytes) of a file, and make its lengths and its sum right again."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    head = json.loads(table["__metadata__"][KEY])
    change(head, table, data)
    if "data" in head:
        head["data"] = hashlib.sha256(data).hexdigest()
    table["__metadata__"] = {KEY: json.dumps(head)}
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def put_nan(head: dict[str, Any], table: dict[str, Any], data: bytearray) -> None:
    first, _ = table["cache.layers.0.tokens.v"]["data_offsets"]
    data[first + 40 : first + 44] = np.float32("nan").tobytes()


def setting(place: str, value: object) -> Callable[..., None]:
    def change(head: dict[str, Any], *_: object) -> None:
        *path, last = place.split(".")
        for key in path:
            head = head[key]
        head[last] = value

    return change


REFUSALS = {
    "version": (setting("version", 2), "of version 2, this Reverie reads version 1"),
    "version of another kind": (setting("version", True), "of version True"),
    "format": (setting("format", "something"), "is no snapshot"),
    "world": (setting("world", "moon"), "belongs to the world 'moon', this is tiny"),
    "weights": (setting("weights", {"dit/dit.safetensors": "0" * 64}), "other weights: dit/dit.safetensors is 000000000000… there"),
    "window": (setting("settings.model.local_attn_size", 6), "other settings: model.local_attn_size is 6 there, 15 here"),
    "shift": (setting("settings.sampler.shift", 3.0), "other settings: sampler.shift is 3.0 there, 5.0 here"),
    "steps": (setting("settings.sampler.steps", [1000]), r"other settings: sampler.steps is \[1000\] there"),
    "fps": (setting("settings.fps", 25), "other settings: fps is 25 there, 16 here"),
    "size": (setting("settings.height", 32), "other settings: height is 32 there, 16 here"),
    "dtype": (setting("settings.dtype", "bfloat16"), "other settings: dtype is 'bfloat16' there, 'float32' here"),
    "no settings": (setting("settings", None), "other settings: settings is nothing there"),
    "an unknown setting": (setting("settings.colour", "red"), "other settings: colour is 'red' there, nothing here"),
    "block": (setting("block", -1), "block must be a whole number"),
    "a far block": (setting("block", 10**30), "block must be a whole number"),
    "another block": (setting("block", 0), "holds decoder.0, which a state of this world does not have"),
    "held still in a world that does not": (setting("still", 1), "still must be a whole number from 0 to 0, got 1"),
    "seed": (setting("seed", "5"), "seed must be a whole number"),
    "NaN": (put_nan, "cache.layers.0.tokens.v holds NaN"),
    "shape": (
        lambda head, table, data: table["last_frame"].update(shape=[32, 16, 3]),
        r"last_frame is uint8 \[32, 16, 3\], expected uint8",
    ),
    "kind": (lambda head, table, data: table["rows.mouse"].update(dtype="F16"), "rows.mouse is float16"),
    "an unknown kind": (lambda head, table, data: table["rows.mouse"].update(dtype="I64"), "header is damaged"),
    "a missing tensor": (lambda head, table, data: table.pop("rows.mouse"), "rows.mouse is missing"),
    "a strange tensor": (lambda head, table, data: table.update(x=table["rows.mouse"]), "holds x, which"),
    "two in one place": (lambda head, table, data: table["decoder.0"].update(data_offsets=table["decoder.1"]["data_offsets"]), "place of"),
    "a huge shape": (lambda head, table, data: table["rows.mouse"].update(shape=[2**40, 2**40]), "expected float32"),
    "an endless shape": (lambda head, table, data: table["rows.mouse"].update(shape=[2] * 5000), "header is damaged"),
    "more bytes": (lambda head, table, data: data.extend(b"12345678"), "too long"),
    "fewer bytes": (lambda head, table, data: data.__delitem__(slice(-5, None)), "cut short"),
}


Running = tuple[Session, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def running(tiny_world: World) -> Iterator[Running]:
    """A game that goes on whatever is refused, and its state."""
    session = tiny_world.session(seed=2)
    play(session, 6)
    yield session, state(session)
    session.rewind(2)
    assert same(play(tiny_world.session(seed=2), 8)[4:], play(session, 4))


def refused(running: Running, path: Path, words: str) -> None:
    """``path`` is refused in one line with these words, and the running session does not feel it."""
    session, before = running
    clock = session.clock
    with pytest.raises(WorldError, match=words) as caught:
        session.restore(session.read_snapshot(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert equal(state(session), before) and session.clock == clock and session.rewindable == 6


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_name_the_difference_and_leave_the_game_alone(running: Running, saved: Path, kind: str) -> None:
    change, words = REFUSALS[kind]
    rewrite(saved, change)
    refused(running, saved, words)


def test_a_single_wrong_bit_is_noticed(running: Running, saved: Path) -> None:
    raw = bytearray(saved.read_bytes())
    raw[-1] ^= 1
    saved.write_bytes(raw)
    refused(running, saved, "is damaged: its tensors are not those that were written")


def test_what_is_no_snapshot_is_refused(running: Running, tiny_yaml: Path, saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for number, (content, words) in enumerate(
        [
            (b"", "is no snapshot"),
            (b"hello, world", "is no snapshot"),
            (b"\xff" * 100, "is no snapshot"),
            (whole[:7], "is no snapshot"),
            (whole[:300], "cut short: 292 bytes of its header"),
            (whole[:-1], "cut short"),
            ((2).to_bytes(8, "little") + b"{}", "no snapshot of Reverie"),
            ((10).to_bytes(8, "little") + b'{"a": 1e5 ', "header is damaged"),
            ((100_000).to_bytes(8, "little") + b'{"a":' * 20_000, "header is damaged"),
        ]
    ):
        path = tmp_path / str(number)
        path.write_bytes(content)
        refused(running, path, words)
    refused(running, tiny_yaml.parent / "dit.safetensors", "no snapshot of Reverie")
    refused(running, tmp_path / "gone", "cannot read .*gone: No such file")
    refused(running, tmp_path, "is not a file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(running, tmp_path / "pipe", "is not a file")


def test_weights_that_differ_are_refused_whichever_way_they_come(tiny_world: World, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = World.load(write_tiny_world(tmp_path / "other", seed=1))
    with pytest.raises(WorldError, match=r"a\.safetensors was made with other weights: dit/dit\.safetensors"):
        Snapshot.load(saved, other)
    with pytest.raises(WorldError, match="the snapshot was made with other weights"):
        other.resume(Snapshot.load(saved))
    with pytest.raises(WorldError, match="the snapshot was made with other weights"):
        other.session().restore(tiny_world.session().snapshot())


def test_a_save_that_fails_leaves_the_old_file_and_no_other(
    tiny_world: World, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for target, name in ((engine.statefile.os, "fsync"), (engine.statefile.os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            with pytest.raises(WorldError, match=r"cannot write .*a\.safetensors: No space left"):
                tiny_world.session().snapshot().save(saved)
        assert saved.read_bytes() == whole and os.listdir(tmp_path) == ["a.safetensors"]
    with pytest.raises(WorldError, match="cannot write"):
        tiny_world.session().snapshot().save(tmp_path / "gone" / "a")


def mutate(raw: bytes, chance: random.Random) -> bytes:
    """A damaged copy: bytes turned, cut, doubled or put in, mostly where the structure is."""
    data = bytearray(raw)
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(chance.choice((1, 1, 2, 5))):
        limit = min(len(data), header) if chance.random() < 0.8 else len(data)
        at, length = chance.randrange(max(1, limit)), chance.choice((1, 1, 4, 60))
        match chance.randrange(6):
            case 0:
                data[at : at + length] = chance.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * chance.choice((1, 3, 500))
            case 3:
                del data[at:]
            case 4:
                data[at : at + 1] = chance.choice((b"9" * 400, b"-", b"1e999", b"null", b"[" * 3000, b'"', b"/etc/passwd", b"\\u0000"))
            case 5:
                data[:8] = chance.choice((0, 8, header - 9, header - 7, 2**20, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(data)


def test_mutated_files_raise_nothing_but_ours_and_quickly(tiny_world: World, saved: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    raw, path = saved.read_bytes(), tmp_path / "m"
    session = tiny_world.session(seed=2)
    play(session, 3)
    before, good, slowest = state(session), 0, 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30_000 if LONG else 300):
        path.write_bytes(mutate(raw, chance))
        began = time.thread_time()
        for world in (tiny_world, None):
            try:
                Snapshot.load(path, world).check(tiny_world)
                good += 1
            except WorldError as error:
                assert "\n" not in str(error) and len(str(error)) < 500
        slowest = max(slowest, time.thread_time() - began)
    assert slowest < 1.0 and good <= (200 if LONG else 4), (slowest, good)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000, "kilobytes"
    assert equal(state(session), before)


def test_a_header_that_claims_much_takes_nothing(running: Running, tmp_path: Path, saved: Path) -> None:
    """A sparse file as long as its header says: with a world its shapes refuse it, without one the limit does."""
    rewrite(saved, lambda head, table, data: table["rows.mouse"].update(shape=[2**40], data_offsets=[0, 2**42]))
    with open(saved, "r+b") as file:
        file.truncate(2**40)
    refused(running, saved, "rows.mouse is float32")
    with pytest.raises(WorldError, match="at most 17179869184 can be loaded"):
        Snapshot.load(saved)
