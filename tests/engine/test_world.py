from __future__ import annotations

import hashlib
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine import Action, World, WorldError, load_config
from engine.picture import load_picture
from engine.world import choose_dtype
from models.checkpoint import build_empty, load_into
from models.dit import DiT
from models.errors import WeightError
from models.vae import VAE
from models.vision import VisionBlock, VisionConfig, VisionEncoder
from tests.published import age, write_published, write_world
from tests.tiny_world import random_weights, write_tiny_world

Weights = dict[str, torch.Tensor]
Manifest = dict[str, dict[str, list[int]]]


def refusal(world: object, kind: type = WorldError, **options: object) -> str:
    with pytest.raises(kind) as caught:
        World.load(world, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 700
    return message


@pytest.fixture
def own_copy(tiny_yaml: Path, tmp_path: Path) -> Path:
    """A tiny world whose files may be spoiled."""
    return shutil.copytree(tiny_yaml.parent, tmp_path / "copy") / tiny_yaml.name


def test_list() -> None:
    assert World.list()[0] == "garden"


def test_progress_is_told_part_by_part(tiny_yaml: Path) -> None:
    told: list[tuple[str, float]] = []
    World.load(tiny_yaml, progress=lambda what, part: told.append((what, part)))
    assert [what for what, part in told if part == 1] == ["vae", "dit"]
    assert all(0 < part <= 1 for _, part in told)


def test_a_config_can_be_changed_before_loading(tiny_yaml: Path) -> None:
    config = load_config(tiny_yaml)
    world = World.load(replace(config, height=32, sampler=replace(config.sampler, steps=(1000, 500))))
    assert world.session().step().shape == (9, 32, 32, 3)


@pytest.mark.parametrize("name", ["universal", "gta_drive", "templerun"])
def test_published_worlds_say_where_their_weights_are(name: str, tmp_path: Path) -> None:
    assert refusal(name, WeightError) == (
        f"the weights of {name} are not bundled: get Skywork/Matrix-Game-2.0 from huggingface.co, then give its folder with --weights, "
        "or let --fetch download what is needed"
    )
    message = refusal(name, WeightError, weights=tmp_path)
    assert f"in {tmp_path}; the world {name} needs" in message and "Wan2.1_VAE.pth" in message


@pytest.mark.parametrize("name", ["universal", "gta_drive", "templerun"])
def test_published_worlds_ask_for_exactly_the_published_tensors(manifest: Manifest, name: str) -> None:
    config = load_config(name)
    parts = [
        (DiT, config.model, name, "model."),
        (VAE, config.vae, "Wan2.1_VAE.pth", ""),
        (VisionEncoder, config.vision, "clip_visual", "visual."),
    ]
    for kind, sizes, published, prefix in parts:
        shapes = {key: list(tensor.shape) for key, tensor in build_empty(kind, sizes).state_dict().items()}
        assert shapes == {key.removeprefix(prefix): shape for key, shape in manifest[published].items()}


def test_weights_folder(tiny_yaml: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("dit.safetensors", "vae.safetensors"):
        shutil.copy(tiny_yaml.parent / name, elsewhere / name)
    World.load(tiny_yaml, weights=str(elsewhere))
    assert "is not there" in refusal(tiny_yaml, WeightError, weights=tmp_path / "nowhere")
    assert "is not there" in refusal(tiny_yaml, WeightError, weights="x" * 5000)
    said = refusal(tiny_yaml, WeightError, weights=elsewhere / "dit.safetensors")
    assert f"is a file; give its folder, {elsewhere}" in said
    said = refusal(tiny_yaml, WeightError, weights=Path(shutil.copy(elsewhere / "dit.safetensors", tmp_path / "other.safetensors")))
    assert "is a file; give the folder that holds dit.safetensors" in said
    (elsewhere / "vae.safetensors").rename(elsewhere / "vae.safetensors.part")
    said = refusal(tiny_yaml, WeightError, weights=elsewhere)
    assert "there is no vae.safetensors in" in said and "vae.safetensors.part of a download that did not finish" in said
    (elsewhere / "deeper").mkdir()
    assert f"is {elsewhere} the folder you mean?" in refusal(tiny_yaml, WeightError, weights=elsewhere / "deeper")


def test_device_and_dtype(tiny_yaml: Path) -> None:
    assert "there is no device 'toaster' here" in refusal(tiny_yaml, device="toaster")
    for name in ("cuda:99", "meta", "hpu", "privateuseone", "mkldnn", ""):
        assert f"there is no device {name!r} here" in refusal(tiny_yaml, device=name)
    assert "dtype is one of auto, float32, bfloat16, float16; got 'int4'" in refusal(tiny_yaml, dtype="int4")
    world = World.load(tiny_yaml, dtype="bfloat16")
    assert {p.dtype for p in world.dit.parameters()} == {torch.bfloat16} == {p.dtype for p in world.vae.decoder.parameters()}
    assert {p.dtype for p in world.vae.encoder.parameters()} == {torch.float32}  # encoding in half precision costs quality
    near = world.session().step(Action()).astype(float) - World.load(tiny_yaml).session().step(Action())
    assert abs(near).mean() < 4
    assert choose_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


def rename(weights: Weights) -> None:
    weights["blocks.0.self_attn.w.weight"] = weights.pop("blocks.0.self_attn.q.weight")


def misshape(weights: Weights) -> None:
    weights["head.head.weight"] = torch.zeros(3, 3)


def poison(weights: Weights) -> None:
    weights["head.head.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rename, "lacks blocks.0.self_attn.q.weight but has blocks.0.self_attn.w.weight"),
        (misshape, "head.head.weight is [3, 3] instead of [16, 32]"),
        (poison, "head.head.bias holds NaN or infinite numbers"),
        (lambda weights: weights.clear(), "tensors missing, 0 unknown"),
    ],
)
def test_spoiled_weights(own_copy: Path, spoil: Callable[[Weights], None], message: str) -> None:
    path = own_copy.parent / "dit.safetensors"
    weights = load_file(path)
    spoil(weights)
    save_file(weights, path)
    said = refusal(own_copy, WeightError)
    assert message in said and "dit.safetensors" in said


@pytest.mark.parametrize("name", ["dit.safetensors", "vae.safetensors"])
def test_missing_truncated_and_empty_files(own_copy: Path, name: str) -> None:
    path = own_copy.parent / name
    data = path.read_bytes()
    for cut in (len(data) - 1, len(data) // 2, 100, 5):
        path.write_bytes(data[:cut])
        said = refusal(own_copy, WeightError)
        assert f"{path} is a half download: {cut:,} bytes" in said if cut > 8 else f"{path} is damaged or not a weight file" in said
    path.write_bytes(b"")
    assert f"{path} is empty" in refusal(own_copy, WeightError)
    path.unlink()
    assert refusal(own_copy, WeightError) == f"there is no {name} in {path.parent}; the world tiny needs {name}"


def test_weights_of_another_world(own_copy: Path, tmp_path: Path) -> None:
    def more_keys(settings: dict[str, Any]) -> None:
        settings["actions"]["keyboard"].append({"key": "z", "does": "jump"})
        settings["model"]["action"]["keyboard_dim"] = 5

    (tmp_path / "other").mkdir()
    other = write_tiny_world(tmp_path / "other", change=more_keys)
    message = refusal(own_copy, WeightError, weights=other.parent)
    assert "is a denoiser of width 32 with 1 layers and 5 keys and a mouse, not a denoiser of width 32 with 1 layers and 4 keys" in message
    assert "is [4, 5] instead of [4, 4]" in message
    shutil.copy(own_copy.parent / "vae.safetensors", own_copy.parent / "dit.safetensors")
    assert "dit.safetensors is a VAE of width 4, not a denoiser of width 32" in refusal(own_copy, WeightError)


def test_cheap_checks_come_first(own_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is read before everything that can be told without reading has been told."""
    shutil.copy(own_copy.parent / "vae.safetensors", own_copy.parent / "dit.safetensors")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("models.checkpoint.read_weights", never)
    refusal(own_copy, WeightError)
    refusal(own_copy, device="toaster")
    refusal(own_copy, dtype="int4")


def test_sizes_beyond_all_bounds(tmp_path: Path) -> None:
    path = write_tiny_world(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("ffn_dim: 32", "ffn_dim: 1000000"))
    assert "instead of [1000000, 32]" in refusal(path, WeightError)
    path.write_text(text.replace("  - 1\n  num_res", "  - 1000000\n  num_res").replace("dim: 4\n  dim_mult", "dim: 1000000\n  dim_mult"))
    refusal(path)


def test_no_start_picture_of_its_own(own_copy: Path) -> None:
    own_copy.write_text(own_copy.read_text().replace("start: start.png\n", ""))
    world = World.load(own_copy)
    with pytest.raises(WorldError, match="has no start picture of its own; give one with --start FILE"):
        world.session()
    assert len(world.session(start=np.zeros((40, 40, 3), np.uint8)).step()) == 9


SMALL: dict[str, dict[str, Any]] = {
    "model": {
        "dim": 32,
        "ffn_dim": 32,
        "num_heads": 2,
        "num_layers": 1,
        "img_dim": 32,
        "action": {"blocks": [0], "hidden": 32, "heads": 1},
    },
    "vae": {"dim": 4},
    "vision": {"image_size": 28, "dim": 32, "out_dim": 8, "num_heads": 2, "num_layers": 3},
}


def with_image_tokens(settings: dict[str, Any]) -> None:
    settings["vision"] = {"image_size": 28, "patch_size": 14, "dim": 16, "num_heads": 2, "num_layers": 2}
    settings["model"].update(img_dim=16, prediction="velocity")
    settings["weights"] = {"dit": ["base/dit.safetensors"], "vae": ["Wan.pth"], "vision": ["clip.pth"], "source": "somewhere"}


def test_the_published_layout(tmp_path: Path) -> None:
    """`model.` in front, the VAE and the image encoder as `.pth`, the latter with parts that are not needed; in a folder of its own."""
    (tmp_path / "base").mkdir()
    path = write_tiny_world(tmp_path, change=with_image_tokens)
    config, folder, generator = load_config(path), tmp_path / "published", torch.Generator().manual_seed(1)
    (folder / "base").mkdir(parents=True)
    for name in ("base/dit.safetensors", "Wan.pth"):
        (tmp_path / name).unlink()
    assert "not bundled: get somewhere" in refusal(path, WeightError)
    dit = random_weights(DiT(config.model), generator)
    save_file({f"model.{name}": tensor for name, tensor in dit.items()}, folder / "base" / "dit.safetensors")
    torch.save(random_weights(VAE(config.vae), generator), folder / "Wan.pth")
    vision = {f"visual.{name}": tensor for name, tensor in random_weights(VisionEncoder(config.vision), generator).items()}
    torch.save({**vision, "textual.embedding": torch.zeros(4), "log_scale": torch.zeros(())}, folder / "clip.pth")

    world = World.load(path, weights=folder)
    blocks = [world.session().step(Action(frozenset("w"))) for _ in range(2)]
    assert np.array_equal(*blocks) and blocks[0].std() > 0
    other = world.session(start=np.full((32, 32, 3), 200, np.uint8))
    other.step()
    before = world.session()
    before.step()
    assert not torch.equal(other._cache.layers[0].image[0], before._cache.layers[0].image[0])  # the picture reaches the cross-attention
    before.reset(start=np.full((32, 32, 3), 200, np.uint8))
    assert torch.equal(other._cache.layers[0].image[0], before._cache.layers[0].image[0])

    (folder / "clip.pth").unlink()
    assert "there is no clip.pth in" in refusal(path, WeightError, weights=folder)
    torch.save(dict(list(vision.items())[1:]), folder / "clip.pth")
    assert "1 of" in refusal(path, WeightError, weights=folder)


def test_the_image_encoder_leaves_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of it has weights only while it runs, and afterwards nothing of it is left; the tokens are those of the whole encoder."""
    config = write_world(tmp_path, **SMALL)
    write_published(tmp_path / "published", config)
    world = World.load(config, weights=tmp_path / "published")
    alive, seen = [], []
    build, forward = VisionEncoder.__init__, VisionBlock.forward

    def built(self: VisionEncoder, config: VisionConfig) -> None:
        build(self, config)
        alive.append(weakref.ref(self))

    def watched(self: VisionBlock, x: torch.Tensor) -> torch.Tensor:
        (encoder,) = (reference() for reference in alive if reference() is not None)
        seen.append([block.norm1.weight.is_meta for block in encoder.transformer])
        return forward(self, x)

    monkeypatch.setattr(VisionEncoder, "__init__", built)
    monkeypatch.setattr(VisionBlock, "forward", watched)
    picture = torch.rand(1, 3, 1, 64, 96) * 2 - 1
    tokens = world._visual_context(picture)
    assert seen == [[False, True, True], [True, False, True]]  # the last block is never run, and never read
    assert [reference() for reference in alive] == [None]  # without waiting for the garbage collector
    monkeypatch.undo()
    whole = build_empty(VisionEncoder, config.vision)
    load_into(whole, world.files["vision"], prefix="visual.", only=True)
    assert torch.equal(tokens, whole(picture[:, :, 0]))


def test_hashes_of_weights(own_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{part}/{part}.safetensors": own_copy.parent / f"{part}.safetensors" for part in ("dit", "vae")}
    for file in files.values():
        age(file)
    world = World.load(own_copy)
    expected = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    assert world.weight_hashes() == expected
    again = World.load(own_copy)
    monkeypatch.setattr("models.filecache.sha256", lambda _: pytest.fail("hashed again"))
    assert again.weight_hashes() == expected


def test_start_picture_formats_at_world_level(tiny_world: World, tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "LA", "P", "1"):
        Image.new(mode, (40, 40), 1).save(tmp_path / f"{mode}.png")
        assert len(tiny_world.session(start=tmp_path / f"{mode}.png").step()) == 9


GARDEN = load_config("garden")


@pytest.mark.skipif(not (GARDEN.folder / GARDEN.weights.dit[0]).is_file(), reason="the garden's weights are not in the box yet")
def test_the_garden_plays() -> None:
    with safe_open(GARDEN.folder / GARDEN.weights.vae[0], "pt") as file:
        scale = file.metadata()
    for name in ("latents_mean", "latents_std"):  # measured by training.export; the yaml must say the same
        assert json.loads(scale[name]) == pytest.approx(getattr(GARDEN.vae, name))
    world = World.load("garden")
    session = world.session()
    first, second = session.step(), session.step(Action(frozenset("w")))
    assert first.shape == (9, 64, 112, 3) and second.shape == (12, 64, 112, 3)
    start = (load_picture(GARDEN.folder / GARDEN.start, 64, 112)[0, :, 0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.square(first[0] - start).mean() ** 0.5 < 255 * 10 ** (-18 / 20)  # 18 dB: it begins where it is told


def test_random_weights_that_do_not_fit_are_refused(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*rest: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2199023255552 bytes.\nError code 12")

    monkeypatch.setattr("engine.world.randomise", full)
    with pytest.raises(WorldError, match=r"^DiT of these sizes has .* GB of weights, which do not fit into the memory of cpu \(Def.*\);"):
        World.untrained(tiny_yaml)
