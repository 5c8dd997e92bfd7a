"""What is drawn over the picture: key caps, look stick, numbers, REC, help, toasts, the loading screen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pygame

from game.pacing import Spread

Color = tuple[int, int, int]
INK: Color = (244, 242, 236)
DIM: Color = (168, 170, 176)
ACCENT: Color = (255, 198, 92)
ALERT: Color = (240, 72, 72)
SHADE = (12, 13, 18, 190)

# Where keys lie on a keyboard, in key widths: rows shifted as they really are. Unknown names go in a row below.
_ROWS = ((0.0, "1234567890"), (0.5, "qwertyuiop"), (0.75, "asdfghjkl"), (1.25, "zxcvbnm"))
_PLACES = {key: (shift + column, float(row)) for row, (shift, keys) in enumerate(_ROWS) for column, key in enumerate(keys)}
_PLACES |= {"up": (13.0, 2.0), "left": (12.0, 3.0), "down": (13.0, 3.0), "right": (14.0, 3.0)}
_ARROWS = {"right": 0, "down": 90, "left": 180, "up": 270}  # degrees


@dataclass(frozen=True)
class HudState:
    """Everything the overlay shows. Seconds; None where there is nothing to tell."""

    keys: tuple[str, ...]  # of this world
    held: frozenset[str]  # by the player, now
    acting: frozenset[str]  # behind the block on screen
    look: tuple[float, float] | None  # (pitch, yaw) behind the block on screen; None in a world without
    fps: float
    native_fps: float
    generation: float
    slowest: float  # 99th percentile of the latest blocks
    margin: float  # kept free beyond that
    action_latency: Spread
    input_latency: Spread
    underruns: int
    block: int
    frame: int
    layers: str = ""  # how far the compiler is, where one works


@lru_cache(maxsize=32)
def font(size: int) -> pygame.font.Font:
    """pygame's own font, the same on every machine."""
    return pygame.font.Font(None, size)


