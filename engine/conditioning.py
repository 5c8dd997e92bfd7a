"""What steers a block: the start picture's channels and the ring of condition rows (`cond_current`, SPEC §2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.actions import IDLE
from engine.clock import BlockClock
from models.action import ActionConfig
from models.transfer import send
from models.vae import VAE

if TYPE_CHECKING:
    from engine.config import WorldConfig

HISTORY = 24  # rows remembered; a block of three latents looks back over 9
START_LATENTS = 30  # latent 29 of [picture, then zeros] is the one that all later ones equal


@dataclass(frozen=True)
class Rows:
    """Condition rows of a block, one a frame: keyboard `[F, K]`, mouse `[F, 2]` (None in a mode without mouse); float32, host."""

    keyboard: Tensor
    mouse: Tensor | None

    def equal(self, other: Rows) -> bool:
        """Whether both say the same, of a mode alike."""
        return torch.equal(self.keyboard, other.keyboard) and (self.mouse is None or torch.equal(self.mouse, other.mouse))


@dataclass(frozen=True)
class Windows:
    """Rows cut per latent as the model reads them: keyboard `[1, n, 12, K]`, mouse `[1, n, 12, 2]` or None."""

    keyboard: Tensor
    mouse: Tensor | None

    def to(self, device: torch.device) -> Windows:
        """On ``device``, without waiting for it."""
        return Windows(send(self.keyboard, device), None if self.mouse is None else send(self.mouse, device))


class ConditionRing:
    """The newest condition rows of a session. Only `commit` changes it."""

    def __init__(self, config: ActionConfig) -> None:
        self.config = config
        if config.rows > HISTORY:
            raise ValueError(f"a latent reads {config.rows} rows, more than the {HISTORY} that are kept")
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next block is block 0."""
        self.count = 0  # rows ever committed
        self.keyboard = torch.zeros(HISTORY, self.config.keyboard_dim)  # the newest row is the last
        self.mouse = torch.zeros(HISTORY, 2) if self.config.mouse_dim else None

    def load(self, keyboard: Tensor, mouse: Tensor | None, count: int) -> None:
        """Take over rows `[24, K]` and `[24, 2]`, the newest last, as they were when ``count`` rows had been committed."""
        self.keyboard, self.mouse, self.count = keyboard, mouse, count

    def hold(self, clock: BlockClock, keyboard: np.ndarray, mouse: np.ndarray | None) -> Rows:
        """The rows of a block whose action, as the model reads it, is held for all its frames."""
        count = len(clock.frames)
        return Rows(
            torch.as_tensor(keyboard, dtype=torch.float32).expand(count, -1),
            None if mouse is None else torch.as_tensor(mouse, dtype=torch.float32).expand(count, -1),
        )

    def windows(self, clock: BlockClock, rows: Rows) -> Windows:
        """The rows each latent of the block reads: 4t-12 ... 4t-1, row 0 standing in for negative ones. Changes nothing.

        Raises ValueError when ``rows`` are not this block's, or the ring does not stand right before it.
        """
        self._check(clock, rows)
        oldest = self.count - HISTORY  # absolute number of the ring's first row
        span = range(-self.config.rows, 0)
        picks = torch.tensor([[max(0, clock.r * latent + i) - oldest for i in span] for latent in clock.latents])  # [n, 12]
        keyboard = torch.cat([self.keyboard, rows.keyboard])[picks][None]
        return Windows(keyboard, None if self.mouse is None else torch.cat([self.mouse, rows.mouse])[picks][None])

    def stood_still(self, rows: Rows) -> bool:
        """Whether all rows that are kept, two blocks of them, are those of ``rows``, the rows of a block in which nothing is done."""
        pairs = [(self.keyboard, rows.keyboard), (self.mouse, rows.mouse)]
        return self.count >= HISTORY and all(kept is None or bool((kept == idle[:1]).all()) for kept, idle in pairs)

    def commit(self, clock: BlockClock, rows: Rows) -> None:
        """Append the block's rows."""
        self._check(clock, rows)
        self.keyboard = torch.cat([self.keyboard, rows.keyboard])[-HISTORY:].clone()
        if self.mouse is not None:
            self.mouse = torch.cat([self.mouse, rows.mouse])[-HISTORY:].clone()
        self.count = clock.rows

    def _check(self, clock: BlockClock, rows: Rows) -> None:
        if self.count != clock.first_row:
            raise ValueError(f"the ring stands at row {self.count}, block {clock.block} begins at row {clock.first_row}")
        expected = (len(clock.frames), self.config.keyboard_dim)
        if tuple(rows.keyboard.shape) != expected:
            raise ValueError(f"block {clock.block} takes keyboard rows {list(expected)}, got {list(rows.keyboard.shape)}")
        if (rows.mouse is None) != (self.mouse is None):
            raise ValueError("mouse rows must be given exactly in a mode with a mouse")


def stands_still(config: WorldConfig, clock: BlockClock, ring: ConditionRing, rows: Rows) -> bool:
    """Whether ``rows`` do nothing and nothing was done for two blocks, in a world that then stays as it is (`SamplerConfig.hold_still`)."""
    if not config.sampler.hold_still:
        return False
    idle = ring.hold(clock, *config.actions.to_model(IDLE))
    return rows.equal(idle) and ring.stood_still(idle)


class StartCondition:
    """`cond_concat` of an endless session: 4 mask channels (1 on latent 0) and the VAE's latents of [picture, then zeros].

    ``visual_context`` `[1, 257, 1280]` are the image tokens of the same picture, or None.
    """

    def __init__(self, latents: Tensor, mask_channels: int = 4, visual_context: Tensor | None = None) -> None:
        mask = torch.zeros_like(latents[:, :1]).expand(-1, mask_channels, -1, -1, -1).clone()
        mask[:, :, 0] = 1
        self.latents = latents
        self.channels = torch.cat([mask, latents], dim=1)  # [1, 4 + z, 30, h, w]
        self.visual_context = visual_context

    def block(self, clock: BlockClock) -> Tensor:
        """The channels of one block `[1, 4 + z, n, h, w]`; past the last encoded latent that one is repeated."""
        last = self.channels.shape[2] - 1
        if clock.latents.stop <= last + 1:
            return self.channels[:, :, clock.latents.start : clock.latents.stop]
        return torch.cat([self.channels[:, :, min(latent, last)].unsqueeze(2) for latent in clock.latents], dim=2)


@torch.inference_mode()
def encode_start(vae: VAE, picture: Tensor, latents: int = START_LATENTS) -> Tensor:
    """Latents `[1, z, latents, h, w]` of ``picture`` `[1, 3, 1, H, W]` followed by zero-valued (mid grey) frames, streamed."""
    cache = vae.new_encoder_cache()
    grey = torch.zeros_like(picture).expand(-1, -1, vae.config.temporal_ratio, -1, -1)
    parts = [vae.encode_frames(picture, cache)]
    parts += [vae.encode_frames(grey, cache) for _ in range(latents - 1)]
    return torch.cat(parts, dim=2)
