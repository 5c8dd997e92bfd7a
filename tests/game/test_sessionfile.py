import json
import random
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from engine import Action
from game.script import ScriptError, parse_script, write_script
from game.sessionfile import MAX_LINE, SessionError, looks_like_session, read_session
from game.sessionheader import start_of
from game.sinks import Origin, SinkError
from tests.game.dream import PICTURE, Saved, Table, header, walk
from tests.game.fake import WALK, FakeConfig
from tests.long import times


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    session = read_session(walk(tmp_path / "a.session.jsonl"))
    assert session.end == "played to the end" and session.header["seed"] == 7
    assert [(block.epoch, block.index) for block in session.blocks] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)
    ]  # fmt: skip
    assert session.blocks[2].action == Action(look=(0.25, -1 / 3)) and session.blocks[1].keyboard == (1, 0, 0, 0)
    assert session.blocks[0].frames == 9 and session.blocks[1].frames == 12
    assert [block.origin for block in session.blocks if block.origin] == [
        Origin("start"), Origin("start"), Origin("rewind", 2, 1), Origin("rewind", 3, 2)
    ]  # fmt: skip


def test_every_line_has_what_the_documents_promise(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in walk(tmp_path / "a.session.jsonl").read_text().splitlines()]
    assert lines[1]["events"] == [[-0.01, "press", "w", "keyboard"]]
    assert (lines[2]["sampled"], lines[2]["started"], lines[2]["finished"], lines[2]["shown"]) == (0.12, 0.121, 0.16, 0.17)
    assert lines[2]["mouse"] == [0.0, 0.10000000149011612] and len(lines[2]["sha256"]) == 64
    assert lines[-1]["blocks"] == 10 and lines[-1]["frames"] == 9 + 2 * 12 + 9 + 6 * 12


def test_the_line_that_led_to_the_end(tmp_path: Path) -> None:
    session = read_session(walk(tmp_path / "a.session.jsonl"))
    line = session.lineage(3)
    assert [(block.epoch, block.index) for block in line] == [(1, 0), (1, 1), (2, 2), (3, 3)]
    actions = [block.action for block in line]
    script = parse_script(write_script(actions), WALK.keys)
    assert [script.at(i) for i in range(len(script))] == actions


def test_a_session_that_broke_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = walk(tmp_path / "a.session.jsonl")
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    ends = [sum(map(len, lines[: i + 1])) for i in range(len(lines))]
    for cut in range(ends[0], len(data), 97):
        path.write_bytes(data[:cut])
        session = read_session(path)
        assert session.end is None and len(session.blocks) == sum(end <= cut for end in ends[1:])
    path.write_bytes(data[: ends[2]] + b"\0" * 5000)  # what a power cut may leave
    assert len(read_session(path).blocks) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines.pop(2), ["line 3", "does not follow"]),
        (lambda lines: lines.insert(3, lines[2]), ["line 4", "does not follow"]),
        (lambda lines: lines.pop(4), ["line 5", "origin"]),
        (lambda lines: lines.append(lines[2]), ["line 13", "after the session's end"]),
        (lambda lines: lines.__setitem__(2, lines[2].replace('"l"', '"j"')), ["line 12", "changed or damaged"]),
        (lambda lines: lines.__setitem__(2, "{}"), ["line 3", "epoch"]),
        (lambda lines: lines.__setitem__(2, "[]"), ["line 3", "damaged"]),
        (lambda lines: lines.__setitem__(2, "[" * 60000), ["line 3", "damaged"]),
        (lambda lines: lines.__setitem__(2, "x" * MAX_LINE), ["line 3", "longer than"]),
        (lambda lines: lines.__setitem__(2, lines[2].replace("12,", "9" * 5000 + ",")), ["line 3"]),
        (lambda lines: lines.__setitem__(2, lines[2].replace('"look":[0.0', '"look":[NaN')), ["line 3", "not JSON"]),
        (lambda lines: lines.__setitem__(2, lines[2].replace('"look":[0.0', '"look":[1e999')), ["line 3", "look"]),
        (lambda lines: lines.__setitem__(2, lines[2].replace('"look":[0.0', '"look":[2')), ["line 3", "look"]),
        (lambda lines: lines.__setitem__(8, lines[8].replace('"parent":1', '"parent":2')), ["line 9", "origin"]),
        (lambda lines: lines.__setitem__(0, lines[0].replace('"version":1', '"version":2')), ["version 2", "reads version 1"]),
        (lambda lines: lines.__setitem__(0, lines[0].replace('"seed":7', '"seed":-7')), ["seed", "-7"]),
        (lambda lines: lines.__setitem__(0, "{}"), ["not a session file"]),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, change: Any, words: list[str]) -> None:
    path = walk(tmp_path / "a.session.jsonl")
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join([*lines, ""]))
    with pytest.raises(SessionError) as error:
        read_session(path)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value) and len(str(error.value)) < 400, error.value


def test_what_is_no_session_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 100)
    for name, words in (("empty", "is empty"), ("noise", "damaged"), ("gone", "no such"), (".", "folder"), ("/dev/zero", "no such")):
        with pytest.raises(SessionError, match=words):
            read_session(tmp_path / name)
    assert not looks_like_session(tmp_path / "noise")


def test_a_session_file_is_never_written_over(tmp_path: Path) -> None:
    walk(tmp_path / "a.session.jsonl")
    before = (tmp_path / "a.session.jsonl").read_bytes()
    with pytest.raises(SinkError, match="exists already"):
        Table(tmp_path / "a.session.jsonl")
    assert (tmp_path / "a.session.jsonl").read_bytes() == before


