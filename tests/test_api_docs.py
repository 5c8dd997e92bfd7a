"""What the documents promise in Python: every example of docs/API.md and README.md, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTION = re.compile(r"^## (?P<title>[^\n]+)$(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections() -> list[tuple[str, str, list[str]]]:
    """(document, title, examples) of every section that has any."""
    found = []
    for document in ("README.md", "docs/API.md"):
        for section in SECTION.finditer((ROOT / document).read_text(encoding="utf-8")):
            found.append((document, section["title"], EXAMPLE.findall(section["body"])))
    return [section for section in found if section[2]]


@pytest.mark.parametrize(("document", "title", "examples"), sections(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_examples_run(document: str, title: str, examples: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any("gymnasium" in example for example in examples):
        pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'reverie[gym]'")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, example in enumerate(examples, 1):
        exec(compile(example, f"{document}, {title}, example {number}", "exec"), names)


def test_no_example_escapes() -> None:
    text = (ROOT / "docs" / "API.md").read_text(encoding="utf-8")
    found = sum(len(examples) for document, _, examples in sections() if document == "docs/API.md")
    assert found == text.count("```") // 2 >= 10
