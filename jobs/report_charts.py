"""Charts as small SVG that takes the page's colours and fonts, light or dark (`.chart` in the style sheet)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 38
MAX_POINTS = 160  # of a curve; more cannot be seen

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A line through points (K,), (K,); kind: its class in the style sheet; is_filled: with the area below it."""

    name: str
    x: Floats
    y: Floats
    kind: str = "first"
    is_filled: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two lines through points (K,), from (K,) to (K,); kind: its class in the style sheet."""

    x: Floats
    low: Floats
    high: Floats
    kind: str = "first"


@dataclass(frozen=True)
class Bars:
    """Heights (K,) of a histogram's bars, stacked on those before; kind: their class in the style sheet."""

    name: str
    heights: Floats
    kind: str = "first"


def curves(given: Sequence[Curve], x_label: str, y_label: str) -> Markup:
    """Curves over the unit square."""
    parts = [_axes((0.0, 1.0), (0.0, 1.0), x_label, y_label, _unit)]
    for curve in given:
        x, y = _thinned(curve.x, curve.y)
        points = " ".join(f"{_x(a, 0, 1):.1f},{_y(b, 1):.1f}" for a, b in zip(x, y, strict=True))
        if curve.is_filled and len(x):
            base = f"{_y(0, 1):.1f}"
            parts.append(
                Markup('<polygon class="area {}" points="{},{} {} {},{}"/>').format(
                    curve.kind, f"{_x(x[0], 0, 1):.1f}", base, points, f"{_x(x[-1], 0, 1):.1f}", base
                )
            )
        parts.append(
            Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>').format(
                curve.kind, points, curve.name
            )
        )
    return _svg(parts, f"{y_label} against {x_label}")


def lines(given: Sequence[Curve], title: str, x_label: str, bands: Sequence[Band] = ()) -> Markup:
    """Curves over axes that hold all of them; bands are cut where those end. Points that are NaN are left out.

    title: for who cannot see it; a heading beside the chart says what is drawn.
    """
    drawn = [
        Curve(curve.name, *_thinned(curve.x[known], curve.y[known]), curve.kind)
        for curve in given
        if (known := np.isfinite(curve.y)).any()
    ]
    x, y = (np.concatenate([np.zeros(1), *(getattr(curve, axis) for curve in drawn)]) for axis in "xy")
    right, high = float(x.max()) or 1.0, _round_up(float(y.max())) or 1.0
    low = -max(_round_up(-float(y.min())), high / 4) if y.min() < 0 else 0.0  # room for its number below that of 0
    parts = [_axes((0.0, right), (low, high), x_label, "", _short)]
    for band in bands:
        known = np.isfinite(band.low) & np.isfinite(band.high)
        edge = [*zip(band.x[known], band.high[known], strict=True)]
        edge += [*zip(band.x[known], band.low[known], strict=True)][::-1]
        points = " ".join(f"{_x(a, 0, right):.1f},{_y(min(max(b, low), high), high, low):.1f}" for a, b in edge)
        parts.append(Markup('<polygon class="area {}" points="{}"/>').format(band.kind, points))
    for curve in drawn:
        points = " ".join(
            f"{_x(a, 0, right):.1f},{_y(b, high, low):.1f}" for a, b in zip(curve.x, curve.y, strict=True)
        )
        mark = Markup("<title>{}</title>").format(f"{curve.name}: {_short(curve.y[-1])} at {_short(curve.x[-1])}")
        if len(curve.x) == 1:  # a line of one point would not be seen
            dot = 'class="dot {}" cx="{}" cy="{}" r="3"'.format(curve.kind, *points.split(","))
            parts.append(Markup(f"<circle {dot}>") + mark + Markup("</circle>"))
        else:
            parts.append(Markup('<polyline class="line {}" points="{}">{}</polyline>').format(curve.kind, points, mark))
    return _svg(parts, title)


def histogram(given: Sequence[Bars], edges: Floats, x_label: str, y_label: str) -> Markup:
    """Stacked bars between edges (K + 1,)."""
    low, high = float(edges[0]), float(edges[-1])
    total = np.sum([bars.heights for bars in given], axis=0)
    top = _round_up(float(total.max(initial=1)))
    parts = [_axes((low, high), (0.0, top), x_label, y_label, _number)]
    base = np.zeros(len(total))
    for bars in given:
        for index, height in enumerate(bars.heights):
            if height:
                left, right = _x(edges[index], low, high), _x(edges[index + 1], low, high)
                above, below = _y(base[index] + height, top), _y(base[index], top)
                place = f'x="{left + 0.5:.1f}" y="{above:.1f}" width="{max(right - left - 1, 0.6):.1f}"'
                title = f"{bars.name}: {height:,.0f} from {_number(edges[index])} to {_number(edges[index + 1])}"
                parts.append(
                    Markup(f'<rect class="bar {bars.kind}" {place} height="{max(below - above, 0.6):.1f}">')
                    + Markup("<title>{}</title></rect>").format(title)
                )
        base = base + bars.heights
    return _svg(parts, f"{y_label} by {x_label}")


def _svg(parts: Sequence[Markup], title: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(parts)
    )


def _axes(
    x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str, number: Callable[[float], str]
) -> Markup:
    """Grid lines, their numbers, and what the axes are."""
    right, middle = WIDTH - RIGHT, (TOP + HEIGHT - BOTTOM) / 2
    parts = []
    for value in (y[0], 0.0, y[1]) if y[0] < 0 else np.linspace(*y, 5 if y == (0.0, 1.0) else 3):
        height = _y(value, y[1], y[0])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_text(number(value), f'x="{LEFT - 6}" y="{height + 3.5:.1f}" text-anchor="end"'))
    for value in np.linspace(*x, 5):
        parts.append(_text(number(value), f'x="{_x(value, *x):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle"'))
    named = 'class="label" text-anchor="middle"'
    parts.append(_text(x_label, f'{named} x="{(LEFT + right) / 2}" y="{HEIGHT - 5}"'))
    parts.append(_text(y_label, f'{named} transform="translate(11 {middle}) rotate(-90)"'))
    return Markup("".join(parts))


def _text(text: str, where: str) -> str:
    return f"<text {where}>{escape(text)}</text>"


def _x(value: float, low: float, high: float) -> float:
    return float(LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT))


def _y(value: float, high: float, low: float = 0) -> float:
    return float(HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM))


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most MAX_POINTS of the points, evenly along x, ends kept."""
    if len(x) <= MAX_POINTS:
        return x, y
    steps = np.linspace(x[0], x[-1], MAX_POINTS)
    chosen = np.unique([0, *np.clip(np.searchsorted(x, steps), 0, len(x) - 1), len(x) - 1])
    return x[chosen], y[chosen]


def _round_up(value: float) -> float:
    """The next number of one digit and zeros that halves well; 0 for what is not above it."""
    if value <= 0:
        return 0.0
    power = 10 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 2, 4, 6, 8, 10, 20) if step * power >= value))


def _unit(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if 0 < value < 1 else f"{value:.0f}"


def _number(value: float) -> str:
    """Short: 12k for 12,000, .25 for 0.25."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    text = f"{value:,.0f}" if abs(value) >= 10 or float(value).is_integer() else f"{value:.2f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def _short(value: float) -> str:
    """Three digits, however large or small: 12k for 12,000, .0025 for 0.0025, 3e-05."""
    if abs(value) >= 1000:
        return _number(value) if abs(value) >= 10_000 else f"{value:,.0f}"
    return f"{value:.3g}".replace("0.", ".", 1) if 0 < abs(value) < 1 else f"{value:.3g}"
