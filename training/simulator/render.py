"""What the eye sees: a first-person picture of the garden, analytic and antialiased, in plain torch.

Looking up and down shifts the picture (as in the old ray casters) instead of tilting it, so everything upright stays
upright and most of the work is done once a column. The garden is convex, so hedge, sky and ground lie behind every
thing and the things are painted over them from far to near. Every edge is a ramp one pixel wide: coverage, not samples.
Units: cells, radians, pixels (rows count downwards); colours are sRGB in 0..1 until the last line.
"""

from __future__ import annotations

from math import cos, pi, sin, tan

import torch
from torch import Tensor

from training.simulator import world
from training.simulator.motion import Pose

_CHUNK_PIXELS = {"cpu": 16 * 64 * 112, "cuda": 2048 * 64 * 112}  # planes of a chunk stay in the CPU's cache


def render(pose: Pose, height: int = world.HEIGHT, width: int = world.WIDTH, device: torch.device | str | None = None) -> Tensor:
    """Pictures of the poses: uint8 [B,3,H,W] on `device` (default: where the poses are)."""
    device = torch.device(device) if device is not None else pose.x.device
    columns = torch.stack([pose.x, pose.y, pose.yaw, pose.pitch], dim=1).to(device, torch.float32)  # [B,4]
    things = _thing_table(device)
    order, visible = _far_to_near(columns, things, height, width)
    by_load = visible.argsort(stable=True)  # frames with as many things in view share a chunk
    counts = visible[by_load].tolist()
    frames = torch.empty(len(columns), 3, height, width, dtype=torch.uint8, device=device)
    size = max(1, _CHUNK_PIXELS.get(device.type, _CHUNK_PIXELS["cuda"]) // (height * width))
    for begin in range(0, len(columns), size):
        rows = by_load[begin : begin + size]
        most = counts[min(begin + size, len(columns)) - 1]
        in_view = things[order[rows]][:, len(things) - most :]  # [b,most,12], nearest last
        frames[rows] = _paint(columns[rows], in_view, height, width)
    return frames


def _thing_table(device: torch.device) -> Tensor:
    """[N,12]: x, y, radius, height, ball radius, ball height, colour (3), ball colour (3)."""
    rows = [(t.x, t.y, t.radius, t.height, t.ball_radius, t.ball_height, *t.colour, *t.ball_colour) for t in world.THINGS]
    return torch.tensor(rows, device=device)


def _far_to_near(camera: Tensor, things: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(order [B,N], unseen things first and then from far to near; how many may be seen [B])."""
    half = tan(world.FIELD_OF_VIEW / 2)
    dx, dy = things[:, 0] - camera[:, 0:1], things[:, 1] - camera[:, 1:2]
    ax, ay = camera[:, 2:3].cos(), camera[:, 2:3].sin()
    depth, side = dx * ax + dy * ay, dy * ax - dx * ay
    reach = (things[:, 4] + 0.15) * (1 + half * half) ** 0.5  # ball and shadow may stick into the view
    seen = side.abs() <= depth.clamp(min=-1) * half + reach
    seen &= depth > -things[:, 4]
    distance = dx * dx + dy * dy
    order = torch.where(seen, distance, distance + 1000).argsort(dim=1, descending=True)
    return order, seen.sum(1)


def _ramp(pixels: Tensor) -> Tensor:
    """Coverage of a pixel whose centre lies `pixels` inside an edge."""
    return (pixels + 0.5).clamp_(0, 1)


def _paint(camera: Tensor, things: Tensor, height: int, width: int) -> Tensor:
    device = camera.device
    focal = width / 2 / tan(world.FIELD_OF_VIEW / 2)
    x, y, yaw, pitch = (camera[:, i, None] for i in range(4))  # [b,1]
    u = (torch.arange(width, device=device) + 0.5 - width / 2) / focal  # [W]
    norm = (1 + u * u).sqrt()
    dx, dy = yaw.cos() - u * yaw.sin(), yaw.sin() + u * yaw.cos()  # [b,W] reaches one cell ahead
    azimuth = yaw + torch.atan(u)  # [b,W]
    row = torch.arange(height, device=device) + 0.5  # [H]
    horizon = height / 2 + focal * pitch.tan()  # [b,1]
    below = (row - horizon)[:, :, None]  # [b,H,1] pixels under the horizon
    slope = below / (-focal * norm)  # [b,H,W] of the ray, + up

    sunny = (0.5 + 0.5 * (azimuth - world.SUN_AZIMUTH).cos())[:, None]  # [b,1,W]
    haze = _mix(world.SKY_LOW, sunny)  # [b,3,W]
    picture = _sky(azimuth, sunny, haze, slope, focal)

    depth = torch.minimum(_to_edge(x, dx), _to_edge(y, dy))  # [b,W] of the hedge
    bottom = (horizon + focal * world.EYE / depth)[:, None]  # [b,1,W]
    ground = _ground(x, y, dx, dy, norm, below, focal, things, haze)
    picture.lerp_(ground, _ramp(row[:, None] - bottom)[:, None])
    _hedge(picture, x + dx * depth, y + dy * depth, depth, norm, haze, row, horizon, bottom, focal)
    flat = 1 / (1 + slope * slope)
    for i in range(things.shape[1]):
        _thing(picture, things[:, i], x, y, dx, dy, norm, haze, row, horizon, slope, flat, focal)
    return _lens(_lens(picture, 2), 3).mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


def _lens(picture: Tensor, axis: int) -> Tensor:
    """The picture [b,3,H,W] a little soft along one axis: neighbours shine in, so that nothing is finer than latents can hold."""
    length = picture.shape[axis]
    before = torch.cat([picture.narrow(axis, 0, 1), picture.narrow(axis, 0, length - 1)], axis)
    after = torch.cat([picture.narrow(axis, 1, length - 1), picture.narrow(axis, length - 1, 1)], axis)
    return picture.mul(1 - 2 * world.SOFTNESS).add_(before.add_(after), alpha=world.SOFTNESS)


def _mix(pair: tuple[world.Colour, world.Colour], first: Tensor) -> Tensor:
    """Colour between the two of `pair`, by the share of the first [b,1,W]: [b,3,W]."""
    a, b = (torch.tensor(c, device=first.device)[:, None] for c in pair)
    return b + (a - b) * first


def _to_edge(at: Tensor, towards: Tensor) -> Tensor:
    """Depth [b,W] at which the ray leaves the garden along one axis."""
    safe = torch.where(towards.abs() < 1e-6, torch.full_like(towards, 1e-6), towards)
    return ((safe > 0) * world.SIZE - at) / safe


def _fogged(colour: Tensor, haze: Tensor, distance: Tensor) -> Tensor:
    return haze + (colour - haze) * torch.exp(distance / -world.FOG_LENGTH)


def _sky(azimuth: Tensor, sunny: Tensor, haze: Tensor, slope: Tensor, focal: float) -> Tensor:
    high = _mix(world.SKY_HIGH, sunny)[:, :, None]  # [b,3,1,W]
    picture = torch.lerp(haze[:, :, None], high, (slope * 1.6).clamp_(0, 1)[:, None])  # [b,3,H,W]
    away = torch.remainder(azimuth - world.SUN_AZIMUTH + pi, 2 * pi) - pi
    from_sun = (away * away)[:, None] + (slope - world.SUN_ELEVATION).square_()  # [b,H,W] squared
    light = 0.55 / (1 + from_sun * 18).square_()
    light = torch.maximum(light, _ramp((world.SUN_RADIUS - from_sun.sqrt_()) * (focal * 0.6)))
    sun = torch.tensor(world.SUN, device=slope.device)[:, None, None]
    picture.lerp_(sun, light[:, None])
    a = azimuth
    ridge = 0.25 + 0.07 * (2 * a + 1.0).cos() + 0.05 * (3 * a + 2.2).cos() + 0.03 * (7 * a).cos()  # [b,W]
    picture.lerp_(_mix(world.MOUNTAINS, sunny)[:, :, None], _ramp((ridge[:, None] - slope) * focal)[:, None])
    knoll = 0.13 + 0.045 * (3 * a + 0.4).cos() + 0.02 * (5 * a + 4.0).cos()
    picture.lerp_(_mix(world.HILLS, sunny)[:, :, None], _ramp((knoll[:, None] - slope) * focal)[:, None])
    return picture


def _ground(x, y, dx, dy, norm, below, focal, things, haze) -> Tensor:
    """Grass tiles, pond and soft shadows under the things: [b,3,H,W], meaningful below the hedge only."""
    depth = (focal * world.EYE) / below.clamp(min=focal * world.EYE / 12)  # [b,H,1]
    px, py = x[:, :, None] + dx[:, None] * depth, y[:, :, None] + dy[:, None] * depth  # [b,H,W]
    checker = (px * (pi / 2)).sin_() * (py * (pi / 2)).sin_()
    checker.mul_(3).clamp_(-1, 1).mul_(0.5 * (1 - depth / 10).clamp(min=0)).add_(0.5)
    light, dark = (torch.tensor(c, device=px.device)[:, None, None] for c in world.GRASS)
    picture = torch.lerp(dark, light, checker[:, None])

    rx, ry = px - world.POND.x, py - world.POND.y
    far = (rx * rx + ry * ry).sqrt_().clamp_(min=1e-3)
    # An edge that lies across the ray is foreshortened, one that runs along it is not.
    across = (rx * (dx / norm)[:, None] + ry * (dy / norm)[:, None]).abs_() / far
    pixel = across * (depth * depth / (focal * world.EYE)) + depth / focal  # [b,H,W] cells
    for disc in (world.SHORE, world.POND):
        colour = torch.tensor(disc.colour, device=px.device)[:, None, None]
        picture.lerp_(colour, _ramp((disc.radius - far) / pixel)[:, None])

    shade = torch.ones_like(px)
    for i in range(things.shape[1]):
        tx, ty, radius = (things[:, i, k, None, None] for k in (0, 1, 4))
        spread = (px - tx).square_() + (py - ty).square_()
        shade.mul_(1 - (0.42 - spread * (0.42 / (radius + 0.1).square())).clamp_(min=0))
    picture.mul_(shade[:, None])
    clear = torch.exp(depth / -world.FOG_LENGTH)  # [b,H,1]
    return torch.lerp(haze[:, :, None], picture, clear[:, None])


def _hedge(picture, hx, hy, depth, norm, haze, row, horizon, bottom, focal) -> None:
    """Paints the hedge over the picture; hx, hy, depth [b,W] are where each column meets it."""
    middle, hues = world.SIZE / 2, len(world.HEDGES)
    azimuth = torch.atan2(hy - middle, hx - middle)[..., None]
    around = azimuth / (2 * pi / hues) - torch.arange(hues, device=hx.device)  # [b,W,hues] from each hue on, a turn is `hues`
    share = (1 - (torch.remainder(around + hues / 2, hues) - hues / 2).abs()).clamp_(min=0)
    colour = (share @ torch.tensor(world.HEDGES, device=hx.device)).transpose(1, 2)  # [b,3,W]
    wave = (pi * (hx + hy)).cos()  # [b,W]
    colour = _fogged(colour * (1 + 0.06 * wave)[:, None], haze, (depth * norm)[:, None])
    top = (horizon - focal * (world.HEDGE_HEIGHT + world.HEDGE_WAVE * wave - world.EYE) / depth)[:, None]  # [b,1,W]
    down = ((row[:, None] - top) / (bottom - top)).clamp_(0, 1)  # [b,H,W]
    shade = torch.lerp((colour * 1.08)[:, :, None], (colour * 0.72)[:, :, None], down[:, None])
    cover = _ramp(torch.minimum(row[:, None] - top, bottom - row[:, None]))
    picture.lerp_(shade, cover[:, None])


def _thing(picture, thing, x, y, dx, dy, norm, haze, row, horizon, slope, flat, focal) -> None:
    """Paints one thing a frame: `thing` [b,12]."""
    tx, ty, radius, tall, ball, lift = (thing[:, k, None] for k in range(6))  # [b,1]
    ox, oy = tx - x, ty - y
    ax, ay = dx / norm, dy / norm
    along = ox * ax + oy * ay  # [b,W] how far along the ray the axis is nearest
    aside = oy * ax - ox * ay  # [b,W] and how far to the right
    ahead = _ramp((along - 0.02) * 50)  # nothing behind the eye
    sun_x, sun_y = cos(world.SUN_AZIMUTH), sin(world.SUN_AZIMUTH)
    safe = along.clamp(min=0.05)

    chord = (radius * radius - aside * aside).clamp_(min=0).sqrt_()
    reach = (along - chord).clamp_(min=0.05)  # [b,W] distance to the surface
    nx, ny = (ax * reach - ox) / radius, (ay * reach - oy) / radius
    lit = 0.92 + 0.16 * (nx * sun_x + ny * sun_y)
    colour = _fogged(thing[:, 6:9, None] * lit[:, None], haze, reach[:, None])  # [b,3,W]
    depth = reach / norm
    top, bottom = horizon - focal * (tall - world.EYE) / depth, horizon + focal * world.EYE / depth
    cover = _ramp((radius - aside.abs()) * (focal * norm) / safe) * ahead
    inside = torch.minimum(row[:, None] - top[:, None], bottom[:, None] - row[:, None])
    picture.lerp_(colour[:, :, None], (_ramp(inside) * cover[:, None])[:, None])

    over = slope * along[:, None] - (lift - world.EYE)[:, None]  # [b,H,W] height of the ray above the ball's centre
    miss = (over * over * flat).add_((aside * aside)[:, None]).sqrt_()
    cover = _ramp((ball[:, None] - miss) * (focal * norm / safe)[:, None]).mul_(ahead[:, None])
    right = sun_y * ax - sun_x * ay  # [b,W] how far to the right the sun shines from
    light = (over * (0.26 / ball)[:, None]).add_((0.92 - 0.10 * aside / ball * right)[:, None])
    colour = thing[:, 9:12, None, None] * light.clamp_(0.66, 1.18)[:, None]
    clear = torch.exp(safe / -world.FOG_LENGTH)[:, None, None]
    picture.lerp_(torch.lerp(haze[:, :, None], colour, clear), cover[:, None])
