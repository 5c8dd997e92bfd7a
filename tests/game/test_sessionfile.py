import random

import pytest

from game.sessionfile import MAX_BYTES, MAX_COUNT, Script, ScriptError, demo_script, parse_script, read_script

KEYS = ("w", "s", "a", "d", "i", "k", "j", "l")


def played(script: Script) -> list[str]:
    return ["+".join(sorted(script.at(block))) for block in range(len(script))]


def test_words_become_blocks() -> None:
    assert played(parse_script("w*3 w+l*2 idle j", KEYS)) == ["w", "w", "w", "l+w", "l+w", "", "j"]
    assert played(parse_script("W*1\n\tA+D IDLE*2\r\n", KEYS)) == ["w", "a+d", "", ""]


def test_nothing_is_pressed_after_the_end() -> None:
    script = parse_script("w*2", KEYS)
    assert script.at(1) == {"w"} and script.at(2) is None


def test_counts_cost_nothing() -> None:
    script = parse_script(f"w*{MAX_COUNT} " * 1000, KEYS)
    assert len(script) == 1000 * MAX_COUNT
    assert script.at(len(script) - 1) == {"w"} and script.at(len(script)) is None


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
        text = "".join(generator.choice("w+*3 9idle\n\0é\t²-.") for _ in range(generator.randint(0, 30)))
        try:
            parse_script(text, KEYS)
        except ScriptError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("keys", [KEYS, ("w", "s", "a", "d"), ("w", "s", "z", "c", "a", "d"), ("x",), ()])
def test_every_world_has_a_demo_walk(keys: tuple[str, ...]) -> None:
    script = demo_script(keys)
    assert 1 <= len(script) < 60
    pressed = set().union(*(script.at(block) for block in range(len(script))))
    assert pressed <= set(keys) and (pressed or not keys)
    assert script.at(len(script)) == script.at(0), "it begins again"
