"""The trainers show the model what play shows it: the same rows, the same channels, the same view of the past."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine import load_config
from engine.clock import BlockClock
from engine.conditioning import ConditionRing, Rows, StartCondition
from models.dit import DiT
from models.errors import WorldError
from tests.training.tiny import tiny_plan
from training.common import (
    AveragedWeights,
    MixedOptimizer,
    Muon,
    Trainee,
    TrainingRun,
    cosine_schedule,
    without_cudnn_attention,
    working_dtype,
    working_precision,
)
from training.finetune import Rollout
from training.flow_sign import motion
from training.guide import Guides
from training.latents import (
    CLIP_FRAMES,
    CLIP_LATENTS,
    CONDITION_LATENTS,
    ClipMaker,
    Clips,
    condition_rows,
    cut_windows,
    pictures,
    sample_windows,
)
from training.masks import teacher_forcing
from training.simulator import Pose, random_actions, random_poses, render, rollout, step
from training.train_dit import BLOCK, TeacherForcing
from training.train_vae import garden_vae, load_garden_vae


def small_dit() -> DiT:
    torch.manual_seed(0)
    config = load_config("garden").model
    config = replace(config, dim=48, num_heads=2, ffn_dim=64, num_layers=2, action=replace(config.action, blocks=(0,), hidden=16, heads=2))
    dit = DiT(config)
    torch.nn.init.normal_(dit.head.head.weight, std=0.1)  # a fresh head is silent
    return dit


def random_clips(count: int = 3) -> Clips:
    generator = torch.Generator().manual_seed(1)
    return Clips(
        latents=torch.randn(count, 16, CLIP_LATENTS, 4, 6, generator=generator),
        condition=torch.randn(count, 16, CONDITION_LATENTS, 4, 6, generator=generator),
        keyboard=torch.randint(0, 2, (count, CLIP_FRAMES - 1, 4), generator=generator).float(),
        mouse=torch.randn(count, CLIP_FRAMES - 1, 2, generator=generator),
        pose=torch.rand(count, CLIP_LATENTS, 4, generator=generator),
        settled=torch.randn(16, 4, 6, generator=generator),
    )


def test_condition_rows_are_the_engines() -> None:
    clips = random_clips(1)
    ring = ConditionRing(load_config("garden").model.action)
    cut = condition_rows(clips.keyboard, torch.tensor([0]), CLIP_LATENTS)
    clock = BlockClock()
    for block in range(5):
        rows = Rows(*(v[0, clock.frames.start : clock.frames.stop] for v in (clips.keyboard, clips.mouse)))
        assert torch.equal(ring.windows(clock, rows).keyboard[0], cut[0, 3 * block : 3 * block + 3])
        ring.commit(clock, rows)
        clock = clock.next()


def test_pictures_of_clips_are_rendered_again() -> None:
    """Those of the same walks, but for actions in half precision."""
    generator = torch.Generator().manual_seed(3)
    pose = random_poses(3, generator)
    keyboard, mouse = random_actions(3, CLIP_FRAMES - 1, generator)
    frames, poses = rollout(pose, keyboard, mouse)
    clips = random_clips(3)
    clips.pose = torch.stack([poses.x, poses.y, poses.yaw, poses.pitch], dim=-1)[:, ::4]
    clips.keyboard, clips.mouse = keyboard.half(), mouse.half()
    again = pictures(clips, torch.tensor([2, 0]), 33, torch.device("cpu"))
    assert again.shape == (2, 3, 33, 64, 112) and again.min() >= -1 and again.max() <= 1
    told = (again.transpose(1, 2) + 1) * 127.5
    assert (told - frames[[2, 0], :33].float()).abs().mean() < 0.1


def test_windows_carry_the_engines_channels() -> None:
    clips = random_clips()
    windows = cut_windows(clips, torch.tensor([2]), torch.tensor([0]), 6)
    encoded = torch.cat([clips.condition[2], clips.settled[:, None].expand(-1, 15, -1, -1)], dim=1)[None]
    start = StartCondition(encoded)
    assert torch.equal(windows.condition[:, :, :3], start.block(BlockClock()))
    assert torch.equal(windows.condition[:, :, 3:], start.block(BlockClock().next()))
    later = cut_windows(clips, torch.tensor([2]), torch.tensor([15]), 6)
    assert not later.from_start.any() and windows.from_start.all()
    assert torch.equal(later.condition[0, 4:, 0], clips.settled) and not later.condition[:, :4].any()
    assert torch.equal(later.latents[0], clips.latents[2, :, 15:21])


def test_teacher_forcing_sees_what_play_sees() -> None:
    """Every block of the noisy half equals denoising that block beside committed clean ones."""
    dit, windows, latents = small_dit().eval(), sample_windows(random_clips(), 2, 3, torch.Generator().manual_seed(2)), 9
    known = latents - BLOCK
    noisy = torch.randn_like(windows.latents)
    clean, imagined = (torch.cat([part, windows.condition], 1) for part in (windows.latents, noisy))
    x = torch.cat([clean[:, :, :known], imagined], dim=2)
    timestep = torch.cat([torch.zeros(2, known), torch.full((2, latents), 908.84)], dim=1)
    rows = [torch.cat([v[:, :known], v], dim=1) for v in (windows.keyboard, windows.mouse)]
    positions = torch.cat([torch.arange(known), torch.arange(latents)])
    mask = teacher_forcing(latents, BLOCK, dit.config.local_attn_size)
    with torch.no_grad():
        together = dit.forward_parallel(x, timestep, *rows, positions, mask)[:, :, known:]
        cache = dit.new_cache(2, 2, 3)
        for start in range(0, latents, BLOCK):
            own = slice(start, start + BLOCK)
            actions = (windows.keyboard[:, own], windows.mouse[:, own])
            for given, t in ((noisy, 908.84), (windows.latents, 0.0)):  # denoise, then commit
                inputs = torch.cat([given[:, :, own], windows.condition[:, :, own]], dim=1)
                out = dit(inputs, torch.full((2, BLOCK), t), *actions, cache, start)
                if t:
                    torch.testing.assert_close(out, together[:, :, own], rtol=1e-4, atol=1e-5)


def test_a_few_steps_learn_and_a_rollout_has_gradients() -> None:
    dit, clips = small_dit(), random_clips()
    guide = Guides(dit, 0, 1)
    forcing = TeacherForcing(dit, guide, 6, torch.device("cpu"), 0.1, 0.5, compiled=False)
    assert forcing.strengths.tolist() == [1.0, 1.0, 0.5]  # the last one, too, has noise to see through, whatever is played
    either = TeacherForcing(dit, guide, 6, torch.device("cpu"), 0.1, 0.5, False, steps=(1000, 666, 333, 100), either_noise=True)
    assert either.strengths.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert either(cut_windows(clips, torch.tensor([0]), torch.tensor([0]), 6), torch.full((4,), 0.25))[0].isfinite()
    optimizer = MixedOptimizer(torch.nn.ModuleList([dit, guide]), 3e-3, 3e-3, adamw=("head.head",))
    losses, poses = [], []
    for _ in range(12):
        loss, report = forcing(cut_windows(clips, torch.tensor([0]), torch.tensor([0]), 6), torch.tensor([0.5, 0.25, 0.25]))
        loss.backward()
        optimizer.step(1.0)
        losses.append(loss.item())
        poses.append(report["seen"].item())
    assert losses[-1] < losses[0] and poses[-1] < poses[0]
    report = Rollout(dit, torch.device("cpu"), guide.told, 0.5)(
        cut_windows(clips, torch.tensor([0, 1]), torch.tensor([3, 3]), 18), blocks=6, given=1
    )
    assert np.isfinite(report["last"])
    assert all(p.grad is not None for p in dit.blocks.parameters() if p.requires_grad)


def test_a_window_of_one_block_begins_a_session() -> None:
    """Nothing has been seen there: what is asked is the picture and the pose that follow from the start picture and the actions."""
    dit, clips = small_dit(), random_clips()
    first = TeacherForcing(dit, Guides(dit, 0, 1), BLOCK, torch.device("cpu"), 0.0, 2.0, compiled=False)
    windows = cut_windows(clips, torch.tensor([0, 2]), torch.tensor([0, 0]), BLOCK)
    loss, report = first(windows, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(loss.detach(), report["s1.00"] + 2.0 * report["pose"])
    assert report["seen"] == 0
    loss.backward()
    assert all(p.grad is not None for p in dit.blocks.parameters() if p.requires_grad)


def test_trainers_compute_in_bfloat16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for native, kind in ((True, torch.bfloat16), (False, torch.float32)):  # never float16, on an old GPU neither
        monkeypatch.setattr("engine.world._cpu_has_bfloat16", lambda native=native: native)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True, native=native: native)
        assert working_dtype(cpu) == working_dtype(gpu) == kind
        with working_precision(cpu):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind
        plan = tiny_plan("forcing", precision="auto")
        assert plan.dtype(cpu) == kind
        assert replace(plan, precision="float32").dtype(cpu) == torch.float32
        assert replace(plan, precision="bfloat16").dtype(cpu) == torch.bfloat16
        maker = ClipMaker(garden_vae(), 3, cpu, blocks=1, walks=1)
        assert {p.dtype for p in maker._encoder.encoder.parameters()} == {kind}


class Dtypes(TorchDispatchMode):
    """Which dtypes are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.seen.update(x.dtype for x in (found if isinstance(found, tuple | list) else [found]) if isinstance(x, torch.Tensor))
        return found


