"""Numbers that tell what is wrong with moving pictures, and what they say. Plain numpy; knows no files and no model.

A world's VAE works on patches of 8 x 8 pixels, so what goes wrong in it shows at that period.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

PATCH = 8  # pixels a side
LATENT = 4  # frames
COLUMNS = {
    "mean": "mean grey, 0 to 255",
    "std": "standard deviation of grey",
    "min": "darkest grey",
    "max": "brightest grey",
    "difference": "mean absolute difference from the frame before",
    "zigzag": "that difference over the one from two frames before: about 0.6 in smooth motion, 1 in noise, more in flicker",
    "checkerboard": "grey steps at patch borders over those elsewhere: 1 where there is no grid",
    "power across": "power at a period of 8 pixels over its neighbours, along rows",
    "power down": "the same, along columns",
    "sharpness": "variance of the Laplacian",
    "saturation": "mean of the largest less the smallest colour, 0 to 255",
}


class Meter:
    """Takes frames `[H, W, 3]` uint8 one by one, keeps their numbers and the last two frames."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None  # of the frames
        self._rows: list[list[float]] = []
        self._before: list[np.ndarray] = []

    def add(self, frame: np.ndarray) -> None:
        self.shape = frame.shape
        colours = frame.astype(np.float32)
        grey = colours @ np.array([0.299, 0.587, 0.114], np.float32)
        near, far = (float(np.abs(colours - other).mean()) for other in (self._before + [colours] * 2)[:2])
        known = len(self._before)
        self._rows.append([
            float(grey.mean()), float(grey.std()), float(grey.min()), float(grey.max()),
            near if known > 0 else np.nan, near / max(far, near / 10, 1e-6) if known > 1 and near > 0.1 else np.nan,
            border_steps(grey), patch_power(grey), patch_power(grey.T), sharpness(grey),
            float((colours.max(-1) - colours.min(-1)).mean()),
        ])  # fmt: skip
        self._before = [colours, *self._before[:1]]

    def table(self) -> dict[str, np.ndarray]:
        """A column `[F]` for each of `COLUMNS`; NaN where a frame has no frames before it, or does not move."""
        return dict(zip(COLUMNS, np.array(self._rows, np.float64).reshape(-1, len(COLUMNS)).T, strict=True))


def border_steps(grey: np.ndarray) -> float:
    """How much larger the steps between pixels are where patches meet than within them; the larger of both directions.

    Medians, so that one straight edge of the scene that happens to lie on a border does not count.
    """
    scores = []
    for steps in (np.abs(np.diff(grey, axis=1)).mean(0), np.abs(np.diff(grey, axis=0)).mean(1)):
        at_border = np.arange(len(steps)) % PATCH == PATCH - 1
        scores.append((np.median(steps[at_border]) + 0.1) / (np.median(steps[~at_border]) + 0.1) if at_border.any() else 1.0)
    return float(max(scores))


def patch_power(grey: np.ndarray) -> float:
    """Power along the rows at a period of one patch over the geometric mean of its neighbours' (for pictures fall off with frequency)."""
    width = grey.shape[1] // PATCH * PATCH
    peak = width // PATCH
    if peak < 4:
        return 1.0
    rows = grey[:, :width] - grey[:, :width].mean(1, keepdims=True)
    power = (np.abs(np.fft.rfft(rows * np.hanning(width), axis=1)) ** 2).mean(0) + width * 0.01
    neighbours = [peak + offset for offset in (-4, -3, -2, 2, 3, 4) if 0 < peak + offset < len(power)]
    return float(power[peak] / np.exp(np.log(power[neighbours]).mean()))


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian."""
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var())


@dataclass(frozen=True)
class Limits:
    """From where on numbers mean trouble. Found on the garden's simulator, on good and on spoiled reconstructions of its walks."""

    still: float = 0.15  # of 255: frames nearer to the one before do not move
    still_seconds: float = 2.0  # of standing still that are suspicious; a player who rests is no fault
    contrast: float = 12.0  # standard deviation under which a picture is washed out
    noise: float = 3.0  # variance of the Laplacian over that of the picture; white noise has 20, pictures well under 1
    checkerboard: float = 2.0  # H.264 alone brings 1.5
    power: float = 5.0
    brightness_drift: float = 40.0  # grey levels between the first and the last second
    ratio_drift: float = 2.5  # of contrast or saturation, either way
    sharpness_drift: float = 6.0  # the same of sharpness, which a walk up to a hedge may change by 5
    zigzag: float = 1.05
    zigzag_share: float = 0.15  # of the moving frames
    rhythm: float = 1.4  # a sound VAE reaches 1.26, one with the two frames of each doubling exchanged 1.56
    share: float = 0.5  # of the frames (or moving frames) that must be over a limit


@dataclass(frozen=True)
class Trouble:
    """A kind of trouble, whether it is there, and the number that says so."""

    kind: str
    found: bool
    says: str


