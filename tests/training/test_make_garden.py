"""One command for all stages: what it would run, what it refuses, the world it writes, and shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from engine import World
from training import export, make_garden
from training.make_garden import SHIPPED, STAGES, budgets, old_against_new, plan, write_world

ROOT = Path(__file__).parents[2]


def names(jobs: list[make_garden.Job]) -> list[str]:
    return [job.name for job in jobs]


def option(job: make_garden.Job, name: str) -> str:
    return job.arguments[job.arguments.index(name) + 1]


def test_from_nothing(tmp_path: Path) -> None:
    jobs = plan(tmp_path, "cpu", budgets(["forcing=220", "rollout=60"], "cpu", False), from_shipped=False)
    assert names(jobs) == ["vae", "streams", "export", "clips", "starts", "places", "forcing", "rollout", "decoder", "export", "export"]
    made, clips, starts, places, forcing, rollout, decoder = jobs[2].arguments[-1], *jobs[3:9]
    assert option(starts, "--out") == option(forcing, "--starts") and option(starts, "--seed") != option(clips, "--seed")
    assert (
        option(clips, "--vae")
        == option(starts, "--vae")
        == option(forcing, "--vae")
        == option(rollout, "--vae")
        == option(decoder, "--vae")
        == made
    )
    assert "--start-from" not in places.arguments and option(rollout, "--start-from") == option(forcing, "--out")
    assert option(forcing, "--start-from") == str(Path(option(places, "--out")) / "whole.pt")
    assert option(places, "--feed") == option(forcing, "--feed") == option(rollout, "--feed") == option(clips, "--out")
    assert option(decoder, "--clips") == option(clips, "--out")
    assert option(decoder, "--dit") == option(rollout, "--out") == str(Path(jobs[-1].arguments[2]).parent)
    assert option(jobs[-2], "--keep-scale") == made  # the decoder's last stage leaves the latents as they are
    assert option(forcing, "--minutes") == "220" and option(forcing, "--seed") != option(rollout, "--seed")


def test_from_what_is_shipped(tmp_path: Path) -> None:
    words = ["clips=0", "starts=0", "places=0", "forcing=7.5", "rollout=5", "decoder=0"]
    jobs = plan(tmp_path, "cuda", budgets(words, "cuda", True), from_shipped=True, seed=4)
    assert names(jobs) == ["forcing", "rollout", "export"] and not {"--feed", "--starts"} & set(jobs[0].arguments)
    assert option(jobs[0], "--start-from") == str(SHIPPED / "dit.safetensors") and option(jobs[0], "--vae") == str(
        SHIPPED / "vae.safetensors"
    )
    assert option(jobs[0], "--pool") == "4000" and option(jobs[0], "--guidance") == "2" and option(jobs[0], "--slow-looking") == "0.7"
    fed = plan(tmp_path, "cuda", budgets([], "cuda", True), from_shipped=True)
    assert option(fed[2], "--pool") == "60000" and option(fed[2], "--feed") == option(fed[0], "--out")
    assert [option(job, "--seed") for job in jobs[:2]] == ["5", "6"] and option(jobs[0], "--minutes") == "7.5"
    without = plan(tmp_path, "cpu", budgets([], "cpu", True), from_shipped=True)
    assert names(without) == ["clips", "starts", "forcing", "decoder", "export", "export"]
    assert option(without[3], "--dit") == option(without[2], "--out")
    assert "--resampling-from" not in without[2].arguments and option(without[2], "--feed") == option(without[0], "--out")
    assert "--resampling-at-once" in without[2].arguments and option(without[2], "--lr") == "5e-4"
    placed = plan(tmp_path, "cpu", budgets(["places=25"], "cpu", True), from_shipped=True)
    assert option(placed[2], "--start-from") == str(SHIPPED / "dit.safetensors") and "--resampling-from" in placed[3].arguments
    assert "--resampling-at-once" not in placed[3].arguments  # layers that must learn to draw again first
    only = plan(tmp_path, "cpu", budgets(["clips=0", "places=0", "forcing=0"], "cpu", True), from_shipped=True)
    assert (
        "--clips" not in only[0].arguments
        and names(only) == ["decoder", "export"]
        and option(only[0], "--dit") == str(SHIPPED / "dit.safetensors")
    )


def test_what_is_shipped_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = plan(Path("runs"), "cpu", budgets([], "cpu", True), from_shipped=True)
    given = [word for job in jobs for word in job.arguments if word.endswith(".safetensors") and not word.startswith("runs")]
    assert {Path(word).name for word in given} == {"dit.safetensors", "vae.safetensors"} and all(Path(word).is_file() for word in given)


def test_half_an_hour_on_a_large_gpu() -> None:
    for shorter in (False, True):
        assert sum(budgets([], "cuda", shorter).values()) <= 28  # and the evaluation


def test_the_trainers_know_these_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command is read by its own program, which then only prints its help."""
    import importlib

    monkeypatch.setattr("training.arguments.device_named", torch.device)  # there need be no GPU here
    for device in ("cpu", "cuda"):
        for job in plan(tmp_path, device, dict.fromkeys(STAGES, 1.0), from_shipped=False):
            monkeypatch.setattr("sys.argv", [job.arguments[0], *job.arguments[1:], "--help"])
            with pytest.raises(SystemExit) as left:
                importlib.import_module(job.arguments[0]).main()
            assert left.value.code == 0, job
            capsys.readouterr()
            monkeypatch.setattr("sys.argv", [job.arguments[0], *job.arguments[1:], "--no-such-option"])
            with pytest.raises(SystemExit):
                importlib.import_module(job.arguments[0]).main()
            assert "unrecognized arguments: --no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rolling=3"], "the stages are vae, streams"),
        (["forcing"], "no number of minutes"),
        (["forcing=-1"], "no number of minutes"),
        (["forcing=nan"], "no number of minutes"),
        (["vae=0"], "needs minutes for vae and forcing"),
        (["clips=0"], "places are learned from clips"),
        ([f"{stage}=0" for stage in STAGES], "nothing to do"),
    ],
)
def test_refusals(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        make_garden.main(["--out", str(tmp_path), "--device", "cpu", "--minutes", *words])
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_a_stage_that_fails_ends_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="forcing ended with status"):
        make_garden.Job("forcing", ("training.no_such_trainer",)).run()


