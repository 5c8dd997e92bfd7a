"""Every objective: its loss is its formula, its gradient goes where it must, and it overfits two clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config import WorldConfig
from models.dit import DiT
from models.flow import FlowSchedule
from tests.training.tiny import ALONE, networks_for, objective_of, tiny_config, tiny_data, tiny_dit, tiny_plan
from training.draws import BatchNoise, Draws
from training.objectives import Networks
from training.objectives.consistency import consistency_loss, euler_step
from training.objectives.dmd import dmd_loss
from training.objectives.forcing import forcing_loss
from training.objectives.regression import regression_loss
from training.objectives.rollout import Rollout
from training.objectives.sid import sid_loss
from training.plan import ConsistencySettings, ForcingSettings, RolloutSettings, ScoreSettings
from training.trainer import Trainer

SHAPE = (3, 4, 6, 2, 4)  # [B, z, T, h, w]
DRAWS = Draws(5, 0, range(2), 2)


@pytest.fixture
def config(tmp_path: Path) -> WorldConfig:
    return tiny_config(tmp_path)


def randn(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wide(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


# ---- formulas, on random tensors


@pytest.mark.parametrize("space", ["x0", "velocity", "noise"])
@pytest.mark.parametrize("weighting", ["uniform", "bell", "min_snr"])
def test_forcing_is_flow_matching_in_any_space(space: str, weighting: str) -> None:
    x0, noise, guess = randn(1), randn(2), randn(3)
    sigma = 0.1 + 0.8 * torch.rand(SHAPE[0], SHAPE[2], generator=torch.Generator().manual_seed(4))
    counts = torch.ones(SHAPE[0], SHAPE[2])
    counts[1, :3] = 0
    a, e, g, s, c = wide(x0, noise, guess, sigma, counts)
    total = 0.0
    for b in range(SHAPE[0]):
        kept = []
        for t in range(SHAPE[2]):
            level = s[b, t]
            x = (1 - level) * a[b, :, t] + level * e[b, :, t]
            truth = {"x0": a[b, :, t], "velocity": e[b, :, t] - a[b, :, t], "noise": e[b, :, t]}[space]
            said = {"x0": g[b, :, t], "velocity": (x - g[b, :, t]) / level, "noise": (x - (1 - level) * g[b, :, t]) / level}[space]
            weight = {"uniform": 1.0, "bell": np.exp(-2 * (level - 0.5) ** 2), "min_snr": min(((1 - level) / level) ** 2, 5.0)}[weighting]
            if c[b, t]:
                kept.append(weight * np.mean((said - truth) ** 2))
        total += np.mean(kept) / SHAPE[0]
    assert float(forcing_loss(guess, x0, sigma, space, weighting, counts)) == pytest.approx(total, rel=1e-6)


def test_a_robust_loss_counts_decibels() -> None:
    x0, guess = randn(1)[:2], randn(2)[:2]
    guess = x0 + torch.tensor([0.01, 3.0]).view(2, 1, 1, 1, 1) * (guess - x0)  # one sample is nearly right
    sigma, counts = torch.ones(2, SHAPE[2]), torch.ones(2, SHAPE[2])
    counts[0, :3] = 0
    a, g = wide(x0, guess)
    errors = ((g - a) ** 2).mean((1, 3, 4)).reshape(2, -1, 3).mean(-1)
    terms = 0.03 * np.log(1 + errors / 0.03)
    expected = (terms[0, 1:].mean() + terms[1].mean()) / 2
    assert float(forcing_loss(guess, x0, sigma, "x0", "uniform", counts, 0.03, 3)) == pytest.approx(expected, rel=1e-6)
    slopes = []
    for sample in range(2):
        near = guess[sample : sample + 1].clone().requires_grad_()
        forcing_loss(near, x0[sample : sample + 1], sigma[:1], "x0", "uniform", None, 0.03, 3).backward()
        slopes.append(float((near.grad * (near.detach() - x0[sample])).sum()))
    assert slopes[0] == pytest.approx(2 * errors[0].mean(), rel=0.01), "small errors count as they are"
    assert slopes[1] == pytest.approx(2 * 0.03, rel=0.02), "of large ones only the ratio counts"


def test_dmd_is_its_formula_and_so_is_its_gradient() -> None:
    x, fake, real = randn(1).requires_grad_(), randn(2), randn(3)
    counts = torch.tensor([0.0, 0, 0, 1, 1, 1])
    a, f, r = wide(x, fake, real)
    g = np.stack([(f[b] - r[b]) / np.abs(a[b] - r[b]).mean() for b in range(SHAPE[0])])
    loss = dmd_loss(x, fake, real, counts)
    assert loss.item() == pytest.approx(0.5 * (g[:, :, 3:] ** 2).mean(), rel=1e-6)
    loss.backward()
    expected = np.concatenate([np.zeros_like(g[:, :, :3]), g[:, :, 3:]], axis=2) / g[:, :, 3:].size
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-4, atol=1e-9)
    assert not x.grad[:, :, :3].any()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_is_the_papers_two_terms(alpha: float) -> None:
    x, fake, real = randn(1), randn(2), randn(3)
    a, f, r = wide(x, fake, real)
    terms = ((1 - alpha) * (r - f) ** 2 + (r - f) * (f - a)) / np.abs(a - r).mean((1, 2, 3, 4), keepdims=True)
    assert float(sid_loss(x, fake, real, alpha, torch.ones(6))) == pytest.approx(terms.mean(), rel=1e-6, abs=1e-7)


def test_regression_counts_what_has_a_gradient() -> None:
    x, truth, counts = randn(1), randn(2), torch.tensor([0.0, 0, 0, 1, 1, 1])
    a, b = wide(x, truth)
    assert float(regression_loss(x, truth, counts)) == pytest.approx(((a - b)[:, :, 3:] ** 2).mean(), rel=1e-6)


def test_consistency_compares_neighbours_on_a_path() -> None:
    x0, noise, guess, target = randn(1), randn(2), randn(3), randn(4)
    a, e, g, t = wide(x0, noise, guess, target)
    assert float(consistency_loss(guess, target)) == pytest.approx(((g - t) ** 2).mean(), rel=1e-6)
    high, low = torch.tensor(0.8), torch.tensor(0.3)
    stepped = euler_step(0.2 * x0 + 0.8 * noise, x0, high, low)  # a teacher that sees x0 leads along the straight line
    np.testing.assert_allclose(stepped.numpy(), 0.7 * a + 0.3 * e, atol=1e-6)


# ---- the objectives' own losses, out of what their networks were given and said


class Recorded:
    """Keeps what goes through a network's parallel pass."""

    def __init__(self, dit: DiT) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        inner = dit.forward_parallel

        def forward_parallel(x: Tensor, timestep: Tensor, keyboard: Tensor, *rest: Any) -> Tensor:
            out = inner(x, timestep, keyboard, *rest)
            self.calls.append((x.detach(), timestep, keyboard, out.detach()))
            return out

        dit.forward_parallel = forward_parallel


