"""Average precision of one ranking of predictions under many weightings of its videos, as resampling asks for it.

The area is that of `detection.average_precision`, of predictions of which each occurs as often as its video is drawn.
The ranking is sorted once; that no weighting changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from pipeline.metrics.counts import Counts
from pipeline.metrics.pairs import Booleans, Floats, Ints


class Ranking:
    """The predictions of a class in several videos, best first.

    score (M,): of each prediction. video (M,): the column of weights that it belongs to. weights (R, V): how often
    each video occurs in each resampling, at least 0.
    """

    def __init__(self, score: Floats, video: Ints, weights: Floats) -> None:
        self.order = np.argsort(-score, kind="stable")
        self.is_last = np.diff(score[self.order], append=np.nan) != 0  # of a run of equal scores: they enter together
        self.video = video[self.order]
        self.weights = weights

    @classmethod
    def of(cls, parts: Sequence[Counts], columns: Sequence[int], weights: Floats) -> Ranking:
        """The ranking of what each video counted in one class; columns: those of weights that are the videos'."""
        lengths = [len(part["score"]) for part in parts]
        return cls(np.concatenate([part["score"] for part in parts]), np.repeat(columns, lengths), weights)

    def average_precision(
        self, hit: Floats | Booleans, false: Floats, num_truth: Floats, unknown: Floats | None = None
    ) -> Floats:
        """Areas (R,) under the interpolated curves, nan without truth.

        hit, false (M,), in the order of score: how much each prediction counts as true and as false; 0 both where it
        is not of this curve. num_truth (R,). unknown (R,): what nan in false stands for.
        """
        if unknown is None:
            unknown = np.zeros(len(self.weights))
        return _areas(
            hit[self.order].astype(np.float64),
            false[self.order].astype(np.float64),
            self.is_last,
            self.video,
            np.ascontiguousarray(self.weights, np.float64),
            np.ascontiguousarray(num_truth),
            np.ascontiguousarray(unknown),
        )


@numba.njit(cache=True)
def _areas(
    hit: Floats,
    false: Floats,
    is_last: Booleans,
    video: Ints,
    weights: Floats,
    num_truth: Floats,
    unknown: Floats,
) -> Floats:
    """See `Ranking`; hit, false, is_last, video (M,): best first."""
    areas = np.full(len(weights), np.nan)
    found = np.zeros(len(hit))  # true ones up to each score at which there are more
    precision = np.zeros(len(hit))
    for draw in range(len(weights)):
        if not num_truth[draw] > 0:  # 0 or nan
            continue
        true, wrong, points = 0.0, 0.0, 0
        for row in range(len(hit)):
            weight = weights[draw, video[row]]
            true += weight * hit[row]
            wrong += weight * (unknown[draw] if np.isnan(false[row]) else false[row])
            # Where no true one is added precision only falls: such points are under the curve.
            if is_last[row] and true > (found[points - 1] if points else 0.0):
                found[points] = true
                precision[points] = true / (true + wrong)
                points += 1
        area, best = 0.0, 0.0
        for point in range(points - 1, -1, -1):
            best = max(best, precision[point])  # at this recall or a higher one
            area += best * (found[point] - (found[point - 1] if point else 0.0))
        areas[draw] = area / num_truth[draw]
    return areas
