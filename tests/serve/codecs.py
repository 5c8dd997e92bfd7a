"""`python -m tests.serve.codecs`: what a block costs as JPEG, WebP and H.264, and how near it stays to the frames it was made from.

Frames are those the garden makes, as they are (64 x 112) and enlarged to the published worlds' size (352 x 640). Time is the
processor's own, of the one thread that works, so that other programs on the machine do not count.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from engine import Action, World
from game.serve.link import encode
from game.serve.video import H264, SMALL
from tests.serve.test_video import decibels, decoded

SCRIPT = ("w", "w", "wl", "l", "w", "wj", "j", "s")  # keys, a block each; the first warms up and is not counted
Way = Callable[[np.ndarray, int], bytes]  # (frame, its place in the block) -> bytes


def picture(data: list[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in data])


def enlarged(block: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((640, 352), Image.Resampling.BICUBIC)) for frame in block])


def told(name: str, blocks: list[np.ndarray], way: Way, back: Callable[[list[bytes]], np.ndarray]) -> None:
    sizes, firsts, all_of_it, near = [], [], [], []
    for block in blocks:
        data, times = [], [time.thread_time()]
        for index, frame in enumerate(block):
            data.append(way(frame, index))
            times.append(time.thread_time())
        sizes.append(sum(map(len, data)))
        firsts.append(1000 * (times[1] - times[0]))
        all_of_it.append(1000 * (times[-1] - times[0]))
        near.append(decibels(back(data), block))
    size, first, whole = (statistics.median(values[1:]) for values in (sizes, firsts, all_of_it))
    print(
        f"  {name:16} {size / 1000:7.1f} kB a block, {whole:6.1f} ms (first frame {first:5.2f}), {statistics.mean(near[1:]):5.1f} dB",
        flush=True,
    )


def main() -> None:
    session = World.load("garden").session(seed=0)
    own = [session.step(Action(frozenset(keys))) for keys in SCRIPT]
    for blocks in (own, [enlarged(block) for block in own]):
        height, width = blocks[0].shape[1:3]
        print(f"{height} x {width}, blocks of {len(blocks[1])} frames")
        for kind in ("jpeg", "webp"):
            told(kind, blocks, lambda frame, index, kind=kind: encode(frame, kind), picture)
        video = H264(height, width, 16, full_colour=width <= SMALL)
        told("h264" + "-444" * (width <= SMALL), blocks, lambda frame, index, video=video: video.encode(frame, index == 0), decoded)


if __name__ == "__main__":
    main()
