"""What a table of names and shapes is: which published mode, which part, whose naming. Told without reading a number.

The words finish the sentence "FILE is …". Names are seen without a leading ``model.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from models.dit_config import DiTConfig

Shapes = Mapping[str, Sequence[int]]
REPOSITORY = "Skywork/Matrix-Game-2.0"
PUBLISHED = {
    "universal": "base_distilled_model/base_distill.safetensors",
    "gta_drive": "gta_distilled_model/gta_keyboard2dim.safetensors",
    "templerun": "templerun_distilled_model/templerun_7dim_onlykey.safetensors",
}


@dataclass(frozen=True)
class Kind:
    """``part`` is dit, vae or vision for what this runtime plays, else another word; ``words`` say what it is, ``advice`` what to do."""

    part: str
    words: str
    advice: str
    mode: str | None = None


FETCH = f"get one of the distilled files of {REPOSITORY}, such as {PUBLISHED['universal']}"
BASE = Kind("base", "the base model of Matrix-Game 2.0, which is not distilled and cannot be played in a few steps", FETCH)
FOREIGN = [  # (names that give it away, what it is)
    (r"(^|\.)lora_(A|B|up|down)\.", Kind("lora", "a LoRA, a small change to a model and no model", FETCH)),
    (
        r"^condition_embedder\..*\.mlp\.fc_|^blocks\.\d+\.(to_q|self_attn_residual_norm|ffn\.fc_in)\b",
        Kind("fastvideo", "a denoiser converted for FastVideo, with other names", f"give the file it was made from: {FETCH}"),
    ),
    (
        r"^condition_embedder\.|^blocks\.\d+\.attn\d\.(to_q|to_out|norm_q)\b|^scale_shift_table$",
        Kind("diffusers", "a denoiser converted to diffusers' names", f"give the file it was made from: {FETCH}"),
    ),
    (
        r"^(encoder|decoder)\.(conv_in|down_blocks|up_blocks|mid_block)\b|^(post_)?quant_conv\.",
        Kind("diffusers", "a VAE converted to diffusers' names", f"give Wan2.1_VAE.pth of {REPOSITORY}"),
    ),
    (
        r"^(vision_model|image_encoder\.vision_model)\.|^visual\.transformer\.resblocks\.",
        Kind(
            "vision", "an image encoder under other names", f"give models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth of {REPOSITORY}"
        ),
    ),
    (
        r"^decoder\.\d+\.conv\.\d+\.weight$",
        Kind("taehv", "a tiny decoder (TAEHV), not a whole VAE", f"give Wan2.1_VAE.pth of {REPOSITORY}"),
    ),
    (r"^encoder\.block\.|^shared\.weight$|^token_embedding\.weight$", Kind("text", "a text encoder, which no world here uses", FETCH)),
]


def recognise(shapes: Shapes) -> Kind | None:
    """What the file is, or None where nothing gives it away."""
    found = {name.removeprefix("model."): tuple(shape) for name, shape in shapes.items()}
    foreign = next((kind for pattern, kind in FOREIGN if _any(pattern, found)), None)
    if foreign is not None:
        return foreign
    if "patch_embedding.weight" in found and _any(r"^blocks\.\d+\.self_attn\.q\.weight$", found):
        return _denoiser(found)
    if "decoder.conv1.weight" in found and "encoder.conv1.weight" in found:
        width = found["encoder.conv1.weight"][0]
        return Kind("vae", "the Wan 2.1 VAE" if width == 96 else f"a VAE of width {width}", "it is the part 'vae' of a world")
    if any(name.startswith("visual.transformer.") for name in found):
        return Kind("vision", "the file of the image encoder", "it is the part 'vision' of a world")
    return None


def _denoiser(found: Mapping[str, tuple[int, ...]]) -> Kind:
    width, layers = found["patch_embedding.weight"][0], _count(r"^blocks\.(\d+)\.self_attn\.q\.weight$", found)
    acting = _count(r"^blocks\.(\d+)\.action_model\.", found)
    keys = next((shape[1] for name, shape in found.items() if name.endswith("keyboard_embed.0.weight") and len(shape) == 2), 0)
    mouse = _any(r"\.action_model\.t_qkv\.", found)
    mode = next((mode for mode in PUBLISHED if _acts(mode) == (keys, mouse)), None)
    published = DiTConfig()
    if (width, layers) != (published.dim, published.num_layers):
        about = f"{keys} keys{' and a mouse' if mouse else ''}" if acting else "no actions"
        what = f"a denoiser of width {width} with {layers} layers and {about}"
        return Kind("dit", what, "give the weights that belong to this world's yaml")
    if acting == 0:
        return Kind("wan", "a Wan 2.1 model without actions", FETCH)
    if acting != len(published.action.blocks) or _any(r"\.cross_attn\.(k|v)_img\.", found):
        return BASE
    acts = f"{keys} keys{' and a mouse' if mouse else ', no mouse'}"
    if mode is None:
        return Kind("dit", f"a denoiser of the size of Matrix-Game 2.0 of no published mode ({acts})", FETCH)
    return Kind("dit", f"the {mode} denoiser of Matrix-Game 2.0 ({acts})", f"play it with --world {mode}", mode)


def _acts(mode: str) -> tuple[int, bool]:
    action = DiTConfig.from_name(mode).action
    return action.keyboard_dim, action.mouse_dim > 0


def _any(pattern: str, names: Iterable[str]) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.search(name[:200]) for name in names)


def _count(pattern: str, names: Iterable[str]) -> int:
    compiled = re.compile(pattern)
    return len({match[1] for name in names if (match := compiled.search(name[:200]))})
