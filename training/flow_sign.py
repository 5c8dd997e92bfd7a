"""Which way a picture moves: least-squares shift and zoom between neighbouring frames, from their gradients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def motion(frames: np.ndarray) -> np.ndarray:
    """uint8 `[F, H, W, 3]` -> `[F-1, 3]`: horizontal shift, vertical shift (pixels a frame, right and down positive), zoom (share a frame).

    Solves I_x u + I_y v = -I_t (Lucas & Kanade 1981) for u = a + s x, v = b + s y over the whole picture, on smoothed grey.
    """
    grey = frames.astype(np.float64).mean(-1)
    for axis in (1, 2):
        padded = np.pad(grey, [(0, 0)] + [(2, 2) if i == axis else (0, 0) for i in (1, 2)], mode="edge")
        taps = [np.take(padded, range(k, k + grey.shape[axis]), axis=axis) for k in range(5)]
        grey = (taps[0] + 4 * taps[1] + 6 * taps[2] + 4 * taps[3] + taps[4]) / 16
    height, width = grey.shape[1:]
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    found = []
    for a, b in pairwise(grey):
        mean = (a + b) / 2
        across, down, change = np.gradient(mean, axis=1), np.gradient(mean, axis=0), b - a
        columns = np.stack([across, down, across * x + down * y], axis=-1)[2:-2, 2:-2].reshape(-1, 3)
        solution = np.linalg.lstsq(columns.T @ columns + 1e-6 * np.eye(3), -columns.T @ change[2:-2, 2:-2].ravel(), rcond=None)[0]
        found.append(solution)
    return np.array(found)