def test_muon_keeps_to_float32_where_bfloat16_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    gradient, moved = torch.randn(24, 40), []
    for native in (True, False):
        monkeypatch.setattr("engine.world._cpu_has_bfloat16", lambda native=native: native)
        weight = torch.nn.Parameter(torch.zeros(24, 40))
        optimizer = Muon([weight], lr=1.0, weight_decay=0.0)
        weight.grad = gradient.clone()
        with Dtypes() as dtypes:
            optimizer.step()
        assert (torch.bfloat16 in dtypes.seen) == native and torch.equal(weight.grad, gradient)
        moved.append(weight.detach())
    torch.testing.assert_close(moved[0], moved[1], atol=0.02, rtol=0.02)
    assert not torch.equal(moved[0], moved[1])
    assert torch.linalg.svdvals(moved[1]).sub(1).abs().max() < 0.5  # orthogonal, as far as Muon takes it


def test_short_clips_are_the_beginnings_of_long_ones() -> None:
    torch.manual_seed(0)
    vae = garden_vae()
    maker = ClipMaker(vae, 3, torch.device("cpu"), blocks=1, walks=1)
    clips = maker.make(2)
    assert clips.latents.shape[:3] == clips.condition.shape[:3] == (2, 16, 3)
    assert clips.keyboard.shape[1] == clips.mouse.shape[1] == 8 and clips.pose.shape == (2, 3, 4)
    assert not torch.equal(clips.condition[0], clips.condition[1])  # of two starts
    windows = cut_windows(clips, torch.tensor([1]), torch.tensor([0]), BLOCK)
    again = pictures(clips, torch.tensor([1]), 9, torch.device("cpu"))
    grey = torch.cat([again[:, :, :1], torch.zeros(1, 3, 8, *again.shape[-2:])], dim=2)
    for video, kept in ((again, windows.latents), (grey, windows.condition[:, 4:])):
        with torch.no_grad():
            wanted = vae.encode(video)
        assert (kept - wanted).square().mean() < 1e-3 * wanted.var()  # bfloat16


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def train(trainee: Trainee, steps: int) -> None:
        for count in range(steps):
            (trainee.model(torch.full((1, 8), 1.0 + trainee.run.step)) - 1).square().mean().backward()
            trainee.run.seconds = 10.0 + count  # the schedule must not depend on this machine
            trainee.step()
            trainee.run.tick({"loss": 1.0})

    def begin(folder: str, start_from: Path | None = None) -> Trainee:
        torch.manual_seed(3)
        return Trainee(torch.nn.Linear(8, 8), TrainingRun(tmp_path / folder, minutes=1), 1e-2, 1e-2, 0.9, start_from=start_from)

    first = begin("run")
    train(first, 3)
    first.save()
    train(first, 2)
    again = begin("run")
    assert not again.fresh and again.run.step == 3
    train(again, 2)
    for a, b in ((first.model.state_dict(), again.model.state_dict()), (first.averaged.weights, again.averaged.weights)):
        assert all(torch.equal(a[name], b[name]) for name in a)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    Trainee(model, TrainingRun(tmp_path / "rates", minutes=1), 1e-2, 1e-2, 0.9).save()
    with pytest.raises(WorldError, match="begun with other rates"):
        Trainee(model, TrainingRun(tmp_path / "rates", minutes=1), 1e-2, 1e-2, 0.9, slow=[model[0]], slowness=0.5)
    begun = begin("other", start_from=tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["averaged"]
    assert begun.fresh and all(torch.equal(weight, saved[name]) for name, weight in begun.model.state_dict().items())


def layers(count: int, width: int = 8) -> torch.nn.Sequential:
    return torch.nn.Sequential(*(torch.nn.Linear(8, width) for _ in range(count)))


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path) -> None:
    """Whether to begin with or to go on from: nothing is dropped, nothing is left as it was without a word."""

    def begin(model: torch.nn.Module, folder: str, start_from: str | None = None, helper: torch.nn.Module | None = None) -> Trainee:
        start = None if start_from is None else tmp_path / start_from
        return Trainee(model, TrainingRun(tmp_path / folder, minutes=1), 1e-2, 1e-2, 0.9, start_from=start, helper=helper)

    begin(layers(3), "three", helper=layers(1)).save()
    for model, says in (
        (layers(2), r"three holds 2\.weight, which this network does not have \(2 such tensors\): --start-from takes"),
        (layers(4), r"three lacks 3\.weight \(2 of 8 tensors missing\): --start-from takes"),
        (layers(3, 4), r"three has 0\.weight as \[8, 8\], this network as \[4, 8\]: --start-from takes"),
    ):
        with pytest.raises(WorldError, match=says) as refusal:
            begin(model, "new", "three")
        assert "\n" not in str(refusal.value)
        with pytest.raises(WorldError, match=r"last\.pt .*another network; choose another --out"):
            begin(model, "three")
    for place in ((layers(3), "three"), (layers(3), "new", "three")):
        with pytest.raises(WorldError, match=r"lacks 1\.weight .*its helper is another training's"):
            begin(*place, helper=layers(2))
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"step": 1}, tmp_path / "else.pt")
    for name, says in (
        ("gone", "gone: no weights can be read"),
        ("text.pt", "text.pt: no weights"),
        ("else.pt", "no run's averaged weights"),
    ):
        with pytest.raises(WorldError, match=f"^--start-from .*{says}") as refusal:
            begin(layers(3), "new", name)
        assert "\n" not in str(refusal.value)
        with pytest.raises(WorldError, match=r"^--vae .*no exported VAE can be read from it") as refusal:
            load_garden_vae(tmp_path / name)
        assert "\n" not in str(refusal.value)
    noted = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    begin(noted, "noted").save()
    again = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    begin(again, "new", "noted")  # averaged weights have no buffers
    assert torch.equal(again[0].weight, noted[0].weight)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_gradient_that_is_no_number_stops_a_run_and_changes_nothing(value: str, tmp_path: Path) -> None:
    model = layers(2)
    trainee = Trainee(model, TrainingRun(tmp_path, minutes=1), 1e-2, 1e-2, 0.9)
    trainee.save()
    before, saved = {name: p.detach().clone() for name, p in model.named_parameters()}, (tmp_path / "last.pt").read_bytes()
    (model(torch.ones(1, 8)).sum() * float(value)).backward()
    with pytest.raises(SystemExit, match=f"norm is {'nan' if value == 'nan' else '(nan|inf)'} at step 0"):
        trainee.step()
    assert all(torch.equal(p, before[name]) and torch.equal(trainee.averaged.weights[name], p) for name, p in model.named_parameters())
    assert (tmp_path / "last.pt").read_bytes() == saved


