"""Hashes and rewritten `.pth` files: used again as long as the original is the same, and never trusted further."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from models import filecache
from models.checkpoint import read_weights
from models.errors import WeightError
from models.filecache import cache_folder, file_hash, find_rewritten, rewrite, write_safetensors
from models.weightfile import PickleFile, SafetensorsFile
from tests.published import age

SHAPES = {"a": (3, 4), "b": (5,)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "w.pth"
    path.parent.mkdir()
    torch.save({"visual.a": torch.arange(12.0).view(3, 4), "visual.b": torch.ones(5).bfloat16(), "textual.c": torch.zeros(9)}, path)
    age(path)
    return path


def read(path: Path) -> dict[str, torch.Tensor]:
    return read_weights(path, SHAPES, "visual.", only=True)


def test_hashes_are_kept(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"one")
    age(path)
    one = hashlib.sha256(b"one").hexdigest()
    assert file_hash(path) == one
    with monkeypatch.context() as patch:
        patch.setattr(filecache, "sha256", lambda _: pytest.fail("hashed again"))
        assert file_hash(path) == one
    path.write_bytes(b"two")
    age(path, 30)  # same size, another time
    assert file_hash(path) == hashlib.sha256(b"two").hexdigest()
    (own_cache / "hashes.json").write_text('{"broken')
    assert file_hash(path) == hashlib.sha256(b"two").hexdigest()
    stat = path.stat()
    (own_cache / "hashes.json").write_text(json.dumps({str(path): [stat.st_size, stat.st_mtime_ns, "../../etc/passwd"]}))
    assert file_hash(path) == hashlib.sha256(b"two").hexdigest()
    (own_cache / "hashes.json").write_text(json.dumps({str(path): [stat.st_size, stat.st_mtime_ns, "0" * 64]}))
    assert file_hash(path) == "0" * 64 and file_hash(path, fresh=True) == hashlib.sha256(b"two").hexdigest() == file_hash(path)
    path.unlink()
    with pytest.raises(WeightError, match="cannot read"):
        file_hash(path)


def test_a_young_file_is_not_remembered(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "w").write_bytes(b"one")
    file_hash(tmp_path / "w")
    assert not (own_cache / "hashes.json").exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pth: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "file" / "cache"))
    assert file_hash(pth) == hashlib.sha256(pth.read_bytes()).hexdigest()


def test_a_pickle_is_read_once(pth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(pth)
    made = pth.with_name("w.visual.reverie.safetensors")
    assert SafetensorsFile(made).shapes == {"visual.a": (3, 4), "visual.b": (5,)}  # nothing of the rest
    assert SafetensorsFile(made).dtypes == {"visual.a": "F32", "visual.b": "BF16"}  # and not a number changed
    assert {file.name for file in pth.parent.iterdir()} == {pth.name, made.name}
    with monkeypatch.context() as patch:
        patch.setattr("torch.load", lambda *_, **__: pytest.fail("unpickled again"))
        assert all(torch.equal(tensor, first[name]) for name, tensor in read(pth).items())
    torch.save({"visual.a": torch.zeros(3, 4), "visual.b": torch.zeros(5)}, pth)
    age(pth, 30)
    assert read(pth)["a"].sum() == 0  # another original: made anew
    assert read(pth)["a"].sum() == 0 and find_rewritten(pth, "visual.") is not None


def test_a_rewritten_file_is_checked_like_any_other(pth: Path) -> None:
    read(pth)
    made = pth.with_name("w.visual.reverie.safetensors")
    notes = SafetensorsFile(made).metadata
    made.write_bytes(made.read_bytes()[:-1])
    assert read(pth)["a"].sum() == 66  # damaged: not used
    wrong = {"visual.a": torch.zeros(4, 3), "visual.b": torch.zeros(5)}
    assert write_safetensors(made, {name: ("F32", tuple(t.shape)) for name, t in wrong.items()}, wrong.__getitem__, notes)
    assert read(pth)["a"].sum() == 66  # other shapes: the original counts
    bad = {"visual.a": torch.full((3, 4), float("nan")), "visual.b": torch.zeros(5)}
    assert write_safetensors(made, {name: ("F32", tuple(t.shape)) for name, t in bad.items()}, bad.__getitem__, notes)
    with pytest.raises(WeightError, match=r"visual\.a holds NaN .* \(or delete it: it was made from w\.pth\)"):
        read(pth)


def test_where_the_folder_cannot_be_written(pth: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is really in the way of writing where we are not root; a link is never written beside."""
    link = pth.parent.parent / "link.pth"
    link.symlink_to(pth)
    assert read(link)["a"].sum() == 66
    (made,) = (cache_folder() / "rewritten").rglob("*.safetensors")
    assert made.name == "link.visual.reverie.safetensors" and not list(link.parent.glob("*.safetensors"))
    if os.geteuid() != 0:
        pth.parent.chmod(0o500)
        read(pth)
        assert find_rewritten(pth, "visual.").path.is_relative_to(own_cache)
        pth.parent.chmod(0o700)
    monkeypatch.setattr(filecache, "_places", lambda path, part: [path / "no" / "folder"])
    assert read(pth)["a"].sum() == 66 and rewrite(PickleFile(pth), "visual.") is None  # nowhere at all: read as it is


def test_a_failed_rewriting_leaves_nothing(pth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert read(pth)["a"].sum() == 66
    assert [file.name for file in pth.parent.iterdir()] == [pth.name]


def test_a_mapped_pickle_gives_its_pages_back(pth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.weightfile.PICKLE_PAGES", 50)
    file = PickleFile(pth)
    loads = []
    monkeypatch.setattr(PickleFile, "_load", lambda self, load=PickleFile._load: loads.append(1) or load(self))
    assert file.read("visual.a").sum() == 66 and file.read("visual.b").sum() == 5 and file.read("visual.a").sum() == 66
    assert len(loads) == 2  # before the second and the third


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_loading_never_holds_the_file_and_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """96 MB of float32 become 48 MB of bfloat16: the peak is those, and two tensors of 8 MB. A `.pth` is mapped piece by piece."""
    monkeypatch.setattr("models.weightfile.PICKLE_PAGES", 16 << 20)
    table = {f"t{i:02}": ("F32", (1024, 2048)) for i in range(12)}
    shapes = {name: shape for name, (_, shape) in table.items()}
    files = [tmp_path / "small.safetensors", tmp_path / "w.safetensors", tmp_path / "w.pth"]
    write_safetensors(files[0], {"t": ("F32", (8, 8))}, lambda _: torch.ones(8, 8))
    read_weights(files[0], {"t": (8, 8)}, dtype=torch.bfloat16)  # what torch itself brings into memory at the first use
    write_safetensors(files[1], table, lambda _: torch.ones(1024, 2048))
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, files[2])
    age(files[2])
    for file in files[1:]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        tensors = read_weights(file, shapes, dtype=torch.bfloat16)
        peak = memory("VmHWM") - before
        assert sum(tensor.nbytes for tensor in tensors.values()) == 48 << 20
        assert peak < (48 + 16 + (16 if file.suffix == ".pth" else 0) + 4) << 20, f"{file.name}: {peak >> 20} MB"
        del tensors
    assert find_rewritten(files[2]) is not None


def memory(key: str) -> int:
    """Bytes, from this process's status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10
