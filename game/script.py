"""Scripts: what `--script` plays, one action a block, as words a person can write.

w*3            three blocks with W held
w+l*2 idle     two blocks of both keys, one of nothing
look(0.2,-1)   an analogue look: pitch (+ is up) and yaw (+ is right), each from -1 to 1; no spaces inside
w+look(0,.5)*4 # and this is a comment, up to the end of the line
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby
from pathlib import Path

from engine import Action

MAX_COUNT = 100_000  # blocks one word may ask for: 20 hours of the garden
MAX_BYTES = 1_000_000  # of a script

WIDTH = 100  # characters a line of a written script

_WORD = re.compile(r"(?P<keys>[^*\s]+)(?:\*(?P<count>[^*\s]+))?")
_LOOK = re.compile(r"look\((?P<pitch>[^(),]*),(?P<yaw>[^(),]*)\)")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?")


class ScriptError(ValueError):
    """A script that cannot be played; one line that names the place, the word and what would be right."""


class Script:
    """Actions by block, kept as runs: `w*1000` costs as much as `w`."""

    def __init__(self, runs: Sequence[tuple[Action, int]], endless: bool = False) -> None:
        """``runs`` are (action, number of blocks); ``endless``: begins again when it is over."""
        self.endless = endless
        self._actions = [action for action, _ in runs]
        self._ends = list(accumulate(count for _, count in runs))

    def __len__(self) -> int:
        """Number of blocks (once through)."""
        return self._ends[-1] if self._ends else 0

    def at(self, block: int) -> Action | None:
        """What is done during ``block`` (from 0), or None after the end."""
        if self.endless:
            block %= len(self)
        run = bisect_right(self._ends, block)
        return self._actions[run] if run < len(self._actions) else None


def parse_script(text: str, keys: Sequence[str], name: str = "script") -> Script:
    """Read words such as ``w*3 w+look(0,1)*2 idle``: keys and a look joined by +, times a number of blocks; # begins a comment.

    ``keys`` are the physical keys the world knows; ``name`` stands at the head of a `ScriptError`.
    """
    if len(text) > MAX_BYTES:
        raise ScriptError(f"{name}: {len(text)} characters are too long, at most {MAX_BYTES} are read")
    known = {key.lower(): key for key in keys}
    runs: list[tuple[Action, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        for match in re.finditer(r"\S+", line.partition("#")[0]):
            word = match.group()
            place = f"{name}: line {number}, column {match.start() + 1}: {_shorten(word)}"
            runs.append(_parse_word(word, known, place))
    if not runs:
        raise ScriptError(f'{name}: no words in it; write for example "w*3 w+l*2 idle"')
    return Script(runs)


def _parse_word(word: str, known: dict[str, str], place: str) -> tuple[Action, int]:
    match = _WORD.fullmatch(word)
    if match is None:
        raise ScriptError(f"{place} is not of the form KEYS or KEYS*COUNT")
    count = match["count"] or "1"
    if not (count.isascii() and count.isdigit() and len(count) <= 9 and 1 <= int(count) <= MAX_COUNT):
        raise ScriptError(f"{place}: the count must be a whole number from 1 to {MAX_COUNT}, not {_shorten(count)}")
    names, look = _parse_look(match["keys"].lower(), place)
    if names == ["idle"] and look is None:
        return Action(), int(count)
    for name in names:
        if name == "idle":
            raise ScriptError(f"{place}: idle cannot be joined with anything")
        if name not in known:
            raise ScriptError(
                f"{place}: unknown key {_shorten(name)}; this world knows {' '.join(known.values())}, idle and look(PITCH,YAW)"
            )
    return Action(frozenset(known[name] for name in names), look or (0.0, 0.0)), int(count)


def _parse_look(text: str, place: str) -> tuple[list[str], tuple[float, float] | None]:
    """The keys of a word, and its look if there is one."""
    match = _LOOK.search(text)
    if match is None:
        if "look" in text or "(" in text:
            raise ScriptError(f"{place}: a look is written look(PITCH,YAW), without spaces, for example w+look(0.2,-1)*3")
        return text.split("+"), None
    before, after = text[: match.start()], text[match.end() :]
    if (before and not before.endswith("+")) or (after and not after.startswith("+")) or "look" in before + after:
        raise ScriptError(f"{place}: one look(PITCH,YAW) can be joined with keys by +")
    numbers = [match["pitch"], match["yaw"]]
    for number in numbers:
        if not (len(number) <= 30 and _NUMBER.fullmatch(number) and -1 <= float(number) <= 1):
            raise ScriptError(f"{place}: pitch and yaw are numbers from -1 to 1, not {_shorten(number)}")
    return before.split("+")[:-1] + after.split("+")[1:], (float(numbers[0]), float(numbers[1]))


def write_script(actions: Iterable[Action], comments: Iterable[str] = ()) -> str:
    """The text of a script that plays ``actions``, one a block, exactly; ``comments`` stand above it, a line each."""
    lines = [f"# {comment}" for comment in comments]
    line = ""
    for action, run in groupby(actions):
        count = sum(1 for _ in run)
        while count:
            part = min(count, MAX_COUNT)
            count -= part
            word = _word(action) + (f"*{part}" if part > 1 else "")
            if line and len(line) + len(word) >= WIDTH:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line, ""])


def _word(action: Action) -> str:
    names = sorted(action.keys)
    if any(action.look):
        names.append(f"look({action.look[0]!r},{action.look[1]!r})")
    return "+".join(names) or "idle"


def read_script(argument: str, keys: Sequence[str]) -> Script:
    """The script in the file ``argument``, or ``argument`` itself as the text of one."""
    path = Path(argument)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a name, or not one at all
        is_file = False
    if not is_file:
        if len(argument.split()) == 1 and "*" not in argument and ("." in argument or "/" in argument):
            raise ScriptError(f"--script {_shorten(argument)}: no such file (and not a script such as w*3)")
        return parse_script(argument, keys, "--script")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return parse_script(data.decode("utf-8-sig"), keys, str(path))
    except OSError as error:
        raise ScriptError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScriptError(f"{path}: is not a text file (bad byte at {error.start})") from error


def demo_script(keys: Sequence[str]) -> Script:
    """An endless walk that tries what the world's ``keys`` can do: what is played where nobody can steer."""
    walk = "w*4 w+l*2 w*3 l*3 w*4 w+j*2 j*2 w*3 i k idle w+d*2 w+a*2 w*3 s*2 idle".split()
    words = [word for word in walk if all(key in keys for key in word.split("*")[0].split("+")) or word == "idle"]
    if sum(word != "idle" for word in words) < 3:
        words = [word for key in keys for word in (f"{key}*2", "idle")]
    return Script([_parse_word(word, {key: key for key in keys}, "demo walk") for word in words] or [(Action(), 8)], endless=True)


def _shorten(text: str, limit: int = 40) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
