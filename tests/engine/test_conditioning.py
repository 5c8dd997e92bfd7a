from __future__ import annotations

import pytest
import torch

from engine.clock import BlockClock
from engine.conditioning import ConditionRing, Rows, StartCondition, encode_start
from models.action import ActionConfig
from models.vae import VAE, VAEConfig

CONFIG = ActionConfig(keyboard_dim=4)


def test_windows_equal_those_cut_from_one_long_tensor() -> None:
    generator = torch.Generator().manual_seed(0)
    keyboard, mouse = torch.randn(12 * 40, 4, generator=generator), torch.randn(12 * 40, 2, generator=generator)
    ring, clock = ConditionRing(CONFIG), BlockClock()
    for _ in range(39):
        span = slice(clock.frames.start, clock.frames.stop)
        rows = Rows(keyboard[span], mouse[span])
        windows = ring.windows(clock, rows)
        assert windows.keyboard.shape == (1, 3, 12, 4) and windows.mouse.shape == (1, 3, 12, 2)
        for i, latent in enumerate(clock.latents):
            wanted = [max(0, 4 * latent - 12 + j) for j in range(12)]
            assert torch.equal(windows.keyboard[0, i], keyboard[wanted])
            assert torch.equal(windows.mouse[0, i], mouse[wanted])
        ring.commit(clock, rows)
        assert ring.count == clock.rows and ring.keyboard.shape == (24, 4) and ring.mouse.shape == (24, 2)
        clock = clock.next()


def test_windows_change_nothing_until_commit() -> None:
    ring, clock = ConditionRing(CONFIG), BlockClock()
    one, other = (ring.hold(clock, torch.tensor(keys), torch.zeros(2)) for keys in ([1.0, 0, 0, 0], [0, 0, 0, 1.0]))
    first = ring.windows(clock, one).keyboard
    assert not torch.equal(first, ring.windows(clock, other).keyboard)
    assert torch.equal(first, ring.windows(clock, one).keyboard)
    assert first.sum() == 3 * 12  # row 0 stands in for negative rows
    ring.commit(clock, one)
    second = ring.windows(clock.next(), ring.hold(clock.next(), torch.tensor([0, 0, 0, 1.0]), torch.zeros(2))).keyboard
    assert second[0, 0, :, 0].tolist() == [1.0] * 9 + [0.0] * 3  # rows 0..8 are old, 9..11 new
    assert second[0, 2, :, 3].tolist() == [0.0] + [1.0] * 11


def test_a_mode_without_mouse() -> None:
    ring, clock = ConditionRing(ActionConfig(keyboard_dim=7, mouse_dim=0)), BlockClock()
    rows = ring.hold(clock, torch.eye(7)[0], None)
    assert ring.windows(clock, rows).mouse is None
    ring.commit(clock, rows)
    with pytest.raises(ValueError, match="mouse rows"):
        ring.windows(clock.next(), ring.hold(clock.next(), torch.eye(7)[0], torch.zeros(2)))


def test_a_clock_that_drifted_is_refused() -> None:
    ring, clock = ConditionRing(CONFIG), BlockClock()
    rows = ring.hold(clock, torch.zeros(4), torch.zeros(2))
    ring.commit(clock, rows)
    with pytest.raises(ValueError, match="stands at row 9, block 0 begins at row 0"):
        ring.commit(clock, rows)
    with pytest.raises(ValueError, match="stands at row 9, block 2 begins at row 21"):
        ring.windows(clock.next().next(), rows)
    with pytest.raises(ValueError, match=r"keyboard rows \[12, 4\], got \[9, 4\]"):
        ring.windows(clock.next(), rows)
    ring.reset()
    ring.commit(clock, rows)


def test_start_condition_repeats_its_last_latent() -> None:
    latents = torch.arange(30.0).view(1, 1, 30, 1, 1).expand(1, 16, 30, 2, 2)
    start = StartCondition(latents)
    clock = BlockClock()
    for _ in range(400):
        block = start.block(clock)
        assert block.shape == (1, 20, 3, 2, 2)
        assert block[0, 4, :, 0, 0].tolist() == [min(latent, 29) for latent in clock.latents]
        assert block[0, :4, :, 0, 0].sum() == (4 if clock.is_first else 0)
        clock = clock.next()


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(dim=4, num_res_blocks=1),
        VAEConfig(dim=4, num_res_blocks=1, dim_mult=(1, 2, 4), temporal_downsample=(True, True), patch_size=2),
    ],
)
@torch.inference_mode()
def test_picture_and_zeros_settle_before_latent_29(config: VAEConfig) -> None:
    torch.manual_seed(0)
    vae = VAE(config)
    picture = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    streamed = encode_start(vae, picture, 33)
    assert streamed.shape == (1, 16, 33, 2, 2)
    for latent in range(30, 33):
        torch.testing.assert_close(streamed[:, :, latent], streamed[:, :, 29], rtol=1e-5, atol=1e-6)
    other = encode_start(vae, -picture)
    assert not torch.allclose(other[:, :, 0], streamed[:, :, 0], atol=1e-3)
    torch.testing.assert_close(other[:, :, 29], streamed[:, :, 29], rtol=1e-5, atol=1e-6)  # the picture is forgotten
    whole = vae.encode(torch.cat([picture, torch.zeros(1, 3, 116, 16, 16)], dim=2))
    torch.testing.assert_close(streamed[:, :, :30], whole, rtol=1e-4, atol=1e-5)
