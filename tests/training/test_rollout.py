"""The rollout of the trainers is the player's, and its gradient goes through one pass a block and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import Action, World, load_config
from engine.clock import BlockClock
from engine.conditioning import ConditionRing, Rows, Windows
from engine.sampler import SeededNoise
from models.dit import DiT
from models.kv_cache import DiTCache
from tests.tiny_world import write_tiny_world
from tests.training.tiny import CPU, networks_for, objective_of, tiny_config, tiny_data, tiny_dit, tiny_plan, with_window
from training.dataset import Batch
from training.draws import BatchNoise, Draws
from training.learner import checkpoint_layers
from training.objectives.rollout import Rollout
from training.objectives.view import View
from training.plan import RolloutSettings

ACTIONS = [Action(frozenset(keys), look) for keys, look in (("w", (0, 0)), ("wa", (0, 0.5)), ("", (1, 0)), ("s", (0, 0)), ("d", (0, -1)))]
LAST = RolloutSettings(exit="last", gradient_latents=100)
STEPS = (1000, 666, 333)


def batch_of(world: World, sessions: list[list[Action]]) -> Batch:
    """What the trainers would be given of these sessions: rows cut by the engine's own ring."""
    keyboards, mice = [], []
    for actions in sessions:
        ring, clock = ConditionRing(world.config.model.action), world.config.clock
        parts = []
        for action in actions:
            rows: Rows = ring.hold(clock, *world.config.actions.to_model(action))
            parts.append(ring.windows(clock, rows))
            ring.commit(clock, rows)
            clock = clock.next()
        keyboards.append(torch.cat([part.keyboard for part in parts], dim=1))
        mice.append(torch.cat([part.mouse for part in parts], dim=1))
    start = world.condition(None)
    clocks = [replace(world.config.clock, block=i) for i in range(len(sessions[0]))]
    condition = torch.cat([start.block(clock) for clock in clocks], dim=2).expand(len(sessions), -1, -1, -1, -1)
    blank = torch.zeros(len(sessions), 4, *condition.shape[2:])
    return Batch(blank, condition, Windows(torch.cat(keyboards), torch.cat(mice)), torch.ones(len(sessions), dtype=torch.bool))


def played_latents(world: World, actions: list[Action], seed: int) -> Tensor:
    """The latents of a game, as they reach the decoder."""
    session, seen = world.session(seed), []
    decode = world.vae.decode_block
    world.vae.decode_block = lambda latents, *rest, **names: (seen.append(latents.clone()), decode(latents, *rest, **names))[1]
    try:
        for action in actions:
            session.step(action)
    finally:
        world.vae.decode_block = decode
    return torch.cat(seen, dim=2)


