"""One page's connection: what waits to be sent is bounded, and a page that cannot keep up loses whole blocks."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from aiohttp import WSCloseCode, web
from PIL import Image

from game.serve.limits import Limits
from game.serve.protocol import FrameHeader, Got
from game.serve.video import H264, SMALL

LOG = logging.getLogger("reverie.serve")
AHEAD = 2  # blocks sent whose arrival the page has not told of: the one on its way, and the one being sent
JPEG_QUALITY, WEBP_QUALITY = 92, 90


@dataclass(frozen=True, eq=False)
class Parcel:
    """Frames `[F, H, W, 3]` uint8 of one block, or a single still; ``header`` is that of the first."""

    header: FrameHeader
    frames: np.ndarray
    wanted: Callable[[], bool]  # whether they still count


class Encoder:
    """Runs what turns a frame into something a browser reads, on threads of its own. The codecs run without Python's lock."""

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, "reverie-encode")
        self.frames = self.bytes = 0
        self.seconds = 0.0

    async def encode(self, work: Callable[[], bytes]) -> bytes:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        data = await loop.run_in_executor(self._pool, work)
        self.frames, self.bytes, self.seconds = self.frames + 1, self.bytes + len(data), self.seconds + loop.time() - begun
        return data

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def encode(frame: np.ndarray, kind: str) -> bytes:
    """A frame `[H, W, 3]` uint8 as jpeg or webp."""
    file = io.BytesIO()
    image = Image.fromarray(frame)
    if kind == "webp":
        image.save(file, "WEBP", quality=WEBP_QUALITY, method=2)
    else:
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0 if image.width <= SMALL else 2)
    return file.getvalue()


class Link:
    """Sends messages and blocks in the order they were given, by one task. Belongs to the server's thread."""

    def __init__(self, socket: web.WebSocketResponse, encoder: Encoder, kind: str, limits: Limits, fps: float) -> None:
        """``kind`` is that of the frames, as `game.serve.video.choose` says; a still is a JPEG where they are H.264."""
        self.socket, self.kind, self.fps = socket, kind, fps
        self.lost = 0  # blocks
        self._video: H264 | None = None  # made with the first block
        self._encoder, self._limits = encoder, limits
        self._outbox: deque[str | Parcel] = deque()
        self._words = 0  # messages in the outbox
        self._unseen: list[Got] = []  # blocks the page has not told of yet
        self._something = asyncio.Event()
        self._close: tuple[int, str] | None = None

    @property
    def idle(self) -> bool:
        """Whether the page has everything that was sent."""
        return not self._unseen

    def tell(self, message: dict[str, Any]) -> None:
        if self._words >= self._limits.outbox:
            self.close(WSCloseCode.TRY_AGAIN_LATER, "too slow")
            return
        self._words += 1
        self._outbox.append(json.dumps(message, separators=(",", ":")))
        self._something.set()

    def deliver(self, parcel: Parcel) -> bool:
        """Send a block, or lose it whole where too many are on their way. A still is only ever replaced by a newer one."""
        if parcel.header.still:
            kept = [item for item in self._outbox if not (isinstance(item, Parcel) and item.header.still)]
            self._outbox = deque([*kept, parcel])
        elif len(self._unseen) >= AHEAD:
            self.lost += 1
            return False
        else:
            self._unseen.append(Got(parcel.header.epoch, parcel.header.block))
            self._outbox.append(parcel)
        self._something.set()
        return True

    def got(self, message: Got) -> bool:
        """The page has a block; False if that was none it was sent."""
        if message not in self._unseen:
            return False
        self._unseen.remove(message)
        return True

    def close(self, code: int, words: str) -> None:
        """After what is in the outbox."""
        self._close = self._close or (code, words)
        self._something.set()

    async def run(self) -> None:
        """Send until the connection ends, or `close` was called. Cancel it when the page has gone."""
        try:
            while not self.socket.closed:
                if self._outbox:
                    item = self._outbox.popleft()
                    if isinstance(item, str):
                        self._words -= 1
                        await self.socket.send_str(item)
                    else:
                        await self._send(item)
                elif self._close is not None:
                    await self.socket.close(code=self._close[0], message=self._close[1].encode()[:120])
                    return
                else:
                    self._something.clear()
                    await self._something.wait()
        except (ConnectionError, RuntimeError):  # the page has gone in the middle of it
            pass

    async def _send(self, parcel: Parcel) -> None:
        first = parcel.header
        for index, frame in enumerate(parcel.frames):
            if not parcel.wanted():  # a newer epoch has begun: the page will never have the rest
                self.got(Got(first.epoch, first.block))
                return
            kind, data = await self._encode(frame, first.still, index)
            header = replace(first, kind=kind, index=index, frame=first.frame + index, lost=self.lost)
            await self.socket.send_bytes(header.pack() + data)

    async def _encode(self, frame: np.ndarray, still: bool, index: int) -> tuple[str, bytes]:
        """Kind and bytes of a frame. Every block of H.264 begins with a key frame, so none needs one that was lost or thrown away."""
        if self.kind.startswith("h264") and not still:
            try:
                return self.kind, await self._encoder.encode(partial(self._video_of, frame, index == 0))
            except Exception as error:  # PyAV's, of whatever kind: pictures are better than none
                LOG.warning("no H.264 for a page, it gets JPEG: %s: %s", type(error).__name__, error)
                self.kind, self._video = "jpeg", None
        kind = "webp" if self.kind == "webp" else "jpeg"
        return kind, await self._encoder.encode(partial(encode, frame, kind))

    def _video_of(self, frame: np.ndarray, key: bool) -> bytes:
        """On a thread of the encoder's; one frame after the other, for `_send` waits for each."""
        if self._video is None:
            self._video = H264(*frame.shape[:2], self.fps, self.kind == "h264-444")
        return self._video.encode(frame, key)
