"""How much arithmetic a block is, worked out from its sizes. A multiplication and an addition count as two; only products of
matrices and convolutions are counted (norms, activations and the like are under a hundredth of it)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.config import WorldConfig
from models.checkpoint import build_empty
from models.dit import DiT
from models.dit_config import DiTConfig
from models.taehv import TAEHV, TAEHVConfig
from models.vae import VAE, VAEConfig

IMAGE_TOKENS = 257  # of the published image encoder, where a config has none of its own


@dataclass(frozen=True)
class BlockWork:
    """One block, once the window is full: floating-point operations, and bytes that must be read at the least."""

    denoise_pass: int  # one denoising pass
    commit: int  # the clean pass, of which only keys and values are kept
    decode: int
    passes: int  # denoising passes a block
    dit_bytes: int  # parameters of the transformer
    cache_bytes: int  # keys and values that one pass reads

    @property
    def transformer(self) -> int:
        return self.passes * self.denoise_pass + self.commit

    @property
    def total(self) -> int:
        return self.transformer + self.decode


def block_work(config: WorldConfig, dtype: torch.dtype) -> BlockWork:
    """The work of one block of ``config``'s world, all of its window seen."""
    model, ratio = config.model, config.vae.spatial_ratio
    height, width = config.height // ratio, config.width // ratio
    places = (height // model.patch_size[1]) * (width // model.patch_size[2])
    image = 0 if config.vision is None else config.vision.num_tokens
    n, window = model.num_frame_per_block, model.local_attn_size
    dit = build_empty(DiT, model).requires_grad_(False).to(dtype)
    if config.linears == "float8":
        dit.fuse()
        dit.to_float8()
    per_latent = 2 * (model.num_layers * places * model.dim)  # keys and values
    if model.action.blocks:
        per_latent += 2 * len(model.action.blocks) * model.action.hidden * ((places if model.action.mouse_dim else 0) + 1)
    return BlockWork(
        denoise_pass=pass_flops(model, places, n, window, image),
        commit=pass_flops(model, places, n, window, image, keys_only=True) if config.sampler.context == "clean" else 0,
        decode=decode_flops(config.taehv if config.decoder == "taehv" else config.vae, n, height, width),
        passes=len(config.sampler.steps),
        dit_bytes=sum(tensor.nbytes for tensor in (*dit.parameters(), *dit.buffers())),
        cache_bytes=per_latent * window * dtype.itemsize,
    )


def pass_flops(config: DiTConfig, places: int, n: int, seen: int, image: int = IMAGE_TOKENS, keys_only: bool = False) -> int:
    """One pass over ``n`` latents of ``places`` tokens that attend to ``seen`` latents, the image's ``image`` keys at hand.

    With ``keys_only`` it ends at the last layer's last keys and values: nobody needs what the model would have put out. What is
    made once a block or once a session (time embedding, keyboard keys, image keys) is not counted.
    """
    tokens, dim, action = n * places, config.dim, config.action
    attention = 4 * tokens * seen * places * dim
    feed = 4 * tokens * dim * config.ffn_dim
    cross = 4 * tokens * dim * dim + 4 * tokens * image * dim if config.img_dim else 0
    mouse = keyboard = 0
    if action.mouse_dim:
        mouse = 2 * tokens * (dim * action.hidden + action.hidden**2 + 3 * action.hidden**2)  # mlp, mlp, qkv
        mouse += 4 * tokens * seen * action.hidden + 2 * tokens * action.hidden * dim
    keyboard = 2 * tokens * dim * action.hidden * 2 + 4 * tokens * seen * action.hidden
    patch = 2 * tokens * config.in_dim * config.patch_size[1] * config.patch_size[2] * dim
    head = 2 * tokens * dim * config.patch_size[1] * config.patch_size[2] * config.out_dim
    layer = 8 * tokens * dim * dim + attention + cross + feed
    total = patch + head + config.num_layers * layer + len(action.blocks) * (mouse + keyboard)
    if not keys_only:
        return total
    total -= head + feed
    if config.num_layers - 1 not in action.blocks:
        return total - cross - attention - 4 * tokens * dim * dim  # the last layer's queries and output
    skipped = 4 * tokens * dim * action.hidden + 4 * tokens * seen * action.hidden  # the keyboard part: its keys are already made
    if not action.mouse_dim:
        return total - cross - attention - 4 * tokens * dim * dim - skipped
    return total - skipped - 4 * tokens * seen * action.hidden - 2 * tokens * action.hidden * dim - 2 * tokens * action.hidden**2


@lru_cache(maxsize=8)
@torch.inference_mode()
def decode_flops(config: VAEConfig | TAEHVConfig, n: int, height: int, width: int) -> int:
    """Decoding ``n`` latents of ``height`` x ``width`` in the middle of a stream: counted on the meta device.

    Convolutions count as the sums they are, however they are made (`models.winograd` needs a quarter of the multiplications).
    """
    vae = build_empty(TAEHV if isinstance(config, TAEHVConfig) else VAE, config)
    cache = vae.new_decoder_cache()
    latents = torch.empty(1, config.z_dim, n, height, width, device="meta")
    vae.decode_block(latents, cache)
    with FlopCounterMode(display=False) as counter:
        vae.decode_block(latents, cache)
    return counter.get_total_flops()
