"""One player's place at the server: the counterpart of `game/player.py` for a page in a browser.

Session, session file, saving and rewinding are the window's own; only the picture and the keys are elsewhere.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine import Session, WorldConfig
from game.controls import Controls
from game.rewinder import Rewinder
from game.saves import Saves
from game.serve.delivery import Delivery
from game.serve.inputs import PageInputs
from game.serve.limits import Allowance, Limits
from game.serve.link import Link
from game.serve.protocol import At, Do, Frozen, Got, Input, Message
from game.serve.screen import PageTimeline, Screen
from game.serve.seatfiles import SeatFiles
from game.serve.worlds import world_card
from game.sinks import Block
from game.worldthread import Turns, WorldThread


class Seat:
    """One session and, most of the time, a page that plays it. Belongs to the server's thread.

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
        self.inputs = PageInputs(config.actions)
        self.timeline = PageTimeline(config.fps, most=config.block_frames[1] / config.fps)
        self.world = WorldThread(open_session, self.inputs.take, self.timeline, turns=self.timeline.timed(turns), notify=wake)
        self.screen = Screen(self.timeline, self.tell, lambda: self.lead)
        self.saves = Saves(self.world, config.name, self.toast, files.folder / "saves")
        self.rewinder = Rewinder(self.world, self.screen, self.toast)
        self.delivery = Delivery(self.timeline, self.screen, lambda: self.lead)
        self.left_at: float | None = time.monotonic()  # since when nobody is here
        self.input_at = time.monotonic()
        self.over: str | None = None  # why it has ended
        self.ended_at = 0.0
        self.blocks = self.lost = 0
        self.slots, self._wake = slots, wake
        self._saved: list[int] = []  # slots with a saved game in them
        self._toasts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._told: Any = None
        self._loading: Any = None
        self._commands = Allowance(limits.commands)
        self.world.hold(True)  # until somebody is here

    def toast(self, words: str) -> None:
        """A short message for the player. Any thread may call it; where files lie is nobody's business."""
        self._toasts.put(words.replace(f": {self.saves.folder}/", ": ").replace(f"{self.files.folder}/", ""))
        self._wake()

    @property
    def link(self) -> Link | None:
        """To the page, while there is one."""
        return self.delivery.link

    @property
    def controls(self) -> Controls:
        return self.inputs.controls

    @property
    def lead(self) -> float:
        """How long before it is seen a block is begun."""
        return self.world.estimate.lead + self.timeline.ahead

    def tell(self, message: dict[str, Any]) -> None:
        if self.link is not None:
            self.link.tell(message)

    # ---- the page

    def attach(self, link: Link) -> None:
        """A page is here, for the first time or again; one that was here before has to go."""
        if self.link is not None:
            self.lost += self.link.lost
            self.link.close(4001, "played elsewhere")
        self.delivery.link, self.left_at, self.input_at = link, None, time.monotonic()
        self._told = self._loading = None
        self.inputs.begin()
        self.delivery.begin()
        self.tell({"t": "hello", "world": world_card(self.config), "slots": self.slots, "film": self.files.film_sink is not None})
        self.screen.welcome()
        self.delivery.show_still()
        self.world.hold(False)
        if self.world.paused:
            self.screen.freeze()
        elif self.delivery.newest is not None:
            self.delivery.go_on()

    def detach(self, link: Link) -> None:
        """That page has gone; the game waits for it."""
        if self.link is not link:
            return
        self.lost += link.lost
        self.delivery.link, self.left_at = None, time.monotonic()
        self.inputs.release()
        self.rewinder.release()
        self.world.hold(True)
        self.timeline.stop()

    def receive(self, message: Message) -> None:
        """What the page has sent."""
        now, newest = time.perf_counter(), self.delivery.newest
        match message:
            case Input():
                if self.inputs.apply(message):
                    self.input_at = time.monotonic()
            case Got():
                self.delivery.arrived(message, now)
            case At() if newest is not None:
                if self.screen.at(message, now, newest.index, newest.first_frame):
                    self.rewinder.shown(replace(newest, index=message.block))
                    self.files.shown(self.screen.epoch, message.block, now)
                self.delivery.moved()
            case Frozen():
                self.screen.page_froze(message.epoch)
            case Do():
                self._obey(message, now)

    def _obey(self, message: Do, now: float) -> None:
        self.input_at = time.monotonic()
        free = message.command in ("rewind end", "leave")  # ends that must never be lost
        if self.world.session is None or (not free and not self._commands.take()):
            return
        playing = self.delivery.picture is not None
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
                self.delivery.flow_into(self.world.restart())
            case "pause" if playing and not self.rewinder.active and not self.world.paused:
                self.world.pause()
                self.screen.freeze()
            case "resume" if self.world.paused and not self.rewinder.active:
                self.controls.drop_taps()  # they were meant for a world that stood still
                self.world.resume()
                self.screen.thaw(now)
                if self.screen.shown is None and self.delivery.newest is not None:  # the page has come while it was paused
                    self.delivery.go_on()
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
        self.delivery.look(now, self.limits.stalled)
        self._tell_state()

    def _arrive(self) -> None:
        """The world stands somewhere else after a load or a rewind."""
        while not self.world.arrivals.empty():
            arrival = self.world.arrivals.get()
            if arrival.epoch != self.world.epoch or (arrival.epoch == self.screen.epoch and self.delivery.newest is not None):
                continue
            self.controls.drop_taps()
            self.delivery.flow_into(arrival.epoch)
            if arrival.picture is not None:
                self.delivery.picture = arrival.picture
            self.delivery.show_still()
            if self.world.paused:
                self.screen.freeze()
            self.rewinder.arrived(arrival.origin)

    def _on_block(self, block: Block) -> None:
        if block.epoch > self.screen.epoch:  # its arrival was announced before it
            self._arrive()
        if block.epoch != self.screen.epoch:
            return
        self.files.keep(block)
        self.blocks += 1
        self.delivery.send(block)

    def turn_soon(self) -> None:
        """After a message: commands have things to tell at once."""
        self._wake()

    def _tell_toasts(self) -> None:
        if self._toasts.empty():
            return
        while not self._toasts.empty():
            self.tell({"t": "toast", "words": self._toasts.get()})
        self.look_for_saves()  # a toast may have told of a new one

    def _tell_state(self) -> None:
        if self.link is None:
            return
        for failure in self.files.failures():
            self.toast(failure)
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
            self.files.flush()
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
            self.files.close("failed" if reason.startswith("failed") else "left")
        except Exception as error:
            self.toast(str(error))
        self.world.session = None  # the caches are the size of a session; nothing else holds them
