"""All sessions of a server: who may come in, who is called when something happens, who has to go."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from engine import Session
from game.serve.limits import Allowance, Limits
from game.serve.link import Encoder
from game.serve.seat import Seat
from game.serve.seatfiles import SeatFiles
from game.serve.turns import ModelThread
from game.serve.upload import read_upload
from game.serve.worlds import Worlds
from game.sessionheader import build_header

LOG = logging.getLogger("reverie.serve")
TICK = 0.5  # seconds between two looks at who is idle, has vanished, or does not move
SAVE_HEADER = 2 << 20  # more than a saved game has beside its tensors
REWIND_TICK = 0.03  # while somebody rewinds


class Full(Exception):
    """There is no room for another session; one line."""


class House:
    """Belongs to the server's thread."""

    def __init__(
        self, worlds: Worlds, limits: Limits, default_seed: int | None = None, keep: Path | None = None, frames: str = "jpeg"
    ) -> None:
        """``keep`` is where films and session files go that are to stay; without it they go with their session.

        ``frames``: jpeg, webp or h264, for pages that read it.
        """
        self.worlds, self.limits, self.frames = worlds, limits, frames
        self.model = ModelThread()
        self.encoder = Encoder()
        self.seats: dict[str, Seat] = {}
        self.counts: Counter[str] = Counter()
        self._seed, self._keep = default_seed, keep
        self._folder = Path(tempfile.mkdtemp(prefix="reverie-serve-"))
        self._taken: set[Path] = set()
        self._starts = Allowance(limits.starts)
        self._decoding = asyncio.Semaphore(1)  # one picture at a time: each may need hundreds of megabytes
        self._woken: set[str] = set()
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._playing: dict[str, int] = {}  # world by session
        self._ending: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._run())
        self.model.start()

    # ---- coming in

    @property
    def playing(self) -> int:
        """Sessions that count: those that play, or may be come back to."""
        return len(self._playing)

    def check_room(self, world: int) -> None:
        """Raises Full when another session of that world cannot be admitted."""
        if self.playing >= self.limits.sessions:
            raise Full(f"all {self.limits.sessions} places are taken; try again when somebody has left")
        problem = self.worlds.room_for(world, list(self._playing.values()))
        if problem:
            raise Full(f"no memory for another session: {problem}")

    def ask(self, world: int) -> None:
        """Whoever wants a session asks first, before anything is read from him: it uses up one of the starts that `Limits` allows.

        Raises Full when there are none left, or another session of that world cannot be admitted.
        """
        self.check_room(world)
        if not self._starts.take():
            raise Full("too many sessions are being started at once; try again in a moment")

    async def admit(self, world: int, start: int | None, seed: int | None, filmed: bool, upload: bytes | None) -> Seat:
        """A new session, `ask`ed for before, in the offered world of that number, from its start picture of that number or from an upload.

        Raises Full if the room has gone meanwhile, or UploadError for a picture that cannot be used.
        """
        self.check_room(world)
        id = secrets.token_urlsafe(24)
        self._playing[id] = world  # from now on the place is taken
        try:
            return await self._seat(id, world, start, seed, filmed, upload)
        except BaseException:
            del self._playing[id]
            raise

    async def _seat(self, id: str, number: int, start: int | None, seed: int | None, filmed: bool, upload: bytes | None) -> Seat:
        offer = self.worlds.offers[number]
        folder = self._folder / hashlib.sha256(id.encode()).hexdigest()[:24]
        files = await asyncio.to_thread(SeatFiles.make, folder, offer.config, self._keep, filmed, self._taken, self.limits)
        try:
            picture = offer.starts[start or 0] if offer.starts else None
            if upload is not None:
                async with self._decoding:
                    size = offer.config.height, offer.config.width
                    picture = await asyncio.to_thread(read_upload, upload, folder, *size, self.limits.upload_pixels)
        except BaseException:
            self._discard(files)
            raise
        seed = self._seed if seed is None else seed

        def open_session(report: Callable[[str, float], None]) -> Session:
            world = self.worlds.load(number, report)
            report("start picture", 0.0)

            def begin() -> Session:
                session = world.session(seed, picture, rewind_mb=self.worlds.rewind_mb)
                files.header.fields = build_header(world, session, picture)
                return session

            return self.model.take(begin, time.perf_counter())

        slots = max(1, min(9, self.limits.saves // max(1, offer.session_bytes // 2)))
        seat = Seat(id, offer.config, open_session, self.model.take, files, self.limits, slots, partial(self._waken, id))
        self.seats[id] = seat
        self.counts["started"] += 1
        seat.world.start()
        return seat

    def save_limit(self, seat: Seat) -> int:
        """Bytes that a saved game of this session's world can have at most; 0 while it is not known, or the session has ended."""
        world = self._playing.get(seat.id)
        state = 0 if world is None else self.worlds.offers[world].session_bytes
        return state and state + SAVE_HEADER

    # ---- what happens

    def _waken(self, id: str) -> None:
        """Any thread calls this."""
        try:
            self._loop.call_soon_threadsafe(self._note, id)
        except RuntimeError:
            pass  # the server has ended

    def _note(self, id: str) -> None:
        self._woken.add(id)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            rewinding = any(seat.rewinder.active for seat in self.seats.values() if seat.over is None)
            try:
                await asyncio.wait_for(self._wake.wait(), REWIND_TICK if rewinding else TICK)
                woken = {*self._woken, *(id for id, seat in self.seats.items() if seat.rewinder.active)}
            except TimeoutError:
                woken = set(self.seats)
            self._wake.clear()
            self._woken.clear()
            for id in woken:
                if (seat := self.seats.get(id)) is not None:
                    self._turn(seat)
            self._forget()

    def _turn(self, seat: Seat) -> None:
        if seat.id not in self._playing:
            return
        try:
            seat.turn()
            reason = seat.due_to_end
        except Exception as error:  # a fault of ours in one session is no reason to end the others
            reason = f"failed: {type(error).__name__}: {error}"
        if reason is not None:
            self.end(seat, reason)

    def end(self, seat: Seat, reason: str) -> None:
        """The session is over; its files may be fetched for a while. Its place is free when it has stopped."""
        if seat.ended_at:
            return
        seat.ended_at = time.monotonic()
        task = asyncio.create_task(self._end(seat, reason))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, seat: Seat, reason: str) -> None:
        LOG.info("session %s ended: %s (%d blocks)", seat.id[:6], reason, seat.blocks)
        self.counts["failed" if reason.startswith("failed") else "ended"] += 1
        try:
            await seat.end(reason)
        except Exception as error:
            LOG.error("session %s did not end well: %s: %s", seat.id[:6], type(error).__name__, error)
        self.counts["blocks"] += seat.blocks
        self.counts["lost"] += seat.lost
        self.counts["underruns"] += seat.screen.underruns
        self._playing.pop(seat.id, None)

    def _forget(self) -> None:
        """Files of sessions that are over for long, or of the oldest where there are too many."""
        ended = sorted((seat for seat in self.seats.values() if seat.id not in self._playing), key=lambda seat: seat.ended_at)
        now = time.monotonic()
        for number, seat in enumerate(ended):
            if now - seat.ended_at > self.limits.kept or len(ended) - number > self.limits.ended:
                del self.seats[seat.id]
                self._discard(seat.files)

    def _discard(self, files: SeatFiles) -> None:
        self._taken.discard(files.film)
        shutil.rmtree(files.folder, ignore_errors=True)

    async def close(self) -> None:
        """End everything."""
        self._task.cancel()
        for seat in list(self.seats.values()):
            self.end(seat, "the server is being closed")
        if self._ending:
            await asyncio.wait(self._ending, timeout=30)
        await asyncio.to_thread(self.model.stop)
        self.encoder.close()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
