"""Line charts as SVG text: no library, readable in any browser, small enough to keep beside the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from dsv4_mlx.errors import InputError, MachineError

WIDTH, HEIGHT = 720, 320  # of one panel
LEFT, RIGHT, TOP, BOTTOM = 80, 24, 44, 48  # margins
COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706")


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order of x; `spread` (low, high) of each point is drawn as a bar."""

    name: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes. y starts at 0."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]


def check_plot(path: Path | None) -> None:
    """Raises InputError where the drawing could not be written: before the work."""
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"there is no folder {str(path.parent)!r} to draw in", where=path)


def draw(path: Path, panels: Sequence[Panel], note: str) -> None:
    """Write a chart. Raises MachineError."""
    try:
        path.write_text(chart(panels, note), encoding="utf-8")
    except OSError as error:
        raise MachineError(f"the plot can't be written: {error.strerror}", where=path) from None


def chart(panels: Sequence[Panel], note: str) -> str:
    """Panels one below the other, `note` under them. At least one panel with one point each."""
    height = HEIGHT * len(panels) + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#111">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        parts += [f'<g transform="translate(0,{i * HEIGHT})">', *_panel(panel), "</g>"]
    parts += [f'<text x="{LEFT}" y="{height - 10}" fill="#555">{escape(note)}</text>', "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(panel: Panel) -> list[str]:
    points = [point for line in panel.lines for point in line.points]
    tops = [high for line in panel.lines for _, high in line.spread]
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    x1 = x1 if x1 > x0 else x0 + 1
    y_ticks = _ticks(0, max([y for _, y in points] + tops) or 1)
    y1 = y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y / y1 * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = [f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{escape(panel.title)}</text>']
    for tick in y_ticks:
        _, y = at(x0, tick)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{_number(tick)}</text>')
    for tick in (t for t in _ticks(x0, x1) if x0 <= t <= x1):
        x, y = at(tick, 0)
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(panel.x)}</text>')
    turned = f"translate(16,{HEIGHT / 2}) rotate(-90)"
    parts.append(f'<text transform="{turned}" text-anchor="middle">{escape(panel.y)}</text>')
    for i, line in enumerate(panel.lines):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in line.points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(line.points) <= 40:
            dots = [at(*point) for point in line.points]
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in dots]
        for (x_value, _), (low, high) in zip(line.points, line.spread, strict=False):
            (x, a), (_, b) = at(x_value, low), at(x_value, high)
            parts.append(f'<path d="M{x} {a}V{b}M{x - 4} {a}h8M{x - 4} {b}h8" stroke="{colour}"/>')
        parts.append(f'<text x="{LEFT + 150 * i}" y="38" fill="{colour}">{escape(line.name)}</text>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, four to ten of them."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= raw)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"
