"""CLEAR MOT as TrackEval 1.3 counts it, which is not as py-motmetrics does (`clear`).

Only pairs of the previous frame are preferred, and all are assigned at once by the greatest total IoU; an object is
mostly tracked above .8, not from .8 on; MOTP is the mean IoU, greater is better. Names are TrackEval's after `CLR_`;
IDSW is nobody else's. CLR_Frames and FP_per_frame are left out: they count frames in which there is nothing, too.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.metrics.clear import MIN_IOU, previous
from pipeline.metrics.counts import Counts
from pipeline.metrics.pairs import EPSILON, Booleans, Ints, Pairs, assign, frame_slices

NEEDS_IDS = True
OF_PAIRS = True
OVER_CLASSES = "sum"
JOINED: tuple[str, ...] = ()
NUMBERS = ("IDSW", "CLR_TP", "CLR_FN", "CLR_FP", "CLR_MT", "CLR_PT", "CLR_ML", "CLR_Frag")
RATIOS = (
    "CLR_MOTA",
    "CLR_MOTP",
    "CLR_MODA",
    "CLR_sMOTA",
    "CLR_MOTAL",
    "CLR_Re",
    "CLR_Pr",
    "CLR_F1",
    "CLR_MTR",
    "CLR_PTR",
    "CLR_MLR",
)
FIELDS = (*RATIOS, *NUMBERS)


def count(pairs: Pairs) -> Counts:
    """Counts of one video and class, each a number; `iou` is the sum over matched pairs."""
    matched = pairs.where(matched_by_trackeval(pairs))
    truth, predicted = matched.truth_id[matched.truth], matched.predicted_id[matched.predicted]
    before = previous(truth, predicted)  # what each object was matched to last, -1 if never
    step = _steps(matched)
    seen = previous(truth, step)
    present = np.bincount(pairs.truth_id, minlength=pairs.num_truth_ids)
    tracked = np.bincount(truth, minlength=pairs.num_truth_ids) / present
    values = {
        "IDSW": ((before >= 0) & (before != predicted)).sum(),
        "CLR_TP": len(truth),
        "CLR_FN": len(pairs.truth_frame) - len(truth),
        "CLR_FP": len(pairs.predicted_frame) - len(truth),
        "CLR_MT": (tracked > 0.8).sum(),
        "CLR_PT": ((tracked >= 0.2) & (tracked <= 0.8)).sum(),
        "CLR_ML": (tracked < 0.2).sum(),
        "CLR_Frag": ((seen >= 0) & (step - seen > 1)).sum(),
        "iou": matched.iou.sum(),
    }
    return {name: np.array(value, np.float64) for name, value in values.items()}


def scores(counts: Counts) -> dict[str, float]:
    """The scores of counts; ratios are nan where there is neither truth nor prediction.

    As in TrackEval nothing is divided by less than 1: without truth MOTA is minus the number of false positives.
    """
    numbers = {name: float(counts[name]) for name in NUMBERS}
    switches, tp, fn, fp, mostly_tracked, partly_tracked, mostly_lost, _ = numbers.values()
    if not tp + fn + fp:
        return {**dict.fromkeys(RATIOS, math.nan), **numbers}
    objects, truth = max(1.0, mostly_tracked + partly_tracked + mostly_lost), max(1.0, tp + fn)
    ratios = {
        "CLR_MOTA": (tp - fp - switches) / truth,
        "CLR_MOTP": float(counts["iou"]) / max(1.0, tp),
        "CLR_MODA": (tp - fp) / truth,
        "CLR_sMOTA": (float(counts["iou"]) - fp - switches) / truth,
        "CLR_MOTAL": (tp - fp - math.log10(max(1.0, switches))) / truth,
        "CLR_Re": tp / truth,
        "CLR_Pr": tp / max(1.0, tp + fp),
        "CLR_F1": tp / max(1.0, tp + fn / 2 + fp / 2),
        "CLR_MTR": mostly_tracked / objects,
        "CLR_PTR": partly_tracked / objects,
        "CLR_MLR": mostly_lost / objects,
    }
    return {**ratios, **numbers}


def matched_by_trackeval(pairs: Pairs) -> Booleans:
    """Which pairs (P,) are matched: of IoU >= .5, those of the previous frame first, then the greatest total IoU."""
    is_close = pairs.iou >= MIN_IOU - EPSILON
    close = pairs.where(is_close)
    matched = np.zeros(len(close.truth), np.bool_)
    last = [(-1, -1)] * close.num_truth_ids  # prediction and step of each object's last match
    truth, predicted = close.truth_id[close.truth].tolist(), close.predicted_id[close.predicted].tolist()
    steps = _steps(close).tolist()
    slices, competing = frame_slices(close)
    for span, is_competing in zip(slices, competing.tolist(), strict=True):
        taken, step = list(range(span.start, span.stop)), steps[span.start]
        if is_competing:
            continues = np.array([last[truth[i]] == (predicted[i], step - 1) for i in taken])
            weight = 1000.0 * continues + close.iou[span]
            taken = (span.start + assign(close.truth[span], close.predicted[span], weight)).tolist()
        for i in taken:
            matched[i] = True
            last[truth[i]] = predicted[i], step
    chosen = np.zeros(len(is_close), np.bool_)
    chosen[is_close] = matched
    return chosen


def _steps(pairs: Pairs) -> Ints:
    """The step of each pair (P,): "the previous frame" is the last one that had both truth and predictions."""
    return np.searchsorted(np.intersect1d(pairs.truth_frame, pairs.predicted_frame), pairs.frame)
