from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.action import ActionConfig
from models.attention import MaskPlan
from models.dit import DiT, DiTConfig
from models.flow import FlowSchedule
from tests.models.dit_recordings import BLOCK, build, inputs, run_block, start_cache
from tests.recordings import Recording, relative_error

SMALL = DiTConfig(
    dim=32, ffn_dim=48, freq_dim=16, num_heads=2, num_layers=2, in_dim=6, out_dim=4, img_dim=0, local_attn_size=4, prediction="x0",
    action=ActionConfig(blocks=(0,), hidden=16, heads=2, keyboard_hidden=4),
)  # fmt: skip
NO_MOUSE = replace(SMALL, action=replace(SMALL.action, mouse_dim=0, keyboard_dim=7))
WITH_IMAGE = replace(SMALL, img_dim=8, local_attn_size=6)


def shaken(config: DiTConfig) -> DiT:
    """A model whose every weight speaks."""
    torch.manual_seed(0)
    dit = DiT(config)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return dit.requires_grad_(False)


def random_inputs(config: DiTConfig, latents: int, batch: int = 2, height: int = 4, width: int = 6) -> list[Tensor | None]:
    """x, timestep, keyboard, mouse."""
    action = config.action
    torch.manual_seed(1)
    return [
        torch.randn(batch, config.in_dim, latents, height, width), torch.rand(batch, latents) * 1000,
        torch.rand(batch, latents, 12, action.keyboard_dim), torch.randn(batch, latents, 12, 2) if action.mouse_dim else None,
    ]  # fmt: skip


def part(given: list[Tensor | None], first: int, end: int) -> list[Tensor | None]:
    x, timestep, keyboard, mouse = given
    return [x[:, :, first:end], timestep[:, first:end], keyboard[:, first:end], None if mouse is None else mouse[:, first:end]]


def image(config: DiTConfig, batch: int = 2) -> Tensor | None:
    torch.manual_seed(2)
    return torch.randn(batch, 5, config.img_dim) if config.img_dim else None