def text_size(surface: pygame.Surface) -> int:
    """Font size in pixels that stays legible in a small window and modest in a large one."""
    return max(15, min(30, surface.get_height() // 24))


def draw_hud(surface: pygame.Surface, state: HudState) -> None:
    """Numbers in the upper left corner; key caps and the look stick at the bottom."""
    draw_numbers(
        surface,
        [
            ("fps", f"{state.fps:.1f} of {state.native_fps:g}"),
            ("block made in", milliseconds(state.generation)),
            ("slowest, margin", f"{milliseconds(state.slowest)}, {milliseconds(state.margin)}"),
            ("action to picture", spread(state.action_latency)),
            ("key to picture", spread(state.input_latency)),
            ("underruns", str(state.underruns)),
            ("block, frame", f"{state.block}, {state.frame}"),
            *([("layers", state.layers)] if state.layers else []),
        ],
        alert="underruns" if state.underruns else "",
    )
    draw_controls(surface, state.keys, state.acting, state.held, state.look)


def draw_controls(
    surface: pygame.Surface, keys: tuple[str, ...], acting: frozenset[str], held: frozenset[str], look: tuple[float, float] | None
) -> None:
    """Key caps and the look stick along the lower edge; ``acting``, ``held`` and ``look`` as in `HudState`."""
    unit = round(text_size(surface) * 1.7)
    right = surface.get_width() - unit // 2
    for number, cluster in enumerate(key_clusters(keys)):
        left_most = min(x for x, _ in cluster.values())
        width = (max(x for x, _ in cluster.values()) - left_most + 1) * unit
        bottom_row = max(y for _, y in cluster.values())
        x = unit // 2 if number == 0 else right - width
        for key, (column, row) in cluster.items():
            place = pygame.Rect(0, 0, unit - 4, unit - 4)
            place.topleft = round(x + (column - left_most) * unit), round(surface.get_height() - unit * 1.5 - (bottom_row - row) * unit)
            _draw_cap(surface, place, key, key in acting, key in held)
        if number > 0:
            right -= round(width + unit * 0.7)
    if look is not None:
        _draw_stick(surface, (right - unit, surface.get_height() - round(unit * 1.55)), unit, look)


def key_clusters(keys: tuple[str, ...]) -> list[dict[str, tuple[float, float]]]:
    """Keys with their places (column, row), in groups that lie together on a keyboard, left to right."""
    unknown = [key for key in keys if key not in _PLACES]
    places = {key: _PLACES.get(key) or (2.0 + 1.0 * unknown.index(key), 4.0) for key in keys}
    clusters: list[dict[str, tuple[float, float]]] = []
    for key in sorted(places, key=lambda key: places[key]):
        if not clusters or places[key][0] - max(x for x, _ in clusters[-1].values()) > 2:
            clusters.append({})
        clusters[-1][key] = places[key]
    return clusters


def draw_recording(surface: pygame.Surface, seconds: float, lost: int) -> None:
    """A red dot with the length of the film so far, in the upper right corner."""
    size = text_size(surface)
    words = f"REC {int(seconds) // 60}:{int(seconds) % 60:02d}" + (f"  {lost} blocks lost" if lost else "")
    text = font(size).render(words, True, INK)
    box = text.get_rect().inflate(size * 2, size // 2)
    box.topright = surface.get_width() - size // 2, size // 2
    _shade(surface, box)
    pygame.draw.circle(surface, ALERT, (box.x + size * 3 // 4, box.centery), size // 3)
    surface.blit(text, text.get_rect(midleft=(box.x + size * 5 // 4, box.centery)))


def draw_banner(surface: pygame.Surface, words: str) -> None:
    """One line in the middle of the upper edge."""
    size = text_size(surface)
    text = _fitted(words, size, surface.get_width() - size)
    box = text.get_rect(midtop=(surface.get_width() // 2, size)).inflate(size, size // 2)
    _shade(surface, box)
    surface.blit(text, text.get_rect(center=box.center))


def draw_toasts(surface: pygame.Surface, words: tuple[str, ...], raised: bool) -> None:
    """Short messages above the lower edge; ``raised`` leaves room for the key caps."""
    size = text_size(surface)
    y = surface.get_height() - size * (5 if raised else 1)
    for line in reversed(words):
        text = _fitted(line, size, surface.get_width() - size * 2)
        box = text.get_rect(midbottom=(surface.get_width() // 2, y)).inflate(size, size // 2)
        _shade(surface, box)
        surface.blit(text, text.get_rect(center=box.center))
        y = box.top - size // 2


def draw_help(surface: pygame.Surface, title: str, about: str, columns: tuple[list[tuple[str, str]], ...]) -> None:
    """A panel in the middle, as large as its text needs and the window allows."""
    for size in range(text_size(surface) + 4, 7, -1):
        panel = _help_panel(title, about, columns, size)
        if panel.get_width() <= surface.get_width() and panel.get_height() <= surface.get_height():
            break
    surface.blit(panel, panel.get_rect(center=surface.get_rect().center))


def _help_panel(title: str, about: str, columns: tuple[list[tuple[str, str]], ...], size: int) -> pygame.Surface:
    line, gap = round(size * 1.25), round(size * 0.8)
    caps = [max(font(size).size(key)[0] for key, _ in column) + gap for column in columns]
    widths = [cap + max(font(size).size(does)[0] for _, does in column) for cap, column in zip(caps, columns, strict=True)]
    head = font(round(size * 1.5)).render(title, True, INK)
    inner = max(sum(widths) + 2 * gap * (len(columns) - 1), head.get_width())
    about_lines = _wrap(about, font(size), inner) if size > 13 else []  # a small window has more urgent things to say
    top = gap + head.get_height() + size * len(about_lines) + gap
    panel = pygame.Surface((inner + 2 * gap, top + line * max(map(len, columns)) + gap // 2), pygame.SRCALPHA)
    _rounded(panel, panel.get_rect(), (12, 13, 18, 232), size // 2)
    panel.blit(head, (gap, gap))
    for number, words in enumerate(about_lines):
        panel.blit(font(size).render(words, True, DIM), (gap, gap + head.get_height() + size // 4 + number * size))
    x = gap
    for cap, width, column in zip(caps, widths, columns, strict=True):
        for number, (key, does) in enumerate(column):
            panel.blit(font(size).render(key, True, ACCENT), (x, top + number * line))
            panel.blit(font(size).render(does, True, INK), (x + cap, top + number * line))
        x += width + 2 * gap
    return panel


def draw_loading(surface: pygame.Surface, title: str, words: str, part: float | None) -> None:
    """Before there is a picture: what is going on, and a bar (None: it cannot be said how much is done)."""
    size = text_size(surface)
    middle = surface.get_rect().center
    head = _fitted(title, size * 2, surface.get_width() - size)
    surface.blit(head, head.get_rect(midbottom=(middle[0], middle[1] - size // 2)))
    bar = pygame.Rect(0, 0, min(surface.get_width() * 2 // 3, size * 16), max(4, size // 4))
    bar.midtop = middle[0], middle[1] + size // 2
    pygame.draw.rect(surface, (44, 46, 54), bar, border_radius=bar.height // 2)
    if part is None:
        length = bar.width // 5
        swing = abs((pygame.time.get_ticks() % 2400) / 1200 - 1)
        done = pygame.Rect(bar.x + round((bar.width - length) * swing), bar.y, length, bar.height)
    else:
        done = pygame.Rect(bar.x, bar.y, max(bar.height, round(bar.width * part)), bar.height)
    pygame.draw.rect(surface, ACCENT, done, border_radius=bar.height // 2)
    text = _fitted(words, size, surface.get_width() - size, DIM)
    surface.blit(text, text.get_rect(midtop=(middle[0], bar.bottom + size // 2)))


def draw_numbers(surface: pygame.Surface, lines: list[tuple[str, str]], alert: str = "") -> None:
    """Names and values in the upper left corner; the value of the line named ``alert`` stands out."""
    size = text_size(surface)
    line = round(size * 1.15)
    names = max(font(size).size(name)[0] for name, _ in lines) + size // 2
    width = names + max(font(size).size(value)[0] for _, value in [*lines, ("", "16.0 of 16")]) + size
    _shade(surface, pygame.Rect(size // 2, size // 2, width, line * len(lines) + size * 3 // 4))
    for number, (name, value) in enumerate(lines):
        y = size + number * line
        surface.blit(font(size).render(name, True, DIM), (size, y))
        surface.blit(font(size).render(value, True, ALERT if name == alert else INK), (size + names, y))


def _draw_cap(surface: pygame.Surface, place: pygame.Rect, key: str, acting: bool, held: bool) -> None:
    """Filled: behind the picture on screen. Framed: held at this moment. The time between the two is the latency."""
    _rounded(surface, place, (*INK, 235) if acting else SHADE)
    pygame.draw.rect(surface, ACCENT if held else DIM, place, width=3 if held else 1, border_radius=place.height // 5)
    if key in _ARROWS:
        _arrow(surface, place, key, (20, 21, 26) if acting else INK)
        return
    text = _fitted(key.upper(), round(place.height * 0.75), place.width - 4, (20, 21, 26) if acting else INK)
    surface.blit(text, text.get_rect(center=place.center))


def _arrow(surface: pygame.Surface, place: pygame.Rect, key: str, color: Color) -> None:
    corners = ((0.25, 0), (-0.15, -0.2), (-0.15, 0.2))
    points = [pygame.Vector2(corner).rotate(_ARROWS[key]) * place.height + place.center for corner in corners]
    pygame.draw.polygon(surface, color, points)


def _draw_stick(surface: pygame.Surface, middle: tuple[int, int], radius: int, look: tuple[float, float]) -> None:
    """Where the look of the block on screen points, in a ring of the size of a full deflection."""
    ring = pygame.Surface((radius * 2 + 2, radius * 2 + 2), pygame.SRCALPHA)
    pygame.draw.circle(ring, SHADE, (radius, radius), radius)
    surface.blit(ring, (middle[0] - radius, middle[1] - radius))
    pygame.draw.circle(surface, DIM, middle, radius, width=1)
    pitch, yaw = look
    reach = pygame.Vector2(yaw, -pitch)
    if reach.length() > 1:
        reach.scale_to_length(1)
    point = pygame.Vector2(middle) + reach * radius * 0.75
    pygame.draw.line(surface, ACCENT if reach else DIM, middle, point, width=2)
    pygame.draw.circle(surface, ACCENT if reach else DIM, point, max(3, radius // 6))


def milliseconds(seconds: float | None) -> str:
    return "–" if not seconds else f"{seconds * 1000:.0f} ms"


def spread(durations: Spread) -> str:
    """The last of them, and the median and 99th percentile of the latest."""
    return "–" if durations.last is None else f"{milliseconds(durations.last)}, {percentiles(durations)}"


def percentiles(durations: Spread) -> str:
    """Median and 99th percentile in milliseconds, of one duration at least."""
    return ", ".join(f"p{round(100 * part)} {1000 * durations.below(part):.0f}" for part in (0.5, 0.99))


def _shade(surface: pygame.Surface, box: pygame.Rect) -> None:
    _rounded(surface, box, SHADE, max(4, text_size(surface) // 3))


def _rounded(surface: pygame.Surface, box: pygame.Rect, color: tuple[int, int, int, int], radius: int | None = None) -> None:
    """A filled box with round corners whose colour may be translucent."""
    layer = pygame.Surface(box.size, pygame.SRCALPHA)
    pygame.draw.rect(layer, color, layer.get_rect(), border_radius=box.height // 5 if radius is None else radius)
    surface.blit(layer, box)


def _fitted(words: str, size: int, width: int, color: Color = INK) -> pygame.Surface:
    """The words in one line no wider than ``width``: smaller where needed, cut short where that does not help."""
    for smaller in range(size, 10, -1):
        if font(smaller).size(words)[0] <= width:
            return font(smaller).render(words, True, color)
    while len(words) > 1 and font(11).size(words + "…")[0] > width:
        words = words[:-1]
    return font(11).render(words + "…", True, color)


def _wrap(words: str, face: pygame.font.Font, width: int) -> list[str]:
    lines: list[str] = []
    for word in words.split():
        if lines and face.size(f"{lines[-1]} {word}")[0] <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
