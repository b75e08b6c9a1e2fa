"""Predicted over published milliseconds, a panel for each board, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLORS = {"float32": "#1b6ca8", "float16": "#588157", "int8": "#c8553d"}
COLUMNS, SIDE, MARGIN = 5, 190, 26  # pixels


@dataclass(frozen=True, kw_only=True)
class Point:
    """One published row."""

    name: str
    dtype: str
    published_ms: float
    predicted_ms: float


def draw(panels: Mapping[str, Sequence[Point]]) -> str:
    """Return the drawing: both axes logarithmic, grey lines where it would be 10 % off."""
    height = SIDE * -(-len(panels) // COLUMNS) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{COLUMNS * SIDE}" height="{height}" '
        'font-family="sans-serif" font-size="10">',
        f'<rect width="{COLUMNS * SIDE}" height="{height}" fill="white"/>',
    ]
    x = 8
    for dtype, color in COLORS.items():
        parts.append(f'<text x="{x}" y="14" fill="{color}">{dtype}</text>')
        x += 60
    told = "across: published ms, up: predicted ms, its model left out; grey: 10 % off"
    parts.append(f'<text x="{x}" y="14">{told}</text>')
    for number, (title, points) in enumerate(panels.items()):
        left, top = number % COLUMNS * SIDE, 24 + number // COLUMNS * SIDE
        parts += [f'<g transform="translate({left} {top})">', *panel(title, points), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def panel(title: str, points: Sequence[Point]) -> list[str]:
    """Return the elements of one board's panel."""
    times = [t for p in points for t in (p.published_ms, p.predicted_ms)]
    low, high = min(times) / 1.3, max(times) * 1.3

    def at(ms: float) -> float:
        return MARGIN + (SIDE - MARGIN - 14) * math.log(ms / low) / math.log(high / low)

    bottom = SIDE - MARGIN
    parts = [f'<text x="{MARGIN}" y="10">{escape(title)}</text>']
    for factor, color in ((1.0, "#000"), (1.1, "#bbb"), (1 / 1.1, "#bbb")):
        parts.append(
            f'<line x1="{at(low):.1f}" y1="{SIDE - at(low * factor):.1f}" x2="{at(high):.1f}" '
            f'y2="{SIDE - at(high * factor):.1f}" stroke="{color}"/>'
        )
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        tick, x = 10**power, at(10**power)
        parts.append(f'<text x="{x:.0f}" y="{bottom + 12}" text-anchor="middle">{tick:g}</text>')
        y = SIDE - x + 3
        parts.append(f'<text x="{MARGIN - 2}" y="{y:.0f}" text-anchor="end">{tick:g}</text>')
    for p in points:
        told = f"{p.name}: {p.published_ms:g} ms, predicted {p.predicted_ms:.4g}"
        parts.append(
            f'<circle cx="{at(p.published_ms):.1f}" cy="{SIDE - at(p.predicted_ms):.1f}" r="2.5" '
            f'fill="none" stroke="{COLORS[p.dtype]}"><title>{escape(told)}</title></circle>'
        )
    return parts