def window_mask(latents: int, window: int) -> Tensor:
    """Block by block play as a mask: latents of a block see the last ``window`` latents counted to the block's end."""
    end = (torch.arange(latents) // BLOCK + 1) * BLOCK
    key = torch.arange(latents)
    return (key[None] < end[:, None]) & (key[None] >= end[:, None] - window)


def play(dit: DiT, given: list[Tensor | None], start: int = 0) -> Tensor:
    """All latents through the rings, one pass a block."""
    x = given[0]
    cache = dit.new_cache(x.shape[0], x.shape[3] // 2, x.shape[4] // 2)
    dit.precompute_context(image(dit.config, x.shape[0]), cache)
    return torch.cat([dit(*part(given, t, t + BLOCK), cache, start + t) for t in range(0, x.shape[2], BLOCK)], dim=2)


# --- against the recordings -----------------------------------------------------------------------------------------


def check_rollout(r: Recording, blocks: int, first_pass: float, rest: float) -> list[Tensor]:
    dit, schedule = build(r), FlowSchedule()
    cache, latents = start_cache(dit, r), []
    for block in range(blocks):
        passes = run_block(dit, cache, r, block, schedule)
        for i, x0 in enumerate(passes):
            assert relative_error(x0, r["out.x0_steps"][block, i]) < (first_pass if block == i == 0 else rest), (block, i)
        latents.append(passes[-2])
    return latents


@pytest.mark.parametrize("name", ["universal_local6", "gta_drive_local4"])
def test_whole_rollout(recording: Callable[[str], Recording], name: str) -> None:
    r = recording(name)
    latents = check_rollout(r, 6, first_pass=1e-5, rest=1e-4)
    assert relative_error(torch.cat(latents, 2), r["out.latents"]) < 1e-4
    timesteps = FlowSchedule().timesteps(r.config["denoising_step_list"])
    torch.testing.assert_close(timesteps, r["out.timesteps"][0, :3], rtol=1e-6, atol=0)


def test_rollout_that_travels_with_the_project(fixture_recording: Callable[[str], Recording]) -> None:
    check_rollout(fixture_recording("dit_small"), 3, first_pass=1e-5, rest=1e-4)


def test_prefill_block_by_block(recording: Callable[[str], Recording]) -> None:
    r = recording("prefill_local6")
    dit, schedule, given = build(r), FlowSchedule(), 2
    cache, latents = start_cache(dit, r), []
    for block in range(5):
        if block < given:
            x = r["in.initial_latent"][:, :, BLOCK * block : BLOCK * block + BLOCK]
            dit(*inputs(r, x, block, torch.tensor(0.0)), cache, BLOCK * block)
            latents.append(x)
        else:
            latents.append(run_block(dit, cache, r, block, schedule, given)[-2])
    assert relative_error(torch.cat(latents, 2), r["out.latents"]) < 1e-4


@pytest.mark.parametrize(("mode", "parameters"), [("universal", 1_619_242_304), ("gta_drive", 1_619_238_464), ("templerun", 1_508_715_584)])
def test_published_keys_and_shapes(manifest: dict[str, dict[str, list[int]]], mode: str, parameters: int) -> None:
    with torch.device("meta"):
        dit = DiT(DiTConfig.from_name(mode))
    assert {f"model.{name}": list(tensor.shape) for name, tensor in dit.state_dict().items()} == manifest[mode]
    assert sum(tensor.numel() for tensor in dit.state_dict().values()) == parameters


# --- playing equals training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, NO_MOUSE, WITH_IMAGE], ids=["small", "no mouse", "image"])
def test_rings_equal_a_mask(config: DiTConfig) -> None:
    dit, given = shaken(config), random_inputs(config, 12)
    mask = window_mask(12, config.local_attn_size)
    whole = dit.forward_parallel(*given, torch.arange(12), mask, visual_context=image(config))
    assert relative_error(play(dit, given), whole) < 1e-5


def test_clean_and_noisy_halves_equal_play() -> None:
    """Teacher forcing: a noisy block beside clean ones gives what the sampler sees after committing the clean blocks."""
    dit, window = shaken(SMALL), SMALL.local_attn_size
    clean, noisy = random_inputs(SMALL, 12), random_inputs(SMALL, 12)
    noisy[0] = torch.randn_like(noisy[0])
    clean[1] = torch.zeros_like(clean[1])
    both = [torch.cat(pair, dim) for pair, dim in zip(zip(clean, noisy, strict=True), (2, 1, 1, 1), strict=True)]
    sees, block = window_mask(12, window), torch.arange(12) // BLOCK
    own = block[:, None] == block[None]
    mask = torch.cat([torch.cat([sees, torch.zeros_like(sees)], 1), torch.cat([sees & ~own, own], 1)])
    cache = dit.new_cache(2, 2, 3)
    played = []
    for t in range(0, 12, BLOCK):
        played.append(dit(*part(noisy, t, t + BLOCK), cache, t))
        dit(*part(clean, t, t + BLOCK), cache, t)
    for plan in (None, MaskPlan.from_mask(mask)):
        out = dit.forward_parallel(*both, torch.arange(12).repeat(2), mask, plan=plan)
        assert relative_error(torch.cat(played, 2), out[:, :, 12:]) < 1e-5


def test_plan_equals_mask_in_its_gradients() -> None:
    dit, given = shaken(SMALL).requires_grad_(True), random_inputs(SMALL, 9)
    mask = window_mask(9, 4)
    mask[4, 1] = mask[7, 6] = False  # and no regular pattern
    weight = torch.randn(2, 4, 9, 4, 6)
    gradients = []
    for plan in (None, MaskPlan.from_mask(mask)):
        dit.zero_grad()
        (dit.forward_parallel(*given, torch.arange(9), mask, plan=plan) * weight).sum().backward()
        gradients.append({name: p.grad for name, p in dit.named_parameters() if p.grad is not None})
    unused = {name for name, _ in dit.named_parameters()} - gradients[0].keys()
    assert all("attn_q_norm" in name or "attn_k_norm" in name for name in unused)  # the action module's stored norms
    for name, gradient in gradients[0].items():
        assert relative_error(gradients[1][name], gradient) < 1e-4, name


def test_batch_is_independent() -> None:
    dit, given = shaken(WITH_IMAGE), random_inputs(WITH_IMAGE, 6)
    pair = play(dit, given)
    context = image(WITH_IMAGE)
    for i in range(2):
        cache = dit.new_cache(1, 2, 3)
        dit.precompute_context(context[i : i + 1], cache)
        one = [x[i : i + 1] for x in given]
        alone = torch.cat([dit(*part(one, t, t + BLOCK), cache, t) for t in (0, 3)], 2)
        assert relative_error(alone, pair[i : i + 1]) < 1e-5


# --- the cache ------------------------------------------------------------------------------------------------------


def test_denoising_again_leaves_no_trace() -> None:
    dit, given = shaken(SMALL), random_inputs(SMALL, 9)
    other = [torch.randn_like(x) for x in part(given, 3, 6)]
    plain, busy = dit.new_cache(2, 2, 3), dit.new_cache(2, 2, 3)
    for t in (0, 3, 6):
        if t == 3:
            for _ in range(3):
                dit(*other, busy, 3)
        assert torch.equal(dit(*part(given, t, t + BLOCK), plain, t), dit(*part(given, t, t + BLOCK), busy, t))
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, busy.tensors()[name]), name


def test_far_positions() -> None:
    """Beyond the published table's 1024 latents: any start gives what start 0 gives, up to rounding of the angles."""
    dit, given = shaken(SMALL), random_inputs(SMALL, 12)
    near = play(dit, given)
    for start in (1023, 300_000, 300_001):
        far = play(dit, given, start)
        assert far.isfinite().all()
        assert relative_error(far, near) < 1e-5


def test_cache_does_not_grow() -> None:
    dit, given = shaken(SMALL), random_inputs(SMALL, 3, batch=1)
    cache = dit.new_cache(1, 2, 3)
    before = {name: (t.data_ptr(), t.shape) for name, t in cache.tensors().items()}
    for block in range(5):
        dit(*given, cache, 3 * block)
    assert before == {name: (t.data_ptr(), t.shape) for name, t in cache.tensors().items()}


def test_gradient_through_a_played_pass() -> None:
    dit, given = shaken(SMALL).requires_grad_(True), random_inputs(SMALL, 6)
    cache = dit.new_cache(2, 2, 3)
    with torch.no_grad():
        dit(*part(given, 0, 3), cache, 0)
    out = dit(*part(given, 3, 6), cache, 3)
    with torch.no_grad():
        dit(*part(given, 3, 6), cache, 3)
    out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in dit.parameters())
    assert dit.blocks[0].self_attn.k.weight.grad.norm() > 0
    assert not any(t.requires_grad for t in cache.tensors().values())


