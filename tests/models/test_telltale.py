"""Files that are not the weights wanted, each really of its kind: the sentence says what it is and what to do."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.checkpoint import build_empty, check_weights, load_into
from models.dit import DiT, DiTConfig
from models.errors import WeightError
from models.filecache import write_safetensors
from models.recognise import recognise
from models.vae import VAE, VAEConfig
from models.weightfile import HEADER_LIMIT, open_weights

Manifest = dict[str, dict[str, list[int]]]
LONG = os.environ.get("REVERIE_LONG") == "1"


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(WeightError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 900
    return message


def sparse(path: Path, shapes: dict[str, list[int]], dtype: str = "F32") -> Path:
    """A whole safetensors file of these shapes whose numbers are a hole in the disk: gigabytes that take no room."""
    size, header, end = {"F32": 4, "BF16": 2, "F16": 2}[dtype], {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + size * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture(scope="module")
def wanted() -> dict[str, nn.Module]:
    models: dict[str, nn.Module] = {mode: build_empty(DiT, DiTConfig.from_name(mode)) for mode in ("universal", "templerun")}
    return models | {"vae": build_empty(VAE, VAEConfig())}


@pytest.mark.parametrize("mode", ["universal", "gta_drive", "templerun"])
@pytest.mark.parametrize("asked", ["universal", "templerun"])
def test_another_mode(tmp_path: Path, manifest: Manifest, wanted: dict[str, nn.Module], mode: str, asked: str) -> None:
    path = sparse(tmp_path / "w.safetensors", manifest[mode])
    if mode == asked:
        return check_weights(wanted[asked], path)
    said = refusal(lambda: check_weights(wanted[asked], path))
    assert f"is the {mode} denoiser of Matrix-Game 2.0" in said and f"not the {asked} denoiser" in said and f"--world {mode}" in said


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_published_shapes_in_any_precision(
    tmp_path: Path, manifest: Manifest, wanted: dict[str, nn.Module], dtype: str, prefix: str
) -> None:
    shapes = {prefix + name.removeprefix("model."): shape for name, shape in manifest["universal"].items()}
    check_weights(wanted["universal"], sparse(tmp_path / "w.safetensors", shapes, dtype))


def test_the_base_model(tmp_path: Path, manifest: Manifest, wanted: dict[str, nn.Module]) -> None:
    """In bfloat16, without `model.`, and larger than the distilled ones: it acts in all layers."""
    shapes = {name.removeprefix("model."): shape for name, shape in manifest["universal"].items()}
    acting = {name: shape for name, shape in shapes.items() if ".action_model." in name}
    shapes |= {
        name.replace(f"blocks.{i}.", f"blocks.{i + 15}."): shape for name, shape in acting.items() for i in [int(name.split(".")[1])]
    }
    path = sparse(tmp_path / "diffusion_pytorch_model.safetensors", shapes, "BF16")
    said = refusal(lambda: check_weights(wanted["universal"], path))
    assert "is the base model of Matrix-Game 2.0, which is not distilled" in said and "base_distill.safetensors" in said


def as_diffusers(name: str) -> str:
    for ours, theirs in (
        ("self_attn.q", "attn1.to_q"),
        ("self_attn.o", "attn1.to_out.0"),
        ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ):
        name = name.replace(ours, theirs)
    return name


def as_fastvideo(name: str) -> str:
    for ours, theirs in (
        ("self_attn.q", "to_q"),
        ("ffn.0", "ffn.fc_in"),
        ("time_embedding.0", "condition_embedder.time_embedder.mlp.fc_in"),
    ):
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize(("rename", "words"), [(as_diffusers, "converted to diffusers' names"), (as_fastvideo, "converted for FastVideo")])
def test_converted_files(
    tmp_path: Path, manifest: Manifest, wanted: dict[str, nn.Module], rename: Callable[[str], str], words: str
) -> None:
    shapes = {rename(name.removeprefix("model.")): shape for name, shape in manifest["universal"].items()}
    said = refusal(lambda: check_weights(wanted["universal"], sparse(tmp_path / "w.safetensors", shapes)))
    assert words in said and "give the file it was made from" in said


def test_other_parts_and_things(tmp_path: Path, manifest: Manifest, wanted: dict[str, nn.Module]) -> None:
    said = refusal(lambda: check_weights(wanted["universal"], sparse(tmp_path / "w.safetensors", manifest["Wan2.1_VAE.pth"])))
    assert "is the Wan 2.1 VAE, not the universal denoiser" in said
    said = refusal(lambda: check_weights(wanted["vae"], sparse(tmp_path / "w.safetensors", manifest["clip_visual"])))
    assert "is the file of the image encoder, not the Wan 2.1 VAE" in said
    for names, words in (
        (["blocks.0.self_attn.q.lora_A.weight"], "a LoRA"),
        (["encoder.conv_in.weight", "decoder.up_blocks.0.x", "quant_conv.weight"], "a VAE converted to diffusers' names"),
        (["vision_model.encoder.layers.0.self_attn.k_proj.weight"], "an image encoder under other names"),
        (["decoder.3.conv.0.weight"], "a tiny decoder (TAEHV)"),
        (["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"], "a text encoder"),
    ):
        kind = recognise(dict.fromkeys(names, (3, 4)))
        assert kind is not None and words in kind.words
        said = refusal(
            lambda names=names: check_weights(wanted["vae"], sparse(tmp_path / "w.safetensors", {name: [3, 4] for name in names}))
        )
        assert words in said and kind.advice in said


def test_half_downloads(tmp_path: Path, manifest: Manifest) -> None:
    path = sparse(tmp_path / "w.safetensors", manifest["universal"])
    whole = path.stat().st_size
    assert whole > 6_000_000_000
    os.truncate(path, whole // 2)
    assert f"is a half download: {whole // 2:,} bytes are here, its header promises {whole:,}" in refusal(lambda: open_weights(path))
    os.truncate(path, 1000)
    assert "is a half download: 1,000 bytes are here, not even its table" in refusal(lambda: open_weights(path))
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "w.pth")
    os.truncate(tmp_path / "w.pth", 70_000)
    assert "is a half download: 70,000 bytes are here and its end is missing" in refusal(lambda: open_weights(tmp_path / "w.pth"))
    path.unlink()
    (tmp_path / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "download" / "abc.incomplete").write_bytes(bytes(500))
    assert "a download that did not finish (500 bytes): let it go on" in refusal(lambda: open_weights(path))
    (tmp_path / "w.safetensors.incomplete").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert "w.safetensors.incomplete of a download" in refusal(lambda: open_weights(path))
    assert "is what an unfinished download leaves" in refusal(lambda: open_weights(tmp_path / "w.safetensors.incomplete"))


def test_things_that_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 6476971136\n")
    assert "is a Git-LFS pointer that stands for 6,476,971,136 bytes" in refusal(lambda: open_weights(path))
    path.write_text("\n  <!DOCTYPE html>\n<html><title>Sign in</title></html>" * 200)
    assert "is a web page, not weights" in refusal(lambda: open_weights(path))
    path.write_text("Entry not found")
    assert "is a text of 15 bytes ('Entry not found'), not weights" in refusal(lambda: open_weights(path))
    torch.save({"a": torch.zeros(3)}, path)
    assert "PyTorch file under the name of a safetensors file; rename it to w.pth" in refusal(lambda: open_weights(path))
    save_file({"a": torch.zeros(3)}, tmp_path / "w.pth")
    assert "rename it to w.safetensors" in refusal(lambda: open_weights(tmp_path / "w.pth"))
    (tmp_path / "x.safetensors").mkdir()
    assert "is a folder, not a weight file" in refusal(lambda: open_weights(tmp_path / "x.safetensors"))
    if os.name == "posix":  # one waits for ever for what comes out of a pipe
        os.mkfifo(tmp_path / "pipe.safetensors")
        assert "is a pipe or a device, not a weight file" in refusal(lambda: open_weights(tmp_path / "pipe.safetensors"))
    save_file({"a": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes() + b"more")
    assert "4 bytes more than its header says" in refusal(lambda: open_weights(path))


def with_header(path: Path, text: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}', "which its shape"),
        (b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', "its header promises 4,398,0"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "twice"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "overlap"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "overlap or leave holes"),
        (b'{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}}', "unknown type"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "no proper shape"),
        (b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "no proper shape"),
        (b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', "no proper shape"),
        (b'{"a\\u001b[2J":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "is no tensor"),
        (b'{"a":' * 100_000, "damaged"),
        (b'{"a":' + b"9" * 10_000 + b"}", "damaged"),
        (b'{"__metadata__":{"a":1}}', "notes"),
        (b'{"a":[]}', "is no tensor"),
    ],
)
def test_headers_that_claim_too_much(tmp_path: Path, header: bytes, words: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refusal(lambda: open_weights(with_header(tmp_path / "w.safetensors", header, bytes(8 if b'"b"' in header else 4))))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("length", [0x3C20, 0x3C0A, 0x683C, 0x213C])
def test_a_headers_length_that_reads_like_a_web_page(tmp_path: Path, length: int) -> None:
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    assert open_weights(with_header(tmp_path / "w.safetensors", text, bytes(4))).shapes == {"a": (1,)}


def test_a_header_of_endless_length(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", HEADER_LIMIT + 1) + b'{"')
    os.truncate(path, 2 * HEADER_LIMIT)
    assert "no safetensors header" in refusal(lambda: open_weights(path))


def test_mutated_headers(tmp_path: Path) -> None:
    """REVERIE_LONG=1: 10,000 of them. Each is loaded or refused in our own words, in under a second and without much memory."""
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    path = tmp_path / "w.safetensors"
    save_file({f"model.{name}": tensor for name, tensor in model.state_dict().items()}, path)
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    rng, refused, slowest = random.Random(0), 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10_000 if LONG else 400):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            if not mutated:
                break
            at = rng.randrange(min(end, len(mutated)))
            match rng.randrange(4):
                case 0:
                    mutated[at] = rng.randrange(256)
                case 1:
                    mutated[at] = rng.choice(b'0123456789{}[]",:-.eE')
                case 2:
                    mutated[at:at] = rng.choice((b"9", b"999999999999", b"[", b'"', b"\0", mutated[at : at + 30]))
                case 3:
                    del mutated[at : at + rng.choice((1, 5, 40))]
        if rng.random() < 0.5:  # let the length agree again, so that the JSON itself is looked at
            mutated[:8] = struct.pack("<Q", max(0, len(mutated) - (len(data) - end) - 8))
        path.write_bytes(mutated)
        began = time.process_time()
        try:
            load_into(nn.Sequential(nn.Linear(4, 3, device="meta"), nn.LayerNorm(3, device="meta")), path)
        except WeightError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 2000
        slowest = max(slowest, time.process_time() - began)
    assert refused > 100 and slowest < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_write_safetensors_is_read_by_others(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.tensor(2.0, dtype=torch.float64), "d": torch.zeros(0, 4)}
    words = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64"}
    table = {name: (words[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert write_safetensors(tmp_path / "w.safetensors", table, tensors.__getitem__, {"note": "x"})
    for name, tensor in load_file(tmp_path / "w.safetensors").items():
        assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name])
    file = open_weights(tmp_path / "w.safetensors")
    assert file.metadata == {"note": "x"} and all(
        torch.equal(torch.cat([*file.pieces(name)]).view_as(tensor), tensor) for name, tensor in tensors.items()
    )
    assert torch.equal(torch.cat(list(file.pieces("a", 4))), tensors["a"].flatten())