WORLD = SimpleNamespace(config=FakeConfig(), start_pixels=lambda start=None: PICTURE // 2)  # whose own picture is another one


def test_the_start_picture_travels_without_loss(tmp_path: Path) -> None:
    import base64
    import io

    from game.sessionheader import _png, pixels_hash

    path = tmp_path / "a.session.jsonl"
    walk(path)
    session = read_session(path)
    session.header["start"]["png"] = _png(PICTURE)
    assert (start_of(session, WORLD, None) == PICTURE).all()
    for text in (_png(PICTURE // 3), _png(PICTURE[:8]), "no base64", 7, base64.b64encode(b"no picture").decode(), _png(PICTURE)[:60]):
        session.header["start"]["png"] = text
        with pytest.raises(SessionError, match="--start"):
            start_of(session, WORLD, None)
    bomb = io.BytesIO()
    Image.new("1", (4000, 4000)).save(bomb, "PNG")
    session.header["start"]["png"] = base64.b64encode(bomb.getvalue()).decode()
    with pytest.raises(SessionError, match="--start"):
        start_of(session, WORLD, None)
    session.header["start"]["png"] = None
    with pytest.raises(SessionError, match="give it with --start"):
        start_of(session, WORLD, None)
    own = SimpleNamespace(config=FakeConfig(), start_pixels=lambda start=None: PICTURE)
    assert start_of(session, own, None) is None and pixels_hash(start_of(session, own, Path("x.png"))) == pixels_hash(PICTURE)
    with pytest.raises(SessionError, match="not the picture"):
        start_of(session, WORLD, Path("x.png"))


# ---- hostile files

opened: list[str] = []
watching = False


def _watch(event: str, arguments: tuple) -> None:
    if watching and event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        opened.append(f"{event} {arguments[0]}")


sys.addaudithook(_watch)
NASTY = [
    None, True, -1, 2**31, 10**40, 1e308, -0.0, "", "x" * 5000, "/etc/passwd", "../../secret", "http://127.0.0.1:9/x", "\0", "\ud800",
    [], {}, [[]] * 50, {"a": {"b": []}}, [1e400], ["w"] * 1000,
]  # fmt: skip


def _mutate(data: bytes, generator: random.Random, kinds: int = 6) -> bytes:
    kind = generator.randrange(kinds)
    if kind == 0:  # bytes
        changed = bytearray(data)
        for _ in range(generator.randint(1, 8)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        return bytes(changed)
    if kind == 1:  # a piece missing, or twice
        a, b = sorted(generator.randrange(len(data)) for _ in range(2))
        return data[:a] + (data[b:] if generator.random() < 0.5 else data[a:b] * 2 + data[b:])
    lines = data.splitlines(keepends=True)
    number = generator.randrange(len(lines))
    if kind == 2:
        lines.insert(generator.randrange(len(lines)), lines.pop(number))
    else:  # a value of another kind, everything else in order
        line = json.loads(lines[number])
        where: Any = line
        while True:
            key = generator.choice(list(where) if isinstance(where, dict) else range(len(where)))
            if isinstance(where[key], (dict, list)) and where[key] and generator.random() < 0.6:
                where = where[key]
                continue
            where[key] = generator.choice(NASTY)
            break
        lines[number] = json.dumps(line).encode() + b"\n"
    if generator.random() < 0.7:  # without its end the session is one that broke off, and no hash protects it
        lines.pop()
    return b"".join(lines)


def test_mutated_sessions_and_scripts_give_only_our_own_errors(tmp_path: Path) -> None:
    from game.replay import Plan, ReplaySession
    from tests.game.dream import Dream

    global watching
    path = tmp_path / "a.session.jsonl"
    table = Table(path)
    table.sink._header = lambda: header()
    table.play(*[Action("w")] * 3, Action(look=(0.1, 0.2)))
    table.load(Saved(3, (Action("s"),)))
    table.play(Action("d"))
    table.rewind(1)
    table.play(Action("a"), Action("a"))
    table.sink.close()
    data, script = path.read_bytes(), write_script([Action("w"), Action(look=(0.1, 0.2)), Action({"w", "l"})] * 3, ["a walk"])
    assert len(Plan(read_session(path))) == 7
    Image.preinit()  # reads files of its own
    generator = random.Random(5)
    outcomes = {"read": 0, "refused": 0}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    for _ in range(times(400, 100_000)):
        path.write_bytes(_mutate(data, generator))
        text = _mutate(script.encode(), generator, kinds=2).decode("latin-1")
        opened.clear()
        began, watching = time.thread_time(), True
        try:
            session = read_session(path)
            plan = Plan(session)
            write_script(block.action for block in session.lineage(session.blocks[-1].epoch))
            dream = Dream()
            replay = ReplaySession(dream, plan, None, {"5" * 64: Saved(3, (Action("s"),))})
            start_of(session, WORLD, None)
            outcomes["read"] += 1
        except SessionError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            outcomes["refused"] += 1
            if "--start" in str(error):  # everything else was in order
                outcomes["read"] += 1
                _step_through(replay, plan)
        finally:
            watching = False
        try:
            parse_script(text, WALK.keys)
        except ScriptError as error:
            assert "\n" not in str(error)
        slowest = max(slowest, time.thread_time() - began)
        assert set(opened) <= {f"open {path}"}, opened
    assert outcomes["read"] > 20 and outcomes["refused"] > 100, outcomes
    assert slowest < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # kilobytes


def _step_through(replay: Any, plan: Any) -> None:
    for number in range(len(plan)):
        try:
            replay.step(plan.at(number))
        except SessionError:
            return
        except Exception as error:
            assert type(error).__name__ == "WorldError", error  # a key this world does not have
            return
