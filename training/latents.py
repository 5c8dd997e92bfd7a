"""Walks of the simulator as latents: what the denoiser is trained on.

A clip is one session of `CLIP_BLOCKS` blocks: its latents, its condition rows and what the encoder makes of
(start picture, then grey), exactly as the engine would condition a session that began there.
The pool grows while a training runs: drawing and encoding a clip is cheap beside the steps that use it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine import load_config
from models.errors import WorldError, one_line
from models.vae import VAE
from training.common import working_dtype, working_precision
from training.simulator import FULL_MOUSE, HEIGHT, WIDTH, Pose, random_actions, random_poses, rollout

FULL_LOOK = load_config("garden").actions.look_scale[0] / FULL_MOUSE  # the model's mouse value for the simulator's
CLIP_BLOCKS = 9
CLIP_LATENTS = 3 * CLIP_BLOCKS
CLIP_FRAMES = 1 + 4 * (CLIP_LATENTS - 1)
CONDITION_LATENTS = 15  # of (start, grey, grey, ...) that are encoded per clip; later ones hardly depend on the start
WALKS_PER_START = 2  # clips that share a start picture, and so its encoding, unless told otherwise
ROWS_PER_LATENT = 12


@dataclass
class Clips:
    """Clips in half precision. ``mouse`` is in the simulator's units, condition rows are per frame."""

    latents: Tensor  # [N, z, L, h, w]
    condition: Tensor  # [N, z, 15, h, w]
    keyboard: Tensor  # [N, F, 4]
    mouse: Tensor  # [N, F, 2]
    pose: Tensor  # [N, L, 4]: x, y, yaw, pitch of the last frame of each latent
    settled: Tensor  # [z, h, w]: latent 29 of the condition

    def __len__(self) -> int:
        return self.latents.shape[0]

    def append(self, other: Clips) -> Clips:
        return joined([self, other])

    def to(self, device: torch.device) -> Clips:
        """The same on ``device``: windows are cut where the clips are."""
        return Clips(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def oldest(self, count: int) -> Clips:
        kept = {f.name: getattr(self, f.name)[:count] for f in fields(self) if f.name != "settled"}
        return Clips(**kept, settled=self.settled)

    def newest(self, count: int) -> Clips:
        kept = {f.name: getattr(self, f.name)[-count:] for f in fields(self) if f.name != "settled"}
        return Clips(**kept, settled=self.settled)

    def save(self, path: Path) -> None:
        save_file({f.name: getattr(self, f.name).contiguous() for f in fields(self)}, path)

    @classmethod
    def load(cls, path: Path, blocks: int | None = None) -> Clips:
        """What `save` wrote. Raises WorldError as `check` does."""
        cls.check(path, blocks)
        return cls(**load_file(path))

    @classmethod
    def check(cls, path: Path, blocks: int | None = None) -> None:
        """Raises WorldError for a file that holds no clips, or others than of so many ``blocks``. Reads the table of its tensors only."""
        try:
            with safe_open(path, "pt") as file:
                have = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
        except Exception as error:  # safetensors names many
            raise WorldError(f"{one_line(path, 200)}: no clips can be read from it: {one_line(error, 120)}; move it away") from None
        names = {f.name for f in fields(cls)}
        if set(have) != names:
            found = one_line(", ".join(sorted(have)) or "nothing", 120)
            raise WorldError(f"{one_line(path, 200)} holds {found}; clips of training.make_clips hold {', '.join(sorted(names))}")
        count, z, length, *place = have["latents"] if len(have["latents"]) == 5 else (0, 0, 0)
        frames = have["keyboard"][1] if len(have["keyboard"]) == 3 else 0
        wanted = {
            "latents": [count, z, length, *place],
            "condition": [count, z, min(CONDITION_LATENTS, length), *place],
            "keyboard": [count, frames, 4],
        }
        wanted |= {"mouse": [count, frames, 2], "pose": [count, length, 4], "settled": [z, *place]}
        wrong = [name for name in have if have[name] != wanted[name]]
        if wrong or min(count, length, frames) < 1:
            name = wrong[0] if wrong else "latents"
            raise WorldError(f"{one_line(path, 200)}: {name} is {have[name]}, which is of no clips beside the rest of it: move it away")
        if blocks is not None and length != 3 * blocks:
            raise WorldError(f"{one_line(path, 200)}: its clips have {length // 3} blocks, {blocks} are wanted here (make_clips --blocks)")


def joined(parts: Sequence[Clips]) -> Clips:
    """All clips of ``parts``, at least one, as one."""
    if len(parts) == 1:
        return parts[0]
    together = {f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Clips) if f.name != "settled"}
    return Clips(**together, settled=parts[0].settled)


