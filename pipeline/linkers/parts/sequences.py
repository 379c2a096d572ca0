"""Chains of linked boxes: the strongest is taken, what it overlaps is removed, and again (Han et al. 2016, section 3).

Arrays in, arrays out. Boxes lie in groups, one a class and frame: group g is boxes first[g] to first[g + 1]. A box
links to boxes of one later group, target[g] (-1: none). So links lead from lower indices to higher ones, and no pair
of boxes of different groups ever suppresses the other: all classes of a video are chosen from at once, with the same
result as one by one.
"""

from __future__ import annotations

import heapq

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.linkers.parts.overlaps import iou_of

FREE, SUPPRESSED = -1, -2  # instead of the number of a sequence

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@numba.njit(cache=True)
def find_links(
    boxes: Floats, first: Ints, target: Ints, expected: Floats, owner: Ints, min_iou: float
) -> tuple[Ints, Ints]:
    """Which boxes of its target group each box links to: those with IoU >= min_iou with where it is expected.

    boxes: (N, 4); first: (G + 1,); target: (G,), above g or -1; expected: (M, 4), places where boxes should be in
    their target groups; owner: (M,), the box that each place is of, rising; a box may have none or several.
    Returns link_first (N + 1,) and links (L,): box i links to links[link_first[i] : link_first[i + 1]].
    """
    link_first = np.zeros(len(boxes) + 1, np.int64)
    links = [0 for _ in range(0)]  # typed, and empty
    group = _group_of(first)
    for place in range(len(expected)):
        following = target[group[owner[place]]]
        if following < 0:
            continue
        for other in range(first[following], first[following + 1]):
            if iou_of(expected, place, boxes, other) >= min_iou:
                links.append(other)
                link_first[owner[place] + 1] += 1
    return np.cumsum(link_first), np.array(links, np.int64)


@numba.njit(cache=True)
def choose(
    boxes: Floats,
    scores: Floats,
    first: Ints,
    target: Ints,
    link_first: Ints,
    links: Ints,
    suppress_iou: float,
    min_sum: float,
) -> Ints:
    """The number (N,), from 0, of the sequence that each box is in; FREE or SUPPRESSED otherwise.

    A sequence is a path along links, of one box or more, with the greatest sum of scores; of equal sums the path
    whose indices come first, as tuples do. Its boxes, and all others of their groups with IoU >= suppress_iou with
    them, take no further part. No sequence's sum is below min_sum. Scores that are NaN or -inf are never chosen.
    """
    sequence = np.full(len(boxes), FREE, np.int64)
    best = np.empty(len(boxes), np.float64)  # greatest sum of a path that begins here
    following = np.empty(len(boxes), np.int64)  # the next box of that path, -1 at its end
    for box in range(len(boxes) - 1, -1, -1):
        best[box], following[box] = _continuation(box, scores, best, link_first, links)

    group = _group_of(first)
    lowered = np.full(len(boxes), -1, np.int64)  # the sequence that last lowered this box's best sum
    touched = np.full(len(target), -1, np.int64)  # the same of any box of the group
    number, begin = 0, 0
    while begin < len(target):
        end, reach = _stretch(begin, target)
        # Best sums only fall. So what a group's greatest was when last looked at is a bound to what it is now, and
        # groups need a look only when theirs is the highest bound: a heap of (-bound, group).
        bounds = [(-np.inf, g) for g in range(begin, end)]
        while len(bounds) > 0:
            g = heapq.heappop(bounds)[1]
            start, greatest = -1, -np.inf
            for box in range(first[g], first[g + 1]):
                if best[box] > greatest:
                    start, greatest = box, best[box]
            if start < 0:
                continue
            heapq.heappush(bounds, (-greatest, g))
            if bounds[0][1] != g:
                continue
            if greatest < min_sum:
                break

            box = last = start
            while box >= 0:
                g, last = group[box], box
                touched[g] = number
                for other in range(first[g], first[g + 1]):
                    if other == box or (sequence[other] == FREE and iou_of(boxes, box, boxes, other) >= suppress_iou):
                        sequence[other] = SUPPRESSED
                        best[other], lowered[other] = -np.inf, number
                sequence[box] = number
                box = following[box]

            # Backwards from the end: boxes whose best path led through a lowered one find their best anew.
            g = group[last]
            lowest = group[start]
            while g >= max(begin, lowest - reach):
                if target[g] >= 0 and touched[target[g]] == number:
                    for box in range(first[g], first[g + 1]):
                        if sequence[box] == FREE and following[box] >= 0 and lowered[following[box]] == number:
                            before = best[box]
                            best[box], following[box] = _continuation(box, scores, best, link_first, links)
                            if best[box] < before:
                                lowered[box] = touched[g] = number
                if touched[g] == number:
                    lowest = min(lowest, g)
                g -= 1
            number += 1
        begin = end
    return sequence


@numba.njit(cache=True)
def _stretch(begin: int, target: Ints) -> tuple[int, int]:
    """End of the groups from `begin` on that links tie together (a class without a gap), and how far links reach."""
    end, reach, furthest = begin, 0, begin
    while end <= furthest:
        reach = max(reach, target[end] - end)
        furthest = max(furthest, target[end])
        end += 1
    return end, reach


@numba.njit(cache=True)
def _continuation(box: int, scores: Floats, best: Floats, link_first: Ints, links: Ints) -> tuple[float, int]:
    """The greatest sum of a path that begins at this box, and its next box (-1: it ends here)."""
    gain, following = 0.0, -1
    for position in range(link_first[box], link_first[box + 1]):
        other = links[position]
        if best[other] > gain or (best[other] == gain and other < following):
            gain, following = best[other], other
    return scores[box] + gain, following


@numba.njit(cache=True)
def _group_of(first: Ints) -> Ints:
    """The group (N,) of each box."""
    group = np.empty(first[-1], np.int64)
    for g in range(len(first) - 1):
        group[first[g] : first[g + 1]] = g
    return group
