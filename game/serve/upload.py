"""A start picture that somebody sends: looked at before it is unpacked, cut to the world's size, and put away as a PNG of our own."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from engine import WorldError, fit_picture

KINDS = ("PNG", "JPEG", "WEBP")


class UploadError(Exception):
    """No usable picture; one line."""


def read_upload(data: bytes, folder: Path, height: int, width: int, pixels: int) -> Path:
    """The picture in ``data``, of at most so many ``pixels``, as the world will see it: a PNG in ``folder``.

    Raises UploadError. Its words never say where anything lies.
    """
    check_upload(data, pixels)
    raw, path = folder / "upload", folder / "start.png"
    raw.write_bytes(data)
    try:
        Image.fromarray(fit_picture(raw, height, width)).save(path)
    except WorldError:
        raise UploadError("the picture is damaged or too small") from None
    finally:
        raw.unlink()
    return path


def check_upload(data: bytes, pixels: int) -> None:
    """Raise UploadError unless the first bytes are those of a picture of a kind and size that may be unpacked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's doubts about the size, which is checked here
            with Image.open(io.BytesIO(data), formats=KINDS) as image:
                width, height = image.size
    except Exception:  # what is no picture can fail in almost any way
        raise UploadError("this is no picture that can be taken; send a PNG, JPEG or WebP file") from None
    if width * height > pixels:
        raise UploadError(f"the picture has {width}x{height} pixels; at most {pixels // 1_000_000} million are taken")
