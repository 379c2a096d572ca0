"""COCO's detection metrics (Lin et al., ECCV 2014), as pycocotools 2.0 defines them; a frame is an image.

AP averages precision at 101 recalls over ten IoUs from .5 to .95; AR is the recall at these IoUs with so many
predictions a frame. In each frame the best-scored prediction chooses first, and takes the closest truth that is still
free; only where no scored one is left it takes one that is ignored, and then does not count.

What truth leaves open (`ignoring`): a REGION is COCO's crowd, which excuses any number of predictions by the share of
the prediction inside it; a DISTRACTOR is ignored like a truth out of the area range: it excuses one, by IoU; an
UNSCORED row is left out.

Ties go as in pycocotools: equal scores by the order of videos and frames, and within a frame by that of `Rows` (id,
then box), so that no order of boxes matters; of equally close truths the last is taken.
"""

from __future__ import annotations

import numba
import numpy as np

from pipeline.boxes import area
from pipeline.metrics.counts import Counts
from pipeline.metrics.ignoring import REGION, SCORED, UNSCORED
from pipeline.metrics.pairs import Booleans, Floats, Ints, Rows, overlaps

NEEDS_IDS = False
OF_PAIRS = False
OVER_CLASSES = "mean"
JOINED = ("score", "rank", "hit", "excused")
FIELDS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = np.array([1, 10, 100])  # predictions a frame
SIZES = np.array([[0, 1e5], [0, 32], [32, 96], [96, 1e5]]) ** 2  # (4, 2) areas of all, small, medium, large; inclusive
_NUM_CURVES = len(SIZES) * len(IOUS)  # one for each range of areas and IoU: 40


def count(truth: Rows, predicted: Rows, tolerance: float = 0.0, areas: Floats | None = None) -> Counts:
    """Counts of one video and class: score, rank, hit, excused (M',) of the best 100 predictions of each frame.

    rank: place in its frame, from 0. hit, excused: 40 bits as one number, bit 10 a + i for area range a and IoU i:
    whether the prediction has a truth of its own, and whether it does not count. num_truth (4,): scored truth by area.

    areas: (N,) in square pixels, of the rows of truth; those of the boxes where None. Annotations of COCO have their
    own, those of the masks, which are smaller: what is small, medium or large by boxes is not quite what it is there.
    tolerance: not known to COCO; without effect.
    """
    of_truth = area(truth.boxes) if areas is None else np.asarray(areas, np.float64)
    if of_truth.shape != (len(truth),):
        raise ValueError(f"areas have the shape {of_truth.shape}; there must be one for each of the {len(truth)} rows")
    ranked = predicted[np.lexsort((-predicted.scores, predicted.frame))]
    rank = np.arange(len(ranked)) - np.searchsorted(ranked.frame, ranked.frame)
    ranked, rank = ranked[rank < MOST[-1]], rank[rank < MOST[-1]]

    crowd = truth.kind == REGION
    ignored = _outside(of_truth) | (truth.kind != SCORED)  # (4, N)
    start, mate, share = _near(truth, ranked)
    hit, excused = _match(start, mate, share, ignored, crowd, _outside(area(ranked.boxes)))
    return {
        "score": ranked.scores,
        "rank": rank.astype(np.float64),
        "hit": hit.astype(np.float64),  # exact: float64 holds 53 bits
        "excused": excused.astype(np.float64),
        "num_truth": np.sum(~ignored, axis=1, dtype=np.float64),
    }


def scores(counts: Counts) -> dict[str, float]:
    """The scores of one class, in [0, 1]; nan where it has no truth (of that size)."""
    order = np.argsort(-counts["score"], kind="stable")
    hit, excused, rank = (counts[name][order].astype(np.int64) for name in ("hit", "excused", "rank"))
    num_truth = counts["num_truth"].copy()  # one read by Arrow is read-only, for which numba would compile anew
    precision, hits = _curves(hit, excused, rank, num_truth)
    ap = precision.reshape(len(SIZES), len(IOUS))
    recall = hits.reshape(len(SIZES), len(IOUS), len(MOST)) / np.where(num_truth > 0, num_truth, np.nan)[:, None, None]
    ar = recall.mean(axis=1)  # (4, 3)
    values = (ap[0].mean(), ap[0, 0], ap[0, 5], *ap[1:].mean(axis=1), *ar[0], *ar[1:, -1])
    return {name: float(value) for name, value in zip(FIELDS, values, strict=True)}


