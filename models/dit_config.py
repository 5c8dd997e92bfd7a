"""Sizes of the denoiser (`models.dit`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.action import ActionConfig
from models.rope import axis_split
from models.sizes import check_positive


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the denoiser; the defaults are the published universal mode with this runtime's window of 15 latents.

    ``img_dim`` 0 builds a model without image tokens. ``prediction`` says what the output means to the sampler: velocity or x0.
    """

    dim: int = 1536
    ffn_dim: int = 8960
    freq_dim: int = 256
    num_heads: int = 12
    num_layers: int = 30
    in_dim: int = 36
    out_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    local_attn_size: int = 15
    num_frame_per_block: int = 3
    img_dim: int = 1280
    action: ActionConfig = field(default_factory=ActionConfig)
    prediction: str = "velocity"

    def __post_init__(self) -> None:
        check_positive(self, "dim", "ffn_dim", "freq_dim", "num_heads", "num_layers", "in_dim", "out_dim", "patch_size", "eps")
        check_positive(self, "local_attn_size", "num_frame_per_block")
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} does not divide into {self.num_heads} heads")
        axis_split(self.head_dim)
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim {self.freq_dim} must be even")
        if self.patch_size[0] != 1:
            raise ValueError(f"patch_size {self.patch_size} must be 1 in time: a latent is the unit of the clock")
        if self.local_attn_size < self.num_frame_per_block:
            raise ValueError(f"local_attn_size {self.local_attn_size} is smaller than a block of {self.num_frame_per_block} latents")
        if any(not 0 <= i < self.num_layers for i in self.action.blocks):
            raise ValueError(f"action blocks {self.action.blocks} must lie within the {self.num_layers} layers")
        if self.prediction not in ("velocity", "x0"):
            raise ValueError(f"prediction must be 'velocity' or 'x0', got {self.prediction!r}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_name(cls, name: str) -> DiTConfig:
        """A published mode: "universal", "gta_drive" or "templerun"."""
        actions = {
            "universal": ActionConfig(keyboard_dim=4),
            "gta_drive": ActionConfig(keyboard_dim=2),
            "templerun": ActionConfig(keyboard_dim=7, mouse_dim=0),
        }
        if name not in actions:
            raise ValueError(f"unknown published mode {name!r}: choose one of {', '.join(actions)}")
        return cls(action=actions[name])