class ClipMaker:
    """Draws walks of ``blocks`` blocks, ``walks`` from each start, and encodes them with a frozen VAE in `working_dtype`. In a share
    ``idle`` of them one stands still, in a share ``turning`` one turns all the time, in a share ``backing`` one walks backward where
    others walk ahead; a share ``near`` of the starts is beside a trunk or pillar.

    On a CPU the walks are encoded one by one, with weights laid out for that, which is quicker than any batch: what a layer makes then
    stays in the caches. Elsewhere all at once, in autocast, compiled.
    """

    def __init__(
        self, vae: VAE, seed: int, device: torch.device, compile_encoder: bool = True, idle: float = 1 / 16,
        blocks: int = CLIP_BLOCKS, walks: int = WALKS_PER_START, turning: float = 0.0, near: float = 0.0,
        backing: float = 0.0,
    ) -> None:  # fmt: skip
        self.vae, self.device, self.idle, self.turning = vae.eval().requires_grad_(False), device, idle, turning
        self.near, self.backing = near, backing
        self.latents, self.walks = 3 * blocks, walks
        self.generator = torch.Generator().manual_seed(seed)
        if device.type == "cpu":
            self._dtype = working_dtype(device)
            self._encoder = copy.deepcopy(self.vae).to(self._dtype)
            self._encoder.lay_out()
        else:
            self._mean = torch.compile(vae.mean) if compile_encoder else vae.mean
        grey = torch.zeros(1, 3, 1 + 4 * 29, HEIGHT, WIDTH, device=device)
        with torch.no_grad():
            self.settled = vae.encode(grey)[0, :, -1].half().cpu()  # [z, h, w]; no longer depends on the first frame

    @torch.no_grad()
    def _encode(self, video: Tensor) -> Tensor:
        if self.device.type == "cpu":
            mu = torch.cat([self._encoder.mean(one.to(self._dtype)) for one in video.split(1)]).float()
        else:
            with working_precision(self.device):
                mu = self._mean(video).float()
        mean, std = self.vae._scale(mu)
        return ((mu - mean) / std).permute(0, 4, 1, 2, 3)

    def make(self, starts: int) -> Clips:
        """``starts`` x ``walks`` new clips."""
        return self.draw(starts)[0]

    @torch.no_grad()
    def draw(self, starts: int) -> tuple[Clips, Tensor]:
        """New clips, and the pictures they are of: [N, 3, F, H, W] in [-1, 1]."""
        count, known = starts * self.walks, min(self.latents, CONDITION_LATENTS)
        pose = random_poses(starts, self.generator, self.near)
        pose = type(pose)(*(v.repeat_interleave(self.walks) for v in (pose.x, pose.y, pose.yaw, pose.pitch)))
        keyboard, mouse = random_actions(count, 4 * (self.latents - 1), self.generator, self.idle, self.turning, self.backing)
        if self.device.type != "cpu":
            pose = type(pose)(*(v.to(self.device) for v in (pose.x, pose.y, pose.yaw, pose.pitch)))
        frames, poses = rollout(pose, keyboard.to(self.device), mouse.to(self.device))
        video = frames.transpose(1, 2).float() / 127.5 - 1  # [N, 3, F, H, W]
        condition = torch.zeros(starts, 3, 1 + 4 * (known - 1), HEIGHT, WIDTH, device=self.device)
        condition[:, :, :1] = video[:: self.walks, :, :1]
        clips = Clips(
            latents=self._encode(video).half().cpu(),
            condition=self._encode(condition).half().cpu().repeat_interleave(self.walks, 0),
            keyboard=keyboard.half(),
            mouse=mouse.half(),
            pose=torch.stack([poses.x, poses.y, poses.yaw, poses.pitch], dim=-1)[:, ::4].float().cpu(),
            settled=self.settled,
        )
        return clips, video


