"""One game: an action in, the next block's frames out, for ever and in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.actions import IDLE, Action
from engine.clip import check_clip, encode_clip
from engine.conditioning import ConditionRing, Rows, StartCondition, Windows, stands_still
from engine.frames import Arriving, to_bytes, to_uint8
from engine.history import REWIND_MB, History
from engine.sampler import BlockSampler, NoiseSource, SeededNoise
from engine.snapshot import Identity, Snapshot, ring_copy
from engine.stopwatch import Stopwatch
from models.errors import WorldError

if TYPE_CHECKING:
    from engine.clock import BlockClock
    from engine.compiler import Compiled
    from engine.picture import Picture
    from engine.world import World

Past = tuple[tuple[Tensor, Action], ...]  # given blocks: their clean latents [1, z, n, h, w], and what was done meanwhile
Denoised = Callable[[Tensor, Stopwatch], None]
Ready = Callable[[np.ndarray], None]  # what is to be done with a block's frames, uint8 `[F, H, W, 3]`, as soon as they are there


class Session:
    """All state of one game in a `World`, at ``clock``: the block that comes next.

    A block is worked out first and committed last, so a step that fails (or is interrupted) leaves the session where
    it was. Same world, seed, start picture and actions give the same bits.
    """

    def __init__(
        self, world: World, seed: int = 0, start: Picture | StartCondition | None = None, noise: NoiseSource | None = None,
        rewind_mb: float = REWIND_MB,
    ) -> None:  # fmt: skip
        self.world = world
        self.seed = seed
        self.clock = world.config.clock
        self.last_frame: np.ndarray | None = None  # [H, W, 3] uint8, read only: the end of the block before; None at block 0
        self.restored_from: str | None = None  # sha256 of the file this game goes on from
        self.timings: dict[str, float] = {}
        self.precise_timings = False
        self._noise = noise or SeededNoise(seed)
        self._sampler = BlockSampler.of(world.dit, world.config.sampler)
        self._start = start if isinstance(start, StartCondition) else world.condition(start)
        self._ring = ConditionRing(world.config.model.action)
        self._cache = world.new_cache(self._start)
        self._decoder = world.decoder.new_decoder_cache()
        self._history = History(int(rewind_mb * 1e6))
        self._past: Past = ()
        self._queues = world.device.type == world.decode_device.type == "cuda"

    @torch.inference_mode()
    def step(self, action: Action = IDLE, ready: Ready | None = None) -> np.ndarray:
        """Play one block: uint8 RGB frames `[9, H, W, 3]` for the first block, `[12, H, W, 3]` afterwards.

        ``ready`` is called with the frames as soon as they are there, before the clean pass that the next block needs. Should that fail, or
        ``ready`` itself, the block counts as not played, though its frames may have been shown. Afterwards `timings` holds the seconds of
        every stage. Raises WorldError for a key the world does not have.
        """
        watch, rows, windows, condition = self._condition(action)
        clock, ring, cache = self.clock, self._ring, self._cache
        books = cache.first, cache.written
        undo = self._history.before(clock, cache, self._decoder, ring, self.last_frame)
        watch.lap("history")
        try:
            latents, pictures = self._make(condition, windows, watch, rows is not None, ready)
            self._history.append(undo, latents)
        except BaseException:
            cache.first, cache.written = books
            if undo is not None:
                undo.put_back(cache)
            raise
        self.advance(rows)  # from here on nothing can fail
        self.shown(pictures[-1])
        self.timings = watch.finish()
        return pictures

    def _condition(self, action: Action) -> tuple[Stopwatch, Rows | None, Windows, Tensor]:
        """What steers the next block: rows (None: not to be remembered), what the model reads of them, the start picture's channels."""
        watch = Stopwatch({self.world.device, self.world.decode_device} if self.precise_timings else ())
        rows = self._ring.hold(self.clock, *self.world.config.actions.to_model(action))
        windows = self._ring.windows(self.clock, rows).to(self.world.device)
        condition = self._start.block(self.clock)
        watch.lap("conditioning")
        return watch, None if stands_still(self.world.config, self.clock, self._ring, rows) else rows, windows, condition

    def imagine(self, action: Action, denoised: Denoised | None = None) -> tuple[Rows | None, Tensor, Stopwatch]:
        """The transformer's part of `step`, for `engine.overlap`: the block's rows and latents. Changes nothing when it raises.

        ``denoised`` is called with latents and watch before the clean pass. `advance` takes the rows, `develop` the latents; `shown` ends
        the block. What `rewind` could take back is forgotten.
        """
        watch, rows, windows, condition = self._condition(action)
        self._history.clear()
        books = self._cache.first, self._cache.written
        with self._back_to(books):
            latents = self._denoise(condition, windows, watch)
        if denoised is not None:  # outside: it may reset the session
            denoised(latents, watch)
            watch.skip()
        with self._back_to(books):
            if rows is not None:
                self._remember(condition, windows, watch, latents)
        return rows, latents, watch

    @contextmanager
    def _back_to(self, books: tuple[int, int]) -> Iterator[None]:
        """The cache's (first, written) are these again if what is done inside fails."""
        try:
            yield
        except BaseException:
            self._cache.first, self._cache.written = books
            raise

    def _make(
        self, condition: Tensor, windows: Windows, watch: Stopwatch, remembered: bool, ready: Ready | None
    ) -> tuple[Tensor, np.ndarray]:
        """Latents and pictures of the block that comes next. Changes only what the next attempt at it would write over.

        The pictures come before the clean pass, unless that is queued on a GPU in a moment, as graphs and compiled layers are: then the
        host does so while it would wait for them. Stages that are measured one by one come one by one.
        """
        queued = self._queues and (self.world.compiled or self._cache.graphed) and not watch.devices
        latents = self._denoise(condition, windows, watch)
        if queued:
            coming = Arriving(to_bytes(self._decode(latents, watch)))
            if remembered:
                self._remember(condition, windows, watch, latents)
            pictures = coming.wait().numpy()
            watch.lap("transfer")
        else:
            pictures = self.develop(latents, watch)
        if ready is not None:
            ready(pictures)
        if remembered and not queued:
            self._remember(condition, windows, watch, latents)
        return latents, pictures

    def _denoise(self, condition: Tensor, windows: Windows, watch: Stopwatch) -> Tensor:
        """The block's latents `[1, z, n, h, w]`."""
        for count, x0 in enumerate(self._sampler.denoise(self.clock, self._cache, condition, windows, self._noise), 1):
            latents = x0
            watch.lap(f"denoise {count}")
        return latents

    def _remember(self, condition: Tensor, windows: Windows, watch: Stopwatch, latents: Tensor) -> None:
        """Put the latents' keys and values into the cache, by a clean pass, unless those of the last pass stay."""
        if self.world.config.sampler.context == "clean":
            self._sampler.commit(self.clock, self._cache, condition, windows, latents)
            watch.lap("commit")

    def develop(self, latents: Tensor, watch: Stopwatch) -> np.ndarray:
        """The decoder's part: pictures, uint8 `[F, H, W, 3]` on the host."""
        pictures = to_uint8(self._decode(latents, watch))
        watch.lap("transfer")
        return pictures

    def _decode(self, latents: Tensor, watch: Stopwatch) -> Tensor:
        """Frames `[1, 3, F, H, W]` in [-1, 1], on the decoder's device."""
        frames = self.world.decoder.decode_block(latents.to(self.world.decode_device), self._decoder, commit=False)
        watch.lap("decode")
        return frames

    @torch.inference_mode()
    def imagine_only(self, action: Action) -> Tensor:
        """The latents of the next block, which is never decoded: to measure and to compare. The session is of no other use then."""
        rows, latents, _ = self.imagine(action)
        self.advance(rows)
        return latents

    @torch.inference_mode()
    def develop_only(self, latents: Tensor) -> np.ndarray:
        """Pictures, uint8 `[F, H, W, 3]`, of the next latents `[1, z, n, h, w]` of the decoder's stream: to measure, as `imagine_only`."""
        pictures = self.develop(latents, Stopwatch())
        self._decoder.commit()
        return pictures

    def rehearse(self) -> None:
        """Play a block as if the window were full: what the first such block makes is made then. The session is of no other use."""
        window = self.world.config.model.local_attn_size
        while self.clock.filled(window) < window:
            self.clock = self.clock.next()
        self._ring.count = self.clock.first_row
        self._book(self.clock)
        self.step()

    def _book(self, clock: BlockClock) -> None:
        """Enter into the cache's books that it stands before this block."""
        self._cache.first, self._cache.written = max(0, clock.start - self._cache.window), clock.start

    def advance(self, rows: Rows | None) -> None:
        """The transformer goes on to the next block. Without rows it stays where it is: the next one is written over this one."""
        if rows is None:
            self._book(self.clock)
            self.clock = self.clock.held()
            return
        self._ring.commit(self.clock, rows)
        self.clock = self.clock.next()

    def shown(self, last_frame: np.ndarray) -> None:
        """The decoder goes on to the next block."""
        self._decoder.commit()
        self.last_frame = _read_only(last_frame)

    @torch.inference_mode()
    def prefill(
        self, clip: np.ndarray, actions: Sequence[Action] = (), progress: Callable[[float], None] | None = None
    ) -> list[np.ndarray]:  # fmt: skip
        """Begin with a given clip: the next block goes on from its end. Returns its blocks as `step` would have, as the world sees them.

        ``clip`` `[F, H, W, 3]` (uint8, or float in [0, 1]) is cut and scaled like a start picture, which its first frame becomes.
        Only whole blocks are used, `check_clip` says how many. ``actions`` are what was done in each; missing ones are idle.
        ``progress`` is called with the part done, 0 to 1. Raises WorldError, and changes nothing, for a session already played,
        a clip that cannot be used, more actions than blocks, or a key the world does not have.
        """
        config = self.world.config
        if self.clock.block:
            raise WorldError(f"a clip can only be given at the beginning, this session stands at block {self.clock.block}; reset it first")
        blocks, _ = check_clip(clip, self.clock)
        if len(actions) > blocks:
            raise WorldError(f"{len(actions)} actions are too many for a clip of {blocks} blocks")
        for action in actions:
            config.actions.check(action.keys)
        report = progress or (lambda part: None)
        start = self.world.condition(clip[0])
        latents = []
        for part in encode_clip(self.world.vae, clip, self.clock, config.height, config.width, self.world.decode_device):
            latents.append(part.to(self.world.device))
            report(len(latents) / blocks / 2)
        past = tuple(zip(latents, [*actions, *[IDLE] * (blocks - len(actions))], strict=True))
        return self._live_through(start, past, lambda done: report(0.5 + done / blocks / 2))

    @torch.inference_mode()
    def _live_through(self, start: StartCondition, past: Past, report: Callable[[int], None] = lambda done: None) -> list[np.ndarray]:
        """Commit clean latents block by block, at block 0, into all caches and the decoder's; all of it or nothing."""
        clock, cache = self.clock, self._cache
        ring, decoder = ConditionRing(self._ring.config), self.world.decoder.new_decoder_cache()
        images = [layer.image for layer in cache.layers]
        pictures = []
        try:
            self.world.dit.precompute_context(start.visual_context, cache)
            for latents, action in past:
                rows = ring.hold(clock, *self.world.config.actions.to_model(action))
                windows = ring.windows(clock, rows).to(self.world.device)
                self._sampler.commit(clock, cache, start.block(clock), windows, latents)
                pictures.append(to_uint8(self.world.decoder.decode_block(latents.to(self.world.decode_device), decoder)))
                ring.commit(clock, rows)
                clock = clock.next()
                report(len(pictures))
        except BaseException:
            for layer, image in zip(cache.layers, images, strict=True):
                layer.image = image
            cache.clear()  # at block 0 nothing in it counts
            raise
        self._start, self._past, self._ring, self._decoder, self.clock = start, past, ring, decoder, clock
        self.last_frame = _read_only(pictures[-1][-1])
        self._history.clear()
        return pictures

    def reset(self, seed: int | None = None, start: Picture | None = None) -> None:
        """Begin again in the next epoch, with the same seed and start picture (or clip, after it) unless others are given.

        Raises WorldError, and changes nothing, when the start picture cannot be used.
        """
        if start is not None:
            condition = self.world.condition(start)
            self._cache, self._start, self._past = self.world.new_cache(condition), condition, ()
        if seed is not None:
            self.seed, self._noise = seed, SeededNoise(seed)
        self._cache.clear()
        self._ring.reset()
        self._decoder = self.world.decoder.new_decoder_cache()
        self._history.clear()
        self.clock = self.clock.restarted()
        self.last_frame = self.restored_from = None
        self.timings = {}
        if self._past:
            self._live_through(self._start, self._past)

    # ---- saving, loading, rewinding

    @torch.inference_mode()
    def snapshot(self) -> Snapshot:
        """A copy of all state, on the host. The same state gives the same snapshot, whatever way led to it."""
        clock, cache = self.clock, self._cache
        seen = range(max(0, clock.start + clock.n - cache.window), clock.start)  # latents that the next block still reads
        tensors = {}
        for name, buffer in cache.tensors().items():
            tensors[f"cache.{name}"] = buffer.to("cpu", copy=True) if ".image." in name else ring_copy(buffer, seen)
        tensors |= {f"decoder.{slot}": frames.to("cpu", copy=True) for slot, frames in self._decoder.tensors().items()}
        tensors["rows.keyboard"] = self._ring.keyboard.clone()
        if self._ring.mouse is not None:
            tensors["rows.mouse"] = self._ring.mouse.clone()
        tensors["start.latents"] = self._start.latents.to("cpu", copy=True)
        if self._start.visual_context is not None:
            tensors["start.visual_context"] = self._start.visual_context.to("cpu", copy=True)
        if self.last_frame is not None:
            tensors["last_frame"] = torch.from_numpy(self.last_frame.copy())
        if self._past:
            tensors["past.latents"] = torch.cat([latents for latents, _ in self._past], dim=2).to("cpu", copy=True)
        past = tuple(action for _, action in self._past)
        return Snapshot(clock.block, self.seed, tensors, Identity(self.world), past=past, still=clock.still)

    def read_snapshot(self, path: str | Path) -> Snapshot:
        """A saved snapshot that `restore` will take. Any thread may call it: it touches no state. Raises as `Snapshot.load`."""
        return Snapshot.load(path, self.world)

    @torch.inference_mode()
    def restore(self, snapshot: Snapshot) -> None:
        """Go on from ``snapshot``: the same actions give the same bits. The next epoch begins; its history is empty.

        Raises WorldError, and changes nothing, unless the snapshot is of this world.
        """
        snapshot.check(self.world)
        tensors, device = snapshot.tensors, self.world.device
        latents, tokens = tensors["start.latents"].to(device, copy=True), tensors.get("start.visual_context")
        start = StartCondition(latents, self.world.config.vae.temporal_ratio, None if tokens is None else tokens.to(device, copy=True))
        decoder = self.world.decoder.new_decoder_cache()
        decoder.load({name: tensor.to(self.world.decode_device) for name, tensor in _part(tensors, "decoder.").items()})
        clock = replace(self.clock, epoch=self.clock.epoch + 1, block=snapshot.block, still=snapshot.still)
        held = max(0, clock.start - self._cache.window), clock.start
        mouse = tensors.get("rows.mouse")
        past: Past = ()
        if snapshot.past:
            past = tuple(zip(tensors["past.latents"].to(device, copy=True).split(clock.n, dim=2), snapshot.past, strict=True))

        self._cache.load(_part(tensors, "cache."), *held)  # from here on nothing can fail
        self._ring.load(tensors["rows.keyboard"].clone(), None if mouse is None else mouse.clone(), clock.first_row)
        self._start, self._past, self._decoder, self.clock = start, past, decoder, clock
        self.seed, self._noise = snapshot.seed, SeededNoise(snapshot.seed)
        self.last_frame = None if snapshot.last_frame is None else _read_only(snapshot.last_frame)
        self.restored_from = snapshot.sha256
        self._history.clear()
        self.timings = {}

    def adopt(self, compiled: Compiled) -> None:
        """From the next block on the world's layers are the compiled ones (`compile_world`).

        They give other last bits. So what `rewind` could take back is forgotten: after it the same actions would not give the same bits.
        """
        self.world.adopt(compiled)
        self._history.clear()

    @property
    def start(self) -> StartCondition:
        """What the start picture has become; another session may begin from it."""
        return self._start

    @property
    def graphed(self) -> bool:
        """Whether the transformer's passes are CUDA graphs by now (`models.graphs`)."""
        return self._cache.graphed

    @property
    def rewindable(self) -> int:
        """How many blocks `rewind` can take back."""
        return len(self._history)

    @torch.inference_mode()
    def rewind(self, blocks: int = 1) -> None:
        """Take back the last ``blocks`` blocks: the same actions again give the same bits. The next epoch begins at that block.

        Raises WorldError, and changes nothing, when fewer blocks are kept.
        """
        history = self._history
        if not 1 <= blocks <= len(history):
            raise WorldError(f"cannot rewind {blocks} blocks: {history.why_not()}")
        undo, decoder = history.back(blocks), history.decoder(blocks, self.world.decoder, self.world.decode_device)
        history.put_back(blocks, self._cache)
        self._book(undo.clock)
        self._ring.load(undo.keyboard, undo.mouse, undo.clock.first_row)
        self._decoder, self.last_frame = decoder, undo.last_frame
        self.clock = replace(undo.clock, epoch=self.clock.epoch + 1)
        self.timings = {}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read_only(frame: np.ndarray) -> np.ndarray:
    copy = frame.copy()
    copy.flags.writeable = False
    return copy
