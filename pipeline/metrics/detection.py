"""Mean average precision of ImageNet VID: IoU .5 in every frame, the area under the interpolated curve.

The curve is PASCAL VOC's of 2010 and later (every point, not 11 or COCO's 101). In each frame the best-scored
prediction chooses first, and takes the closest truth of its class that is still free (ImageNet's rule; VOC's would
refuse it the second closest). Equal scores enter the curve together, so that no order of boxes matters.
"""

from __future__ import annotations

import numpy as np

from pipeline.boxes import area
from pipeline.metrics.counts import Counts
from pipeline.metrics.ignoring import SCORED, excused
from pipeline.metrics.pairs import Booleans, Floats, Rows, overlaps

NEEDS_IDS = False
OF_PAIRS = False
OVER_CLASSES = "mean"
JOINED = ("score", "hit")
MIN_IOU = 0.5
FIELDS = ("mAP",)


def count(truth: Rows, predicted: Rows, tolerance: float = 0.0) -> Counts:
    """Counts of one video and class: score and hit (M',) of each prediction that counts, num_truth.

    tolerance: pixels that small boxes are forgiven: a truth of width w and height h needs an IoU of only
    min(.5, wh / ((w + tolerance)(h + tolerance))). The official ImageNet VID evaluation has 10; 0 is plain .5.
    """
    scored = truth[truth.kind == SCORED]
    hit = hits(scored, predicted, min_iou(scored.boxes, tolerance))
    keep = hit | ~excused(truth, predicted)
    return {
        "score": predicted.scores[keep],
        "hit": hit[keep].astype(np.float64),
        "num_truth": np.array(float(len(scored))),
    }


def scores(counts: Counts) -> dict[str, float]:
    """mAP of one class is its AP, in [0, 1]; nan where the class has no truth."""
    return {"mAP": average_precision(counts["score"], counts["hit"], float(counts["num_truth"]))}


def min_iou(boxes: Floats, tolerance: float) -> Floats:
    """The IoU (N,) that a prediction needs with each box of truth (N, 4)."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    grown = (width + tolerance) * (height + tolerance)
    return np.minimum(MIN_IOU, np.divide(area(boxes), grown, out=np.zeros(len(boxes)), where=grown > 0))


def hits(truth: Rows, predicted: Rows, needed: Floats) -> Booleans:
    """Which predictions (M,) find a truth of their own; needed (N,): the IoU that each truth asks for.

    The best-scored choosing first is the one stable matching between predictions that prefer the closest truth and
    truths that prefer the best score; so all may propose at once, and only the refused propose again.
    """
    first, second, iou = overlaps(truth, predicted)
    near = iou >= needed[first]
    first, second, iou = first[near], second[near], iou[near]
    order = np.lexsort((first, -iou, second))  # each prediction's truths, closest first
    wanted, by = first[order], second[order]
    rank = np.empty(len(predicted), np.int64)  # 0 is the best score; `Rows` have an order of their own for ties
    rank[np.argsort(-predicted.scores, kind="stable")] = np.arange(len(predicted))
    holder = np.full(len(truth), len(predicted))  # rank of the prediction that each truth holds
    turn = np.flatnonzero(np.diff(by, prepend=-1))  # where in the lists each prediction stands
    end = np.append(turn[1:], len(by))
    own = rank[by[turn]]
    while len(turn):
        np.minimum.at(holder, wanted[turn], own)
        refused = holder[wanted[turn]] != own
        if not refused.any():
            break
        turn = turn + refused
        left = turn < end  # the others have asked everyone
        turn, end, own = turn[left], end[left], own[left]
    found: Booleans = np.isin(rank, holder)
    return found


def average_precision(score: Floats, hit: Floats, num_truth: float) -> float:
    """Area under precision against recall, precision made to fall; nan without truth."""
    if not num_truth:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=np.nan))  # last of each run of equal scores
    true = np.cumsum(hit[order])[last]
    precision = np.maximum.accumulate((true / (last + 1))[::-1])[::-1]
    return float(np.sum(np.diff(true / num_truth, prepend=0.0) * precision))