def test_a_slow_part_learns_at_its_own_rate() -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3))), torch.randn(4, 8)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved = {}
    for slowness in (1.0, 0.25):
        model.load_state_dict(start)
        optimizer = MixedOptimizer(model, 1e-2, 1e-2, weight_decay=0.0, slow=[model[0]], slowness=slowness)
        model(x).square().mean().backward()
        optimizer.step(1.0)
        moved[slowness] = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    for name in start:
        factor = 0.25 if name.startswith("0.") else 1.0
        torch.testing.assert_close(moved[0.25][name], factor * moved[1.0][name], atol=1e-6, rtol=1e-3)
        assert moved[1.0][name].abs().max() > 1e-3


def test_the_schedule_warms_up_and_falls() -> None:
    assert 0 < cosine_schedule(0.0) < cosine_schedule(0.3) == 1 > cosine_schedule(0.9) > cosine_schedule(1.0) > 0


def test_averaged_weights_are_lent_and_given_back() -> None:
    model = torch.nn.Linear(2, 2)
    averaged = AveragedWeights(model, 0.9)
    mean = averaged.weights["bias"].clone()
    with torch.no_grad():
        model.bias += 1
    with pytest.raises(RuntimeError, match="on the way"), averaged.lent_to(model):
        assert torch.equal(model.bias, mean)
        raise RuntimeError("on the way")
    assert torch.equal(model.bias, mean + 1) and torch.equal(averaged.weights["bias"], mean)