def _outside(areas: Floats) -> Booleans:
    """Which areas (N,) are out of each range: (4, N)."""
    outside: Booleans = (areas < SIZES[:, :1]) | (areas > SIZES[:, 1:])
    return outside


def _near(truth: Rows, predicted: Rows) -> tuple[Ints, Ints, Floats]:
    """The truths that may match each prediction: those of prediction m are at start[m] to start[m + 1] (M + 1,).

    Row of truth (P,) rising, and overlap (P,) of at least .5: IoU, or the share of the prediction within a crowd.
    """
    found = []
    for of_kind, over in ((~np.isin(truth.kind, (REGION, UNSCORED)), "union"), (truth.kind == REGION, "prediction")):
        row = np.flatnonzero(of_kind)
        if len(row):
            first, second, share = overlaps(truth[row], predicted, over=over)
            near = share >= IOUS[0]
            found.append((row[first[near]], second[near], share[near]))
    if not found:
        return np.zeros(len(predicted) + 1, np.int64), np.zeros(0, np.int64), np.zeros(0)
    mate, by, share = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((mate, by))
    return np.searchsorted(by[order], np.arange(len(predicted) + 1)), mate[order], share[order]


@numba.njit(cache=True)
def _match(
    start: Ints, mate: Ints, share: Floats, ignored: Booleans, crowd: Booleans, outside: Booleans
) -> tuple[Ints, Ints]:
    """Bits hit (M,) and excused (M,) of predictions, best score first in each frame.

    start, mate, share: see `_near`. ignored (4, N): truth that is not scored in each area range; crowd (N,): truth
    that is never used up; outside (4, M): predictions that do not count unless they hit.
    """
    hit = np.zeros(len(start) - 1, np.int64)
    excused = np.zeros(len(start) - 1, np.int64)
    for curve in range(_NUM_CURVES):
        size, min_iou = curve // len(IOUS), IOUS[curve % len(IOUS)]
        bit = 1 << curve
        taken = np.zeros(len(crowd), np.bool_)
        for row in range(len(hit)):
            best = -1
            for index in range(start[row], start[row + 1]):
                other = mate[index]
                if share[index] < min_iou or (taken[other] and not crowd[other]):
                    continue
                if best >= 0 and ignored[size, other] != ignored[size, mate[best]]:
                    better = ignored[size, mate[best]]
                else:
                    better = best < 0 or share[index] >= share[best]
                if better:
                    best = index
            if best >= 0:
                taken[mate[best]] = True
            if best >= 0 and not ignored[size, mate[best]]:
                hit[row] |= bit
            elif best >= 0 or outside[size, row]:
                excused[row] |= bit
    return hit, excused


@numba.njit(cache=True)
def _curves(hit: Ints, excused: Ints, rank: Ints, num_truth: Floats) -> tuple[Floats, Ints]:
    """Mean precision over the 101 recalls (40,), nan without truth, and hits (40, 3) of the best 1, 10, 100 a frame.

    hit, excused, rank: (M,), best score first; num_truth: (4,).
    """
    mean_precision = np.full(_NUM_CURVES, np.nan)
    hits = np.zeros((_NUM_CURVES, len(MOST)), np.int64)
    precision = np.zeros(len(hit))  # at each hit
    for curve in range(_NUM_CURVES):
        total = num_truth[curve // len(IOUS)]
        if total == 0:
            continue
        bit = 1 << curve
        counted, found = 0, 0
        for row in range(len(hit)):
            if excused[row] & bit:
                continue
            counted += 1
            if hit[row] & bit:
                precision[found] = (found + 1) / counted
                found += 1
                for most in range(len(MOST)):
                    hits[curve, most] += rank[row] < MOST[most]
        for index in range(found - 2, -1, -1):  # the best precision at this recall or a higher one
            precision[index] = max(precision[index], precision[index + 1])
        total_precision, needed = 0.0, 1
        for recall in RECALLS:
            while needed <= found and needed / total < recall:
                needed += 1
            if needed > found:
                break
            total_precision += precision[needed - 1]
        mean_precision[curve] = total_precision / len(RECALLS)
    return mean_precision, hits
