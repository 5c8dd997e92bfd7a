from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoint import build_empty, load_into, read_weights
from models.errors import WeightError, WorldError
from models.filecache import sha256

EXPECTED = {"a.weight": (3, 4), "a.bias": (3,), "b.weight": (2, 3, 1)}


def tensors(prefix: str = "", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {prefix + name: torch.randn(shape, generator=generator).to(dtype) for name, shape in EXPECTED.items()}


def saved(folder: Path, data: dict[str, Tensor], name: str = "w.safetensors") -> Path:
    path = folder / name
    save_file(data, path) if path.suffix == ".safetensors" else torch.save(data, path)
    return path


def refusal(path: object, **options: object) -> str:
    with pytest.raises(WeightError) as caught:
        read_weights(path, EXPECTED, **options)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, WorldError)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt"])
@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_reads_any_kind_and_precision(tmp_path: Path, name: str, prefix: str, stored: torch.dtype) -> None:
    path = saved(tmp_path, tensors(prefix, stored), name)
    found = read_weights(path, EXPECTED)
    assert list(found) == list(EXPECTED)
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors(dtype=stored)[key].float())
    assert read_weights(path, EXPECTED, dtype=torch.bfloat16)["a.bias"].dtype == torch.bfloat16


def test_weights_do_not_hang_on_the_file(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.pth"):
        path = saved(tmp_path, tensors(), name)
        found = read_weights(path, EXPECTED)
        path.write_bytes(b"\0" * path.stat().st_size)
        assert torch.equal(found["a.weight"], tensors()["a.weight"])


def test_old_pickles_are_read_too(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pth", EXPECTED)["a.bias"], tensors()["a.bias"])


def test_shards(tmp_path: Path) -> None:
    data = tensors()
    one = saved(tmp_path, {"a.weight": data["a.weight"]}, "1.safetensors")
    other = saved(tmp_path, {"model.a.bias": data["a.bias"], "model.b.weight": data["b.weight"]}, "2.safetensors")
    assert torch.equal(read_weights([one, other], EXPECTED)["b.weight"], data["b.weight"])
    assert "lacks a.bias" in refusal([one])
    assert "a.weight is also in 1.safetensors" in refusal([one, other, saved(tmp_path, {"a.weight": data["a.weight"]}, "3.safetensors")])
    assert "no file at all" in refusal([])


def test_one_part_of_a_larger_file(tmp_path: Path) -> None:
    data = {**tensors("visual."), "textual.x": torch.zeros(5), "log_scale": torch.zeros(())}
    for name in ("w.pth", "w.safetensors"):
        assert set(read_weights(saved(tmp_path, data, name), EXPECTED, prefix="visual.", only=True)) == set(EXPECTED)
    assert "(2 unknown): weights of another world?" in refusal(saved(tmp_path, data), prefix="visual.")


def test_wrong_names_and_shapes(tmp_path: Path) -> None:
    data = tensors()
    renamed = {"a.weight": data["a.weight"], "a.bais": data["a.bias"], "b.weight": data["b.weight"]}
    path = saved(tmp_path, renamed)
    counts = "1 of 3 tensors missing, 1 unknown"
    assert refusal(path) == f"{path} lacks a.bias but has a.bais ({counts}): these are not the weights of this world"
    path = saved(tmp_path, {**data, "c": torch.zeros(1)})
    assert refusal(path) == f"{path} has c, which this world's model does not (1 unknown): weights of another world?"
    path = saved(tmp_path, {**data, "a.weight": torch.zeros(4, 3)})
    wanted = f"{path}: a.weight is [4, 3] instead of [3, 4] (1 tensor differs in shape): weights of another world or size"
    assert refusal(path) == wanted
    assert "lacks a.weight (3 of 3 tensors missing, 0 unknown)" in refusal(saved(tmp_path, {}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float) -> None:
    for name in ("w.safetensors", "w.pth"):
        for dtype in (torch.float32, torch.bfloat16):
            data = tensors("model.", dtype)
            data["model.b.weight"][1, 2] = value
            assert "model.b.weight holds NaN or infinite numbers" in refusal(saved(tmp_path, data, name))
    data = tensors()
    data["a.bias"][0] = 1e6
    assert "infinite numbers as float16" in refusal(saved(tmp_path, data), dtype=torch.float16)


def test_files_that_are_not_there_or_not_weights(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.safetensors") == f"there is no weight file {tmp_path / 'none.safetensors'}"
    assert "is a folder, not a weight file" in refusal(tmp_path)
    for name in ("x.safetensors", "x.pth"):
        path = tmp_path / name
        path.touch()
        assert "is empty" in refusal(path)
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert "Git-LFS pointer" in refusal(path)
        path.write_text("<!DOCTYPE html><html></html>")
        assert "web page" in refusal(path)
        path.write_bytes(random.Random(0).randbytes(1000))
        assert "is damaged or not a weight file" in refusal(path)
    assert "not '.bin'" in refusal(saved(tmp_path, tensors(), "x.pth").rename(tmp_path / "x.bin"))
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "holds no table of tensors" in refusal(tmp_path / "list.pth")
    torch.save({"a": Path("x")}, tmp_path / "objects.pth")
    assert "holds Python code or objects (pathlib" in refusal(tmp_path / "objects.pth")
    whole = saved(tmp_path, {**tensors(), "a.bias": torch.zeros(3, dtype=torch.int64)})
    assert "a.bias is stored as I64" in refusal(whole)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch evil",)


@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_a_pickle_with_code_in_it(protocol: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said to be one, without torch's advice to run it, and nothing is run or printed. ``protocol`` None: written by torch.save."""
    monkeypatch.chdir(tmp_path)
    if protocol is None:
        torch.save({"a": Evil()}, "w.pth")
    else:
        Path("w.pth").write_bytes(pickle.dumps({"a": Evil()}, protocol))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = refusal(Path("w.pth"))
    assert ("PyTorch 2.6" not in said) and not Path("evil").exists(), said
    if protocol is None:
        assert "w.pth holds Python code or objects (posix.system), which are never run or read here" in said
    elif protocol == 4:
        assert "w.pth is a pickle that torch.save did not write and may hold Python code, which is never run here" in said
    Path("w.pth").write_bytes(random.Random(0).randbytes(1000))
    assert "w.pth is damaged or not a weight file (Unsupported operand " in refusal(Path("w.pth"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_truncated_at_any_place(tmp_path: Path, name: str) -> None:
    data = saved(tmp_path, tensors(), name).read_bytes()
    for cut in range(1, len(data), 7):
        (tmp_path / name).write_bytes(data[:cut])
        refusal(tmp_path / name)


def test_mutated_headers_give_only_our_own_error(tmp_path: Path) -> None:
    data = saved(tmp_path, tensors()).read_bytes()
    rng, path = random.Random(0), tmp_path / "m.safetensors"
    size = struct.unpack("<Q", data[:8])[0]
    for _ in range(500):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            mutated[rng.randrange(8 + size)] = rng.randrange(256)
        path.write_bytes(mutated)
        try:
            read_weights(path, EXPECTED)
        except WeightError as error:
            assert "\n" not in str(error)
    claims = json.dumps({"a.weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(claims)) + claims + b"\0" * 4)
    refusal(path)
    path.write_bytes(struct.pack("<Q", 2**62) + data[8:])
    refusal(path)


class Model(nn.Module):
    def __init__(self, config: int) -> None:
        super().__init__()
        self.a = nn.Linear(4, config)
        nn.init.normal_(self.a.weight)
        nn.init.zeros_(tensor=self.a.bias)
        with torch.no_grad():
            self.a.weight.mul_(2)


def test_load_into_an_empty_module(tmp_path: Path) -> None:
    model = build_empty(Model, 3)
    assert all(parameter.is_meta for parameter in model.parameters())
    path = saved(tmp_path, {"model.a.weight": torch.ones(3, 4), "model.a.bias": torch.ones(3)})
    told: list[float] = []
    load_into(model, path, dtype=torch.bfloat16, progress=told.append)
    assert told == [0.5, 1.0]
    assert model.a(torch.ones(4, dtype=torch.bfloat16)).tolist() == [5, 5, 5]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(WeightError, match="instead of"):
        load_into(build_empty(Model, 4), path)


def test_build_empty_leaves_initialisation_as_it_was() -> None:
    build_empty(Model, 3)
    assert Model(100).a.weight.std() > 1


def test_sha256(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors())
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightError, match="cannot read"):
        sha256(tmp_path / "none")