def pictures(clips: Clips, pick: Tensor, frames: int, device: torch.device) -> Tensor:
    """What the picked clips were encoded from, their first ``frames`` frames, rendered again: [B, 3, F, H, W] in [-1, 1].

    All but to the bit: the actions were kept in half precision.
    """
    pose = Pose(*(part.to(device) for part in clips.pose[pick, 0].unbind(-1)))
    keyboard, mouse = (rows[pick, : frames - 1].float().to(device) for rows in (clips.keyboard, clips.mouse))
    return rollout(pose, keyboard, mouse)[0].transpose(1, 2).float() / 127.5 - 1


@dataclass
class Windows:
    """A training batch: T latents out of longer sessions, as the engine would present them."""

    latents: Tensor  # [B, z, T, h, w] float32
    condition: Tensor  # [B, 4 + z, T, h, w]: mask channels, then condition latents
    keyboard: Tensor  # [B, T, 12, 4]
    mouse: Tensor  # [B, T, 12, 2]
    pose: Tensor  # [B, T, 4]
    from_start: Tensor  # [B] bool: the window begins with the session


def condition_rows(rows: Tensor, first: Tensor, latents: int) -> Tensor:
    """Rows [B, F, K] cut per latent -> [B, T, 12, K]: latent t reads rows 4t-12 .. 4t-1, row 0 for negative ones (SPEC §2)."""
    device = rows.device
    t = first.to(device)[:, None, None] + torch.arange(latents, device=device)[None, :, None]
    index = (4 * t - ROWS_PER_LATENT + torch.arange(ROWS_PER_LATENT, device=device)).clamp_min(0)  # [B, T, 12]
    return rows[torch.arange(rows.shape[0], device=device)[:, None, None], index]


def sample_windows(clips: Clips, batch: int, blocks: int, generator: torch.Generator, start_share: float = 0.35) -> Windows:
    """Random windows of ``blocks`` blocks; about ``start_share`` of them begin where their session begins."""
    length = 3 * blocks
    pick = torch.randint(len(clips), (batch,), generator=generator)
    offset = torch.randint(1, max(2, CLIP_BLOCKS - blocks + 1), (batch,), generator=generator).clamp_max(CLIP_BLOCKS - blocks)
    offset[torch.rand(batch, generator=generator) < start_share] = 0
    return cut_windows(clips, pick, 3 * offset, length)


def cut_windows(clips: Clips, pick: Tensor, first: Tensor, length: int) -> Windows:
    """The windows [first, first + length) of the picked clips, on the device where these are; ``pick``, ``first`` [B] integers."""
    device = clips.latents.device
    pick, first = pick.to(device), first.to(device)
    t = first[:, None] + torch.arange(length, device=device)  # [B, T]
    rows = torch.arange(len(pick), device=device)[:, None]
    latents = clips.latents[pick].transpose(1, 2)[rows, t].transpose(1, 2).float()  # [B, z, T, h, w]
    known = clips.condition[pick].transpose(1, 2)[rows, t.clamp_max(CONDITION_LATENTS - 1)]  # [B, T, z, h, w]
    known = torch.where((t < CONDITION_LATENTS)[:, :, None, None, None], known, clips.settled).transpose(1, 2).float()
    mask = (t == 0)[:, None, :, None, None].expand(-1, 4, -1, *latents.shape[-2:]).float()
    return Windows(
        latents=latents,
        condition=torch.cat([mask, known], dim=1),
        keyboard=condition_rows(clips.keyboard[pick].float(), first, length),
        mouse=FULL_LOOK * condition_rows(clips.mouse[pick].float(), first, length),
        pose=clips.pose[pick][rows, t],
        from_start=first == 0,
    )
