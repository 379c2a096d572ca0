"""The looks of things: silhouettes, which tell individuals apart, and patterns, which say the class.

Both are functions of a thing's own coordinates in pixels, u to its right and v downwards, origin at its centre.
Only additions, products, quotients, square roots and rounding touch pixels: IEEE arithmetic does these alike on
every machine, which is what the dataset's digests rest on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]  # float32 in pixels, float64 elsewhere
Double = NDArray[np.float64]
Colour = tuple[float, float, float]

CLASSES = ("stripes", "checker", "cross", "ring", "dots", "chevron")
PLAIN = -1  # the label of a thing without a pattern: occluders and clutter

# Corners of convex polygons that fill [-1, 1] x [-1, 1], clockwise as seen on the screen.
_CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "rectangle": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 1), (-1, 1)),
    "diamond": ((0, -1), (1, 0), (0, 1), (-1, 0)),
    "pentagon": ((0, -1), (1, -0.25), (0.625, 1), (-0.625, 1), (-1, -0.25)),
    "hexagon": ((-0.5, -1), (0.5, -1), (1, 0), (0.5, 1), (-0.5, 1), (-1, 0)),
}
SILHOUETTES = ("ellipse", *_CORNERS)


@dataclass(frozen=True)
class Look:
    """What a thing looks like, whatever the frame.

    label: index into CLASSES, or PLAIN; half: half width and half height of the upright silhouette in pixels;
    ground, ink: RGB in [0, 255] of the surface and of the pattern on it; period: of the pattern in pixels;
    tilt: cosine and sine of the pattern's angle; phase: of repeating patterns, in periods; rim: how much darker
    the outline is, in [0, 1].
    """

    label: int
    silhouette: str
    half: tuple[float, float]
    ground: Colour
    ink: Colour = (0.0, 0.0, 0.0)
    period: float = 8.0
    tilt: tuple[float, float] = (1.0, 0.0)
    phase: tuple[float, float] = (0.0, 0.0)
    rim: float = 0.0

    @property
    def diameter(self) -> float:
        """Geometric mean of width and height, in pixels."""
        return 2.0 * math.sqrt(self.half[0] * self.half[1])

    @property
    def area(self) -> float:
        """Area of the silhouette in square pixels."""
        a, b = self.half
        if self.silhouette == "ellipse":
            return math.pi * a * b
        corners = _CORNERS[self.silhouette]
        following = corners[1:] + corners[:1]
        return a * b * sum(x * q - p * y for (x, y), (p, q) in zip(corners, following, strict=True)) / 2


def boxes(look: Look, center: Double, scale: Double, angle: Double) -> Double:
    """Tight boxes (T, 4) of a silhouette at centers (T, 2), enlarged by scale (T,), turned by angle (T,) radians."""
    a, b = look.half
    cosine, sine = turns(angle)
    if look.silhouette == "ellipse":
        x = np.sqrt((a * cosine) ** 2 + (b * sine) ** 2)
        y = np.sqrt((a * sine) ** 2 + (b * cosine) ** 2)
        low, high = np.stack([-x, -y], 1), np.stack([x, y], 1)
    else:
        u, v = np.array(_CORNERS[look.silhouette]).T * np.array([[a], [b]])
        x = cosine[:, None] * u - sine[:, None] * v  # (T, corners)
        y = sine[:, None] * u + cosine[:, None] * v
        low, high = np.stack([x.min(1), y.min(1)], 1), np.stack([x.max(1), y.max(1)], 1)
    return np.concatenate([center + low * scale[:, None], center + high * scale[:, None]], 1)


def turns(angle: Double) -> tuple[Double, Double]:
    """Cosine and sine, on a grid of 1/4096: libraries differ in the last bit, and pixels must not."""
    return np.round(np.cos(angle) * 4096) / 4096, np.round(np.sin(angle) * 4096) / 4096


def distance(look: Look, u: Float, v: Float) -> Float:
    """Signed distance in pixels to the silhouette's outline, negative inside; of first order for the ellipse."""
    a, b = look.half
    if look.silhouette == "ellipse":
        radius = np.sqrt((u / a) ** 2 + (v / b) ** 2)
        slope = np.sqrt((u / (a * a)) ** 2 + (v / (b * b)) ** 2)
        return (radius - 1) * radius / (slope + 1e-6)
    corners = [(x * a, y * b) for x, y in _CORNERS[look.silhouette]]
    farthest: Float | None = None
    for (x, y), (p, q) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.sqrt((p - x) ** 2 + (q - y) ** 2)
        outward = (u - x) * ((q - y) / length) - (v - y) * ((p - x) / length)
        farthest = outward if farthest is None else np.maximum(farthest, outward)
    assert farthest is not None
    return farthest


def ink(look: Look, u: Float, v: Float) -> Float:
    """How much of the pattern's ink lies on each point, in [0, 1], with edges one pixel soft."""
    across = look.tilt[0] * u + look.tilt[1] * v
    along = look.tilt[0] * v - look.tilt[1] * u
    period, (shift, slip) = look.period, look.phase
    narrow = min(look.half)
    name = "plain" if look.label == PLAIN else CLASSES[look.label]
    if name == "stripes":
        edge = _wave(across / period + shift) * (period / 4)
    elif name == "checker":
        edge = _wave(across / period + shift) * _wave(along / period + slip) * (period / 4)
    elif name == "chevron":
        edge = _wave((across + np.abs(along)) / period + shift) * (period / 4)
    elif name == "dots":
        x, y = across / period + shift, along / period + slip
        edge = (0.28 - np.sqrt((x - np.round(x)) ** 2 + (y - np.round(y)) ** 2)) * period
    elif name == "cross":  # one, as long as the silhouette
        edge = 0.36 * period - np.minimum(np.abs(across), np.abs(along))
    elif name == "ring":  # one, round, as large as the narrower side allows
        edge = 0.17 * narrow - np.abs(np.sqrt(u * u + v * v) - 0.56 * narrow)
    else:
        return np.zeros_like(u)
    return np.clip(edge + 0.5, 0, 1)


def _wave(x: Float) -> Float:
    """A triangle wave of period 1 between -1 and 1."""
    return 4 * np.abs(x - np.floor(x) - 0.5) - 1