def test_what_was_made_is_a_world(tmp_path: Path) -> None:
    for part in ("dit", "vae"):
        shutil.copy(ROOT / "assets" / "garden" / f"{part}.safetensors", tmp_path)
    path = write_world(tmp_path)
    ours, shipped = World.load(path), World.load("garden")
    assert ours.config.vae == shipped.config.vae
    assert all(torch.equal(tensor, shipped.dit.state_dict()[name]) for name, tensor in ours.dit.state_dict().items())
    (tmp_path / "vae.safetensors").rename(tmp_path / "first-vae.safetensors")  # without the decoder's stage
    assert "first-vae.safetensors" in write_world(tmp_path).read_text()
    (tmp_path / "first-vae.safetensors").unlink()
    assert "vae" not in write_world(tmp_path).read_text()  # the denoiser alone was trained: the rest is the garden's
    World.load(path)


def test_shards(tmp_path: Path) -> None:
    with safe_open(ROOT / "assets" / "garden" / "dit.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    shutil.copy(ROOT / "assets" / "garden" / "vae.safetensors", tmp_path)
    assert len(export.write(weights, tmp_path / "dit.safetensors", {"world": "garden"})) == 2  # of at most 16 MiB
    assert export.write(weights, tmp_path / "dit.safetensors", {"world": "garden"}, 1 << 30) == [tmp_path / "dit.safetensors"]
    assert sorted(file.name for file in tmp_path.glob("dit*")) == ["dit.safetensors"]
    shards = export.write(weights, tmp_path / "dit.safetensors", {"world": "garden"}, limit=5 << 20)
    assert [file.name for file in shards] == [f"dit-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    assert all(file.stat().st_size <= 5 << 20 for file in shards) and not (tmp_path / "dit.safetensors").exists()
    world = World.load(write_world(tmp_path))
    assert all(torch.equal(tensor, weights[name].to(world.dtype)) for name, tensor in world.dit.state_dict().items())
    export.write(weights, tmp_path / "dit.safetensors", {"world": "garden"}, 1 << 30)
    assert sorted(file.name for file in tmp_path.glob("dit*")) == ["dit.safetensors"]


def test_weights_can_be_read_as_other_files_can(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    (written,) = export.write({"a": torch.zeros(2)}, tmp_path / "dit.safetensors", {})
    assert written.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_old_against_new() -> None:
    old = json.loads((ROOT / "docs" / "garden.json").read_text())
    new = json.loads((ROOT / "docs" / "garden.json").read_text())
    new["faithful"]["psnr_4s"] += 1
    new["quiet"]["mean_drift"] += 1
    new["stable"]["sharpness"]["ratio"] = 1.0
    del new["turning"]
    lines = old_against_new(old, new).splitlines()

    def ends(begin: str) -> str:
        return next(line for line in lines if line.startswith(begin)).split()[-1]

    assert ends("faithful psnr_4s") == "better" and ends("quiet mean_drift") == "worse" and ends("stable sharpness") == "better"
    assert ends("obedient share ") not in ("better", "worse") and not any("turning" in line for line in lines)
