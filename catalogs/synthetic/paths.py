"""Where objects go: planned ways, walked at the speed that gives a video the motion it is to have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from catalogs.synthetic.shapes import Double, Look, boxes
from pipeline.boxes import area, clip

SIZE = (128, 160)  # height, width of every frame

_FACTORS = tuple(round(0.012 * 1.09**step, 6) for step in range(50))  # speeds tried, in diameters a frame


@dataclass(frozen=True)
class Plan:
    """An object's way before its speed is known: at frame `when` it is at `where`, and it turns round at walls.

    heading: unit vector; pace: relative speed; sway: ratio and period of its swinging; gap: frames it spends out
    of sight once it has reached `where`, which then lies just outside; partner: the object whose centre it shares
    for `hold` frames either side of `when`.
    """

    look: Look
    scale: Double
    angle: Double
    heading: tuple[float, float]
    pace: float
    when: float
    where: tuple[float, float]
    sway: tuple[float, float]
    gap: float = 0.0
    partner: int = -1
    hold: float = 0.0
    lookalike: bool = False


def walk(plans: list[Plan], target: float, shake: Double) -> list[Double]:
    """The centers (T, 2) of all plans, at the common speed whose mean consecutive IoU is nearest to the target.

    shake: (T, 2), what the camera's jitter adds to every position. Positions are multiples of 1/64 pixel.
    """
    tried = [
        [np.round((center + shake) * 64) / 64 for center in _centers(plans, factor, len(shake))] for factor in _FACTORS
    ]
    return min(tried, key=lambda centers: abs(_consecutive_iou(plans, centers) - target))


def _centers(plans: list[Plan], factor: float, num_frames: int) -> list[Double]:
    centers: list[Double] = []
    for plan in plans:
        since = np.arange(num_frames) - plan.when
        step = factor * plan.pace * plan.look.diameter  # pixels a frame
        ahead = np.array(plan.heading)
        beside = np.array([-plan.heading[1], plan.heading[0]])
        if plan.partner >= 0:
            parted = np.sign(since) * np.maximum(np.abs(since) - plan.hold, 0)
            way = centers[plan.partner] + 0.6 * step * parted[:, None] * ahead
        else:
            ratio, period = plan.sway
            swing = ratio * step * period / (2 * math.pi) * np.sin(since * (2 * math.pi / period))
            way = np.array(plan.where) + (step * since)[:, None] * ahead + swing[:, None] * beside
        low, high = _walls(plans, plan, step)
        room = high - low
        centers.append(low + room - np.abs((way - low) % (2 * room) - room))
    return centers


def _walls(plans: list[Plan], plan: Plan, step: float) -> tuple[Double, Double]:
    """Lowest and highest (2,) centers of an object: it turns round there, mostly before it touches the border.

    Partners share their walls, or these would part them; one that leaves has a wall so far outside that it is gone
    for `gap` frames.
    """
    frame = np.array(SIZE[::-1], np.float64)
    leader = plan.partner if plan.partner >= 0 else plans.index(plan)
    family = [other.look for place, other in enumerate(plans) if leader in (place, other.partner)]
    reach = 0.85 * np.array([max(look.half[axis] for look in family) for axis in (0, 1)])
    low, high = reach, frame - reach
    if plan.gap:
        beyond = plan.where[0] + plan.heading[0] * step * plan.gap / 2
        low[0], high[0] = (low[0], beyond) if beyond > frame[0] else (beyond, high[0])
    return low, high


def _consecutive_iou(plans: list[Plan], centers: list[Double]) -> float:
    """Mean IoU of each object's boxes, cut at the frame, in neighbouring frames; over all where it is seen."""
    values = []
    for plan, center in zip(plans, centers, strict=True):
        whole = boxes(plan.look, center, plan.scale, plan.angle)
        inside = clip(whole, SIZE)
        seen = area(inside) > 0.3 * area(whole)
        values.append(consecutive_iou(inside)[seen[:-1] & seen[1:]])
    seen_pairs = np.concatenate(values)
    return round(float(seen_pairs.mean()), 6) if len(seen_pairs) else 1.0


def consecutive_iou(track: Double) -> Double:
    """IoU (T - 1,) of each box of a track (T, 4) with the next."""
    before, after = track[:-1], track[1:]
    low = np.maximum(before[:, :2], after[:, :2])
    high = np.minimum(before[:, 2:], after[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    return shared / np.maximum(area(before) + area(after) - shared, 1e-9)
