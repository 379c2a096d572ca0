"""Mean average precision of ImageNet VID: IoU .5 in every frame, the area under the interpolated curve; by motion too.

The curve is PASCAL VOC's of 2010 and later (every point, not 11 or COCO's 101). In each frame the best-scored
prediction chooses first, and takes the closest truth of its class that is still free (ImageNet's rule; VOC's would
refuse it the second closest). Equal scores enter the curve together, so that no order of boxes matters.

A split has the curve of its truth alone, from the same matching:
- `by_box` as in FGFA (Zhu et al., Flow-Guided Feature Aggregation, ICCV 2017; its imagenet_vid_eval_motion.py): by a
  box's mean IoU with the boxes of its object up to 10 frames away (`motion_iou` of the truth table), slow from .9,
  fast to .7, medium between; all three hold their ends.
- `by_track` as in TCD (Zhang et al., Integrated Object Detection and Tracking, Table 1): by the mean IoU of a track's
  boxes in consecutive frames, slow above .8, fast below .6, medium between.

Both ignore truth of other splits as FGFA does. A prediction that finds truth of another split does not count. One that
finds none is false by what it overlaps most among the truth of its frame, of whatever class: wholly if that is of the
split, not at all if it is of another. On a tie, which mostly means that it overlaps none, it is false by the share of
the frame's truth that is of other splits; in a frame without truth by the share of all truth that is of the split.

Other than FGFA: equal scores, as said; a box whose motion is unknown (no motion_iou, no two consecutive frames) is in
no split, where FGFA has a motion for every box; predictions that ignored truth excuses do not count, and it is no
truth of the frame, where ImageNet VID ignores none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.boxes import area
from pipeline.metrics import motion
from pipeline.metrics.counts import Counts
from pipeline.metrics.ignoring import SCORED, excused
from pipeline.metrics.pairs import Booleans, Floats, Ints, Rows, overlaps
from pipeline.metrics.rankings import Ranking
from pipeline.metrics.sides import Gathered, Side, gather

NEEDS_IDS = False
OF_PAIRS = False
OVER_CLASSES = "mean"
MIN_IOU = 0.5
SPLITS = tuple(f"{group}_{by}" for by in ("by_box", "by_track") for group in motion.GROUPS)
JOINED = ("score", "hit", *SPLITS)
FIELDS = ("mAP", *(f"mAP_{split}" for split in SPLITS))


def count_all(
    truth: Mapping[str, Side],
    predicted: Mapping[str, Side],
    groups: Sequence[tuple[str, str]],
    tolerance: float = 0.0,
) -> list[Counts]:
    """Counts of each pair of video and class, from the two sides of all videos.

    score, hit (M',): of each prediction that counts. num_truth. By the name of each split (M',): 1 for a prediction
    that found truth of it, 0 for one that found other truth, -w for a false one that counts w, in [0, 1], and nan for
    a false one in a frame without truth. num_truth_of_splits (6,): nan by track where truth has a box without id.

    tolerance: pixels that small boxes are forgiven: a truth of width w and height h needs an IoU of only
    min(.5, wh / ((w + tolerance)(h + tolerance))). The official ImageNet VID evaluation has 10; 0 is plain .5.
    """
    true, found, numbers = gather(truth, predicted, groups)
    scored = true[true.rows.kind == SCORED]
    mate = mates(scored.rows, found.rows, min_iou(scored.rows.boxes, tolerance))
    open_to_all = excused(true[true.of_all].by_moment(), found.by_moment())
    counted = (mate >= 0) | ~(excused(true.rows, found.rows) | open_to_all)
    found, mate = found[counted], mate[counted]
    hit, members = mate >= 0, splits(scored)
    outcome = np.empty((len(SPLITS), len(mate)))
    outcome[:, hit] = members[:, mate[hit]]
    outcome[:, ~hit] = 0 - weights(scored, members, found[~hit])

    order, start, stop = _by_group(found.group, numbers)
    columns = np.stack([found.rows.scores, hit, *outcome])[:, order]
    true_order, first, end = _by_group(scored.group, numbers)
    inside = members.astype(np.float64)
    inside[3:, scored.rows.ids < 0] = np.nan  # the splits by track
    inside = inside[:, true_order]
    return [
        {
            **dict(zip(JOINED, columns[:, start[number] : stop[number]], strict=True)),
            "num_truth": np.array(float(end[number] - first[number])),
            "num_truth_of_splits": inside[:, first[number] : end[number]].sum(axis=1),
        }
        for number in range(len(numbers))
    ]


def scores(counts: Counts, whole: Counts) -> dict[str, float]:
    """AP of one class, in [0, 1], nan where it has no truth (of the split); whole: the summed counts of all classes.

    The three splits by box, or by track, are left out where no truth at all is in any of them, as where the table
    knows no motion_iou, and by track where truth has boxes without id.
    """
    of_all, of_class = whole["num_truth_of_splits"].tolist(), counts["num_truth_of_splits"].tolist()
    found = {"mAP": average_precision(counts["score"], counts["hit"], float(counts["num_truth"]))}
    for number, split in enumerate(SPLITS):
        first = number // 3 * 3
        if not sum(of_all[first : first + 3]) > 0:  # 0 or nan
            continue
        found[f"mAP_{split}"] = float("nan")
        if of_class[number]:
            outcome = counts[split]
            false = np.where(np.isnan(outcome), of_all[number] / whole["num_truth"], np.maximum(-outcome, 0))
            found[f"mAP_{split}"] = average_precision(counts["score"], outcome > 0, of_class[number], false)
    return found


def resampled(ranking: Ranking, counts: Counts, whole: Counts, fields: Sequence[str]) -> dict[str, Floats]:
    """`scores` of one class, (R,), where videos are drawn R times; of these fields, nan where they are left out there.

    counts: of all its videos, in the ranking's order; those that are summed (R, ...), as in whole.
    """
    found = {}
    if "mAP" in fields:
        hit = counts["hit"]
        found["mAP"] = ranking.average_precision(hit, 1 - hit, counts["num_truth"])
    for number, split in enumerate(SPLITS):
        if f"mAP_{split}" in fields:
            outcome, of_all = counts[split], whole["num_truth_of_splits"][:, number]
            share = np.divide(of_all, whole["num_truth"], out=np.zeros(len(of_all)), where=whole["num_truth"] > 0)
            num_truth = np.where(of_all > 0, counts["num_truth_of_splits"][:, number], 0)  # else 0 or nan
            found[f"mAP_{split}"] = ranking.average_precision(outcome > 0, np.maximum(-outcome, 0), num_truth, share)
    return found


def min_iou(boxes: Floats, tolerance: float) -> Floats:
    """The IoU (N,) that a prediction needs with each box of truth (N, 4)."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    grown = (width + tolerance) * (height + tolerance)
    return np.minimum(MIN_IOU, np.divide(area(boxes), grown, out=np.zeros(len(boxes)), where=grown > 0))


