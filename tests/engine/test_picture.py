from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine import WorldError
from engine.picture import load_picture

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (90, 160, 3), dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "x.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def refusal(start: object) -> str:
    with pytest.raises(WorldError) as caught:
        load_picture(start, 64, 112)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_a_picture_of_the_right_size_is_untouched(tmp_path: Path) -> None:
    exact = PHOTO[:64, :112]
    for start in (exact, exact / 255, (exact / 255).astype(np.float32), saved(tmp_path, Image.fromarray(exact))):
        tensor = load_picture(start, 64, 112)
        assert tensor.shape == (1, 3, 1, 64, 112) and tensor.dtype == torch.float32
        wanted = torch.from_numpy(exact.astype(np.float32)) / 127.5 - 1
        torch.testing.assert_close(tensor[0, :, 0].permute(1, 2, 0), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(160, 90), (90, 160), (16, 16), (1000, 20), (112, 64)])
def test_any_aspect_is_cut_in_the_middle(size: tuple[int, int]) -> None:
    width, height = size
    picture = np.full((height, width, 3), 200, np.uint8)
    tensor = load_picture(picture, 64, 112)
    torch.testing.assert_close(tensor, torch.full_like(tensor, 200 / 127.5 - 1))


def test_centre_crop_takes_the_middle() -> None:
    wide = np.zeros((64, 312, 3), np.uint8)
    wide[:, 100:212] = 255
    assert load_picture(wide, 64, 112).min() == 1


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((640, 1120, 3), np.uint8)
    stripes[:, ::2] = 255
    assert load_picture(stripes, 64, 112).abs().max() < 0.05


def test_grey_alpha_palette_cmyk_16_bit_webp(tmp_path: Path) -> None:
    photo = Image.fromarray(PHOTO)
    alpha = photo.copy()
    alpha.putalpha(0)
    white, plain = torch.ones(1, 3, 1, 64, 112), load_picture(PHOTO, 64, 112)
    assert torch.equal(load_picture(saved(tmp_path, alpha), 64, 112), white)
    opaque = photo.convert("RGBA")
    assert torch.equal(load_picture(saved(tmp_path, opaque), 64, 112), plain)
    grey = load_picture(saved(tmp_path, photo.convert("L")), 64, 112)
    assert torch.equal(grey[:, 0], grey[:, 2]) and grey.std() > 0.05
    sixteen = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    assert torch.equal(load_picture(saved(tmp_path, sixteen), 64, 112), grey)
    palette = photo.quantize(256)
    error = load_picture(saved(tmp_path, palette), 64, 112) - load_picture(np.asarray(palette.convert("RGB")), 64, 112)
    assert error.abs().max() == 0
    palette.info["transparency"] = 0
    load_picture(saved(tmp_path, palette, transparency=0), 64, 112)
    load_picture(saved(tmp_path, photo.convert("CMYK"), "x.jpg"), 64, 112)
    load_picture(saved(tmp_path, photo, "x.webp", lossless=True), 64, 112)
    load_picture(saved(tmp_path, photo.convert("LA")), 64, 112)
    load_picture(saved(tmp_path, photo.convert("1")), 64, 112)


def test_exif_rotation_is_honoured(tmp_path: Path) -> None:
    upright = Image.fromarray(np.repeat(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8), 64, 0).repeat(224, 1))  # red above blue
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    path = saved(tmp_path, upright.transpose(Image.Transpose.ROTATE_90), "x.jpg", exif=exif, quality=100, subsampling=0)
    tensor = load_picture(path, 64, 112)
    assert tensor[0, 0, 0, :28].mean() > 0.9 and tensor[0, 2, 0, 36:].mean() > 0.9


def test_files_that_are_no_picture(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.png") == f"there is no start picture {tmp_path / 'none.png'}"
    (tmp_path / "text.png").write_text("hello")
    assert refusal(tmp_path / "text.png") == f"{tmp_path / 'text.png'} is not a picture; give a PNG, JPEG or WebP file"
    (tmp_path / "empty.png").touch()
    refusal(tmp_path / "empty.png")
    refusal(tmp_path)
    refusal("a\x00b.png")
    half = saved(tmp_path, Image.fromarray(PHOTO)).read_bytes()
    for cut in (len(half) // 2, 40, 20):
        (tmp_path / "half.png").write_bytes(half[:cut])
        refusal(tmp_path / "half.png")


def test_too_small_and_too_large(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGB", (1, 1)))
    assert refusal(path) == f"the start picture {path} is 1x1 pixels; at least 16x16 are needed"
    path = saved(tmp_path, Image.new("1", (8200, 8000)), "large.png")
    assert "huge (8200x8000); at most 64 million pixels" in refusal(path)
    path = saved(tmp_path, Image.new("1", (20_000, 20_000)), "huge.png")
    assert "is huge; at most 64 million pixels" in refusal(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((64, 112)), "an array [height, width, 3], got [64, 112]"),
        (np.zeros((64, 112, 4), np.uint8), "got [64, 112, 4]"),
        (np.zeros((64, 112, 3), np.int64), "uint8 or float, got int64"),
        (np.full((64, 112, 3), 255.0), "must lie in [0, 1]"),
        (np.full((64, 112, 3), np.nan), "must lie in [0, 1]"),
        (np.zeros((1, 1, 3), np.uint8), "is 1x1 pixels"),
        (np.zeros((0, 5, 3), np.uint8), "is 5x0 pixels"),
    ],
)
def test_arrays_of_the_wrong_kind(array: np.ndarray, message: str) -> None:
    assert message in refusal(array)
