"""The few pairs of boxes that overlap, out of the many that there are."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Pairs = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]


@numba.njit(cache=True)
def overlapping(first: NDArray[Any], second: NDArray[Any], min_iou: NDArray[np.float64]) -> Pairs:
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
        x1, y1, x2, y2 = first[i]
        area = (x2 - x1) * (y2 - y1)
        for j in order[np.searchsorted(left, x1 - widest) : np.searchsorted(left, x2)]:
            width = min(x2, second[j, 2]) - max(x1, second[j, 0])
            height = min(y2, second[j, 3]) - max(y1, second[j, 1])
            if width <= 0 or height <= 0:
                continue
            shared = width * height
            union = area + (second[j, 2] - second[j, 0]) * (second[j, 3] - second[j, 1]) - shared
            if shared / union >= min_iou[i]:
                rows[count], columns[count], overlaps[count] = i, j, shared / union
                count += 1
    return rows[:count].copy(), columns[:count].copy(), overlaps[:count].copy()
