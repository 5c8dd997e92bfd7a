"""The denoiser: a causal diffusion transformer over (latent, row, column) tokens, steered by actions (SPEC §3).

One set of layers, two ways in: `DiT.forward` plays (rings of keys and values, one block a pass), `DiT.forward_parallel`
trains (all latents at once under a mask). Activations travel as ``[B, T, S, dim]``: T latents of S tokens, so that what
belongs to a latent (its timestep, its actions) broadcasts over its tokens and is never repeated.
Parameter names are those of the published Matrix-Game 2.0 checkpoints without ``model.``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import layers, linear
from models.action import ActionModule, Steering
from models.attention import Attend, MaskPlan, SelfAttention, attention
from models.compiled import compiled
from models.dit_config import DiTConfig
from models.graphs import Capture, GraphedPasses
from models.kv_cache import DiTCache, KVRing, LayerCache
from models.layers import CondRows, Given, Head, ImageProjection, Layer, Modulation, timestep_embedding, uniform
from models.recorded import Recordings, recordable
from models.rope import Rotary, prepare_rotary, rotary_grid, rotary_time
from models.transfer import send

MODULATIONS = 32  # timesteps whose modulation is kept


class DiT(nn.Module):
    """``x`` is noisy latents and their condition channels together; the output is velocity or x0 (`DiTConfig.prediction`)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, config.patch_size)
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.img_emb = ImageProjection(config.img_dim, dim) if config.img_dim else None
        self.blocks = nn.ModuleList(Layer(config, i in config.action.blocks) for i in range(config.num_layers))
        self.head = Head(config)
        self.fused = False  # laid out for playing: weights change no more
        self.rounded = False  # and in float8: see `to_float8`
        self._known_times: dict[object, tuple[list[Modulation], Modulation]] = {}
        self.body: Callable[..., Tensor] | None = None  # the compiled layers, see `compile`
        self.capture: Callable[[], Capture] | None = None  # how passes over a full window become graphs, see `models.graphs`
        self.recordings: Recordings | None = None  # of the layers, see `record`
        self.layout = object()  # another one whenever weights are laid out, and lie elsewhere
        self._initialise()

    def forward(
        self, x: Tensor, timestep: Tensor, keyboard: Tensor, mouse: Tensor | None, cache: DiTCache, start: int
    ) -> Tensor:  # fmt: skip
        """One pass over latents [start, start + n): writes their keys and values into ``cache`` and attends to its window.

        x [B, in_dim, n, h, w]; timestep [B, n] in 0..1000, best on the host; keyboard [B, n, 12, keyboard_dim] and mouse
        [B, n, 12, 2], cut per latent -> [B, out_dim, n, h, w]. Raises ``ValueError`` where the cache cannot be continued at
        ``start`` (`DiTCache.open`).
        """
        return self.denoise(x, timestep, self.prepare(x, keyboard, mouse, start), cache)

    def prepare(self, x: Tensor, keyboard: Tensor, mouse: Tensor | None, start: int) -> Given:
        """What all passes over the block at ``start`` share: rotary tables, and what keyboard and mouse give every action module.

        Arguments as in `forward`; of ``x`` only the shape counts.
        """
        height, width = self._grid(x, mouse)
        positions = torch.arange(start, start + x.shape[2])  # on the host: no position is ever read back
        grid, time = self._rotaries(positions, height, width, x.device)
        slots = send(positions % self.config.local_attn_size, x.device)
        if self.capture is None:
            return Given(start, x.shape[2], grid, time, self.steerings(keyboard, mouse, time), slots)
        rows = keyboard, mouse  # worked out by a graph; until the window is full, by the layers
        return Given(start, x.shape[2], grid, time, [rows] * len(self.blocks), slots, rows)

    def denoise(self, x: Tensor, timestep: Tensor, given: Given, cache: DiTCache) -> Tensor:
        """`forward` over a block that was prepared."""
        return self._graphed("denoise", self.run_denoise, x, timestep, given, cache)

    def run_denoise(self, x: Tensor, timestep: Tensor, given: Given, cache: DiTCache) -> Tensor:
        """`denoise` without graphs."""
        _, down, right = self.config.patch_size
        tokens = self._patchify(x)
        modulations, head = self._modulations(timestep, tokens)
        for i, run in enumerate(self._runs(given, cache, modulations)):
            tokens = run(self.blocks[i], tokens)
        return self._unpatchify(self.head(tokens, head), x.shape[3] // down, x.shape[4] // right)

    def remember(self, x: Tensor, timestep: Tensor, given: Given, cache: DiTCache) -> None:
        """`denoise` for the keys and values it leaves in ``cache``: the same ones, without what comes after the last of them."""
        self._graphed("remember", self.run_remember, x, timestep, given, cache)

    def run_remember(self, x: Tensor, timestep: Tensor, given: Given, cache: DiTCache) -> None:
        """`remember` without graphs."""
        tokens = self._patchify(x)
        modulations, _ = self._modulations(timestep, tokens)
        runs = self._runs(given, cache, modulations)
        for layer, run in zip(self.blocks, runs[:-1], strict=False):
            tokens = run(layer, tokens)
        block = cache.open(given.start, given.n)
        block = None if self._over_slots(modulations) and block.full else block
        self.blocks[-1].remember(tokens, modulations[-1], given, cache.layers[-1], block, given.steerings[-1])

    def compile(self, **options: Any) -> None:
        """Have the layers compiled (`torch.compile`, without a graph break) from now on, for passes over a full window.

        All those have one shape, and all layers of a kind one graph. Until the window is full, layers run as they are. The compiler
        works when the first of those passes comes.
        """
        self.body = compiled(layers.layer_body, **options)

    def record(self) -> None:
        """Have the layers' calls recorded from now on (`models.recorded`), for passes over a full window on a CPU."""
        self.recordings = Recordings()

    def twin(self) -> DiT:
        """The same layers and weights, but a memory and a ``body`` of its own: for a second thread, while the first one plays."""
        twin = copy.copy(self)
        twin._known_times = {}
        return twin

    def _runs(self, given: Given, cache: DiTCache, modulations: Sequence[Modulation]) -> list[Callable[[Layer, Tensor], Tensor]]:
        """How each layer is run over the block. Raises ``ValueError`` if the image's keys are missing or the block cannot follow."""
        if self.img_emb is not None and cache.layers[0].image is None:
            raise ValueError("the cache has no image keys yet: call precompute_context once per session")
        block = cache.open(given.start, given.n)
        body = self._whole_window(modulations) if block.full else None
        if body is not None:
            return [
                partial(layers.run_over_window, body, modulation, steering, given, memory)
                for modulation, steering, memory in zip(modulations, given.steerings, cache.layers, strict=True)
            ]
        return [
            partial(layers.run_as_it_is, modulation, steering, given, memory.attend(block))
            for modulation, steering, memory in zip(modulations, given.steerings, cache.layers, strict=True)
        ]

    def _whole_window(self, modulations: Sequence[Modulation | Tensor]) -> Callable[..., Tensor] | None:
        """How a layer is run over a full window, `layers.layer_body` as it is compiled or recorded; None: as over any other window."""
        kept = isinstance(modulations[0], tuple)  # so nothing depends on weights that may change
        if self.body is None and self.recordings is not None and kept and recordable(self.patch_embedding.weight):
            return partial(layers.run_recorded, self.recordings)
        return layers.layer_body if self.body is None and self._over_slots(modulations) else self.body

    def _over_slots(self, modulations: Sequence[Modulation | Tensor]) -> bool:
        """Whether passes over a full window must find the rings' slots on the device: so that they can become graphs."""
        return self.capture is not None and isinstance(modulations[0], tuple)

    def _graphed(self, name: str, run: Callable[..., Any], x: Tensor, timestep: Tensor, given: Given, cache: DiTCache) -> Any:
        """``run`` over a block: as a graph where there may be one, from the second time on that the cache sees such a pass."""
        key = None if given.rows is None else self._timestep_key(timestep, self.patch_embedding.weight)
        if key is None or not cache.open(given.start, given.n).full or (self.img_emb and cache.layers[0].image is None):
            return run(x, timestep, given, cache)
        if cache.graphs is None or not cache.graphs.fits(self, cache):
            cache.graphs = GraphedPasses(self, cache, self.capture())
        return cache.graphs.run((name, key), run, self, x, timestep, given, cache)

    def keep_time(self, timestep: Tensor) -> object:
        """Work out now what the passes at a timestep read of it, and return it. Only for one that `denoise` would keep."""
        like = self.patch_embedding.weight
        self._modulations(timestep, like)
        return self._known_times[self._timestep_key(timestep, like)]

    def fuse(self) -> None:
        """Lay frozen weights out for playing: one product where several read the same. Names and values stay what they are.

        From here on what depends on the weights alone is kept, so they must not change any more. Moving the model undoes all of it.
        """
        self.fused = True
        self._forget_recordings()
        for module in self.modules():
            if isinstance(module, (SelfAttention, ActionModule)):
                module.fuse()
        size, like = sum(parameter.nbytes for parameter in self.parameters()), self.patch_embedding.weight
        if linear.worth_packing(size, like.dtype, like.device):
            for layer in self.blocks:
                layer.pack()

    def to_float8(self) -> None:
        """Make the products of attention and feed-forward in float8 from now on (`Layer.to_float8`), for good: for playing only.

        Call `fuse` first. From here on the model cannot be moved, trained or saved. Raises ``ValueError`` where a size does not fit.
        """
        if not self.fused:
            raise ValueError("lay the weights out first (DiT.fuse), then round them")
        self._forget_recordings()
        for layer in self.blocks:
            layer.to_float8()
        self.rounded = True

    def forward_parallel(
        self, x: Tensor, timestep: Tensor, keyboard: Tensor, mouse: Tensor | None, positions: Tensor, mask: Tensor,
        visual_context: Tensor | None = None, plan: MaskPlan | None = None,
    ) -> Tensor:  # fmt: skip
        """All latents at once, for training: latent i attends to latent j iff ``mask[i, j]``.

        Shapes as in `forward` with T for n; positions [T] integers (may repeat: clean and noisy halves side by side); mask [T, T]
        bool, no row all False; visual_context [B, L, img_dim] where the model has image tokens -> [B, out_dim, T, h, w].
        With ``plan = MaskPlan.from_mask(mask)`` the unseen parts of the mask are skipped rather than masked: the same, faster.
        """
        height, width = self._grid(x, mouse)
        places = height * width
        grid, time = self._rotaries(positions, height, width, x.device)
        per_query = mask.repeat_interleave(places, 0)  # [T x S, T]
        if plan is None:
            attend_tokens = partial(attention, mask=per_query.repeat_interleave(places, 1))  # [T x S, T x S]
        else:
            attend_tokens = plan.attend
        attend_mouse, attend_keyboard = partial(attention, mask=mask), partial(attention, mask=per_query)
        context = self._context(visual_context)
        steerings = self.steerings(keyboard, mouse, time)
        attends = [
            Attend(attend_tokens, attend_mouse, attend_keyboard, None if context is None else layer.cross_attn.keys_values(context))
            for layer in self.blocks
        ]
        return self._run(x, timestep, grid, time, steerings, attends)

    def new_cache(
        self, batch: int, height: int, width: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> DiTCache:
        """Empty rings for ``batch`` sessions of ``height`` x ``width`` tokens a latent, at their final size."""
        config, action, places = self.config, self.config.action, height * width

        def ring(heads: int, tokens: int, head_dim: int) -> KVRing:
            return KVRing.empty((batch, heads, config.local_attn_size, tokens, head_dim), device, dtype)

        def layer(acts: bool) -> LayerCache:
            return LayerCache(
                tokens=ring(config.num_heads, places, config.head_dim),
                mouse=ring(places * action.heads, 1, action.head_dim) if acts and action.mouse_dim else None,
                keyboard=ring(action.heads, 1, action.head_dim) if acts else None,
            )

        return DiTCache([layer(i in action.blocks) for i in range(config.num_layers)], config.local_attn_size)

    def precompute_context(self, visual_context: Tensor | None, cache: DiTCache) -> None:
        """Keep every layer's keys and values of the image tokens [B, L, img_dim] in the cache: once per session.

        Raises ``ValueError`` if image tokens are given to a model without them, or missing for one with them.
        """
        context = self._context(visual_context)
        if context is not None:
            for layer, memory in zip(self.blocks, cache.layers, strict=True):
                memory.image = layer.cross_attn.keys_values(context)

    def _run(
        self, x: Tensor, timestep: Tensor, grid: Rotary, time: Rotary, steerings: Sequence[Steering | CondRows | None],
        attends: list[Attend],
    ) -> Tensor:  # fmt: skip
        _, down, right = self.config.patch_size
        tokens = self._patchify(x)  # [B, T, S, dim]
        modulations, head = self._modulations(timestep, tokens)
        for layer, modulation, steering, attend in zip(self.blocks, modulations, steerings, attends, strict=True):
            tokens = layer(tokens, modulation, steering, grid, time, attend)
        return self._unpatchify(self.head(tokens, head), x.shape[3] // down, x.shape[4] // right)

    def steerings(self, keyboard: Tensor, mouse: Tensor | None, time: Rotary) -> list[Steering | CondRows | None]:
        """What each action module makes of the rows; where weights may change, the rows themselves, for the layer to do it."""
        if not self.fused:
            return [(keyboard, mouse)] * len(self.blocks)
        dtype = self.patch_embedding.weight.dtype
        return [layer.action_model and layer.action_model.prepare(keyboard, mouse, time, dtype) for layer in self.blocks]

    def _modulations(self, timestep: Tensor, like: Tensor) -> tuple[Sequence[Modulation | Tensor], Modulation | Tensor]:
        """Scales, shifts and gates of every layer, and the head's. A world has few timesteps: they are kept, where that is safe."""
        key = self._timestep_key(timestep, like)
        if key is None:  # each layer adds its own
            six, embedded = self._embed_time(timestep, like)
            return [six] * len(self.blocks), embedded
        if key not in self._known_times:
            if len(self._known_times) >= MODULATIONS:
                self._known_times.clear()
            six, embedded = self._embed_time(timestep[:1, :1], like)
            self._known_times[key] = [uniform(layer.modulated(six)) for layer in self.blocks], uniform(self.head.modulated(embedded))
        return self._known_times[key]

    def _timestep_key(self, timestep: Tensor, like: Tensor) -> object | None:
        """One timestep for all latents, known on the host, of weights that no longer change: then its modulation can be kept."""
        plain = self.fused and like.dtype == self.head.modulation.dtype and not _autocasts(like.device)
        if torch.is_grad_enabled() or not plain or timestep.device.type != "cpu" or torch.compiler.is_dynamo_compiling():
            return None
        values = set(timestep.flatten().tolist())
        return (values.pop(), like.dtype, like.device) if len(values) == 1 else None

    def _embed_time(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Six vectors for the layers [B, T, 6, dim], and the time embedding for the head [B, T, dim]."""
        sinusoids = timestep_embedding(timestep, self.config.freq_dim).to(like.dtype)  # cast first: not every device has float64
        embedded = self.time_embedding(send(sinusoids, like.device))  # [B, T, dim]
        return self.time_projection(embedded).unflatten(-1, (6, -1)), embedded

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        if self.rounded:
            raise ValueError("a model in float8 stays as it is: load its weights anew where you want them")
        self._known_times.clear()
        self._forget_recordings()
        self.fused = False
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._known_times.clear()
        self._forget_recordings()
        found = super().load_state_dict(*args, **kwargs)
        if self.fused:  # some of what was laid out are copies
            self.fuse()
        return found

    def _forget_recordings(self) -> None:
        self.layout = object()
        if self.recordings is not None:
            self.recordings.clear()

    def _grid(self, x: Tensor, mouse: Tensor | None) -> tuple[int, int]:
        """Height and width in tokens, after checking that the inputs are this model's."""
        _, down, right = self.config.patch_size
        if x.shape[1] != self.config.in_dim:
            raise ValueError(f"x has {x.shape[1]} channels, this model takes {self.config.in_dim}")
        if (mouse is None) != (self.config.action.mouse_dim == 0):
            raise ValueError(f"this mode has {self.config.action.mouse_dim} mouse numbers a row, mouse must be given exactly if > 0")
        if x.shape[3] % down or x.shape[4] % right:
            raise ValueError(f"latents of {x.shape[3]}x{x.shape[4]} do not divide into patches of {down}x{right}")
        return x.shape[3] // down, x.shape[4] // right

    def _rotaries(self, positions: Tensor, height: int, width: int, device: torch.device) -> tuple[Rotary, Rotary]:
        action = self.config.action
        grid = rotary_grid(positions, height, width, self.config.head_dim)
        time = rotary_time(positions, action.rope_dim, action.rope_theta)
        return prepare_rotary(grid, self.config.head_dim, device), prepare_rotary(time, action.head_dim, device)

    def _context(self, visual_context: Tensor | None) -> Tensor | None:
        if (visual_context is None) != (self.img_emb is None):
            raise ValueError(f"this model has img_dim {self.config.img_dim}: image tokens must be given exactly if it is > 0")
        return None if visual_context is None else self.img_emb(visual_context)

    def _patchify(self, x: Tensor) -> Tensor:
        conv = self.patch_embedding  # kernel = stride: a linear layer over patches
        _, down, right = self.config.patch_size
        patches = x.unflatten(4, (-1, right)).unflatten(3, (-1, down)).permute(0, 2, 3, 5, 1, 4, 6)  # [B, T, h', w', C, down, right]
        tokens = F.linear(patches.flatten(4).flatten(2, 3).to(conv.weight.dtype), conv.weight.flatten(1), conv.bias)
        return tokens.to(conv.weight.dtype)  # [B, T, S, dim]; the residual stream keeps the weights' dtype under autocast

    def _unpatchify(self, out: Tensor, height: int, width: int) -> Tensor:
        _, down, right = self.config.patch_size
        patches = out.unflatten(3, (down, right, -1)).unflatten(2, (height, width))  # [B, T, h', w', down, right, out_dim]
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)  # [B, out_dim, T, h, w]

    def _initialise(self) -> None:
        """Start as nearly the identity: small outputs of every part, gates open, head silent."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(self.patch_embedding.bias)
        nn.init.normal_(self.time_projection[1].weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)
        depth = 1 / math.sqrt(2 * len(self.blocks))
        with torch.no_grad():
            for layer in self.blocks:
                for linear in layer.outputs():
                    linear.weight.mul_(depth)


def _autocasts(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)