SCORES = ScoreSettings(guidance=1.7, alpha=1.2)
ROLL = RolloutSettings(horizon=(2, 2), start_share=1.0)


@pytest.mark.parametrize("objective", ["dmd", "sid"])
def test_scores_see_the_noised_rollout_and_make_the_loss(objective: str, config: WorldConfig, tmp_path: Path) -> None:
    nets = networks_for(objective, config)
    plan = tiny_plan(objective, score=SCORES, rollout=ROLL)
    made = objective_of(plan, config, nets, tiny_data(tmp_path, config))
    x = made.generate(DRAWS, gradient=False)[0].latents.double()
    teacher, critic = Recorded(nets.teacher), Recorded(nets.critic)
    loss = made.student_loss(DRAWS)[0].item()
    (seen, timestep, keyboard, fake), (_, _, _, told), (_, _, quiet, untold) = critic.calls[0], *teacher.calls
    assert not quiet.any() and keyboard.any()
    assert torch.equal(timestep, timestep[:, :1].expand(-1, 6)) and timestep.min() >= 20 and timestep.max() <= 980
    sigma = FlowSchedule(5.0).sigma(timestep).double()[:, None, :, None, None]
    noise = DRAWS.normal("noise", *x.shape[1:]).double()
    torch.testing.assert_close(seen[:, :4].double(), (1 - sigma) * x + sigma * noise, atol=1e-5, rtol=1e-5)
    assert torch.equal(seen, teacher.calls[0][0]) and torch.equal(seen, teacher.calls[1][0])
    fake, real = fake.double(), (untold + 1.7 * (told - untold)).double()
    scale = (x - real).abs().mean((1, 2, 3, 4), keepdim=True)
    plain = {"dmd": 0.5 * ((fake - real) / scale).square(), "sid": (real - fake) * ((real - x) - 1.2 * (real - fake)) / scale}[objective]
    assert loss == pytest.approx(float(plain.mean()), rel=1e-5)


