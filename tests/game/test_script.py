import random

import pytest

from engine import Action
from game.script import MAX_BYTES, MAX_COUNT, Script, ScriptError, demo_script, parse_script, read_script, write_script

KEYS = ("w", "s", "a", "d", "i", "k", "j", "l")


def played(script: Script) -> list[str]:
    return ["+".join(sorted(script.at(block).keys)) for block in range(len(script))]


def test_words_become_blocks() -> None:
    assert played(parse_script("w*3 w+l*2 idle j", KEYS)) == ["w", "w", "w", "l+w", "l+w", "", "j"]
    assert played(parse_script("W*1\n\tA+D IDLE*2\r\n", KEYS)) == ["w", "a+d", "", ""]


def test_looks_and_comments() -> None:
    script = parse_script("# a walk\nlook(0.2,-1)*2 w+LOOK(.5,1e-3)+d # and back\n#idle\nlook(0,0)", KEYS)
    actions = [script.at(block) for block in range(len(script))]
    back = Action({"w", "d"}, (0.5, 0.001))
    assert actions == [Action(look=(0.2, -1)), Action(look=(0.2, -1)), back, Action()]
    with pytest.raises(ScriptError, match="no words"):
        parse_script("# only talk", KEYS)


def test_what_is_written_is_read_again_to_the_bit() -> None:
    generator = random.Random(1)
    look = [(0.0, 0.0), (0.1 + 0.2, -1 / 3), (1.0, -5e-324), (generator.uniform(-1, 1), 1e-7)]
    actions = [Action(generator.sample(KEYS, generator.randint(0, 3)), generator.choice(look)) for _ in range(500)]
    actions += [Action("w")] * (MAX_COUNT + 5)
    text = write_script(actions, ["the garden", "seed 7"])
    script = parse_script(text, KEYS)
    assert [script.at(block) for block in range(len(script))] == actions
    assert text.startswith("# the garden\n# seed 7\n") and max(map(len, text.splitlines())) < 200


def test_nothing_is_pressed_after_the_end() -> None:
    script = parse_script("w*2", KEYS)
    assert script.at(1) == Action("w") and script.at(2) is None


def test_counts_cost_nothing() -> None:
    script = parse_script(f"w*{MAX_COUNT} " * 1000, KEYS)
    assert len(script) == 1000 * MAX_COUNT
    assert script.at(len(script) - 1) == Action("w") and script.at(len(script)) is None


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("w*3 q", "line 1, column 5", "unknown key 'q'; this world knows w s a d"),
        ("w\n w+x*2", "line 2, column 2", "unknown key 'x'"),
        ("w*0", "column 1", "whole number from 1 to"),
        ("w*-1", "column 1", "whole number from 1 to"),
        ("w*1.5", "column 1", "whole number from 1 to"),
        (f"w*{MAX_COUNT + 1}", "column 1", "whole number from 1 to"),
        ("w*99999999999999999999999", "column 1", "whole number from 1 to"),
        ("w*²", "column 1", "whole number from 1 to"),
        ("w*", "column 1", "KEYS*COUNT"),
        ("*3", "column 1", "KEYS*COUNT"),
        ("w*2*2", "column 1", "KEYS*COUNT"),
        ("w++l", "column 1", "unknown key ''"),
        ("idle+w", "column 1", "idle cannot be joined"),
        ("w * 3", "column 3", "KEYS*COUNT"),
        ("look", "column 1", "look(PITCH,YAW)"),
        ("look(0, 1)", "column 1", "look(PITCH,YAW)"),
        ("look(0,2)", "column 1", "from -1 to 1, not '2'"),
        ("look(0,nan)", "column 1", "from -1 to 1, not 'nan'"),
        ("look(,1)", "column 1", "from -1 to 1, not ''"),
        ("look(0,1e-9999)", "column 1", "from -1 to 1"),
        ("wlook(0,1)", "column 1", "joined with keys by +"),
        ("look(0,1)+look(0,1)", "column 1", "one look"),
        ("look(0,1)+", "column 1", "unknown key ''"),
        ("idle+look(0,1)", "column 1", "idle cannot be joined"),
    ],
)
def test_a_bad_word_is_named_with_its_place(text: str, place: str, why: str) -> None:
    with pytest.raises(ScriptError) as error:
        parse_script(text, KEYS)
    assert place in str(error.value) and why in str(error.value) and "\n" not in str(error.value)


def test_empty_and_endless_texts_are_refused() -> None:
    for text in ("", "  \n ", "w " * MAX_BYTES):
        with pytest.raises(ScriptError):
            parse_script(text, KEYS)


def test_scripts_from_files(tmp_path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text("w*2\nj\n", encoding="utf-8-sig")
    assert played(read_script(str(file), KEYS)) == ["w", "w", "j"]
    assert played(read_script("w*2 j", KEYS)) == ["w", "w", "j"]
    file.write_text("w*2\n nonsense", encoding="utf-8")
    with pytest.raises(ScriptError, match=r"walk.txt: line 2, column 2: 'nonsense'"):
        read_script(str(file), KEYS)
    file.write_bytes(b"w*2 \xff\xfe")
    with pytest.raises(ScriptError, match="not a text file"):
        read_script(str(file), KEYS)
    with pytest.raises(ScriptError, match="no such file"):
        read_script(str(tmp_path / "gone.txt"), KEYS)
    with pytest.raises(ScriptError):
        read_script("w" * 100_000, KEYS)


def test_noise_makes_only_script_errors() -> None:
    generator = random.Random(0)
    for _ in range(3000):
        text = "".join(generator.choice("w+*3 9idle\n\0é\t²-.look(,)#") for _ in range(generator.randint(0, 30)))
        try:
            parse_script(text, KEYS)
        except ScriptError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("keys", [KEYS, ("w", "s", "a", "d"), ("w", "s", "z", "c", "a", "d"), ("x",), ()])
def test_every_world_has_a_demo_walk(keys: tuple[str, ...]) -> None:
    script = demo_script(keys)
    assert 1 <= len(script) < 60
    pressed = set().union(*(script.at(block).keys for block in range(len(script))))
    assert pressed <= set(keys) and (pressed or not keys)
    assert script.at(len(script)) == script.at(0), "it begins again"
