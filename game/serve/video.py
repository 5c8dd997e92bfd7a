"""H.264 for pages that read it with WebCodecs, by PyAV and x264. `av` is imported by whoever asks for it, and only then."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

SMALL = 320  # pixels of width up to which colours are not thinned out: nobody saves anything there, and it shows
CRF = 22  # x264's constant quality; docs/SERVE.md has bytes and decibels
OPTIONS = {
    "preset": "superfast",  # what slower ones save in bytes they take twice over in time
    "tune": "zerolatency",  # a frame in, a frame out: no B-frames, nothing looked ahead at
    "crf": str(CRF),
    "x264-params": "psy=0:aq-mode=0",  # near to the frame, not to the eye's liking: fewer bytes at as many decibels
    "forced-idr": "1",
    "g": "9999",  # key frames are where they are asked for, and nowhere else
    "sc_threshold": "0",
    "level": "4.0",
}
PRIMARIES_BT709, TRANSFER_SRGB, MATRIX_BT601, FULL_RANGE = 1, 13, 6, 2  # H.273; what a picture file's numbers mean, too


def problem() -> str | None:
    """Why H.264 cannot be made here, in one line; None if it can."""
    try:
        import av

        av.codec.Codec("libx264", "w")
    except ImportError:
        return "needs PyAV: pip install 'reverie[h264]'"
    except ValueError:
        return "needs a PyAV that was built with libx264, as its wheels are"
    return None


def choose(asked: str, reads: list[str], width: int) -> str:
    """The kind of frames for a page that ``reads`` these kinds, where the server was ``asked`` for jpeg, webp or h264.

    A page that does not read what was asked for gets jpeg or webp. H.264, which costs most, is for the server to ask for, not for a page.
    """
    wanted = {"h264": ["h264-444", "h264"] if width <= SMALL else ["h264"]}.get(asked, [asked])
    return next((kind for kind in (*wanted, "jpeg", "webp") if kind in reads), "jpeg")


class H264:
    """Frames of one size to H.264 in Annex B, one access unit a frame, in the order they are given. Not for two threads at once.

    Nothing is kept of a frame but what the next may refer to: memory does not grow.
    """

    def __init__(self, height: int, width: int, fps: float, full_colour: bool) -> None:
        """``full_colour``: 4:4:4, else 4:2:0. Raises av.FFmpegError, an odd ``height`` or ``width`` among its reasons."""
        import av
        from av.video.reformatter import Interpolation, VideoReformatter

        self._av = av
        self._format = "yuv444p" if full_colour else "yuv420p"
        # The scaler's own threads would cost more than they do; without ACCURATE_RND all colours come out a little dark.
        self._reformatter, self._rounding = VideoReformatter(), Interpolation.BILINEAR | Interpolation.ACCURATE_RND
        rate = Fraction(fps).limit_denominator(1000)
        codec = av.CodecContext.create("libx264", "w")
        codec.width, codec.height, codec.pix_fmt = width, height, self._format
        codec.framerate, codec.time_base, codec.thread_count = rate, 1 / rate, 1
        codec.color_primaries, codec.color_trc = PRIMARIES_BT709, TRANSFER_SRGB
        codec.colorspace, codec.color_range = MATRIX_BT601, FULL_RANGE
        codec.options = dict(OPTIONS)
        codec.open()
        self._codec, self._count = codec, 0

    def encode(self, frame: np.ndarray, key: bool) -> bytes:
        """A frame `[H, W, 3]` uint8 RGB as an access unit; a ``key`` frame (IDR, with its parameter sets) needs none before it."""
        from av.video.frame import PictureType
        from av.video.reformatter import ColorRange, Colorspace

        rgb = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = self._reformatter.reformat(
            rgb, format=self._format, interpolation=self._rounding, dst_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.JPEG, threads=1,
        )  # fmt: skip
        picture.pts, self._count = self._count, self._count + 1
        picture.pict_type = PictureType.I if key else PictureType.NONE
        return b"".join(bytes(packet) for packet in self._codec.encode(picture))
