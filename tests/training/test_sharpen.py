"""The unsharp mask, and the convolution that is to do as it does."""

from __future__ import annotations

import pytest
import torch

from models.vae import VAE, VAEConfig
from training import sharpen
from training.sharpen import Fit, Sums, unsharp

CONFIG = VAEConfig(dim=4, z_dim=4, dim_mult=(1, 1, 1), num_res_blocks=1, temporal_downsample=(True, True), patch_size=2,
                   latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)  # fmt: skip


def test_the_mask() -> None:
    frames = torch.zeros(1, 3, 2, 8, 8)
    frames[..., 4:] = 1.0
    sharp = unsharp(frames, 0.4)
    assert sharp.shape == frames.shape
    expected = torch.tensor([0.0, 0.0, 0.0, -0.1, 1.1, 1.0, 1.0, 1.0])  # of a step a quarter goes to each side: 0.4 of it is given back
    torch.testing.assert_close(sharp, expected.expand_as(frames))
    assert torch.equal(unsharp(frames, 0.0), frames)


def test_sums_solve_what_they_were_given() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((500, 6), (2, 6), (2,)))
    sums = Sums.empty(6, 2)
    for part in x.split(100):
        sums.add(part, part @ weight.T + bias)
    found, offset, share = sums.solve()
    torch.testing.assert_close(found, weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(offset, bias, atol=1e-4, rtol=1e-4)
    assert share == pytest.approx(1, abs=1e-6)


def test_the_convolution_does_its_share_of_the_mask() -> None:
    torch.manual_seed(0)
    vae = VAE(CONFIG).eval().requires_grad_(False)
    clips = [torch.randn(1, 3, 4, 6, 4) for _ in range(3)]  # [1, T, h, w, z]
    before = [vae.pixels(z) for z in clips]
    fit = Fit(vae, 0.5)
    for z in clips:
        fit.add(z)
    assert all(torch.equal(vae.pixels(z), frames) for z, frames in zip(clips, before, strict=True)), "nothing changes before apply"
    share = fit.apply()
    wanted = [unsharp(frames, 0.5) for frames in before]
    left = sum((vae.pixels(z) - target).square().sum() for z, target in zip(clips, wanted, strict=True))
    all_of_it = sum((frames - target).square().sum() for frames, target in zip(before, wanted, strict=True))
    assert 0.3 < share < 1 and float(1 - left / all_of_it) == pytest.approx(share, abs=1e-3)


def test_no_amount_changes_nothing() -> None:
    vae = VAE(CONFIG).eval().requires_grad_(False)
    weight = vae.decoder.head["2"].weight.clone()
    fit = Fit(vae, 0.0)
    fit.add(torch.randn(1, 2, 2, 3, 4))
    fit.apply()
    torch.testing.assert_close(vae.decoder.head["2"].weight, weight)


@pytest.mark.parametrize(
    ("vae", "amount", "words"), [("no.safetensors", 0.2, "no.safetensors is not there"), (__file__, 0.0, "--amount: must be above 0")]
)
def test_what_it_refuses(vae: str, amount: float, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--vae", vae, "--dit", __file__, "--amount", amount, "--out", "never.safetensors")
    monkeypatch.setattr("sys.argv", ["x", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        sharpen.main()
    assert raised.value.code == 2 and words in capsys.readouterr().err
