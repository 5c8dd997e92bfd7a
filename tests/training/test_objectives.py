"""Every objective: its loss is made of what its networks say, its gradient goes where it must, and it overfits two clips."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.config import WorldConfig
from models.dit import DiT
from models.flow import FlowSchedule
from tests.training.tiny import ALONE, networks_for, objective_of, randn, tiny_config, tiny_data, tiny_dit, tiny_plan
from training.dataset import Data
from training.draws import BatchNoise, Draws
from training.objectives import Networks
from training.objectives.rollout import Generated, Rollout
from training.objectives.scores import Scores
from training.plan import SECTIONS, UNREAD, ConsistencySettings, ForcingSettings, RolloutSettings, ScoreSettings
from training.trainer import Trainer

DRAWS = Draws(5, 0, range(2), 2)


@pytest.fixture
def config(tmp_path: Path) -> WorldConfig:
    return tiny_config(tmp_path)


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
    plan = tiny_plan(objective, score=SCORES if objective == "sid" else replace(SCORES, alpha=1.0), rollout=ROLL)
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
    made = objective_of(tiny_plan("dmd", score=replace(SCORES, alpha=1.0), rollout=ROLL), config, nets, tiny_data(tmp_path, config))
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
    made = objective_of(tiny_plan("causvid", score=replace(SCORES, alpha=1.0), forcing=forcing), config, nets, tiny_data(tmp_path, config))
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


def middles(folder: Path, config: WorldConfig) -> tuple[Data, Draws, Tensor]:
    """Clips longer than the windows, draws of some windows from a session's start and some from its middle, and which latents count."""
    data, draws = tiny_data(folder, config, blocks=4), Draws(1, 0, range(6), 6)
    from_start = data.batch(draws, 2).from_start
    assert from_start.any() and not from_start.all()
    return data, draws, (torch.arange(6) >= 3) | from_start[:, None]


def test_consistency_leaves_out_first_blocks_that_nothing_told_the_past(config: WorldConfig, tmp_path: Path) -> None:
    data, draws, counts = middles(tmp_path, config)
    nets = networks_for("consistency", config)
    made = objective_of(tiny_plan("consistency", consistency=ConsistencySettings(levels=3)), config, nets, data)
    said = [Recorded(dit) for dit in (nets.student, nets.teacher, nets.target)]
    loss = made.student_loss(draws)[0].item()
    (given, high, _, guess), (*_, seen), (_, low, _, slow) = (one.calls[0] for one in said)
    x, guess, seen, slow = (out[:, :4, 3:].double() for out in (given, guess, seen, slow))
    sigma, lower = (FlowSchedule(5.0).sigma(t[:, 3:]).double()[:, None, :, None, None] for t in (high, low))
    lower = torch.where(low[:, None, 3:, None, None] > 0, lower, 0.0)
    goal = torch.where(lower > 0, slow, x + (lower - sigma) * (x - seen) / sigma)
    errors = (guess - goal).square().mean((1, 3, 4))
    assert loss == pytest.approx(float(torch.stack([e[c].mean() for e, c in zip(errors, counts, strict=True)]).mean()), rel=1e-5)
    assert loss != pytest.approx(float(errors.mean()), rel=1e-3)


@pytest.mark.parametrize("context", ["noisy", "clean"])
def test_causvid_leaves_out_first_blocks_that_nothing_told_the_past(context: str, config: WorldConfig, tmp_path: Path) -> None:
    data, draws, counts = middles(tmp_path, config)
    nets = networks_for("causvid", config)
    plan = tiny_plan("causvid", score=ScoreSettings(), forcing=ForcingSettings(context=context))
    student, critic, teacher = Recorded(nets.student), Recorded(nets.critic), Recorded(nets.teacher)
    loss = objective_of(plan, config, nets, data).student_loss(draws)[0].item()
    x, fake, real = (one.calls[0][3][:, :, -6:].double() for one in (student, critic, teacher))
    g = ((fake - real) / (x - real).abs().mean((1, 2, 3, 4), keepdim=True)).square().mean((1, 3, 4))
    assert loss == pytest.approx(0.5 * float(torch.stack([e[c].mean() for e, c in zip(g, counts, strict=True)]).mean()), rel=1e-5)
    assert loss != pytest.approx(0.5 * float(g.mean()), rel=1e-3)


def test_a_window_of_one_block_and_one_in_full_view_count_whole(config: WorldConfig, tmp_path: Path) -> None:
    data, draws, counts = middles(tmp_path, config)
    made = objective_of(tiny_plan("forcing"), config, networks_for("forcing", config), data)
    batch = data.batch(draws, 2)
    for context in ("clean", "noisy"):
        assert torch.equal(made.counts(batch, context).bool(), counts)
    assert made.counts(batch, "all").all()
    alone = objective_of(tiny_plan("forcing", blocks=1), config, networks_for("forcing", config), data)
    assert alone.counts(data.batch(draws, 1), "clean").all()


class Noting:
    """A plan that notes which of its settings are read."""

    def __init__(self, inner: Any, notes: set[str], path: str = "") -> None:
        self._inner, self._notes, self._path = inner, notes, path

    def __getattr__(self, name: str) -> Any:
        value, path = getattr(self._inner, name), f"{self._path}{name}"
        self._notes.add(path)
        return Noting(value, self._notes, f"{path}.") if is_dataclass(value) else value


SETTINGS = {"forcing": ForcingSettings(context="clean"), "rollout": ROLL, "score": SCORES, "consistency": ConsistencySettings(levels=3)}


