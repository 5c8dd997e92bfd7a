"""A start picture from a file or an array, cut and scaled to the world's size (SPEC §6)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from models.errors import WorldError, one_line

Picture = str | Path | np.ndarray  # a file, or [H, W, 3]: uint8, or float in [0, 1]

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA")  # PIL knows more; some of those run other programs
SMALLEST = 16  # pixels a side
LARGEST = 64_000_000  # pixels in all


def load_picture(start: Picture, height: int, width: int) -> Tensor:
    """The picture as `[1, 3, 1, height, width]` float32 in [-1, 1], cut and scaled as `fit_picture` does; same errors."""
    pixels = torch.from_numpy(fit_picture(start, height, width).astype(np.float32))  # [H, W, 3], 0 to 255
    return (pixels / 127.5 - 1).permute(2, 0, 1)[None, :, None].contiguous()


def fit_picture(start: Picture, height: int, width: int) -> np.ndarray:
    """The picture as uint8 `[height, width, 3]`: upright, opaque, centre crop, antialiased bilinear resize.

    One that has that size already is not changed. Raises WorldError for a file that is missing, unreadable or no picture,
    for fewer than 16 pixels a side or more than 64 million in all, and for an array of another shape, type or range.
    """
    image = _from_array(start) if isinstance(start, np.ndarray) else _from_file(Path(start))
    return np.array(_fit(image, height, width))


def fit_frame(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture `[H, W, 3]` (uint8, or float in [0, 1]) as uint8 `[height, width, 3]`, cut and scaled like a start picture.

    Raises WorldError for an array of another shape, type or range.
    """
    return np.array(_fit(_from_array(frame), height, width))


def to_video(frames: np.ndarray) -> Tensor:
    """uint8 frames `[F, H, W, 3]` as the VAE takes them: float32 `[1, 3, F, H, W]` in [-1, 1]."""
    pixels = torch.from_numpy(frames.astype(np.float32))
    return (pixels / 127.5 - 1).permute(3, 0, 1, 2)[None].contiguous()


def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut the middle to the aspect of ``height`` x ``width`` as the published code does, then scale."""
    w, h = image.size
    if h / w > height / width:
        new_w, new_h = w, int(w * height / width)
    else:
        new_w, new_h = int(h * width / height), h
    left, top = round((w - new_w) / 2), round((h - new_h) / 2)
    image = image.crop((left, top, left + max(new_w, 1), top + max(new_h, 1)))
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3:
        raise WorldError(f"a start picture is an array [height, width, 3], got {list(array.shape)}")
    _check_size("the start picture", array.shape[1], array.shape[0])
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise WorldError("a start picture of floats must lie in [0, 1]; give uint8 for 0 to 255")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise WorldError(f"a start picture is uint8 or float, got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


def _from_file(path: Path) -> Image.Image:
    name = one_line(path, 200)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's doubts about size and metadata; the size is checked here
            with Image.open(path, formats=KINDS) as image:
                _check_size(f"the start picture {name}", *image.size)
                return _opaque(ImageOps.exif_transpose(image))
    except WorldError:
        raise
    except FileNotFoundError:
        raise WorldError(f"there is no start picture {name}") from None
    except Image.DecompressionBombError:
        raise WorldError(f"the start picture {name} is huge; at most {LARGEST // 1_000_000} million pixels can be used") from None
    except Image.UnidentifiedImageError:
        raise WorldError(f"{name} is not a picture; give a PNG, JPEG or WebP file") from None
    except Exception as error:  # a damaged picture can fail in almost any way
        raise WorldError(f"cannot read the start picture {name}: {one_line(error, 120)}") from None


def _check_size(what: str, width: int, height: int) -> None:
    if width * height > LARGEST:
        raise WorldError(f"{what} is huge ({width}x{height}); at most {LARGEST // 1_000_000} million pixels can be used")
    if min(width, height) < SMALLEST:
        raise WorldError(f"{what} is {width}x{height} pixels; at least {SMALLEST}x{SMALLEST} are needed")


def _opaque(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB; what is transparent becomes white."""
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits of grey
        grey = np.nan_to_num(np.asarray(image, dtype=np.float32))
        return Image.fromarray((grey * _to_bytes(image.mode, grey.max())).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_bytes(mode: str, brightest: float) -> float:
    """What brings grey of more than 8 bits to 0..255. Only "I;16" says how many it has, so the others are told by their brightest."""
    if mode.startswith("I;16"):
        return 1 / 257
    if mode == "F" and brightest <= 1:
        return 255.0
    return 1 / 257 if brightest > 255 else 1.0
