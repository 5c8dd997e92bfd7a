"""What lies under the name of a weight file but is none: recognised by its first bytes, its name, or its missing end."""

from __future__ import annotations

import os
import re
from pathlib import Path

from models.errors import WeightError, one_line

KINDS = (".safetensors", ".pth", ".pt")
REMAINS = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")  # what downloads leave when cut off
WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<[!?A-Za-z]")
ZIP, ZIP_END = b"PK\x03\x04", b"PK\x05\x06"


def refuse_other_kinds(path: Path) -> None:
    """Raise WeightError, with what it is and what to do, unless the file may be a weight file of the kind its name says."""
    if path.is_dir():
        raise WeightError(f"{path} is a folder, not a weight file; give a .safetensors or .pth file in it")
    if os.path.exists(path) and not os.path.isfile(path):  # unlike Path's own, these take names of any length
        raise WeightError(f"{path} is a pipe or a device, not a weight file; give a .safetensors or .pth file")
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise WeightError(f"there is no weight file {path}{unfinished(path)}") from None
    except OSError as error:
        raise WeightError(f"cannot read the weight file {path}: {error.strerror or error}") from None
    _refuse_by_content(path, head, size)
    _refuse_by_name(path, head)


def unfinished(path: Path) -> str:
    """Words about what a cut-off download of ``path`` has left near it; empty where there is nothing."""
    for remains in _remains(path):
        return f", but {remains} of a download that did not finish ({remains.stat().st_size:,} bytes): let it go on"
    return ""


def broken_end(path: Path) -> WeightError | None:
    """The refusal for a `.pth` whose beginning is in order and whose end (the table of a zip) is not there; None otherwise."""
    try:
        with open(path, "rb") as file:
            begins = file.read(4) == ZIP
            size = file.seek(0, 2)
            file.seek(max(0, size - (1 << 16)))
            ends = ZIP_END in file.read()
    except OSError:
        return None
    if not begins or ends:
        return None
    return WeightError(
        f"{path} is a half download: {size:,} bytes are here and its end is missing; let the download finish, or fetch it again"
    )


def _refuse_by_content(path: Path, head: bytes, size: int) -> None:
    if not head:
        raise WeightError(f"{path} is empty: the download did not finish; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        stands = re.search(rb"\nsize (\d{1,15})\n", head)
        what = f" that stands for {int(stands[1]):,} bytes" if stands else ""
        raise WeightError(f"{path} is a Git-LFS pointer{what}, not the weights; run 'git lfs pull' there, or download the file itself")
    if WEB_PAGE.match(head) and b"\0" not in head[:8]:  # a safetensors header's length may read "<h", but has zeros above that
        raise WeightError(f"{path} is a web page, not weights (an error or login page saved under this name); download the file itself")
    if size < len(head) + 1 and size < 4096 and _is_text(head):
        words = one_line(head.decode(), 60)
        raise WeightError(f"{path} is a text of {size} bytes ({words!r}), not weights; download the file itself")


def _refuse_by_name(path: Path, head: bytes) -> None:
    if path.suffix in REMAINS:
        raise WeightError(f"{path} is what an unfinished download leaves behind; let the download go on until it has its own name")
    if path.suffix not in KINDS:
        raise WeightError(f"{path}: weights are .safetensors or .pth files, not '{path.suffix}'")
    pickle = head.startswith((ZIP, b"\x80\x02"))
    if path.suffix == ".safetensors" and pickle:
        raise WeightError(f"{path} is a PyTorch file under the name of a safetensors file; rename it to {path.stem}.pth")
    if path.suffix != ".safetensors" and head[8:10] in (b'{"', b"{}", b"{ "):
        raise WeightError(f"{path} is a safetensors file under the name of a PyTorch file; rename it to {path.stem}.safetensors")


def _remains(path: Path) -> list[Path]:
    """Left-overs of the common downloaders beside ``path``, and those of huggingface_hub in its own folder for them."""
    beside = [path.with_name(path.name + ending) for ending in REMAINS]
    hidden = [folder / ".cache" / "huggingface" / "download" for folder in list(path.parents)[:3]]
    try:
        deeper = [file for folder in hidden if folder.is_dir() for file in sorted(folder.rglob("*.incomplete"))]
        return [file for file in (*beside, *deeper) if file.is_file()]
    except OSError:
        return []


def _is_text(data: bytes) -> bool:
    try:
        return all(character.isprintable() or character.isspace() for character in data.decode())
    except UnicodeDecodeError:
        return False