@pytest.mark.parametrize("objective", UNREAD)
def test_what_a_plan_may_not_set_is_what_its_objective_does_not_read(objective: str, config: WorldConfig, tmp_path: Path) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name in SECTIONS[objective]}
    if "score" in settings and objective != "sid":
        settings["score"] = replace(SCORES, alpha=1.0)
    notes: set[str] = set()
    for levels in ("steps", "uniform"):
        if "forcing" in settings and "forcing.levels" not in UNREAD[objective]:
            settings["forcing"] = ForcingSettings(levels=levels)
        plan = Noting(tiny_plan(objective, **settings), notes)
        made = objective_of(plan, config, networks_for(objective, config), tiny_data(tmp_path, config))
        for loss_of in (made.student_loss, *([made.critic_loss] if made.has_critic else [])):
            loss_of(DRAWS)
    assert notes and notes.isdisjoint(UNREAD[objective])
    read = {f"forcing.{field.name}" for field in fields(ForcingSettings)} - {*UNREAD[objective], "forcing.begin_weights"}
    assert "forcing" not in settings or read <= notes


# ---- gradients


class Linear:
    """A view in which each network says its number times what it is given."""

    def x0(self, factor: float, noisy: Tensor, *rest: Any) -> Tensor:
        return factor * noisy


def test_sids_gradient_flows_through_both_scores(config: WorldConfig, tmp_path: Path) -> None:
    """fake = a x_t, real = b x_t: the gradient by hand, with what flows through them and without."""
    a, b, alpha = 0.6, 0.9, 1.2
    plan = tiny_plan("sid", score=ScoreSettings(alpha=alpha, shift=1.0, range=(0.1, 0.6)), rollout=ROLL)
    made = objective_of(plan, config, networks_for("sid", config), tiny_data(tmp_path, config))
    made.scores, made.view = Scores(b, a, made.score), lambda *_: Linear()
    x, batch = randn(1, (2, 4, 6, 2, 4)).requires_grad_(), made.data.batch(DRAWS, 2)
    made.generate = lambda draws, gradient: (Generated(x, without_gradient=3), batch)
    made.student_loss(DRAWS)[0].backward()
    noisy, _, sigma, _ = made.scores.noised(x.detach(), DRAWS)
    x0, xt = x.detach().double(), noisy.double()
    down = 1 - sigma.double()[:, None, :, None, None]  # dx_t/dx
    gap, real = (b - a) * xt, b * xt
    scale = (x0 - real).abs().mean((1, 2, 3, 4), keepdim=True) * x0[:, :, 3:].numel()  # the first three do not count
    through = (b - a) * down * (real - x0 - alpha * gap) + gap * (b * down - 1 - alpha * (b - a) * down)
    expected, detached = torch.zeros_like(x0), torch.zeros_like(x0)
    expected[:, :, 3:], detached[:, :, 3:] = (through / scale)[:, :, 3:], (-gap / scale)[:, :, 3:]
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-4, atol=1e-8)
    assert (detached - expected).norm() > 0.3 * expected.norm(), "without what flows through it would be another"


def told(objective: str, config: WorldConfig, folder: Path, loss: str) -> dict[str, bool]:
    """Which networks an objective's loss leaves gradients in, where every weight asks for one and nobody forbids it."""
    nets = networks_for(objective, config)
    found = {"student": nets.student, "teacher": nets.teacher, "critic": nets.critic}
    for dit in found.values():
        dit.requires_grad_(True)
    settings = {} if objective == "causvid" else {"rollout": ROLL}
    made = objective_of(tiny_plan(objective, **settings), config, nets, tiny_data(folder, config))
    getattr(made, loss)(DRAWS)[0].backward()
    return {name: any(p.grad is not None and bool(p.grad.any()) for p in dit.parameters()) for name, dit in found.items()}


@pytest.mark.parametrize("objective", ["dmd", "sid", "causvid"])
def test_the_critics_loss_reaches_the_critic_alone(objective: str, config: WorldConfig, tmp_path: Path) -> None:
    assert told(objective, config, tmp_path, "critic_loss") == {"student": False, "teacher": False, "critic": True}


@pytest.mark.parametrize("objective", ["dmd", "causvid"])
def test_the_students_loss_reaches_the_student_alone(objective: str, config: WorldConfig, tmp_path: Path) -> None:
    assert told(objective, config, tmp_path, "student_loss") == {"student": True, "teacher": False, "critic": False}


def test_sids_loss_passes_the_scores_weights_on_its_way(config: WorldConfig, tmp_path: Path) -> None:
    """By its formula: that no update is made of it is the trainer's part (below)."""
    assert told("sid", config, tmp_path, "student_loss") == {"student": True, "teacher": True, "critic": True}


@pytest.mark.parametrize("objective", ["dmd", "sid", "causvid"])
def test_no_update_is_made_of_anothers_loss(
    objective: str, config: WorldConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Where networks are sharded none can be told to be fixed: gradients that others left are dropped, and it comes to the same."""
    settings = {} if objective == "causvid" else {"rollout": ROLL}
    plan, data = tiny_plan(objective, iterations=2, **settings), tiny_data(tmp_path, config)
    found = []
    for fixed in (True, False):
        if not fixed:
            monkeypatch.setattr(Trainer, "_others_fixed", lambda *_: nullcontext())
        nets = networks_for(objective, config)
        teacher = {name: tensor.clone() for name, tensor in nets.teacher.state_dict().items()}
        Trainer(plan, config, nets, data, ALONE, tmp_path / f"run-{fixed}").run()
        assert all(torch.equal(tensor, teacher[name]) for name, tensor in nets.teacher.state_dict().items())
        assert all(p.grad is None for p in nets.teacher.parameters())
        found.append({**nets.student.state_dict(), **{f"critic {name}": tensor for name, tensor in nets.critic.state_dict().items()}})
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-4, rtol=0)  # rates are 5e-3 and 1e-2


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