def mates(truth: Rows, predicted: Rows, needed: Floats) -> Ints:
    """The truth (M,) that each prediction finds, -1 for none; needed (N,): the IoU that each truth asks for.

    The best-scored choosing first is the one stable matching between predictions that prefer the closest truth and
    truths that prefer the best score; so all may propose at once, and only the refused propose again.
    """
    first, second, iou = overlaps(truth, predicted)
    near = iou >= needed[first]
    first, second, iou = first[near], second[near], iou[near]
    order = np.lexsort((first, -iou, second))  # each prediction's truths, closest first
    wanted, by = first[order], second[order]
    best_first = np.argsort(-predicted.scores, kind="stable")  # `Rows` have an order of their own for ties
    rank = np.empty(len(predicted), np.int64)
    rank[best_first] = np.arange(len(predicted))
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
    mate = np.full(len(predicted), -1)
    taken = np.flatnonzero(holder < len(predicted))
    mate[best_first[holder[taken]]] = taken
    return mate


def splits(truth: Gathered) -> Booleans:
    """Which boxes of truth are in each of SPLITS: (6, N)."""
    box = truth.rows.motion.astype(np.float32)  # as the table has it, so that .7 is not below .7
    ids = truth.rows.ids
    has_id = ids >= 0
    track = np.unique((truth.group * (ids.max(initial=0) + 1) + ids)[has_id], return_inverse=True)[1].reshape(-1)
    group = np.full(len(ids), len(motion.GROUPS))
    group[has_id] = motion.groups(track, truth.moment[has_id], truth.rows.boxes[has_id])[track]
    by_box = (box >= 0.9, (box >= 0.7) & (box <= 0.9), box <= 0.7)
    within: Booleans = np.stack([*by_box, *(group == number for number in range(len(motion.GROUPS)))])
    return within


def weights(truth: Gathered, members: Booleans, false: Gathered) -> Floats:
    """How much predictions that found no truth count as false in each split: (6, M'), in [0, 1]; see the top.

    members (6, N): which truth is of the split. nan for predictions in frames without truth.
    """
    start, stop = (np.searchsorted(truth.moment, false.moment, side) for side in ("left", "right"))
    number = stop - start  # of truth in the prediction's frame
    first, second, iou = overlaps(truth.by_moment(), false.by_moment())
    found = []
    for member in members:
        before = np.cumsum(np.insert(member, 0, False))
        inside = before[stop] - before[start]
        most = []
        for chosen, there in ((member, inside), (~member, number - inside)):
            best = np.where(there > 0, 0.0, -1.0)
            near = chosen[first]
            np.maximum.at(best, second[near], iou[near])
            most.append(best)
        tie = np.divide(number - inside, number, out=np.full(len(number), np.nan), where=number > 0)
        found.append(np.select([most[0] > most[1], most[0] < most[1]], [1.0, 0.0], tie))
    return np.stack(found)


def average_precision(score: Floats, hit: Floats | Booleans, num_truth: float, false: Floats | None = None) -> float:
    """Area under `curve`; nan without truth."""
    if not num_truth:
        return float("nan")
    recall, precision = curve(score, hit, num_truth, false)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def curve(
    score: Floats, hit: Floats | Booleans, num_truth: float, false: Floats | None = None
) -> tuple[Floats, Floats]:
    """Recall and precision at each distinct score (K,), best first; precision made to fall.

    score, hit (M,): of each prediction. false (M,): how much each counts as false, in [0, 1]; 1 - hit where None.
    """
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=np.nan))  # last of each run of equal scores
    true: Floats = np.cumsum(hit[order], dtype=np.float64)[last]
    counted = last + 1 if false is None else true + np.cumsum(false[order])[last]
    precision = np.divide(true, counted, out=np.zeros(len(last)), where=counted > 0)
    return true / num_truth, np.maximum.accumulate(precision[::-1])[::-1]


def _by_group(group: Ints, numbers: Ints) -> tuple[Ints, Ints, Ints]:
    """An order of rows (N,) by group, and where in it those of each of these groups start and stop (G,)."""
    order = np.argsort(group, kind="stable")
    return order, np.searchsorted(group[order], numbers, "left"), np.searchsorted(group[order], numbers, "right")