# --- building and refusing ------------------------------------------------------------------------------------------


def test_a_new_model_is_silent_and_learns() -> None:
    dit, given = DiT(SMALL), random_inputs(SMALL, 3)
    out = play(dit, given)
    assert out.abs().max() == 0
    (out - 1).square().mean().backward()
    assert dit.head.head.weight.grad.norm() > 0


def test_bfloat16_follows_float32() -> None:
    dit, given = shaken(WITH_IMAGE), random_inputs(WITH_IMAGE, 6)
    exact = play(dit, given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = dit.forward_parallel(*given, torch.arange(6), window_mask(6, 6), visual_context=image(WITH_IMAGE))
    assert relative_error(mixed.float(), exact) < 0.05
    dit.bfloat16()
    cache = dit.new_cache(2, 2, 3, dtype=torch.bfloat16)
    dit.precompute_context(image(WITH_IMAGE).bfloat16(), cache)
    half = torch.cat([dit(*part(given, t, t + BLOCK), cache, t) for t in (0, 3)], 2)
    assert half.dtype == torch.bfloat16 and relative_error(half.float(), exact) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "dim 32 does not divide into 5 heads"),
        ({"num_heads": 32}, "head_dim 1 is odd"),
        ({"patch_size": (2, 2, 2)}, "must be 1 in time"),
        ({"local_attn_size": 2}, "smaller than a block"),
        ({"prediction": "noise"}, "'noise'"),
        ({"action": ActionConfig(blocks=(2,))}, "2 layers"),
    ],
)
def test_bad_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_bad_action_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="does not divide into 3 heads"):
        ActionConfig(hidden=16, heads=3)
    with pytest.raises(ValueError, match="rope_dim 8"):
        ActionConfig(hidden=16, heads=4)
    with pytest.raises(ValueError, match="unknown published mode 'gta'"):
        DiTConfig.from_name("gta")


def test_inputs_that_do_not_fit_are_refused() -> None:
    dit, given = DiT(SMALL), random_inputs(SMALL, 3)
    cache = dit.new_cache(2, 2, 3)
    with pytest.raises(ValueError, match="mouse must be given"):
        dit(*given[:3], None, cache, 0)
    with pytest.raises(ValueError, match="5x6"):
        dit(torch.zeros(2, 6, 3, 5, 6), *given[1:], cache, 0)
    with pytest.raises(ValueError, match="5 channels"):
        dit(torch.zeros(2, 5, 3, 4, 6), *given[1:], cache, 0)
    assert cache.written == 0  # a refused pass is not in the books
    with pytest.raises(ValueError, match="img_dim 0"):
        dit.precompute_context(torch.zeros(2, 5, 8), cache)
    with_image = DiT(WITH_IMAGE)
    with pytest.raises(ValueError, match="precompute_context"):
        with_image(*given, with_image.new_cache(2, 2, 3), 0)
    with pytest.raises(ValueError, match="empty row"):
        MaskPlan.from_mask(torch.zeros(2, 2))
