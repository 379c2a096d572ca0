"""A forest plot as rows of SVG: a picture a claim, whose lines meet those of its neighbours, and one for the axis.

Places are percent of the width, sizes pixels: text and marks stay as they are, however wide the page is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from jobs.claims.figures import NO_VALUE

INSET = 4.0  # percent of the width on either side that the axis leaves for marks at its ends
REACH = 4.0  # medians of how far claims reach that the axis does; what goes on beyond is an arrow
MARKS = {
    "holds": Markup('<circle r="6"/>'),
    "fails": Markup('<path d="M-5.5-5.5 5.5 5.5M5.5-5.5-5.5 5.5"/>'),
    "undecided": Markup('<circle r="5"/>'),
}
END, BACK, ON = (Markup(f'<path d="{path}"/>') for path in ("M0-4V4", "M7-5-3 0 7 5Z", "M-7-5 3 0-7 5Z"))


@dataclass(frozen=True)
class Line:
    """A claim as it is drawn, in the axis's unit: positive where its first system is better; nan for no value.

    allowed: the differences that the claim counts as none, (0, 0) without a margin. label: what a reader hears of it.
    """

    difference: float
    low: float
    high: float
    verdict: str
    label: str
    allowed: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Axis:
    """From low to high, with ticks in between of which one is 0."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Percent of the width; values beyond the axis lie at its ends."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return INSET + share * (100 - 2 * INSET)

    def holds(self, value: float) -> bool:
        """Whether it lies within."""
        return self.low <= value <= self.high


def axis_of(lines: Sequence[Line]) -> Axis:
    """An axis for these claims: all of them, but for those that reach REACH times as far as the middle one."""
    spans = [known for line in lines if (known := _known(line.difference, line.low, line.high))]
    limit = REACH * float(np.median([max(map(abs, span)) for span in spans])) if spans else 0.0
    limit = limit or max((abs(end) for line in lines for end in line.allowed), default=0.0) or 1.0
    values = [0.0, *(value for span in spans for value in span), *(end for line in lines for end in line.allowed)]
    low, high = max(min(values), -limit), min(max(values), limit)
    beside = (high - low) / 10 or limit  # 0 has room on both sides
    low, high = min(low, -beside), max(high, beside)
    step = _step(high - low)
    ticks = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
    return Axis(low, high, tuple(ticks.tolist()))


def is_cut(line: Line, axis: Axis) -> bool:
    """Whether a claim goes on beyond the axis."""
    return not all(axis.holds(value) for value in _known(line.difference, line.low, line.high))


def picture(line: Line, axis: Axis) -> Markup:
    """The SVG of a claim: what it allows, where 0 is, its interval and its point."""
    parts = _ground(axis)
    behind, ahead = (axis.place(end) for end in line.allowed)
    if ahead > behind:
        parts.insert(0, f'<rect class="allowed" x="{behind:.2f}%" width="{ahead - behind:.2f}%" height="100%"/>')
    if not math.isnan(line.low + line.high):
        left, right = axis.place(line.low), axis.place(line.high)
        parts.append(f'<line class="interval" x1="{left:.2f}%" x2="{right:.2f}%" y1="50%" y2="50%"/>')
        parts += [_at(axis.place(end), "end", END) for end in (line.low, line.high) if axis.holds(end)]
    beyond = [value for value in _known(line.difference, line.low, line.high) if not axis.holds(value)]
    parts += [_at(axis.place(axis.low), "beyond", BACK)] * any(value < axis.low for value in beyond)
    parts += [_at(axis.place(axis.high), "beyond", ON)] * any(value > axis.high for value in beyond)
    if math.isnan(line.difference):
        parts.append(f'<text class="nothing" x="50%" y="50%" dy=".35em" text-anchor="middle">{NO_VALUE}</text>')
    elif axis.holds(line.difference):
        parts.append(_at(axis.place(line.difference), "mark", MARKS[line.verdict]))
    return Markup('<svg class="{}" role="img"><title>{}</title>{}</svg>').format(
        line.verdict, line.label, Markup("".join(parts))
    )


def scale(axis: Axis, unit: str) -> Markup:
    """The SVG of the axis: numbers, their unit, and which side is which."""
    parts = []
    for tick in axis.ticks:
        text = f"{tick:+g}".replace("-", "−") if tick else f"0 {unit}".rstrip()
        parts.append(f'<text x="{axis.place(tick):.2f}%" y="14" text-anchor="middle">{text}</text>')
    parts.append('<text class="side" x="0" y="32">← the first is worse</text>')
    parts.append('<text class="side" x="100%" y="32" text-anchor="end">the first is better →</text>')
    return Markup('<svg class="scale" aria-hidden="true">{}</svg>').format(Markup("".join(parts)))


def key(verdict: str) -> Markup:
    """The mark of a verdict alone, beside its name."""
    return Markup('<svg class="key {}" viewBox="-8 -8 16 16" aria-hidden="true"><g class="mark">{}</g></svg>').format(
        verdict, MARKS[verdict]
    )


def _ground(axis: Axis) -> list[str]:
    """The grid, and 0."""
    return [
        f'<line class="{"grid" if tick else "zero"}" x1="{axis.place(tick):.2f}%" x2="{axis.place(tick):.2f}%" '
        'y1="0" y2="100%"/>'
        for tick in axis.ticks
    ]


def _at(place: float, name: str, drawn: Markup) -> str:
    """A drawing around (0, 0), so that this lies in the middle of the row."""
    return f'<svg class="{name}" x="{place:.2f}%" y="50%" overflow="visible">{drawn}</svg>'


def _known(*values: float) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _step(span: float) -> float:
    """Between ticks: 1, 2, 2.5 or 5 times a power of ten, such that a span has at most six steps."""
    power = 10.0 ** math.floor(math.log10(span / 6))
    return next(times * power for times in (1, 2, 2.5, 5, 10) if times * power * 6 >= span)