@pytest.mark.parametrize(("window", "last_noise"), [(15, 1.0), (7, 0.5)])
def test_a_rollout_is_what_the_player_sees_who_commits_every_block(window: int, last_noise: float, tmp_path: Path) -> None:
    """Two sessions side by side with gradients, past the point where the ring overwrites itself, against two games.

    For any window and `last_noise`, in a world with `context: clean` that does not hold still.
    """
    path = write_tiny_world(tmp_path, change=lambda settings: settings["model"].update(local_attn_size=window))
    world = World.load(load_config(path, {"sampler.last_noise": last_noise}))
    assert world.config.sampler.context == "clean" and not world.config.sampler.hold_still
    sessions = [[*ACTIONS, *ACTIONS[:2]], [*ACTIONS[::-1], *ACTIONS[2:4]]]
    games = torch.cat([played_latents(world, actions, seed) for seed, actions in zip((7, 8), sessions, strict=True)])
    world.dit.requires_grad_(True)
    rollout = Rollout(world.dit, world.config.sampler.steps, world.config.sampler.shift, LAST, last_noise=last_noise)
    exits = rollout.exits(Draws(0, 0, range(2), 2), len(sessions[0]))
    made = [x0 for _, x0 in rollout.play(batch_of(world, sessions), exits, BatchNoise([7, 8]))]
    assert all(x0.requires_grad for x0 in made)
    torch.testing.assert_close(torch.cat(made, dim=2).detach(), games, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(games[0], games[1], atol=1e-2)


def test_a_player_who_holds_still_sees_the_rollout_up_to_the_third_idle_block(tmp_path: Path) -> None:
    """Then ever new third idle blocks, each beside the same past, and afterwards the rollout in which all of them are left out."""
    config = load_config(write_tiny_world(tmp_path), {"sampler.hold_still": True, "sampler.last_noise": 0.0})
    world, idle, seed = World.load(config), Action(), 7
    begun, later = ACTIONS[:2], [ACTIONS[3], ACTIONS[1]]
    game = played_latents(world, [*begun, *5 * [idle], *later], seed)
    game = torch.cat(game.split(3, dim=2))  # [blocks, z, n, h, w]
    rollout = Rollout(world.dit, config.sampler.steps, config.sampler.shift, LAST, last_noise=0.0)

    def rolled(actions: list[Action], held: int) -> Tensor:
        """A rollout with the noise of a game in which ``held`` more blocks came after the fourth."""
        noise, drawn = BatchNoise([seed]), SeededNoise(seed)
        noise.noise = lambda clock, *rest: drawn.noise(replace(clock, block=clock.block + held * (clock.block > 3)), *rest)
        exits = rollout.exits(Draws(0, 0, range(1), 1), len(actions))
        return torch.cat([x0 for _, x0 in rollout.play(batch_of(world, [actions]), exits, noise, gradient=False)])

    going_on = rolled([*begun, *5 * [idle], *later], 0)
    torch.testing.assert_close(game[:5], going_on[:5], atol=1e-5, rtol=1e-5)
    assert all(not torch.allclose(game[block], going_on[block], atol=1e-2) for block in range(5, 9))
    for held in (0, 1, 2):
        torch.testing.assert_close(game[4 + held], rolled([*begun, *3 * [idle]], held)[4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(game[7:], rolled([*begun, *2 * [idle], *later], 3)[4:], atol=1e-5, rtol=1e-5)


class Passes(DiT):
    """Notes for each pass whether it had a gradient, and at which timestep and latent."""

    def forward(self, x: Tensor, timestep: Tensor, keyboard: Tensor, mouse: Tensor | None, cache: DiTCache, start: int) -> Tensor:
        self.notes.append((start, round(float(timestep[0, 0])), torch.is_grad_enabled()))
        return super().forward(x, timestep, keyboard, mouse, cache, start)


def noted(dit: DiT) -> Passes:
    dit.__class__, dit.notes = Passes, []
    return dit


def test_the_gradient_goes_through_one_pass_of_the_last_blocks(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data, dit = tiny_data(tmp_path, config, blocks=4), noted(tiny_dit(config, 1))
    settings = RolloutSettings(exit_shared=False, gradient_latents=7, context_noise=0.0)  # of 12: the last two whole blocks
    rollout, draws = Rollout(dit, STEPS, 5.0, settings), Draws(3, 1, range(2), 2)
    batch = data.batch(draws, 4, start_share=1.0)
    made = rollout(batch, draws, given=1)
    exits = rollout.exits(draws, 4)
    assert len(set(exits)) > 1
    levels = [round(t) for t in rollout.sampler.timesteps]
    expected = [(0, 0, False)]  # the given block is only committed
    for block in (1, 2, 3):
        expected += [(3 * block, levels[step], step == exits[block] and block >= 2) for step in range(exits[block] + 1)]
        expected += [(3 * block, 0, False)] * (block < 3)
    assert dit.notes == expected
    assert torch.equal(made.latents[:, :, :3], batch.latents[:, :, :3]) and made.without_gradient == 6
    weight = dit.head.head.weight
    assert torch.autograd.grad(made.latents[:, :, 6:].square().sum(), weight, retain_graph=True)[0].any()
    assert not torch.autograd.grad(made.latents[:, :, :6].square().sum(), weight)[0].any()


def test_what_a_block_sees_of_the_past_has_no_gradient(tmp_path: Path) -> None:
    """The last block's gradient is that of the last block alone: earlier ones given as they are lead to the same."""
    config = tiny_config(tmp_path)
    data, dit = tiny_data(tmp_path, config, blocks=3), tiny_dit(config, 1)
    rollout, draws = Rollout(dit, STEPS, 5.0, LAST), Draws(3, 1, range(2), 2)
    batch = data.batch(draws, 3, start_share=1.0)
    made = rollout(batch, draws)
    one = torch.autograd.grad(made.latents[:, :, 6:].square().sum(), dit.blocks[0].ffn[0].weight)[0]
    given = replace(batch, latents=made.latents.detach())
    again = rollout(given, draws, given=2)
    torch.testing.assert_close(again.latents[:, :, 6:], made.latents[:, :, 6:])
    other = torch.autograd.grad(again.latents[:, :, 6:].square().sum(), dit.blocks[0].ffn[0].weight)[0]
    torch.testing.assert_close(one, other)


def test_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    """Layers that are computed again must find the rings as they were, however far the rollout went meanwhile."""
    config = with_window(tiny_config(tmp_path), 7)
    data, draws = tiny_data(tmp_path, config, blocks=4), Draws(3, 1, range(2), 2)
    grads = []
    for again in (False, True):
        dit = tiny_dit(config, 1)
        if again:
            checkpoint_layers(dit)
        rollout = Rollout(dit, STEPS, 5.0, LAST, cloned=again)
        rollout(data.batch(draws, 4, start_share=1.0), draws).latents.square().sum().backward()
        grads.append({name: p.grad for name, p in dit.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


def test_context_noise_reaches_the_clean_pass(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data, dit, draws = tiny_data(tmp_path, config), noted(tiny_dit(config, 1)), Draws(3, 1, range(2), 2)
    batch = data.batch(draws, 2, start_share=1.0)
    made, committed = {}, {}
    for noise in (0.0, 100.0):
        dit.notes.clear()
        rollout = Rollout(dit, STEPS, 5.0, RolloutSettings(exit="last", context_noise=noise))
        commit = rollout.sampler.commit

        def note(clock: BlockClock, *rest: Any, noise: float = noise, commit: Any = commit) -> None:
            committed[noise] = rest[3].clone()
            commit(clock, *rest)

        rollout.sampler.commit = note
        made[noise] = rollout(batch, draws, gradient=False).latents
        assert dit.notes[3] == (0, int(noise), False)
        sigma = rollout.sampler.schedule.sigma(100.0)
    assert torch.equal(made[0.0][:, :, :3], made[100.0][:, :, :3]) and not torch.equal(made[0.0], made[100.0])
    assert torch.equal(committed[0.0], made[0.0][:, :, :3])
    fresh = (committed[100.0] - (1 - sigma) * committed[0.0]) / sigma  # ε of x_t = (1 - σ) x + σ ε
    assert 0.05 < sigma < 0.5 and abs(float(fresh.mean())) < 0.3 and float(fresh.std()) == pytest.approx(1, abs=0.2)
    assert not torch.allclose(fresh[0], fresh[1], atol=0.1)


def test_a_horizon_is_drawn_anew_in_whole_blocks_for_all_processes(tmp_path: Path) -> None:
    """Of the plan's two ends both come up, and nothing beyond them; every process and every part of a batch draws the same."""
    config = tiny_config(tmp_path)
    plan = tiny_plan("regression", rollout=RolloutSettings(horizon=(2, 4), exit="last"))
    objective = objective_of(plan, config, networks_for("regression", config), tiny_data(tmp_path, config, blocks=4))
    drawn = []
    for iteration in range(24):
        (made, _), (others, _) = (objective.generate(Draws(0, iteration, own, 2), gradient=False) for own in (range(1), range(1, 2)))
        drawn.append(made.latents.shape[2])
        assert others.latents.shape[2] == drawn[-1]
    assert set(drawn) == {6, 9, 12}


def test_exits_are_shared_or_not() -> None:
    dit = DiT.__new__(DiT)
    rollout = Rollout(dit, STEPS, 5.0, RolloutSettings())
    drawn = [rollout.exits(Draws(0, i, range(1), 1), 5) for i in range(60)]
    assert {e[0] for e in drawn} == {0, 1, 2} and all(len(set(e)) == 1 for e in drawn)
    assert rollout.exits(Draws(0, 3, range(1), 4), 5) == rollout.exits(Draws(0, 3, range(1, 4), 4), 5)  # whatever the process
    rollout.settings = RolloutSettings(exit_shared=False)
    assert any(len(set(rollout.exits(Draws(0, i, range(1), 1), 5))) > 1 for i in range(20))
    rollout.settings = LAST
    assert rollout.exits(Draws(0, 0, range(1), 1), 3) == [2, 2, 2]


def test_masks_are_the_rings(tmp_path: Path) -> None:
    """One pass over a window, as the objectives ask for it (`View`), clean and noisy halves or clean latents alone, equals denoising
    block by block beside a ring of the same window."""
    config = with_window(tiny_config(tmp_path), 7)
    dit = tiny_dit(config, 1)
    batch = tiny_data(tmp_path, config, blocks=4).batch(Draws(0, 0, range(2), 2), 4, start_share=1.0)
    noisy = torch.randn_like(batch.latents)
    with torch.no_grad():
        levels = {level: torch.full((2, 12), level) for level in (0.0, 700.0)}  # their sigma is not asked for: the network tells x0
        both, causal = (View(12, 3, 7, context, CPU) for context in ("clean", "noisy"))
        together = both.x0(dit, noisy, levels[700.0], levels[700.0], batch, clean=batch.latents)
        alone = causal.x0(dit, batch.latents, levels[0.0], levels[0.0], batch)
        cache = dit.new_cache(2, 1, 2)
        for start in range(0, 12, 3):
            own = slice(start, start + 3)
            for latents, level, expected in ((noisy, 700.0, together), (batch.latents, 0.0, alone)):
                inputs = torch.cat([latents[:, :, own], batch.condition[:, :, own]], dim=1)
                out = dit(inputs, torch.full((2, 3), level), batch.rows.keyboard[:, own], batch.rows.mouse[:, own], cache, start)
                torch.testing.assert_close(out, expected[:, :, own], rtol=1e-4, atol=1e-5)


def test_a_sessions_noise_is_the_players() -> None:
    clock = BlockClock(block=4)
    noise = BatchNoise([5, 6]).noise(clock, 1, (1, 4, 3, 2, 4))
    assert noise.shape == (2, 4, 3, 2, 4)
    assert torch.equal(noise[1:], BatchNoise([6]).noise(clock, 1, (1, 4, 3, 2, 4))) and not np.allclose(noise[0], noise[1])
