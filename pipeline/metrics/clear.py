"""CLEAR MOT (Bernardin and Stiefelhagen, EURASIP JIVP 2008): misses, false positives, switches, MOTA and MOTP.

Two programs define the details, and they differ. All names but one follow py-motmetrics 1.4, whose rule is the
paper's: a pair once made goes on for as long as the two overlap, however long either was away; only what is left is
assigned anew, as many pairs as possible first and the smallest total distance second. IDSW follows TrackEval 1.3,
which continues pairs of the previous frame only, and assigns all by the greatest total IoU.
"""

from __future__ import annotations

import numpy as np

from pipeline.metrics.counts import Counts, ratio
from pipeline.metrics.pairs import EPSILON, Booleans, Ints, Pairs, assign, frame_slices

NEEDS_IDS = True
OF_PAIRS = True
OVER_CLASSES = "sum"
JOINED: tuple[str, ...] = ()
MIN_IOU = 0.5
NUMBERS = (  # counts that are scores as they stand
    "num_frames",
    "num_objects",
    "num_predictions",
    "num_unique_objects",
    "num_matches",
    "num_switches",
    "num_transfer",
    "num_ascend",
    "num_migrate",
    "num_false_positives",
    "num_misses",
    "num_fragmentations",
    "mostly_tracked",
    "partially_tracked",
    "mostly_lost",
    "IDSW",
)
FIELDS = ("MOTA", "MOTP", "precision", "recall", *NUMBERS)


def count(pairs: Pairs) -> Counts:
    """Counts of one video and class, each a number; `distance` is the sum of 1 - IoU over matched pairs."""
    close = pairs.where(pairs.iou >= MIN_IOU)
    matched = close.where(_continue_then_assign(close))
    truth, predicted = matched.truth_id[matched.truth], matched.predicted_id[matched.predicted]

    before = _previous(truth, predicted)  # what each object was matched to last, -1 if never
    switches = (before >= 0) & (before != predicted)
    assigned = before != predicted  # anew, not continued
    known = np.full(len(truth), -1)  # whom each prediction was last assigned to; continuing does not count
    known[assigned] = _previous(predicted[assigned], truth[assigned])
    transfers = (known >= 0) & (known != truth)

    present = np.bincount(pairs.truth_id, minlength=pairs.num_truth_ids)
    tracked = np.bincount(truth, minlength=pairs.num_truth_ids) / present
    age = _rank(pairs.truth_id)[matched.truth]  # how often the object had been there before
    last = _previous(truth, age)

    values = {
        "num_frames": len(np.union1d(pairs.truth_frame, pairs.predicted_frame)),
        "num_objects": len(pairs.truth_frame),
        "num_predictions": len(pairs.predicted_frame),
        "num_unique_objects": pairs.num_truth_ids,
        "num_matches": len(truth) - switches.sum(),  # a switch is not a match, here
        "num_switches": switches.sum(),
        "num_transfer": transfers.sum(),
        "num_ascend": (switches & (_previous(predicted, truth) < 0)).sum(),  # to a prediction not matched before
        "num_migrate": (transfers & (before < 0)).sum(),  # to an object not matched before
        "num_false_positives": len(pairs.predicted_frame) - len(truth),
        "num_misses": len(pairs.truth_frame) - len(truth),
        "num_fragmentations": ((last >= 0) & (age - last > 1)).sum(),
        "mostly_tracked": (tracked >= 0.8).sum(),
        "partially_tracked": ((tracked >= 0.2) & (tracked < 0.8)).sum(),
        "mostly_lost": (tracked < 0.2).sum(),
        "IDSW": _switches_by_trackeval(pairs),
        "distance": (1 - matched.iou).sum(),
    }
    return {name: np.array(value, np.float64) for name, value in values.items()}


def scores(counts: Counts) -> dict[str, float]:
    """The scores of counts. MOTP is the mean of 1 - IoU over matches: smaller is better. nan where undefined."""
    value = {name: float(number) for name, number in counts.items()}
    detected = value["num_matches"] + value["num_switches"]
    wrong = value["num_misses"] + value["num_switches"] + value["num_false_positives"]
    return {
        "MOTA": 1 - ratio(wrong, value["num_objects"]),
        "MOTP": ratio(value["distance"], detected),
        "precision": ratio(detected, value["num_predictions"]),
        "recall": ratio(detected, value["num_objects"]),
        **{name: value[name] for name in NUMBERS},
    }


def _continue_then_assign(close: Pairs) -> Booleans:
    """Which of the close pairs are matched (P,), by the rule of py-motmetrics."""
    matched = np.zeros(len(close.truth), np.bool_)
    partner = np.full(close.num_truth_ids, -1)
    truth_id, predicted_id = close.truth_id[close.truth], close.predicted_id[close.predicted]
    slices, competing = frame_slices(close)
    for span, is_competing in zip(slices, competing.tolist(), strict=True):
        truth, predicted = truth_id[span], predicted_id[span]
        taken = matched[span]
        if is_competing:
            continued = np.flatnonzero(partner[truth] == predicted)
            # Two objects may both have had this prediction last: the first keeps it.
            continued = continued[np.unique(predicted[continued], return_index=True)[1]]
            taken[continued] = True
            rest = np.flatnonzero(~np.isin(truth, truth[continued]) & ~np.isin(predicted, predicted[continued]))
            if len(rest):
                rows, columns = close.truth[span][rest], close.predicted[span][rest]
                # So large that one pair more always outweighs any distances.
                weight = 2.0 * len(rest) + 1 + close.iou[span][rest]
                taken[rest[assign(rows, columns, weight)]] = True
            truth, predicted = truth[taken], predicted[taken]
        else:
            taken[:] = True
        partner[truth] = predicted
    return matched


def _switches_by_trackeval(pairs: Pairs) -> int:
    """IDSW: how often an object is matched to another prediction than when it was last matched."""
    close = pairs.where(pairs.iou >= MIN_IOU - EPSILON)
    matched = np.zeros(len(close.truth), np.bool_)
    partner = np.full(close.num_truth_ids, -1)
    seen = np.full(close.num_truth_ids, -2)
    # "The previous frame" is the last one that had both truth and predictions.
    steps = np.searchsorted(np.intersect1d(close.truth_frame, close.predicted_frame), close.frame)
    truth_id, predicted_id = close.truth_id[close.truth], close.predicted_id[close.predicted]
    slices, competing = frame_slices(close)
    for span, is_competing in zip(slices, competing.tolist(), strict=True):
        truth, predicted, step = truth_id[span], predicted_id[span], int(steps[span.start])
        taken = matched[span]
        if is_competing:
            continues = (partner[truth] == predicted) & (seen[truth] == step - 1)
            weight = 1000.0 * continues + close.iou[span]
            taken[assign(close.truth[span], close.predicted[span], weight)] = True
            truth, predicted = truth[taken], predicted[taken]
        else:
            taken[:] = True
        partner[truth] = predicted
        seen[truth] = step
    truth, predicted = truth_id[matched], predicted_id[matched]
    before = _previous(truth, predicted)
    return int(((before >= 0) & (before != predicted)).sum())


def _previous(group: Ints, value: Ints) -> Ints:
    """For each entry (K,), in time order, the value at the entry before it of the same group; -1 at its first."""
    order = np.argsort(group, kind="stable")
    before = np.full(len(group), -1)
    same = np.diff(group[order]) == 0
    before[order[1:][same]] = value[order[:-1][same]]
    return before


def _rank(group: Ints) -> Ints:
    """For each entry (K,), how many entries of its group came before it."""
    order = np.argsort(group, kind="stable")
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return rank
