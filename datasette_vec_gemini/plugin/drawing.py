"""The map as an SVG picture: it stands there without any script, and a script draws all points in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi, sin

from ..mapping.palette import CATEGORIES
from ..mapping.plotting import Point

WIDTH, HEIGHT = 800, 560
_MARGIN = 24

SHAPES = (
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "m-3-3h6v6h-6z",
    "m0-4 4 7h-8z",
    "m0-5 4 5-4 5-4-5z",
    "m-1-4h2v3h3v2h-3v3h-2v-3h-3v-2h3z",
    "m0 4 4-7h-8z",
    "m-4-2 2-2 2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2z",
    "m-5-1h10v3h-10z",
    "m-2-2h4v4h-4z",
)
"""A category is known by its shape as well as its colour: SVG paths from the point. The last is that of all others."""

Spot = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """What the template draws: a path for each category that has points, a numbered ring for each hit, the star."""

    width: int
    height: int
    paths: Sequence[tuple[int, str]]
    rings: Sequence[tuple[int, int, int]]
    star: str


def draw(points: Sequence[Point], rings: Mapping[int, Spot], star: Spot | None) -> Drawing:
    """Fit everything into the picture, with one scale for both directions; `rings` has the place of each number."""
    place = _scale([*((point.x, point.y) for point in points), *rings.values(), *([star] if star else [])])
    paths: dict[int, list[str]] = {}
    for point in points:
        x, y = place((point.x, point.y))
        paths.setdefault(point.category, []).append(f"M{x} {y}{shape(point.category)}")
    return Drawing(
        width=WIDTH,
        height=HEIGHT,
        paths=[(category, "".join(parts)) for category, parts in sorted(paths.items())],
        rings=[(*place(spot), number) for number, spot in rings.items()],
        star=_star(*place(star)) if star else "",
    )


def shape(category: int) -> str:
    """The shape of a category's points."""
    return SHAPES[min(category, CATEGORIES)]


def _scale(spots: Sequence[Spot]) -> Callable[[Spot], tuple[int, int]]:
    xs, ys = [x for x, _ in spots] or [0.0], [y for _, y in spots] or [0.0]
    spans = ((max(xs) - min(xs)) / (WIDTH - 2 * _MARGIN), (max(ys) - min(ys)) / (HEIGHT - 2 * _MARGIN))
    unit = max(*spans, 1e-9)
    x0, y0 = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return lambda spot: (round(WIDTH / 2 + (spot[0] - x0) / unit), round(HEIGHT / 2 - (spot[1] - y0) / unit))


def _star(x: int, y: int) -> str:
    """A star of five points."""
    corners = [(x + r * sin(n * pi / 5), y - r * cos(n * pi / 5)) for n in range(10) for r in [13 if n % 2 == 0 else 5]]
    return " ".join(f"{left:.1f},{top:.1f}" for left, top in corners)
