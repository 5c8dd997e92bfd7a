"""A world: a config and its weights, from which sessions start."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.actions import IDLE, Action
from engine.attention import AUTO, attentions_of, choose_attention
from engine.clip import check_clip
from engine.compiler import Compiled, compile_world
from engine.conditioning import START_LATENTS, StartCondition, encode_start
from engine.config import WorldConfig, load_config
from engine.exact import make_exact, pin_workspace
from engine.history import REWIND_MB
from engine.picture import Picture, fit_picture, load_picture
from engine.session import Session
from engine.snapshot import Snapshot
from engine.worldfile import list_worlds
from models.checkpoint import Module, build_empty, check_weights, load_in_turn, load_into, randomise
from models.dit import DiT
from models.errors import WeightError, WorldError, one_line
from models.filecache import file_hash
from models.float8 import why_not
from models.graphs import CudaCapture
from models.kv_cache import DiTCache
from models.taehv import TAEHV
from models.telltale import unfinished
from models.vae import VAE
from models.vision import VisionEncoder

Files = dict[str, list[Path]]  # the weight files in use, by part: dit, vae, vision, taehv
QUICK = 1.0  # seconds a block of a world that is rehearsed
Progress = Callable[[str, float], None]  # (what is being loaded, part done from 0 to 1)


class World:
    """The networks of one world, ready to play. Load it once, start as many sessions as wanted."""

    def __init__(
        self, config: WorldConfig, dit: DiT, vae: VAE, files: Files, device: torch.device, dtype: torch.dtype,
        decode_device: torch.device | None = None, taehv: TAEHV | None = None, attention: str = AUTO,
        graphs: bool = True,
    ) -> None:  # fmt: skip
        self.config = config
        self.device, self.dtype = device, dtype
        self.decode_device = decode_device or device
        self.attention = choose_attention(attention, device, dtype, config)  # for the whole process
        self.dit, self.vae = dit, vae
        dit.fuse()
        if config.linears == "float8":
            dit.to_float8()
        self.decoder: VAE | TAEHV = taehv or vae  # what makes the pictures; only the VAE can encode
        vae.lay_out(decoder=taehv is None)
        if taehv is not None:
            taehv.lay_out()
        if device.type == "cpu":
            dit.record()
        elif device.type == "cuda" and graphs:
            dit.capture = partial(CudaCapture, device)
        if self.decode_device.type == "cpu":
            self.decoder.record()
        self.files = files
        self.compiled = False
        self._default: StartCondition | None = None
        self._hashes: dict[str, str] | None = None
        self._warm = False

    @classmethod
    def load(
        cls, world: str | Path | WorldConfig, weights: str | Path | None = None, device: str = "cpu", dtype: str | None = None,
        progress: Progress | None = None, decode_device: str | None = None, attention: str = AUTO, graphs: bool = True,
    ) -> World:  # fmt: skip
        """A world by name, by the path of its yaml, or by a config read (and perhaps changed) before.

        ``weights`` is the folder of files that do not come with the world; ``dtype`` overrides the config's "auto",
        "float32", "bfloat16" or "float16"; ``decode_device`` is where pictures are coded and decoded, if not on ``device``; ``attention``
        is the kernel to prefer (`engine.attention.choose_attention`); without ``graphs`` a GPU is asked for every kernel (`models.graphs`).
        Cheap checks come first: name, config, device, files, and only then weights.
        Raises WorldError (WeightError for files) with one line that says what is wrong.
        """
        config = world if isinstance(world, WorldConfig) else load_config(world)
        place, decoding = device_named(device), device_named(device if decode_device is None else decode_device)
        kind = choose_dtype(dtype or config.dtype, place)
        choose_attention(attention, place, kind, config)
        _check_linears(config, place, kind)
        files = _files(config, None if weights is None else Path(weights))
        report = progress or (lambda what, part: None)
        dit, vae = _build(DiT, config.model), _build(VAE, config.vae)
        check_weights(dit, files["dit"])
        check_weights(vae, files["vae"])
        if config.vision is not None:
            check_weights(_build(VisionEncoder, config.vision), files["vision"], "visual.", only=True)
        if config.decoder == "taehv":
            check_weights(_build(TAEHV, config.taehv).decoder, files["taehv"], "decoder.", only=True)
        load_into(vae, files["vae"], torch.float32, decoding, progress=lambda part: report("vae", part))
        vae.decoder.to(kind)  # decoding may run in half precision, encoding must not (SPEC §5)
        vae.conv2.to(kind)
        load_into(dit, files["dit"], kind, place, progress=lambda part: report("dit", part))
        taehv = None
        if config.decoder == "taehv":
            taehv = _build(TAEHV, config.taehv).eval()
            load_into(taehv.decoder, files["taehv"], kind, decoding, "decoder.", only=True, progress=lambda part: report("taehv", part))
        return cls(config, dit.eval(), vae.eval(), files, place, kind, decoding, taehv, attention, graphs)

    @classmethod
    def untrained(
        cls, world: str | Path | WorldConfig, device: str = "cpu", dtype: str | None = None, seed: int = 0,
        decode_device: str | None = None, attention: str = AUTO, graphs: bool = True,
    ) -> World:  # fmt: skip
        """A world of the same shapes with random weights and no files: to measure with, not to look at. Raises WorldError as `load`."""
        config = world if isinstance(world, WorldConfig) else load_config(world)
        place, decoding = device_named(device), device_named(device if decode_device is None else decode_device)
        kind = choose_dtype(dtype or config.dtype, place)
        _check_linears(config, place, kind)
        dit, vae = _build(DiT, config.model), _build(VAE, config.vae)
        _randomise(dit, place, kind, seed)
        _randomise(vae, decoding, kind, seed)
        vae.encoder.float()
        vae.conv1.float()
        taehv = _build(TAEHV, config.taehv).eval() if config.decoder == "taehv" else None
        if taehv is not None:
            _randomise(taehv, decoding, kind, seed)
        return cls(config, dit.eval(), vae.eval(), {}, place, kind, decoding, taehv, attention, graphs)

    @staticmethod
    def list() -> tuple[str, ...]:
        """Names of the bundled worlds."""
        return list_worlds()

    def session(
        self, seed: int | None = None, start: Picture | StartCondition | None = None, actions: Sequence[Action] = (),
        rewind_mb: float = REWIND_MB,
    ) -> Session:  # fmt: skip
        """A new game. ``start`` is an image file or an array `[H, W, 3]` (uint8, or float in [0, 1]); None: the world's own.

        A clip `[F, H, W, 3]` of at least one block may be given instead: the game goes on from its end, see `Session.prefill` for
        it and for ``actions``. ``rewind_mb`` is the host memory that `Session.rewind` may use, in 10⁶ bytes; 0 turns it off.
        The first one warms the world up. Raises WorldError when picture or clip cannot be used.
        """
        seed = self.config.seed if seed is None else seed
        if not (isinstance(start, np.ndarray) and start.ndim == 4):
            if len(actions):
                raise WorldError("actions go with a clip to start from; a start picture has none")
            self.warm_up()
            return Session(self, seed, start, rewind_mb=rewind_mb)
        check_clip(start, self.config.clock)
        self.warm_up()
        session = Session(self, seed, start[0], rewind_mb=rewind_mb)
        session.prefill(start, actions)
        return session

    def resume(self, snapshot: Snapshot, rewind_mb: float = REWIND_MB) -> Session:
        """A game that goes on from ``snapshot``, start picture and seed included. Raises WorldError unless it was taken in this world."""
        snapshot.check(self)
        self.warm_up()
        latents, tokens = (snapshot.tensors.get(name) for name in ("start.latents", "start.visual_context"))
        tokens = None if tokens is None else tokens.to(self.device)
        start = StartCondition(latents.to(self.device), self.config.vae.temporal_ratio, tokens)
        session = Session(self, snapshot.seed, start, rewind_mb=rewind_mb)
        session.restore(snapshot)
        return session

    @torch.inference_mode()
    def warm_up(self, play: bool = True, live: bool = False) -> None:
        """Choose exact kernels, then encode a grey picture, play one block on it and throw both away; once in a world's life.

        What a library does on its first call (starting threads, choosing kernels) must not reach the first block's bits: MKL is
        known to give other digits while several threads enter it for the first time. No session is touched by this. Without ``play``
        the kernels are all there is to it: for measurements that have blocks of their own to warm up with. ``live`` does what a block
        with a full window does when it comes for the first time (`models.recorded`): half a second, which a player would notice then.
        """
        if self._warm:
            return
        make_exact(self.device, self.decode_device)
        if not play:
            self._warm = True
            return
        grey = torch.zeros(1, 3, 1, self.config.height, self.config.width, device=self.decode_device)
        vision = self.config.vision
        tokens = None if vision is None else torch.zeros(1, vision.num_tokens, vision.dim, device=self.device, dtype=self.dtype)
        latents = encode_start(self.vae, grey, latents=2).to(self.device)  # the encoder's two shapes: one frame, then a latent's worth
        session = Session(self, 0, StartCondition(latents, self.config.vae.temporal_ratio, tokens), rewind_mb=0)
        session.step(IDLE)
        if live and session.timings["total"] < QUICK:
            for recordings in (self.dit.recordings, self.decoder.recordings):
                if recordings is not None:
                    recordings.patience = 0
            session.rehearse()
        self._warm = True

    def compile(self, progress: Progress | None = None, decoder: bool | None = None, **options: Any) -> None:
        """Have the transformer's layers compiled (`torch.compile`), now; what comes of it is kept on disk for the next time.

        It is used from the block on with which the window is full. ``decoder``: whether the decoder is compiled too, from its second
        block on; None: on a GPU. Raises WorldError where torch cannot compile.
        """
        self.adopt(compile_world(self, progress, decoder, **options))

    def adopt(self, compiled: Compiled) -> None:
        """Play with what `compile_world` made from now on: between two blocks. A session that is being played: `Session.adopt`."""
        self.dit.body, self.decoder.compiled = compiled.layers, compiled.pixels
        self.compiled = True

    def random_start(self, seed: int = 0) -> StartCondition:
        """A start that no picture was encoded for, to measure with."""
        config, ratio = self.config, self.config.vae.spatial_ratio
        generator = torch.Generator().manual_seed(seed)
        shape = (1, config.vae.z_dim, START_LATENTS, config.height // ratio, config.width // ratio)
        latents, vision = torch.randn(shape, generator=generator).to(self.device), config.vision
        tokens = None if vision is None else torch.randn(1, vision.num_tokens, vision.dim, generator=generator).to(self.device, self.dtype)
        return StartCondition(latents, config.vae.temporal_ratio, tokens)

    def describe(self) -> dict[str, object]:
        """How this world is computed, for whoever reads its speed."""
        found: dict[str, object] = {
            "decoder": self.config.decoder,
            "context": self.config.sampler.context,
            "linears": self.config.linears,
            "compiled": self.compiled,
            "threads": torch.get_num_threads(),
            "attention": f"{self.attention.name}, {self.attention}",
            "attention of": attentions_of(self.config, self.device, self.dtype, self.compiled),
        }
        return found | ({} if self.decode_device == self.device else {"decode_device": str(self.decode_device)})

    def start_pixels(self, start: Picture | None = None) -> np.ndarray:
        """The start picture as the model sees it: uint8 `[H, W, 3]` at the world's size; given as a start it comes through unchanged."""
        return fit_picture(self._own_start() if start is None else start, self.config.height, self.config.width)

    def weight_hashes(self) -> dict[str, str]:
        """sha256 of every weight file in use, by part and file name, such as ``dit/dit.safetensors``.

        Asked for once a world; a file is read again only when its size or the time of its last change is another.
        """
        if self._hashes is None:
            self._hashes = {f"{part}/{file.name}": file_hash(file) for part, files in self.files.items() for file in files}
        return self._hashes

    def condition(self, start: Picture | StartCondition | None) -> StartCondition:
        """The start picture encoded, once, for a session of any length; one that is encoded already comes back as it is."""
        if isinstance(start, StartCondition):
            return start
        if start is None:
            if self._default is None:
                self._default = self._encode(self._own_start())
            return self._default
        return self._encode(start)

    @torch.inference_mode()
    def new_cache(self, start: StartCondition) -> DiTCache:
        """Empty rings for one session, with the keys of its start picture."""
        ratio, (_, down, right) = self.config.vae.spatial_ratio, self.config.model.patch_size
        cache = self.dit.new_cache(1, self.config.height // ratio // down, self.config.width // ratio // right, self.device, self.dtype)
        self.dit.precompute_context(start.visual_context, cache)
        return cache

    def _encode(self, start: Picture) -> StartCondition:
        picture = load_picture(start, self.config.height, self.config.width).to(self.device)
        latents = encode_start(self.vae, picture.to(self.decode_device)).to(self.device)
        return StartCondition(latents, self.config.vae.temporal_ratio, self._visual_context(picture))

    def _own_start(self) -> Path:
        if self.config.start_file is None:
            raise WorldError(self.config.start_missing())
        return self.config.start_file

    @torch.inference_mode()
    def _visual_context(self, picture: Tensor) -> Tensor | None:
        """Image tokens `[1, L, img_dim]`. The encoder is large and needed once: a block of it is in memory only while it runs."""
        if self.config.vision is None:
            return None
        encoder = _build(VisionEncoder, self.config.vision)
        blocks = [f"transformer.{i}" for i in range(self.config.vision.num_layers)]
        load_in_turn(encoder, blocks, self.files["vision"], torch.float32, self.device, "visual.", only=True)
        return encoder.eval()(picture[:, :, 0]).to(self.dtype)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of model and decoder; "auto" is bfloat16 where the device computes in it natively, else float32."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in kinds:
        return kinds[name]
    if name != "auto":
        raise WorldError(f"dtype is one of auto, {', '.join(kinds)}; got {one_line(name, 80)!r}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bfloat16() else torch.float32


def _check_linears(config: WorldConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raise WorldError where the world asks for float8 and there is none."""
    if config.linears == "float8" and (reason := why_not(device, dtype)):
        raise WorldError(f"no float8 here: {reason}; leave --linears out")


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself (AVX512-BF16 or AMX); emulated it is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # no public way to ask
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def _build(kind: Callable[[Any], Module], config: object) -> Module:
    """An empty network. Sizes of a yaml may pass every check and still be too large to name a tensor."""
    try:
        return build_empty(kind, config)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise WorldError(f"no {kind.__name__} can be built of these sizes: {one_line(error, 120)}") from None


def _randomise(module: Module, place: torch.device, kind: torch.dtype, seed: int) -> None:
    """Random weights. What of them does not fit into memory is refused: no shape of a file's has told before that they are too large."""
    try:
        randomise(module, place, kind, seed)
    except RuntimeError as error:
        size = sum(tensor.numel() for tensor in module.state_dict().values()) * kind.itemsize / 1e9
        words = f"{type(module).__name__} of these sizes has {size:,.1f} GB of weights, which do not fit into the memory of {place}"
        raise WorldError(f"{words} ({one_line(error, 120)}); make it smaller") from None


def device_named(name: str) -> torch.device:
    """The device of that name, tried out. Raises WorldError. torch names many it may lack, and refuses them in almost any way."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names it is giving up
            device = torch.device(name)
            if device.type == "cpu" and device.index:  # torch would take any number for the one there is
                raise ValueError(name)
            if device.type == "cuda":
                pin_workspace()
            first = torch.empty(1, device=device)
            first.tolist()  # reading it back tells a real one from "meta"
    except Exception:
        others = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        there = " or ".join(["cpu", *(kind for kind, here in others.items() if here)])
        raise WorldError(f"there is no device {one_line(name, 80)!r} here; use {there}") from None
    return first.device if device.type == "cuda" else device  # "cuda" is "cuda:0" then: one name for one GPU


def _files(config: WorldConfig, weights: Path | None) -> Files:
    """Where the weight files of each part lie. Raises WeightError when one of them does not exist."""
    if weights is not None and not os.path.isdir(weights):  # unlike Path's own, it takes names of any length
        raise WeightError(_no_folder(config, weights))
    wanted = {"dit": config.weights.dit, "vae": config.weights.vae, "vision": config.weights.vision if config.vision else ()}
    if config.decoder == "taehv":
        wanted["taehv"] = config.weights.taehv
    files = {part: [_place(config.weight_folders(part, weights), name) for name in names] for part, names in wanted.items()}
    missing = [(part, name) for part, names in wanted.items() for name, file in zip(names, files[part], strict=True) if not file.is_file()]
    if not missing:
        return files
    part, name = missing[0]
    folder = config.weight_folders(part, weights)[0]
    if weights is None and config.weights.source is not None:
        get = f"get {config.weights.source}, then give its folder with --weights, or let --fetch download what is needed"
        raise WeightError(f"the weights of {config.name} are not bundled: {get}")
    hint = unfinished(folder / name)
    if not hint and (folder.parent / name).is_file():
        hint = f"; is {folder.parent} the folder you mean?"
    raise WeightError(f"there is no {name} in {folder}{hint}; the world {config.name} needs {_listed([name for _, name in missing])}")


def _no_folder(config: WorldConfig, weights: Path) -> str:
    """What to say about a --weights that is no folder."""
    shown, wanted = one_line(weights, 200), config.weights.dit[0]
    if not os.path.exists(weights):
        return f"--weights {shown} is not there; give the folder that holds {wanted}"
    above = next((folder for folder in weights.absolute().parents if (folder / wanted).is_file()), None)
    give = f"give its folder, {one_line(above, 200)}" if above else f"give the folder that holds {wanted}"
    return f"--weights {shown} is a file; {give} ('reverie inspect FILE' says what a file is)"


def _place(folders: Sequence[Path], name: str) -> Path:
    """``name`` in the first folder that has it, or directly in it without its own folders."""
    places = [path for folder in folders for path in (folder / name, folder / Path(name).name)]
    return next((path for path in places if path.is_file()), places[0])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
