"""How much boxes overlap: of all pairs, or of the few that do, out of the many that there are."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pairs = tuple[NDArray[np.intp], NDArray[np.intp], Floats]


@numba.njit(cache=True)
def iou_of(first: Floats, i: int, second: Floats, j: int) -> float:
    """Intersection over union of first[i] and second[j], of (N, 4) and (M, 4) xyxy; 0 for a box that is turned over.

    Compiled into its callers: the cache of one in another file (`sequences`) does not notice a change here.
    """
    width = min(first[i, 2], second[j, 2]) - max(first[i, 0], second[j, 0])
    if not width > 0:
        return 0.0
    height = min(first[i, 3], second[j, 3]) - max(first[i, 1], second[j, 1])
    if not height > 0:
        return 0.0
    shared = width * height
    area = (first[i, 2] - first[i, 0]) * (first[i, 3] - first[i, 1])
    other_area = (second[j, 2] - second[j, 0]) * (second[j, 3] - second[j, 1])
    return shared / (area + other_area - shared)


@numba.njit(cache=True)
def iou(first: Floats, second: Floats) -> Floats:
    """`pipeline.boxes.iou` (N, M) of (N, 4) with (M, 4), without its intermediates."""
    overlap = np.empty((len(first), len(second)))
    for i in range(len(first)):
        for j in range(len(second)):
            overlap[i, j] = iou_of(first, i, second, j)
    return overlap


@numba.njit(cache=True)
def overlapping(first: NDArray[Any], second: NDArray[Any], min_iou: Floats) -> Pairs:
    """Pairs of boxes that overlap enough: rows (K,) of first, rising, rows (K,) of second, and their IoU (K,).

    first, second: float64 (N, 4), (M, 4) xyxy; min_iou: (N,), from 0 to 1. Boxes without any overlap are no pair,
    whatever min_iou. A box is held against those only whose left sides lie where an overlap could begin.
    """
    order = np.argsort(second[:, 0])
    left = second[order, 0]
    widest = (second[:, 2] - second[:, 0]).max() if len(second) else 0.0
    room = len(first) * len(second)  # what is not written to costs nothing
    rows, columns, overlaps = np.empty(room, np.intp), np.empty(room, np.intp), np.empty(room)
    count = 0
    for i in range(len(first)):
        for j in order[np.searchsorted(left, first[i, 0] - widest) : np.searchsorted(left, first[i, 2])]:
            overlap = iou_of(first, i, second, j)
            if overlap > 0 and overlap >= min_iou[i]:
                rows[count], columns[count], overlaps[count] = i, j, overlap
                count += 1
    return rows[:count].copy(), columns[:count].copy(), overlaps[:count].copy()
