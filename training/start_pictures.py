"""Draw the garden's start pictures: eight places with a view, at the world's own resolution.

python -m training.start_pictures assets/garden
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from training.arguments import in_a_line, new_folder
from training.simulator import Pose, render

PLACES = (  # x, y in cells, yaw in radians
    (5.83, 2.85, 2.95), (2.54, 4.09, -0.09), (3.37, 5.35, -1.40), (3.96, 5.11, -1.96),
    (3.11, 4.05, 0.29), (6.42, 4.13, 2.47), (2.86, 1.86, 1.58), (2.49, 6.37, -0.73),
)  # fmt: skip


@in_a_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help=f"start_1.png to start_{len(PLACES)}.png go there, in the place of those that are there")
    folder = parser.parse_args().folder
    new_folder(folder, "the folder")
    x, y, yaw = torch.tensor(PLACES).unbind(1)
    pictures = render(Pose(x, y, yaw, torch.zeros_like(x))).permute(0, 2, 3, 1).numpy()
    for i, picture in enumerate(pictures, 1):
        Image.fromarray(picture).save(folder / f"start_{i}.png")


if __name__ == "__main__":
    sys.exit(main())
