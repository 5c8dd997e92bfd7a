"""A plan tried out without memory: every network and every pass of an iteration on the meta device, where tensors are shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from engine.config import WorldConfig
from models.checkpoint import build_empty
from models.dit import DiT
from training.dataset import Clip, Data
from training.draws import Draws
from training.learner import checkpoint_layers
from training.objectives import OBJECTIVES, Networks
from training.plan import Plan, RolloutSettings

MIB = 1 << 20
META = torch.device("meta")
LEARNING = 4 + 4 + 8  # bytes a weight: itself, its gradient, Adam's two moments


class BlankClips:
    """One clip of zeros of a world's shapes."""

    def __init__(self, config: WorldConfig, latents: int) -> None:
        model, ratio = config.model, config.vae.spatial_ratio
        place, rows = (config.height // ratio, config.width // ratio), 1 + model.action.vae_time_ratio * (latents - 1)
        self.blank = Clip(
            latents=torch.zeros(model.out_dim, latents, *place),
            condition=torch.zeros(model.out_dim, 1, *place),
            keyboard=torch.zeros(rows, model.action.keyboard_dim),
            mouse=torch.zeros(rows, 2) if model.action.mouse_dim else None,
            visual=torch.zeros(config.vision.num_tokens, model.img_dim) if config.vision is not None else None,
        )

    def __len__(self) -> int:
        return 1

    def latents(self, index: int) -> int:
        return self.blank.latents.shape[1]

    def clip(self, index: int) -> Clip:
        return self.blank


@dataclass
class Kept:
    """Bytes that autograd keeps for the backward pass."""

    bytes: int = 0


@contextmanager
def kept_for_backward(networks: list[nn.Module]) -> Iterator[Kept]:
    """Count what is kept meanwhile, each storage once, without the networks' own weights."""
    found, seen = Kept(), {id(p.untyped_storage()._cdata): p for net in networks for p in net.parameters()}
    weights = {p.untyped_storage()._cdata for p in seen.values()}
    held: dict[int, Tensor] = {}  # as long as it is held, no other storage has its number

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in held:
            held[storage._cdata] = tensor
            found.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@dataclass(frozen=True)
class Estimate:
    """Of one sample: bytes kept for the backward pass of the student's loss and the critic's, and of its rings."""

    student: int
    critic: int
    rings: int


def shapes(plan: Plan, world: WorldConfig) -> tuple[Networks, list[str], Estimate]:
    """Build the plan's networks on the meta device and run one iteration of one sample there, backward passes included.

    Returns the networks, lines that tell the shapes, and what one sample needs. Whatever does not fit raises.
    """
    if plan.rollout is not None or plan.objective in ("regression", "dmd", "sid"):
        rollout = plan.rollout or RolloutSettings()
        plan = replace(plan, rollout=replace(rollout, horizon=(rollout.horizon[1],) * 2))
    size = 4 if plan.precision == "float32" else 2
    plan = replace(plan, precision="float32")  # there is no autocast on the meta device
    kind = OBJECTIVES[plan.objective]
    names = ["student"] + ["teacher"] * kind.needs_teacher + ["critic"] * kind.has_critic + ["target"] * kind.has_target
    nets = {name: build_empty(DiT, world.model) for name in names}
    for name in ("teacher", "target"):
        if name in nets:
            nets[name].requires_grad_(False)
    if plan.checkpointing:
        for dit in nets.values():
            checkpoint_layers(dit)
    networks = Networks(**nets)
    blocks = plan.rollout.horizon[1] if plan.rollout is not None else plan.blocks
    data = Data(BlankClips(world, blocks * world.model.num_frame_per_block), world, plan.seed)
    objective = kind(plan, world, networks, data, META)
    kept = []
    losses = [objective.student_loss] + [objective.critic_loss] * kind.has_critic
    for purpose, loss_of in zip(("student", "critic"), losses, strict=False):
        with kept_for_backward(list(nets.values())) as found:
            loss, _ = loss_of(Draws(plan.seed, 0, range(1), 1, purpose))
        kept.append(found.bytes)
        loss.backward()
    batch = data.batch(Draws(plan.seed, 0, range(1), 1), blocks)
    lines = [f"a sample: latents {_shape(batch.latents)}, condition {_shape(batch.condition)}, keyboard {_shape(batch.rows.keyboard)}"]
    lines[0] += "" if batch.rows.mouse is None else f", mouse {_shape(batch.rows.mouse)}"
    lines[0] += "" if batch.visual is None else f", image tokens {_shape(batch.visual)}"
    places = prod(batch.latents.shape[-2:]) // prod(world.model.patch_size)
    lines.append(f"{blocks} blocks of {data.block} latents, {places} tokens each: {blocks * data.block * places} tokens")
    lines.append(f"steps {list(world.sampler.steps)}, shift {world.sampler.shift:g}, window {world.model.local_attn_size} latents")
    cache = networks.student.new_cache(1, *(batch.latents.shape[3 + i] // world.model.patch_size[1 + i] for i in range(2)), META)
    rings = sum(tensor.numel() for tensor in cache.tensors().values()) * size if plan.rollout is not None else 0
    if plan.checkpointing and plan.rollout is not None:
        rings *= 1 + blocks  # a copy for each block that may have a gradient
    return networks, lines, Estimate(kept[0], kept[1] if kind.has_critic else 0, rings)


def dry_run(plan: Plan, world: WorldConfig, counts: tuple[int, ...] = (1, 8, 64)) -> str:
    """Shapes, numbers of weights, and memory of each process for several numbers of processes, as text."""
    networks, lines, need = shapes(plan, world)
    weights = {name: sum(p.numel() for p in net.parameters()) for name, net in vars(networks).items() if net is not None}
    bytes_of = {"student": LEARNING + 4, "critic": LEARNING, "teacher": 4, "target": 4 + 4}  # 4 more: averaged weights
    lines = [f"{plan.objective} on {world.name}, {plan.iterations} iterations of {plan.batch} samples", *lines, "", "network   weights"]
    lines += [f"{name:9} {count:,}" for name, count in weights.items()]
    lines += ["", "memory of a process, MiB (an estimate; activations are counted in float32, which half precision stays below)"]
    lines.append(f"{'processes':>9} {'weights':>9} {'samples':>9} {'kept for backward':>18} {'rings':>9} {'together':>9}")
    for count in counts:
        if plan.batch % count:
            continue
        samples = min(plan.micro or plan.batch // count, plan.batch // count)
        own = sum(bytes_of[name] * number for name, number in weights.items()) / count
        if plan.forcing is not None and plan.forcing.resampling:  # the player of the past, whole in each process
            own += weights["student"] * (4 if plan.precision == "float32" else 2)
        kept, rings = samples * max(need.student, need.critic), samples * need.rings
        numbers = [own / MIB, samples, kept / MIB, rings / MIB, (own + kept + rings) / MIB]
        lines.append(f"{count:9d} {numbers[0]:9,.0f} {samples:9d} {numbers[2]:18,.0f} {numbers[3]:9,.0f} {numbers[4]:9,.0f}")
    return "\n".join(lines)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[1:]))
