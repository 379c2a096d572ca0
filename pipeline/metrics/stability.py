"""Stability of tracks: how steadily a trajectory is found, and how steadily its boxes sit.

The three errors are those of Zhang and Wang, "On the Stability of Video Detection and Tracking" (arXiv:1611.06467,
section 3.2), for one trajectory of the truth and the boxes found for it:
- fragment: how often being found or not changes between its boxes, over the number of its boxes less one; 0 for one;
- center: std((x_p - x_t) / w_t) + std((y_p - y_t) / h_t) of the centers, over the frames where it is found;
- aspect: std(sqrt(w_p h_p / (w_t h_t))) + std((w_p / h_p) / (w_t / h_t)) over these frames.

Which boxes those are follows Zhang et al., "Integrated Object Detection and Tracking with Tracklet-Conditioned
Detection" (appendix A2): at each temporal threshold of mAP_track every track whose highest temporal IoU reaches it is
assigned to that trajectory, and a trajectory's best match is the most confident track assigned to it.
Errors are averaged over all best matches of all thresholds together, whatever their class: a match that passes three
thresholds weighs three times, and trajectories without a match do not count, so a method that also tracks what is hard
may look less steady. Temporal IoU, confidence, ignored truth and the motion groups are those of `metrics.tracks`.

The deviations are of the population (divided by n, not n - 1), as in the public evaluation of these errors beside
Flow-Guided Feature Aggregation; a single frame deviates by 0.
"""

from __future__ import annotations

import numpy as np

from pipeline.metrics.counts import Counts, ratio
from pipeline.metrics.ignoring import SCORED
from pipeline.metrics.motion import GROUPS
from pipeline.metrics.pairs import Floats, Ints, Rows
from pipeline.metrics.tracks import THRESHOLDS, Agreement, compare

NEEDS_IDS = True
OF_PAIRS = False
OVER_CLASSES = "sum"
JOINED: tuple[str, ...] = ()
ERRORS = ("fragment", "center", "aspect")
FIELDS = tuple(
    f"{error}_error{group}" for group in ("", *(f"_{group}" for group in GROUPS)) for error in (*ERRORS, "stability")
)


def count(truth: Rows, predicted: Rows, tolerance: float = 0.0) -> Counts:
    """Counts of one video and class, each by motion group (4,), trajectories of none last.

    num_best_matches: over all thresholds; fragment, center, aspect: the sums of their errors.
    tolerance: pixels that small boxes are forgiven, see `detection.count_all`.
    """
    if not (truth.kind == SCORED).any():  # so it is with most classes of most videos
        return {name: np.zeros(len(GROUPS) + 1) for name in ("num_best_matches", *ERRORS)}
    found = compare(truth, predicted, tolerance)
    best = np.concatenate([_best_matches(found, threshold) for threshold in THRESHOLDS.values()])
    group = found.groups()[found.trajectory[best]]
    values = {
        "num_best_matches": np.ones(len(found.track)),
        "fragment": _fragment_errors(found),
        **_spread_of_boxes(found),
    }
    return {
        name: np.bincount(group, value[best], minlength=len(GROUPS) + 1).astype(np.float64)
        for name, value in values.items()
    }


def scores(counts: Counts) -> dict[str, float]:
    """Mean errors over all best matches and over those of each group, and their sum; at least 0, nan without any."""
    found: dict[str, float] = {}
    for suffix, chosen in [("", slice(None)), *((f"_{name}", slice(i, i + 1)) for i, name in enumerate(GROUPS))]:
        number = float(counts["num_best_matches"][chosen].sum())
        errors = {error: ratio(float(counts[error][chosen].sum()), number) for error in ERRORS}
        found.update((f"{error}_error{suffix}", value) for error, value in errors.items())
        found[f"stability_error{suffix}"] = sum(errors.values())
    return found


def _best_matches(found: Agreement, threshold: float) -> Ints:
    """Which agreements are those of trajectories with their best matches: at most one of each trajectory."""
    positive = found.closest()
    positive = positive[found.tiou[positive] >= threshold]
    track = found.track[positive]
    best_first = positive[np.lexsort((track, -found.score[track]))]
    return best_first[np.unique(found.trajectory[best_first], return_index=True)[1]]


def _fragment_errors(found: Agreement) -> Floats:
    """The fragment error (K,) of each agreement."""
    truth_id = found.close.truth_id
    length = np.bincount(truth_id)
    order = np.argsort(truth_id, kind="stable")  # by trajectory, then frame
    position = np.empty(len(order), np.int64)  # of each box in its trajectory
    position[order] = np.arange(len(order)) - np.repeat(np.cumsum(length) - length, length)

    order = np.argsort(found.agreeing, kind="stable")
    agreeing, at = found.agreeing[order], position[found.close.truth[order]]
    starts = (np.diff(agreeing, prepend=-1) != 0) | (np.diff(at, prepend=-1) != 1)
    runs = np.bincount(agreeing[starts])  # (K,) stretches in which the trajectory is found
    last = length[found.trajectory] - 1
    begins = np.bincount(agreeing[at == 0], minlength=len(runs))  # 1 if it is found from its first box on
    ends = np.bincount(agreeing[at == last[agreeing]], minlength=len(runs))
    return (2 * runs - begins - ends) / np.maximum(last, 1)


def _spread_of_boxes(found: Agreement) -> dict[str, Floats]:
    """The center and aspect errors (K,) of each agreement."""
    true = found.truth.boxes[found.close.truth]
    predicted = found.predicted.boxes[found.close.predicted]
    true_size, size = true[:, 2:] - true[:, :2], predicted[:, 2:] - predicted[:, :2]  # (P, 2) width, height
    offset = ((predicted[:, :2] + predicted[:, 2:]) - (true[:, :2] + true[:, 2:])) / 2 / true_size
    scale = np.sqrt(size.prod(axis=1) / true_size.prod(axis=1))
    ratio_of_ratios = (size[:, 0] / size[:, 1]) / (true_size[:, 0] / true_size[:, 1])
    x, y, scale, aspect = (
        _deviation(values, found.agreeing) for values in (offset[:, 0], offset[:, 1], scale, ratio_of_ratios)
    )
    return {"center": x + y, "aspect": scale + aspect}


def _deviation(values: Floats, owner: Ints) -> Floats:
    """The standard deviation (K,) of the values (P,) of each owner."""
    number = np.bincount(owner)
    mean = np.bincount(owner, values) / number
    deviation: Floats = np.sqrt(np.bincount(owner, (values - mean[owner]) ** 2) / number)
    return deviation
