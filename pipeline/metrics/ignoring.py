"""Ignore regions: what truth leaves open, and so which predictions neither count for nor against a method.

A prediction matched to an ignored box does not count, nor does one that is matched to nothing and lies with more than
half its area in an ignored region: the rule of KITTI and, for distractors without the second half, of MOTChallenge.
"""

from __future__ import annotations

import numpy as np

from pipeline.metrics.pairs import EPSILON, Booleans, Rows, assigned, overlaps, pair

# What a row of truth does (`Rows.kind`).
SCORED = 0
REGION = 1  # excuses predictions matched to it, and unmatched ones that lie in it
DISTRACTOR = 2  # excuses only predictions matched to it
UNSCORED = 3  # takes its part in the matching and excuses nothing
FLAGS = {"distractor": DISTRACTOR, "unscored": UNSCORED}  # of the truth table's `flags`; REGION where neither is set

MIN_IOU = 0.5
MIN_INSIDE = 0.5


def counted(truth: Rows, predicted: Rows) -> Booleans:
    """Which predictions (M,) count in the metrics of identities: all but those that ignored truth excuses.

    Matched are, in each frame, the pairs of IoU >= .5 with the greatest total IoU, over all truth, ignored or not
    (TrackEval 1.3's preprocessing of KITTI and MOTChallenge).
    """
    counts = np.ones(len(predicted), np.bool_)
    if not np.isin(truth.kind, (REGION, DISTRACTOR)).any():
        return counts
    pairs = pair(truth, predicted)
    close = pairs.where(pairs.iou >= MIN_IOU - EPSILON)
    matched = close.where(assigned(close, close.iou))
    excused = np.isin(truth.kind[matched.truth], (REGION, DISTRACTOR))
    counts[matched.predicted[excused]] = False
    free = np.ones(len(predicted), np.bool_)
    free[matched.predicted] = False
    return counts & ~(free & inside(truth, predicted))


def excused(truth: Rows, predicted: Rows) -> Booleans:
    """Which predictions (M,) do not count in AP if they hit nothing: near an ignored box, or inside a region."""
    ignored = truth[np.isin(truth.kind, (REGION, DISTRACTOR))]
    near = np.zeros(len(predicted), np.bool_)
    _, index, iou = overlaps(ignored, predicted)
    near[index[iou >= MIN_IOU]] = True
    return near | inside(truth, predicted)


def inside(truth: Rows, predicted: Rows) -> Booleans:
    """Which predictions (M,) lie with more than half their area in one ignored region of their frame."""
    within = np.zeros(len(predicted), np.bool_)
    _, index, share = overlaps(truth[truth.kind == REGION], predicted, over="prediction")
    within[index[share > MIN_INSIDE + EPSILON]] = True
    return within