@dataclass(frozen=True)
class Diagnosis:
    """All numbers by column, seconds of them, and what they mean."""

    fps: float
    table: dict[str, np.ndarray]
    troubles: tuple[Trouble, ...] = field(default=())

    @property
    def sound(self) -> bool:
        return not any(trouble.found for trouble in self.troubles)

    def seconds(self) -> list[dict[str, float]]:
        """Means over each second; NaN where a column has no number in it."""
        count = len(self.table["mean"])
        edges = np.arange(0, count, max(1, round(self.fps)))
        return [{name: _mean(column[a : a + max(1, round(self.fps))]) for name, column in self.table.items()} for a in edges]


def diagnose(table: dict[str, np.ndarray], fps: float, limits: Limits | None = None) -> Diagnosis:
    """What the numbers of a film at ``fps`` frames a second mean."""
    limits = limits or Limits()
    checks = (_frozen, _washed_out, _noisy, _grid, _drifting, _flicker)
    return Diagnosis(fps, table, tuple(check(table, fps, limits) for check in checks))


def _frozen(table: dict[str, np.ndarray], fps: float, limits: Limits) -> Trouble:
    longest = run = 0
    for difference in table["difference"]:
        run = run + 1 if difference < limits.still else 0
        longest = max(longest, run)
    seconds = longest / fps
    return Trouble(
        "frozen", seconds >= limits.still_seconds, f"longest standstill {seconds:.1f} s (trouble from {limits.still_seconds:g} s)"
    )


def _washed_out(table: dict[str, np.ndarray], fps: float, limits: Limits) -> Trouble:
    share = float((table["std"] < limits.contrast).mean())
    return Trouble("washed out", share > limits.share, f"{share:.0%} of frames have a contrast under {limits.contrast:g}")


def _noisy(table: dict[str, np.ndarray], fps: float, limits: Limits) -> Trouble:
    ratio = table["sharpness"] / np.maximum(table["std"] ** 2, 1.0)
    share = float((ratio > limits.noise).mean())
    return Trouble(
        "noisy", share > limits.share, f"{share:.0%} of frames have more fine than coarse detail (Laplacian over {limits.noise:g} x)"
    )


def _grid(table: dict[str, np.ndarray], fps: float, limits: Limits) -> Trouble:
    power = np.maximum(table["power across"], table["power down"])
    share = float(((table["checkerboard"] > limits.checkerboard) | (power > limits.power)).mean())
    levels = (
        f"steps {np.median(table['checkerboard']):.2f} x (limit {limits.checkerboard:g}), power {np.median(power):.1f} x ({limits.power:g})"
    )
    return Trouble("grid", share > limits.share, f"{share:.0%} of frames show the borders of patches; median {levels}")


def _drifting(table: dict[str, np.ndarray], fps: float, limits: Limits) -> Trouble:
    second = max(1, round(fps))
    if len(table["mean"]) < 2 * second:
        return Trouble("drifting", False, "shorter than two seconds: cannot be told")
    brightness = _mean(table["mean"][-second:]) - _mean(table["mean"][:second])
    floors = {"std": 4.0, "saturation": 4.0, "sharpness": 20.0}  # ratios of less than these are ratios of nothing
    ratios = {name: max(_mean(table[name][-second:]), low) / max(_mean(table[name][:second]), low) for name, low in floors.items()}
    most = {name: limits.sharpness_drift if name == "sharpness" else limits.ratio_drift for name in floors}
    found = abs(brightness) > limits.brightness_drift or any(not 1 / most[name] < ratio < most[name] for name, ratio in ratios.items())
    words = ", ".join(f"{'contrast' if name == 'std' else name} x {ratio:.2f}" for name, ratio in ratios.items())
    limit = f"trouble over {limits.brightness_drift:g}, or x {limits.ratio_drift:g} either way, sharpness x {limits.sharpness_drift:g}"
    return Trouble("drifting", found, f"last second against the first: brightness {brightness:+.0f}, {words} ({limit})")


def _flicker(table: dict[str, np.ndarray], fps: float, limits: Limits) -> Trouble:
    zigzag = table["zigzag"][np.isfinite(table["zigzag"])]
    if len(zigzag) < 2 * LATENT:
        return Trouble("flicker or time order", False, "hardly anything moves: cannot be told")
    share, rhythm = float((zigzag > limits.zigzag).mean()), latent_rhythm(table["difference"])
    return Trouble(
        "flicker or time order", share > limits.zigzag_share or rhythm > limits.rhythm,
        f"{share:.0%} of moving frames (trouble over {limits.zigzag_share:.0%}) are nearer to the one before that; one frame in {LATENT} "
        f"moves {rhythm:.1f} x as far as the others (over {limits.rhythm:g} x)",
    )  # fmt: skip


def latent_rhythm(difference: np.ndarray) -> float:
    """How much further one frame in four moves than the other three: frames of one latent should not stick together."""
    moves = difference[np.isfinite(difference)]
    if len(moves) < 2 * LATENT:
        return 1.0
    phases = np.array([np.median(moves[phase::LATENT]) for phase in range(LATENT)])
    return float(max((phase + 0.1) / ((phases.sum() - phase) / (LATENT - 1) + 0.1) for phase in phases))


def _mean(values: Sequence[float] | np.ndarray) -> float:
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")