def test_the_critics_loss_is_flow_matching_on_what_was_made(config: WorldConfig, tmp_path: Path) -> None:
    nets = networks_for("dmd", config)
    made = objective_of(tiny_plan("dmd", score=SCORES, rollout=ROLL), config, nets, tiny_data(tmp_path, config))
    critic = Recorded(nets.critic)
    loss = made.critic_loss(DRAWS)[0]
    x = made.generate(DRAWS, gradient=False)[0].latents.double()
    seen, timestep, _, guess = critic.calls[0]
    sigma = FlowSchedule(5.0).sigma(timestep).double()[:, None, :, None, None]
    noise = (seen[:, :4].double() - (1 - sigma) * x) / sigma
    velocity = (seen[:, :4].double() - guess.double()) / sigma
    assert float(loss) == pytest.approx(float((velocity - (noise - x)).square().mean()), rel=1e-4)


def test_causvid_scores_the_noised_truth(config: WorldConfig, tmp_path: Path) -> None:
    nets = networks_for("causvid", config)
    forcing = ForcingSettings(context="noisy")
    made = objective_of(tiny_plan("causvid", score=SCORES, forcing=forcing), config, nets, tiny_data(tmp_path, config))
    student, critic, teacher = Recorded(nets.student), Recorded(nets.critic), Recorded(nets.teacher)
    loss = made.student_loss(DRAWS)[0].item()
    batch = made.data.batch(DRAWS, 2)
    given, timestep, _, x = student.calls[0]
    assert set(timestep.flatten().tolist()) <= set(FlowSchedule(5.0).timesteps(config.sampler.steps).tolist())
    sigma = FlowSchedule(5.0).sigma(timestep)[:, None, :, None, None]
    noise = DRAWS.normal("given noise", *batch.latents.shape[1:])
    torch.testing.assert_close(given[:, :4], (1 - sigma) * batch.latents + sigma * noise)
    fake, (told, untold), x = critic.calls[0][3].double(), (call[3] for call in teacher.calls), x.double()
    real = (untold + 1.7 * (told - untold)).double()
    g = (fake - real) / (x - real).abs().mean((1, 2, 3, 4), keepdim=True)
    assert loss == pytest.approx(0.5 * float(g.square().mean()), rel=1e-5)


def test_consistency_follows_teacher_and_target(config: WorldConfig, tmp_path: Path) -> None:
    nets = networks_for("consistency", config)
    plan = tiny_plan("consistency", consistency=ConsistencySettings(levels=3))
    made = objective_of(plan, config, nets, tiny_data(tmp_path, config))
    student, teacher, target = Recorded(nets.student), Recorded(nets.teacher), Recorded(nets.target)
    draws = Draws(7, 0, range(8), 8)  # so that every level comes up
    loss = made.student_loss(draws)[0].item()
    known = 3
    (given, high, _, guess), (_, _, _, seen), (nearer, low, _, slow) = student.calls[0], teacher.calls[0], target.calls[0]
    x, high, low = given[:, :4, known:].double(), high[:, known:], low[:, known:]
    table = FlowSchedule(5.0)
    sigma = table.sigma(high).double()[:, None, :, None, None]
    lower = torch.where(low > 0, table.sigma(low), 0.0).double()[:, None, :, None, None]
    assert (low == 0).any() and (high == 1000).any() and (low < high).all()
    stepped = x + (lower - sigma) * (x - seen[:, :, known:].double()) / sigma
    torch.testing.assert_close(nearer[:, :4, known:].double(), stepped, atol=1e-5, rtol=1e-5)
    goal = torch.where(lower > 0, slow[:, :, known:].double(), stepped)
    assert loss == pytest.approx(float((guess[:, :, known:].double() - goal).square().mean()), rel=1e-5)


@pytest.mark.parametrize("prediction", ["x0", "velocity"])
def test_forcing_reads_what_the_network_means(prediction: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, prediction)
    nets = networks_for("forcing", config)
    plan = tiny_plan("forcing", forcing=ForcingSettings(context="clean", space="velocity", levels="uniform", range=(0.2, 0.9)))
    made = objective_of(plan, config, nets, tiny_data(tmp_path, config))
    student = Recorded(nets.student)
    loss = made.student_loss(DRAWS)[0].item()
    (x, timestep, _, out), batch = student.calls[0], made.data.batch(DRAWS, 2)
    assert torch.equal(x[:, :4, :3], batch.latents[:, :, :3]) and not timestep[:, :3].any()
    sigma = FlowSchedule(5.0).sigma(timestep[:, 3:]).double()[:, None, :, None, None]
    noise = DRAWS.normal("noise", *batch.latents.shape[1:]).double()
    out, noisy = out[:, :, 3:].double(), x[:, :4, 3:].double()
    velocity = out if prediction == "velocity" else (noisy - out) / sigma
    assert loss == pytest.approx(float((velocity - (noise - batch.latents.double())).square().mean()), rel=1e-4)


