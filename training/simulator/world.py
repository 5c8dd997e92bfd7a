"""The garden's fixed map: sizes, positions and colours. Lengths are cells, colours are sRGB in 0..1.

x runs east, y runs south, so that a growing yaw turns to the right. Yaw 0 looks east.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import radians

Colour = tuple[float, float, float]

HEIGHT, WIDTH, FPS = 64, 112, 16
FIELD_OF_VIEW = radians(78)  # horizontal
SIZE = 8.0  # the garden is SIZE x SIZE
EYE = 0.5  # height of the eye above the ground

SOFTNESS = 0.2  # of the lens: how much of a pixel's light falls on each neighbour in its row, and in its column

WALK_SPEED = 0.056  # cells a frame, forward and backward
STRAFE_SPEED = 0.05
TURN_SPEED = radians(2.5)  # a frame, at mouse value 0.1
PITCH_SPEED = radians(1.2)
PITCH_LIMIT = radians(15)
FULL_MOUSE = 0.1

WALL_MARGIN = 0.85  # how near the eye may come to the hedge: its top stays in view
BODY = 0.4  # how near the eye may come to a trunk, a pillar or the water


@dataclass(frozen=True)
class Thing:
    """A trunk or pillar (an upright cylinder) that carries a ball."""

    x: float
    y: float
    radius: float
    height: float
    colour: Colour
    ball_radius: float
    ball_height: float  # of its centre
    ball_colour: Colour


@dataclass(frozen=True)
class Disc:
    """A round patch on the ground."""

    x: float
    y: float
    radius: float
    colour: Colour


BARK = (0.50, 0.36, 0.28)
THINGS = (
    Thing(1.7, 1.7, 0.30, 1.35, (0.86, 0.36, 0.32), 0.36, 1.55, (0.97, 0.80, 0.42)),  # red pillar
    Thing(6.3, 1.7, 0.30, 1.35, (0.36, 0.42, 0.80), 0.36, 1.55, (0.93, 0.90, 0.86)),  # blue pillar
    Thing(6.4, 6.3, 0.30, 1.35, (0.94, 0.74, 0.26), 0.36, 1.55, (0.84, 0.40, 0.48)),  # yellow pillar
    Thing(1.7, 6.3, 0.30, 1.35, (0.20, 0.62, 0.62), 0.36, 1.55, (0.96, 0.66, 0.50)),  # teal pillar
    Thing(3.9, 1.9, 0.15, 1.10, BARK, 0.62, 1.25, (0.95, 0.62, 0.74)),  # cherry tree
    Thing(2.0, 4.0, 0.15, 1.10, BARK, 0.66, 1.25, (0.30, 0.58, 0.30)),  # green tree
    Thing(4.2, 6.0, 0.15, 1.10, BARK, 0.62, 1.25, (0.93, 0.54, 0.24)),  # autumn tree
)

POND = Disc(5.0, 3.9, 0.85, (0.30, 0.56, 0.80))
SHORE = Disc(POND.x, POND.y, 1.25, (0.90, 0.82, 0.62))

# The hedge's hue runs once around the garden, so that no stretch of it looks like another: the colours in the eight directions from the
# middle, from the east on (yaw 0, pi / 4, ...), with straight lines between them.
HEDGES: tuple[Colour, ...] = (
    (0.84, 0.42, 0.46), (0.90, 0.54, 0.33), (0.88, 0.68, 0.30), (0.56, 0.67, 0.35),
    (0.22, 0.56, 0.48), (0.28, 0.50, 0.72), (0.52, 0.42, 0.74), (0.75, 0.40, 0.66),
)  # fmt: skip
HEDGE_HEIGHT = 0.74
HEDGE_WAVE = 0.07  # its top swells and falls every two cells

GRASS: tuple[Colour, Colour] = ((0.60, 0.75, 0.41), (0.39, 0.57, 0.33))  # tiles of two cells
SUN_AZIMUTH = radians(35)
SUN_ELEVATION = 0.36  # slope
SUN_RADIUS = 0.075
SUN: Colour = (1.0, 0.95, 0.78)
SKY_LOW: tuple[Colour, Colour] = ((0.99, 0.82, 0.66), (0.66, 0.80, 0.92))  # towards the sun, away from it
SKY_HIGH: tuple[Colour, Colour] = ((0.70, 0.74, 0.90), (0.26, 0.44, 0.76))
MOUNTAINS: tuple[Colour, Colour] = ((0.78, 0.64, 0.70), (0.44, 0.52, 0.72))
HILLS: tuple[Colour, Colour] = ((0.66, 0.66, 0.46), (0.32, 0.50, 0.50))
FOG_LENGTH = 16.0  # distance over which 63 % of a colour is lost to the sky's
