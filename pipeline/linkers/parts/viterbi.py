"""Viterbi's algorithm over the boxes of a video: the best path with a box in every frame, again and again."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@numba.njit(cache=True)
def best_paths(scores: Array, first: Array, first_link: Array, links: Array) -> Array:
    """Paths int64 (K, T), best first: the box of each frame. No box is on two; K is the fewest boxes of any frame.

    A path's worth is the sum over its T - 1 steps from box i to box j of scores[i] + scores[j] + (1 if i is linked to
    j), the linking score of D&T (equations 5 to 7) and of Gkioxari and Malik's action tubes before it. Each path is
    the best one, exactly, of the boxes that the earlier ones left; it ends when a frame has none left. Of equally good
    steps the one from the earlier row is taken.

    scores: float64 (N,), boxes sorted by frame; first: int64 (T + 1,), frame t has the rows first[t]:first[t + 1], at
    least one. Rows of the frame before that are linked to row j: links[first_link[j]:first_link[j + 1]], int64.
    """
    num_frames = len(first) - 1
    num_paths = len(scores)
    for t in range(num_frames):
        num_paths = min(num_paths, first[t + 1] - first[t])
    paths = np.empty((num_paths, num_frames), np.int64)
    free = np.ones(len(scores), np.bool_)
    arriving = np.zeros(len(scores))  # worth of the best path up to a box
    leaving = np.empty(len(scores))  # the same and the box's own share of the step that follows
    previous = np.empty(len(scores), np.int64)
    for path in paths:
        best = -1  # of the frame before: where a box comes from that no link pays for
        for t in range(num_frames):
            best_here = -1
            for j in range(first[t], first[t + 1]):
                if not free[j]:
                    continue
                if t > 0:
                    previous[j], most = best, leaving[best]
                    for i in links[first_link[j] : first_link[j + 1]]:
                        worth = leaving[i] + 1.0
                        if free[i] and (worth > most or (worth == most and i < previous[j])):
                            previous[j], most = i, worth
                    arriving[j] = most + scores[j]
                leaving[j] = arriving[j] + scores[j]
                if best_here < 0 or leaving[j] > leaving[best_here]:
                    best_here = j
            best = best_here
        last = first[num_frames - 1]
        end = -1
        for j in range(last, len(scores)):
            if free[j] and (end < 0 or arriving[j] > arriving[end]):
                end = j
        for t in range(num_frames - 1, -1, -1):
            path[t] = end
            free[end] = False
            end = previous[end]
    return paths