def test_averaged_weights_follow() -> None:
    model = torch.nn.Linear(2, 2)
    averaged = AveragedWeights(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for i in range(200):
        averaged.update(model, i)
    torch.testing.assert_close(averaged.weights["weight"], torch.ones(2, 2))


@pytest.mark.parametrize(
    ("keyboard", "mouse", "axis", "sign"),
    [((0, 0, 0, 0), (0, 0.1), 0, -1), ((0, 0, 0, 0), (0, -0.1), 0, 1), ((0, 0, 0, 0), (0.1, 0), 1, 1), ((1, 0, 0, 0), (0, 0), 2, 1),
     ((0, 1, 0, 0), (0, 0), 2, -1), ((0, 0, 1, 0), (0, 0), 0, 1), ((0, 0, 0, 1), (0, 0), 0, -1)],
)  # fmt: skip
def test_measured_motion_has_the_simulators_sign(keyboard: tuple, mouse: tuple, axis: int, sign: int) -> None:
    """Turning right moves the picture left, walking forward makes it grow, and so on, from most places."""
    poses = random_poses(12, torch.Generator().manual_seed(5))
    pose = Pose(poses.x, poses.y, poses.yaw, poses.pitch * 0)
    frames = [render(pose)]
    for _ in range(6):
        pose = step(pose, torch.tensor([keyboard] * 12).float(), torch.tensor([mouse] * 12).float())
        frames.append(render(pose))
    walks = torch.stack(frames, dim=1).permute(0, 1, 3, 4, 2).numpy()
    found = np.array([motion(walk)[:, axis].mean() for walk in walks])
    assert (np.sign(found) == sign).mean() >= 0.75


def test_training_leaves_cudnn_attention_alone_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("torch.backends.cuda.enable_cudnn_sdp", asked.append)
    without_cudnn_attention(torch.device("cpu"))
    assert asked == []
    without_cudnn_attention(torch.device("cuda"))
    assert asked == [False]