# ---- gradients


@pytest.mark.parametrize("objective", ["dmd", "sid", "causvid"])
def test_only_who_learns_has_a_gradient(objective: str, config: WorldConfig, tmp_path: Path) -> None:
    nets = networks_for(objective, config)
    settings = {} if objective == "causvid" else {"rollout": ROLL}
    trainer = Trainer(tiny_plan(objective, **settings), config, nets, tiny_data(tmp_path, config), ALONE, tmp_path / "run")
    for learning, other, loss_of in (
        (nets.student, nets.critic, trainer.objective.student_loss),
        (nets.critic, nets.student, trainer.objective.critic_loss),
    ):
        with trainer._others_fixed(other):
            loss_of(DRAWS)[0].backward()
        assert all(p.grad is None for dit in (other, nets.teacher) for p in dit.parameters())
        trained = [p for name, p in learning.named_parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained) and sum(float(p.grad.abs().sum()) for p in trained) > 0
        assert all(p.requires_grad for dit in (nets.student, nets.critic) for p in dit.parameters() if p.ndim > 1)
        learning.zero_grad(set_to_none=True)


def test_consistency_leaves_teacher_and_target_alone(config: WorldConfig, tmp_path: Path) -> None:
    nets = networks_for("consistency", config)
    nets.teacher.requires_grad_(True)  # even then
    nets.target.requires_grad_(True)
    objective_of(tiny_plan("consistency"), config, nets, tiny_data(tmp_path, config)).student_loss(DRAWS)[0].backward()
    assert all(p.grad is None for dit in (nets.teacher, nets.target) for p in dit.parameters())
    assert nets.student.head.head.weight.grad.any()


# ---- learning


def played_error(dit: DiT, config: WorldConfig, data: Any) -> float:
    """Mean squared error of what it plays of both clips (of unit variance), against the clips."""
    settings = RolloutSettings(exit="last")
    batch = data.batch(Draws(0, 0, range(2), 2), 2, start_share=1.0)
    rollout = Rollout(dit, config.sampler.steps, config.sampler.shift, settings)
    with torch.no_grad():
        played = torch.cat([x0 for _, x0 in rollout.play(batch, [2, 2], BatchNoise([8, 9]), gradient=False)], dim=2)
    return float((played - batch.latents).square().mean())


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Weights of a teacher that sees everything, and of a causal one, both of all noise levels."""
    folder = tmp_path_factory.mktemp("teachers")
    config = tiny_config(folder)
    data = tiny_data(folder, config)
    found = {}
    for context in ("all", "clean"):
        plan = tiny_plan("forcing", forcing=ForcingSettings(context=context, shared=context == "all", levels="uniform"), iterations=150)
        nets = Networks(tiny_dit(config, 2, loud=False))
        Trainer(plan, config, nets, data, ALONE, folder / context).run()
        found[context] = nets.student.state_dict()
    return found


LEARNING = {
    "forcing": (60, {"forcing": ForcingSettings(context="clean")}),
    "diffusion": (100, {"forcing": ForcingSettings(context="noisy")}),
    "regression": (50, {"rollout": ROLL}),
    "dmd": (100, {"rollout": ROLL, "score": ScoreSettings(critic_space="x0")}),
    "sid": (80, {"rollout": ROLL, "score": ScoreSettings(critic_space="x0")}),
    "causvid": (120, {"forcing": ForcingSettings(context="noisy"), "score": ScoreSettings(critic_space="x0")}),
    "consistency": (120, {"consistency": ConsistencySettings(levels=8, decay=0.5)}),
}


@pytest.mark.parametrize("name", LEARNING)
def test_it_overfits_two_clips(name: str, config: WorldConfig, tmp_path: Path, teachers: dict[str, dict[str, Tensor]]) -> None:
    """From nothing to playing both clips back under their actions."""
    objective = "forcing" if name == "diffusion" else name
    iterations, settings = LEARNING[name]
    nets = networks_for(objective, config, loud=False)
    if nets.teacher is not None:
        nets.teacher.load_state_dict(teachers["clean" if objective == "consistency" else "all"])
    if nets.critic is not None:
        nets.critic.load_state_dict(teachers["all"])
    data = tiny_data(tmp_path, config)
    before = played_error(nets.student, config, data)
    Trainer(tiny_plan(objective, iterations=iterations, **settings), config, nets, data, ALONE, tmp_path / "run").run()
    after = played_error(nets.student, config, data)
    print(f"{name}: {before:.3f} -> {after:.3f}")
    assert before > 0.9 and after < 0.3
