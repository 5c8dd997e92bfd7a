from __future__ import annotations

import resource
import struct
import time
import zlib
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


def png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG written by hand, for kinds that PIL reads and does not write."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = b"".join(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + written)
    return path


def rows_of(pixels: np.ndarray) -> bytes:
    """Pixels as a PNG holds them: each row behind its filter byte, big end first."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)


def test_sixteen_bits_of_every_colour(tmp_path: Path) -> None:
    wide = PHOTO.astype(np.uint16) * 257
    plain = load_picture(PHOTO, 64, 112)
    assert torch.equal(load_picture(png(tmp_path / "rgb.png", 160, 90, 16, 2, rows_of(wide)), 64, 112), plain)
    opaque = np.concatenate([wide, np.full((90, 160, 1), 65535, np.uint16)], axis=2)
    assert torch.equal(load_picture(png(tmp_path / "rgba.png", 160, 90, 16, 6, rows_of(opaque)), 64, 112), plain)
    grey = load_picture(saved(tmp_path, Image.fromarray(PHOTO[..., 0])), 64, 112)
    assert torch.equal(load_picture(png(tmp_path / "grey.png", 160, 90, 16, 0, rows_of(wide[..., 0])), 64, 112), grey)
    dark = np.full((90, 160), 200, np.uint16)  # of 65535: nearly black, though it would be bright in 8 bits
    assert load_picture(png(tmp_path / "dark.png", 160, 90, 16, 0, rows_of(dark)), 64, 112).max() < -0.98
    for mode, pixels in (("I", wide[..., 0].astype(np.int32)), ("F", PHOTO[..., 0].astype(np.float32) / 255)):
        assert torch.equal(load_picture(saved(tmp_path, Image.fromarray(pixels, mode), "x.tiff"), 64, 112), grey)
    broken = np.full((90, 160), np.nan, np.float32)
    assert torch.isfinite(load_picture(saved(tmp_path, Image.fromarray(broken), "x.tiff"), 64, 112)).all()


@pytest.mark.parametrize("turned", range(1, 9))
def test_all_ways_a_camera_can_be_held(tmp_path: Path, turned: int) -> None:
    """What EXIF says of a picture stored upright is done to it, as PIL does it (its own transposes are the reference)."""
    ways = [None, None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM]
    ways += [Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90]
    exif = Image.Exif()
    exif[0x0112] = turned
    photo = Image.fromarray(PHOTO)
    wanted = photo if ways[turned] is None else photo.transpose(ways[turned])
    for name in ("x.png", "x.webp"):
        path = saved(tmp_path, photo, name, exif=exif, lossless=True)
        assert torch.equal(load_picture(path, 64, 112), load_picture(np.asarray(wanted), 64, 112))


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png", "x.tiff"])
def test_of_what_moves_the_first_picture(tmp_path: Path, name: str) -> None:
    colours = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    path = saved(tmp_path, colours[0], name, save_all=True, append_images=colours[1:])
    with Image.open(path) as image:
        assert image.n_frames == 3
    tensor = load_picture(path, 64, 112)
    assert tensor[0, 0].min() > 0.95 and tensor[0, 1:].max() < -0.95


def test_transparency_of_every_kind_lies_on_white(tmp_path: Path) -> None:
    colour = np.zeros((40, 40, 4), np.uint8)
    colour[:, :20, 3] = 255  # the left half is black, the right one is nothing
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.paste(0, (20, 0, 40, 40))
    keyed = png(
        tmp_path / "key.png", 40, 40, 8, 2, b"".join(b"\0" + bytes(60) + b"\7\7\7" * 20 for _ in range(40)), (b"tRNS", b"\0\7\0\7\0\7")
    )
    pictures = [
        saved(tmp_path, Image.fromarray(colour), "rgba.png"),
        saved(tmp_path, Image.fromarray(colour), "rgba.webp", lossless=True),
        saved(tmp_path, Image.fromarray(colour).convert("LA"), "la.png"),
        saved(tmp_path, palette, "p.png", transparency=0),
        saved(tmp_path, palette, "p.gif", transparency=0),
        keyed,
    ]
    for path in pictures:
        tensor = load_picture(path, 40, 40)
        assert tensor[..., :19].max() < -0.9 and tensor[..., 21:].min() > 0.9, path.name


def test_small_files_that_would_be_huge(tmp_path: Path) -> None:
    """A bomb is refused by what it claims to be, before its pixels are unpacked."""
    begun = time.process_time()
    for width, height in ((50_000, 50_000), (2**31 - 1, 16), (16, 2**31 - 1), (9000, 8000)):
        bomb = png(tmp_path / "bomb.png", width, height, 8, 2, b"\0" * 1000)
        assert "is huge" in refusal(bomb) or "cannot read" in refusal(bomb)
    text = b"words\0\0" + zlib.compress(b"\0" * 60_000_000, 1)
    load_or_refuse = png(tmp_path / "text.png", 40, 40, 8, 0, b"".join(b"\0" + bytes(40) for _ in range(40)), (b"zTXt", text))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_picture(load_or_refuse, 64, 112)
    except WorldError:
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # kB
    assert time.process_time() - begun < 3


def test_kinds_that_run_other_programs_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    assert "is not a picture" in refusal(tmp_path / "x.eps")
