"""More layers: what they compute at first, that they learn, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.dit import DiT
from tests.training.test_trainers import random_clips, small_dit
from training import deepen
from training.common import starting_weights
from training.deepen import deepened
from training.latents import cut_windows
from training.objectives.view import View
from training.train_dit import as_batch


def quiet_in_the_end() -> DiT:
    """A small denoiser of three layers, the last two of which hear no actions; all of its weights say something."""
    config = small_dit().config
    torch.manual_seed(0)
    dit = DiT(replace(config, num_layers=3, action=replace(config.action, blocks=(0,))))
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return dit


def deeper(dit: DiT, after: int, copies: list[int]) -> DiT:
    new = DiT(replace(dit.config, num_layers=dit.config.num_layers + len(copies)))
    new.load_state_dict(deepened(dit.state_dict(), after, copies))
    return new


def said(dit: DiT) -> torch.Tensor:
    batch = as_batch(cut_windows(random_clips(2), torch.tensor([0, 1]), torch.tensor([0, 0]), 6), torch.device("cpu"))
    noisy = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    view = View(6, 3, 15, "clean", torch.device("cpu"))
    return view.x0(dit, noisy, torch.full((2, 6), 1000.0), torch.ones(2, 1, 6, 1, 1), batch, batch.latents)


@pytest.mark.parametrize(("after", "copies"), [(2, [2]), (1, [1, 2]), (0, [2, 1, 1])])
def test_new_layers_change_nothing_at_first(after: int, copies: list[int]) -> None:
    dit = quiet_in_the_end()
    with torch.no_grad():
        torch.testing.assert_close(said(deeper(dit, after, copies)), said(dit), rtol=1e-6, atol=1e-6)


def test_new_layers_learn() -> None:
    new = deeper(quiet_in_the_end(), 1, [1])
    optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in new.blocks[2].named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        said(new).square().mean().backward()
        optimizer.step()
    unmoved = [name for name, p in new.blocks[2].named_parameters() if torch.equal(p, before[name]) and name != "self_attn.k.bias"]
    assert not unmoved


def test_layers_that_hear_actions_stay_where_they_are() -> None:
    weights = quiet_in_the_end().state_dict()
    with pytest.raises(ValueError, match="layers 0 hear actions"):
        deepened(weights, 1, [0])
    with pytest.raises(ValueError, match="layers 0, 1 hear actions"):
        deepened({**weights, "blocks.1.action_model.weight": torch.ones(1)}, 0, [2])  # the second of them would have another number
    with pytest.raises(ValueError, match="layer 3 is not there: the network has layers 0 to 2"):
        deepened(weights, 1, [3])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    weights, helper = quiet_in_the_end().state_dict(), {"read.weight": torch.ones(2)}
    torch.save({"step": 7, "seconds": 90.0, "model": weights, "averaged": weights, "helper": helper}, tmp_path / "last.pt")
    command = ["x", str(tmp_path), "--after", "1", "--copies", "2", "--out", str(tmp_path / "new" / "deeper.pt")]
    monkeypatch.setattr("sys.argv", command)
    deepen.main()
    made, helped = starting_weights(tmp_path / "new" / "deeper.pt")
    assert torch.equal(made["blocks.3.ffn.0.weight"], weights["blocks.2.ffn.0.weight"]) and not made["blocks.2.ffn.2.weight"].any()
    assert torch.equal(helped["read.weight"], helper["read.weight"])
    other = str(tmp_path / "other.pt")
    for wrong, message in (
        ([*command], "not there yet"),
        ([*command[:3], "9", *command[4:-1], other], "layer 9 is not there"),
        (["x", str(tmp_path / "no"), *command[2:-1], other], "no is not there"),
    ):
        monkeypatch.setattr("sys.argv", wrong)
        with pytest.raises(SystemExit):
            deepen.main()
        assert message in capsys.readouterr().err
    assert not (tmp_path / "other.pt").exists()
