"""A world: a config and its weights, from which sessions start."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.actions import IDLE
from engine.conditioning import StartCondition, encode_start
from engine.config import WorldConfig, list_worlds, load_config
from engine.exact import make_exact
from engine.picture import Picture, fit_picture, load_picture
from engine.session import Session
from models.checkpoint import Module, build_empty, check_weights, load_into, sha256
from models.dit import DiT
from models.errors import WeightError, WorldError, one_line
from models.kv_cache import DiTCache
from models.vae import VAE
from models.vision import VisionEncoder

Files = dict[str, list[Path]]  # the weight files in use, by part: dit, vae, vision
Progress = Callable[[str, float], None]  # (what is being loaded, part done from 0 to 1)


class World:
    """The networks of one world, ready to play. Load it once, start as many sessions as wanted."""

    def __init__(self, config: WorldConfig, dit: DiT, vae: VAE, files: Files, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        self.dit, self.vae = dit, vae
        self.files = files
        self.device, self.dtype = device, dtype
        self._default: StartCondition | None = None
        self._warm = False

    @classmethod
    def load(
        cls, world: str | Path | WorldConfig, weights: str | Path | None = None, device: str = "cpu", dtype: str | None = None,
        progress: Progress | None = None,
    ) -> World:  # fmt: skip
        """A world by name, by the path of its yaml, or by a config read (and perhaps changed) before.

        ``weights`` is the folder of files that do not come with the world; ``dtype`` overrides the config's "auto",
        "float32", "bfloat16" or "float16". Cheap checks come first: name, config, device, files, and only then weights.
        Raises WorldError (WeightError for files) with one line that says what is wrong.
        """
        config = world if isinstance(world, WorldConfig) else load_config(world)
        place = _device(device)
        kind = choose_dtype(dtype or config.dtype, place)
        files = _files(config, None if weights is None else Path(weights))
        report = progress or (lambda what, part: None)
        dit, vae = _build(DiT, config.model), _build(VAE, config.vae)
        check_weights(dit, files["dit"])
        check_weights(vae, files["vae"])
        if config.vision is not None:
            check_weights(_build(VisionEncoder, config.vision), files["vision"], "visual.", only=True)
        load_into(vae, files["vae"], torch.float32, place, progress=lambda part: report("vae", part))
        load_into(dit, files["dit"], kind, place, progress=lambda part: report("dit", part))
        vae.decoder.to(kind)  # decoding may run in half precision, encoding must not (SPEC §5)
        vae.conv2.to(kind)
        return cls(config, dit.eval(), vae.eval(), files, place, kind)

    @staticmethod
    def list() -> tuple[str, ...]:
        """Names of the bundled worlds."""
        return list_worlds()

    def session(self, seed: int = 0, start: Picture | None = None) -> Session:
        """A new game. ``start`` is an image file or an array `[H, W, 3]` (uint8, or float in [0, 1]); None: the world's own.

        The first one warms the world up. Raises WorldError when the picture cannot be used.
        """
        self.warm_up()
        return Session(self, seed, start)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Choose exact kernels, then encode a grey picture, play one block on it and throw both away; once in a world's life.

        What a library does on its first call (starting threads, choosing kernels) must not reach the first block's bits: MKL is
        known to give other digits while several threads enter it for the first time. No session is touched by this.
        """
        if self._warm:
            return
        make_exact()
        grey = torch.zeros(1, 3, 1, self.config.height, self.config.width, device=self.device)
        vision = self.config.vision
        tokens = None if vision is None else torch.zeros(1, vision.num_tokens, vision.dim, device=self.device, dtype=self.dtype)
        latents = encode_start(self.vae, grey, latents=2)  # the encoder's two shapes: one frame, then a latent's worth
        Session(self, 0, StartCondition(latents, self.config.vae.temporal_ratio, tokens)).step(IDLE)
        self._warm = True

    def start_pixels(self, start: Picture | None = None) -> np.ndarray:
        """The start picture as the model sees it: uint8 `[H, W, 3]` at the world's size; given as a start it comes through unchanged."""
        return fit_picture(self._own_start() if start is None else start, self.config.height, self.config.width)

    def weight_hashes(self) -> dict[str, str]:
        """sha256 of every weight file in use, by part and file name, such as ``dit/dit.safetensors``."""
        return {f"{part}/{file.name}": sha256(file) for part, files in self.files.items() for file in files}

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
        latents = encode_start(self.vae, picture)
        return StartCondition(latents, self.config.vae.temporal_ratio, self._visual_context(picture))

    def _own_start(self) -> Path:
        if self.config.start is None:
            raise WorldError(f"the world {self.config.name} has no start picture of its own; give one with --start FILE")
        return self.config.folder / self.config.start

    @torch.inference_mode()
    def _visual_context(self, picture: Tensor) -> Tensor | None:
        """Image tokens `[1, L, img_dim]`. The encoder is large and needed once, so it is loaded for this and let go."""
        if self.config.vision is None:
            return None
        encoder = _build(VisionEncoder, self.config.vision)
        load_into(encoder, self.files["vision"], torch.float32, self.device, prefix="visual.", only=True)
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


def _device(name: str) -> torch.device:
    """The device of that name, tried out. torch names many it may lack, and refuses them in almost any way."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names it is giving up
            device = torch.device(name)
            torch.empty(1, device=device).tolist()  # reading it back tells a real one from "meta"
    except Exception:
        there = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise WorldError(f"there is no device {one_line(name, 80)!r} here; use {there}") from None
    return device


def _files(config: WorldConfig, weights: Path | None) -> Files:
    """Where the weight files of each part lie. Raises WeightError when one of them does not exist."""
    if weights is not None and not os.path.isdir(weights):  # unlike Path's own, it takes names of any length
        what = "a file" if os.path.exists(weights) else "not there"
        raise WeightError(f"--weights {one_line(weights, 200)} is {what}; give the folder that holds {config.weights.dit[0]}")
    folder = weights or config.folder
    wanted = {"dit": config.weights.dit, "vae": config.weights.vae, "vision": config.weights.vision if config.vision else ()}
    files = {part: [_place(folder, name) for name in names] for part, names in wanted.items()}
    missing = [name for part, names in wanted.items() for name, file in zip(names, files[part], strict=True) if not file.is_file()]
    if not missing:
        return files
    if weights is None and config.weights.source is not None:
        raise WeightError(f"the weights of {config.name} are not bundled: get {config.weights.source}, then give its folder with --weights")
    raise WeightError(f"there is no {missing[0]} in {folder}; the world {config.name} needs {_listed(missing)}")


def _place(folder: Path, name: str) -> Path:
    """``name`` in the folder, or directly in it without its own folders."""
    return next((path for path in (folder / name, folder / Path(name).name) if path.is_file()), folder / name)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
