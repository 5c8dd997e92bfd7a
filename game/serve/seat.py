"""One player's place at the server: the counterpart of `game/player.py` for a page in a browser.

Session, session file, saving and rewinding are the window's own; only the picture and the keys are elsewhere.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine import Session, WorldConfig
from game.controls import Controls, Sample
from game.rewinder import Rewinder
from game.saves import Saves
from game.serve.limits import Allowance, Limits
from game.serve.link import Link, Parcel
from game.serve.protocol import At, Do, FrameHeader, Frozen, Got, Input, Message
from game.serve.screen import PageTimeline, Screen
from game.serve.seatfiles import SeatFiles
from game.sinks import Block, close_all
from game.worldthread import Turns, WorldThread


@dataclass(frozen=True)
class Seen(Sample):
    """A sample, and the number of the newest input in it."""

    input: int = 0


class Seat:
    """One session and, most of the time, a page that plays it. Belongs to the server's thread, except `_take`.

    Whatever fails in here ends this session and no other.
    """

    def __init__(
        self,
        id: str,
        config: WorldConfig,
        open_session: Callable[[Callable[[str, float], None]], Session],
        turns: Turns,
        files: SeatFiles,
        limits: Limits,
        slots: int,
        wake: Callable[[], None],
    ) -> None:
        """``slots`` is how many saved games there is room for; ``wake``, called by any thread, has `turn` called soon."""
        self.id, self.config, self.files, self.limits = id, config, files, limits
        self.controls = Controls(config.actions)
        self.timeline = PageTimeline(config.fps, most=config.block_frames[1] / config.fps)
        self.world = WorldThread(open_session, self._take, self.timeline, turns=self._timed(turns), notify=wake)
        self.screen = Screen(self.timeline, self.tell, lambda: self.lead)
        self.saves = Saves(self.world, config.name, self.toast, files.folder / "saves")
        self.rewinder = Rewinder(self.world, self.screen, self.toast)
        self.link: Link | None = None
        self.left_at: float | None = time.monotonic()  # since when nobody is here
        self.input_at = time.monotonic()
        self.over: str | None = None  # why it has ended
        self.ended_at = 0.0
        self.blocks = self.lost = 0
        self.slots, self._wake = slots, wake
        self._saved: list[int] = []  # slots with a saved game in them
        self._lock = threading.Lock()
        self._input = 0  # number of the newest input
        self._held: frozenset[str] = frozenset()
        self._newest: Block | None = None  # made, of the epoch on screen
        self._finished: dict[Got, float] = {}  # when blocks on their way were finished
        self._unwritten: Block | None = None  # waits to be shown before it is written
        self._picture: np.ndarray | None = None  # the newest frame, for a page that comes back
        self._stalled = False
        self._opened: list[Any] = []
        self._toasts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._told: Any = None
        self._loading: Any = None
        self._failures: set[str] = set()
        self._commands = Allowance(limits.commands)
        self.world.hold(True)  # until somebody is here

    # ---- the session's thread

    def _timed(self, turns: Turns) -> Turns:
        def take(work: Callable[[], Any], due: float) -> Any:
            asked = time.perf_counter()

            def begin() -> Any:
                self.timeline.queue.add(time.perf_counter() - asked)
                return work()

            return turns(begin, due)

        return take

    def _take(self, block: int) -> Seen:
        with self._lock:
            sample = self.controls.sample()
            return Seen(sample.action, sample.sampled_at, sample.input_at, sample.events, self._input)

    def toast(self, words: str) -> None:
        """A short message for the player. Any thread may call it; where files lie is nobody's business."""
        self._toasts.put(words.replace(f": {self.saves.folder}/", ": ").replace(f"{self.files.folder}/", ""))
        self._wake()

    # ---- the page

    @property
    def lead(self) -> float:
        """How long before it is seen a block is begun."""
        return self.world.estimate.lead + self.timeline.ahead

    def tell(self, message: dict[str, Any]) -> None:
        if self.link is not None:
            self.link.tell(message)

    def attach(self, link: Link) -> None:
        """A page is here, for the first time or again; one that was here before has to go."""
        if self.link is not None:
            self.lost += self.link.lost
            self.link.close(4001, "played elsewhere")
        self.link, self.left_at, self.input_at, self._input = link, None, time.monotonic(), 0
        self._told = self._loading = None
        self._finished.clear()
        self.tell({"t": "hello", "world": world_card(self.config), "slots": self.slots, "film": self.files.film_sink is not None})
        self.screen.welcome()
        self._show_still()
        self.world.hold(False)
        if self.world.paused:
            self.screen.freeze()
        elif self._newest is not None:
            self._go_on()

    def detach(self, link: Link) -> None:
        """That page has gone; the game waits for it."""
        if self.link is not link:
            return
        self.lost += link.lost
        self.link, self.left_at = None, time.monotonic()
        self._release()
        self.rewinder.release()
        self.world.hold(True)
        self.timeline.stop()

    def receive(self, message: Message) -> None:
        """What the page has sent."""
        now = time.perf_counter()
        match message:
            case Input():
                self._apply(message)
            case Got():
                self._arrived(message, now)
            case At() if self._newest is not None:
                if self.screen.at(message, now, self._newest.index, self._newest.first_frame):
                    self._shown(message.block, now)
                self._stalled = False
            case Frozen():
                self.screen.page_froze(message.epoch)
            case Do():
                self._obey(message, now)

    def _apply(self, message: Input) -> None:
        """The newest state wins: an older one that comes late is nothing."""
        if message.id <= self._input:
            return
        self.input_at = time.monotonic()
        with self._lock:
            self._input = message.id
            for key in self._held - message.keys:
                self.controls.release(key, "page")
            for key in message.keys - self._held:
                self.controls.press(key, "page")
            self._held = message.keys
            pitch, yaw = message.look
            self.controls.set_stick(yaw, -pitch, looks=True)
            self.controls.move_mouse(*message.mouse)

    def _release(self) -> None:
        with self._lock:
            self._held = frozenset()
            self.controls.release_all()

    def _arrived(self, message: Got, now: float) -> None:
        finished = self._finished.pop(message, None)
        if self.link is None or not self.link.got(message):
            return
        if finished is not None:
            self.timeline.delivery.add(max(0.0, now - finished - message.spread))
        if self._stalled and self.link.idle and not self.screen.frozen:
            self._stalled = False
            self._go_on()

    def _go_on(self) -> None:
        """Have the next block made, for a page that shows none."""
        now, newest = time.perf_counter(), self._newest
        self.screen.moved_at = now
        self.timeline.start(newest.first_frame + len(newest.frames), now + self.lead)

    def _shown(self, index: int, now: float) -> None:
        """The first frame of a block is on the page's screen."""
        self.rewinder.shown(replace(self._newest, index=index))
        if self._unwritten is not None and (self._unwritten.epoch, self._unwritten.index) == (self.screen.epoch, index):
            self._unwritten = replace(self._unwritten, shown_at=now)
            self.flush()

    def _obey(self, message: Do, now: float) -> None:
        self.input_at = time.monotonic()
        free = message.command in ("rewind end", "leave")  # ends that must never be lost
        if self.world.session is None or (not free and not self._commands.take()):
            return
        playing = self._picture is not None
        match message.command:
            case "leave":
                self.over = self.over or "left"
            case "rewind end":
                self.rewinder.release()
            case "rewind" if playing:
                self.rewinder.press()
            case "save" if playing:
                self._save(message.slot)
            case "load" if playing:
                self.saves.slot = message.slot
                self.saves.load()
            case "restart" if playing:
                self.controls.drop_taps()
                self.rewinder.forget()
                self._flow_into(self.world.restart())
            case "pause" if playing and not self.rewinder.active and not self.world.paused:
                self.world.pause()
                self.screen.freeze()
            case "resume" if self.world.paused and not self.rewinder.active:
                self.controls.drop_taps()  # they were meant for a world that stood still
                self.world.resume()
                self.screen.thaw(now)
                if self.screen.shown is None and self._newest is not None:  # the page has come while it was paused
                    self._go_on()
            case "step" if playing and not self.rewinder.active:
                if not self.world.paused:
                    self.world.pause()
                    self.screen.freeze()
                self.screen.thaw(now, until=self.world.step())

    def _save(self, slot: int) -> None:
        if slot > self.slots:
            return self.toast(f"Not saved: there is room for {self.slots} saved games here, choose slot 1 to {self.slots}")
        self.saves.slot = slot
        self.saves.save()

    # ---- what the session's thread has made

    def turn(self) -> None:
        """Called whenever there may be something new, and now and then."""
        now = time.perf_counter()
        self._tell_toasts()
        self._arrive()
        self.rewinder.turn(now)
        while not self.world.blocks.empty():
            self._on_block(self.world.blocks.get())
        if self.world.error is not None and self.over is None:
            self.over = f"failed: {type(self.world.error).__name__}: {self.world.error}"
        if self.link is not None and not self.screen.frozen and self.timeline.running and now - self.screen.moved_at > self.limits.stalled:
            self._stalled = True
            self.timeline.stop()
        self._tell_state()

    def _arrive(self) -> None:
        """The world stands somewhere else after a load or a rewind."""
        while not self.world.arrivals.empty():
            arrival = self.world.arrivals.get()
            if arrival.epoch != self.world.epoch or (arrival.epoch == self.screen.epoch and self._newest is not None):
                continue
            self.controls.drop_taps()
            self._flow_into(arrival.epoch)
            self._picture = arrival.picture if arrival.picture is not None else self._picture
            self._show_still()
            if self.world.paused:
                self.screen.freeze()
            self.rewinder.arrived(arrival.origin)

    def _flow_into(self, epoch: int) -> None:
        self._newest = None
        self._finished.clear()
        self.screen.restart(epoch)

    def _on_block(self, block: Block) -> None:
        if block.epoch > self.screen.epoch:  # its arrival was announced before it
            self._arrive()
        if block.epoch != self.screen.epoch:
            return
        self.flush()
        self.blocks += 1
        self._newest, self._unwritten, self._picture = block, block, block.frames[-1]
        if self.link is None:
            return
        hold = max(0.0, self.lead - len(block.frames) / self.config.fps)
        header = self._header(block, still=False, hold=hold, input=getattr(block.sample, "input", 0))
        if self.link.deliver(Parcel(header, block.frames, lambda: self.screen.epoch == block.epoch)):
            self._finished[Got(block.epoch, block.index)] = block.finished_at
        elif not self.timeline.running:  # the first of an epoch: the page will never ask for the next
            self._stalled = True

    def _show_still(self) -> None:
        if self.link is not None and self._picture is not None:
            epoch = self.screen.epoch
            self.link.deliver(Parcel(self._header(self._newest, still=True), self._picture[None], lambda: self.screen.epoch == epoch))

    def _header(self, block: Block | None, still: bool, hold: float = 0.0, input: int = 0) -> FrameHeader:
        index, frame, count, seconds = (0, 0, 1, 0.0)
        if block is not None:
            index, frame, count, seconds = block.index, block.first_frame, len(block.frames), block.seconds
        return FrameHeader(
            "jpeg", still, self.screen.epoch, index, frame, input, round(seconds * 1e6), 0, round(hold * 1000), 0, 1 if still else count
        )

    def turn_soon(self) -> None:
        """After a message: commands have things to tell at once."""
        self._wake()

    async def written(self, timeout: float = 3.0) -> None:
        """Wait until all blocks made so far are in the session file."""
        self.flush()
        sink, end = self.files.session_sink, time.monotonic() + timeout
        while sink in self._opened and sink.error is None and sink.sink.blocks < self.blocks and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def flush(self) -> None:
        """Hand over to film and session file what waits to be shown."""
        block, self._unwritten = self._unwritten, None
        if block is None:
            return
        for sink in self.files.sinks:
            if sink not in self._opened:
                self._opened.append(sink)
                sink.open(self.config)
            sink.write(block)

    def _tell_toasts(self) -> None:
        if self._toasts.empty():
            return
        while not self._toasts.empty():
            self.tell({"t": "toast", "words": self._toasts.get()})
        self.look_for_saves()  # a toast may have told of a new one

    def _tell_state(self) -> None:
        if self.link is None:
            return
        for sink in self._opened:
            if sink.error is not None and str(sink.error) not in self._failures:
                self._failures.add(str(sink.error))
                self.toast(str(sink.error))
        if self.world.progress is not None and self.world.progress != self._loading:
            self._loading = self.world.progress
            self.tell({"t": "loading", "what": self._loading[0], "part": self._loading[1]})
        film = self.files.film_sink
        state = {"paused": self.world.paused, "rewinding": self.rewinder.words, "filming": film is not None and film.error is None}
        state["saved"] = self._saved
        if state != self._told and self.world.progress is None:
            self._told = state
            self.tell({"t": "state", **state})

    def look_for_saves(self) -> None:
        self._saved = [slot for slot in range(1, self.slots + 1) if self.saves.path(slot).is_file()]

    def may_upload(self) -> bool:
        """Whether another saved game may be sent now; counts as a command."""
        self.input_at = time.monotonic()
        return self._commands.take()

    # ---- the end

    @property
    def due_to_end(self) -> str | None:
        """Why it should end now, if it should."""
        now = time.monotonic()
        if self.over is not None:
            return self.over
        if self.left_at is not None and now - self.left_at > self.limits.vanished:
            return "vanished"
        if now - self.input_at > self.limits.idle:
            return "idle"
        return None

    async def end(self, reason: str) -> None:
        """Stop, finish the files and tell the page."""
        self.over, self.ended_at = reason, time.monotonic()
        try:
            self.turn()
            self.flush()
        finally:
            await asyncio.to_thread(self._close, reason)
        self._tell_toasts()
        if self.link is not None:
            files = {"session": self.files.session_path.is_file(), "film": self.files.film_path() is not None, "saved": self._saved}
            words = "this session broke down; others play on" if reason.startswith("failed") else reason
            self.tell({"t": "over", "reason": words, "files": files})
            self.link.close(1000, words)

    def _close(self, reason: str) -> None:
        self.world.stop()
        self.saves.close()
        try:
            close_all(self._opened, "failed" if reason.startswith("failed") else "left")
        except Exception as error:
            self.toast(str(error))
        self.world.session = None  # the caches are the size of a session; nothing else holds them


def world_card(config: WorldConfig) -> dict[str, Any]:
    """What a page needs to know of a world."""
    space = config.actions
    look = None
    if space.has_look:
        look = {"vertical": bool(space.look_scale[0]), "keys": {entry.key: entry.direction for entry in space.look}}
    card = {"name": config.name, "title": config.title, "about": config.about, "fps": config.fps, "width": config.width}
    return card | {"height": config.height, "keys": [list(pair) for pair in space.help], "look": look}
