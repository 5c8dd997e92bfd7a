"""The game in a window: the loop on the main thread, and the only place where the two threads meet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pygame

from engine import Compiled, Session, World, WorldConfig
from game import hud
from game.compiling import CompilerThread
from game.controls import Controls, Sample
from game.events import Command, EventReader, help_columns
from game.pacing import Timeline
from game.presenter import Presenter
from game.recorder import Recorder
from game.rewinder import Rewinder
from game.saves import Saves
from game.script import Script
from game.sinks import Background, Block, close_all
from game.window import Window
from game.worldthread import WorldThread

POLL_SECONDS = 0.005  # between two looks at the keyboard
SHOTS = Path("reverie-shots")

Report = Callable[[str, float], None]  # of progress: (what, part done)
OpenSession = Callable[[Report], Session]
Compiler = Callable[[World, Report], Compiled]


class Game:
    """One game in a window. `run` returns when the player leaves or ``limit`` blocks have been shown."""

    def __init__(
        self,
        window: Window,
        config: WorldConfig,
        open_session: OpenSession,
        script: Script | None = None,
        limit: int | None = None,
        sinks: Iterable[Background] = (),
        replay: bool = False,
        compiler: Compiler | None = None,
    ) -> None:
        """``replay``: all that is done stands in the script, so that nothing the player does may change the world.

        With ``compiler`` (`engine.compile_world`) the world is compiled while it is played already.
        """
        self.window, self.config, self.replay = window, config, replay
        self.controls = Controls(config.actions)
        self._script = script
        self._sinks = list(sinks)
        self._sinks_opened: list[Background] = []
        self._sinks_told: set[Background] = set()
        self._events = EventReader(self.controls)
        timeline = Timeline(config.fps)
        self.world = WorldThread(self._open, self._take, timeline, limit)
        self._open_session = open_session
        self.compiling = None if compiler is None else CompilerThread(self.world, window.toast, make=compiler)
        self.presenter = Presenter(self.world.blocks, timeline, lambda: self.world.estimate.lead, self._on_block)
        self.saves = Saves(self.world, config.name, window.toast)
        self.rewinder = Rewinder(self.world, self.presenter, window.toast)
        self._hud = self._help = self._over = self._played_out = False
        self._drawn: object = None  # what the overlays showed when the window was last drawn

    def run(self) -> None:
        """Play. Raises what went wrong on the world's thread, or `SinkError` at the end if a recording failed."""
        self.window.fit_world(f"{self.config.title} – Reverie", self.config.width, self.config.height)
        self.window.toast("F1 help   F3 keys and numbers" + ("   click to look with the mouse" if self.config.actions.has_look else ""))
        self.world.start()
        reason = "failed"
        try:
            while not self._over:
                self._turn()
            reason = "played to the end" if self._played_out else "left"
        except KeyboardInterrupt:
            reason = "interrupted"
            raise
        finally:
            self.window.close()
            self.world.stop()
            self.saves.close()
            close_all(self._sinks_opened, reason)

    def _turn(self) -> None:
        for command in self._events.read(pygame.event.get(), self.window.captured):
            self._obey(command)
        if self.world.error is not None:
            raise self.world.error
        now = time.perf_counter()
        self._arrive()
        self.rewinder.turn(now)
        fresh = self.presenter.poll(now)
        if fresh:
            self.window.set_picture(self.presenter.frame)
        self._tell_failures()
        overlays = self._overlay_state()
        if fresh or overlays != self._drawn:
            self._drawn = overlays
            self.window.draw(self._draw_overlays)
        if fresh:
            self.presenter.seen(time.perf_counter())
        if self.world.end is not None and self.presenter.ended(now, self.world.end):
            self._over = self._played_out = True
        self._rest(self.presenter.next_due)

    def _rest(self, due: float | None) -> None:
        """Sleep until there is something to do; what is overdue does not come sooner by asking more often."""
        seconds = 0.0 if due is None else due - time.perf_counter()
        time.sleep(seconds if 0 < seconds < POLL_SECONDS else POLL_SECONDS)

    # ---- between the threads

    def _open(self, report: Report) -> Session:
        """Called by the world's thread."""
        session = self._open_session(report)
        if self.compiling is not None:
            self.compiling.start(session)
        return session

    def _arrive(self) -> None:
        """The world stands somewhere else after a load or a rewind: show the picture that is there."""
        while not self.world.arrivals.empty():
            arrival = self.world.arrivals.get()
            if arrival.epoch != self.world.epoch or (arrival.epoch == self.presenter.epoch and self.presenter.block is not None):
                continue  # something newer is on its way, or already there
            self.controls.drop_taps()
            self.presenter.restart(arrival.epoch, arrival.picture)
            if self.world.paused:
                self.presenter.freeze()
            if arrival.picture is not None:
                self.window.set_picture(arrival.picture)
                self._drawn = None
            self.rewinder.arrived(arrival.origin)

    def _take(self, block: int) -> Sample:
        """The action for the ``block``-th block: from the script while it lasts, then from the player. Called by the world's thread."""
        sample = self.controls.sample()
        action = None if self._script is None else self._script.at(block)
        return sample if action is None else Sample(action, sample.sampled_at)

    def _on_block(self, block: Block) -> None:
        """The first frame of ``block`` is on screen, as of now."""
        self.rewinder.shown(block)
        block = replace(block, shown_at=time.perf_counter())
        if self._script is not None and block.index - self.world.base == len(self._script):
            self.window.toast("The script is over, the controls are yours")
        for sink in self._sinks:
            if sink not in self._sinks_opened:
                self._sinks_opened.append(sink)
                sink.open(self.config)
            sink.write(block)

    def _tell_failures(self) -> None:
        for sink in self._sinks_opened:
            if sink.error is not None and sink not in self._sinks_told:
                self._sinks_told.add(sink)
                self.window.toast(str(sink.error))

    # ---- commands

    def _obey(self, command: Command) -> None:
        playing = self.presenter.frame is not None
        match command:
            case Command.QUIT:
                self._over = True
            case Command.ESCAPE:
                self._escape()
            case Command.CAPTURE if playing and self.config.actions.has_look:
                self.window.capture(True)
            case Command.FOCUS_LOST:
                self.window.capture(False)
                self.rewinder.release()
            case Command.FULLSCREEN:
                self.window.toggle_fullscreen()
                self._drawn = None
            case Command.REDRAW:
                self._drawn = None
            case Command.HUD:
                self._hud = not self._hud
            case Command.HELP:
                self._help = not self._help
            case Command.SCREENSHOT if playing:
                self._screenshot()
            case Command.SAVE | Command.LOAD | Command.REWIND | Command.RESTART if self.replay:
                self.window.toast("This is a replay: it plays what was played")
            case Command.SLOT:
                self.saves.choose(self._events.slot)
            case Command.SAVE if playing:
                self.saves.save()
            case Command.LOAD if playing:
                self.saves.load()
            case Command.REWIND if playing:
                self.rewinder.press()
            case Command.REWIND_END:
                self.rewinder.release()
            case Command.PAUSE if playing and not self.rewinder.active:
                self._pause()
            case Command.STEP if playing and not self.rewinder.active:
                self._step()
            case Command.RESTART if playing:
                self.controls.drop_taps()
                self.rewinder.forget()
                self.presenter.restart(self.world.restart())

    def _escape(self) -> None:
        """Esc goes back one thing: the captured mouse, the help, the game."""
        if self.window.captured:
            self.window.capture(False)
        elif self._help:
            self._help = False
        else:
            self._over = True

    def _pause(self) -> None:
        if self.world.paused:
            self.controls.drop_taps()  # they were meant for a world that stood still
            self.world.resume()
            self.presenter.thaw(time.perf_counter())
        else:
            self.world.pause()
            self.presenter.freeze()

    def _step(self) -> None:
        if not self.world.paused:
            self._pause()
        self.presenter.thaw(time.perf_counter(), until=self.world.step())

    def _screenshot(self) -> None:
        """The picture as it is seen, without anything over it; written on a thread because a large PNG takes a while."""
        picture = self.window.scaled_picture().copy()
        name = f"{self.config.name}-{datetime.now():%Y%m%d-%H%M%S-%f}.png"

        def save() -> None:
            try:
                SHOTS.mkdir(exist_ok=True)
                pygame.image.save(picture, SHOTS / name)
                self.window.toast(f"Screenshot: {SHOTS / name}")
            except (OSError, pygame.error) as error:
                self.window.toast(f"No screenshot: {error}")

        threading.Thread(target=save, name="reverie-screenshot").start()

    # ---- drawing

    def _overlay_state(self) -> object:
        """Whatever changes the overlays without a new frame; loading moves all the time."""
        held = self.controls.held if self._hud else None
        loading = time.perf_counter() // 0.04 if self.presenter.frame is None else None
        return self.window.toasts(), self._hud, self._help, held, self.world.paused, self.rewinder.words, loading

    def _draw_overlays(self, surface: pygame.Surface) -> None:
        if self.presenter.frame is None:
            what, part = self.world.progress or ("first picture", None)
            hud.draw_loading(surface, self.config.title, what, part)
        recorder = next((sink for sink in self._sinks_opened if isinstance(sink.sink, Recorder) and not sink.error), None)
        if recorder is not None:
            hud.draw_recording(surface, recorder.sink.frames / self.config.fps, recorder.dropped)
        if self._help:
            hud.draw_help(surface, self.config.title, self.config.about, help_columns(self.config.actions))
            return
        if self._hud and self.presenter.block is not None:
            hud.draw_hud(surface, self._hud_state(self.presenter.block))
        if self.rewinder.words:
            hud.draw_banner(surface, self.rewinder.words)
        elif self.world.paused:
            hud.draw_banner(surface, "Paused   P go on   . one block")
        hud.draw_toasts(surface, self.window.toasts(), raised=self._hud)

    def _hud_state(self, block: Block) -> hud.HudState:
        space, action, shown = self.config.actions, block.sample.action, self.presenter.shown
        return hud.HudState(
            keys=space.keys,
            held=self.controls.held,
            acting=space.acting(action),
            look=space.deflection(action) if space.has_look else None,
            fps=self.presenter.rate.value,
            native_fps=self.config.fps,
            generation=self.world.estimate.last,
            slowest=self.world.estimate.seconds,
            margin=self.world.estimate.margin,
            action_latency=shown.action_latency,
            input_latency=shown.input_latency,
            underruns=shown.underruns,
            block=block.index,
            frame=self.presenter.frame_number,
            layers="" if self.compiling is None else self.compiling.words,
        )
