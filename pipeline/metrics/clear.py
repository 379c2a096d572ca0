"""CLEAR MOT (Bernardin and Stiefelhagen, EURASIP JIVP 2008): misses, false positives, switches, MOTA and MOTP.

Two programs define the details, and they differ. Here all follows py-motmetrics 1.4, whose rule is the paper's: a pair
once made goes on for as long as the two overlap, however long either was away; only what is left is assigned anew, as
many pairs as possible first and the smallest total distance second. `clear_trackeval` is the other program's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.metrics.counts import Counts, ratio
from pipeline.metrics.pairs import Booleans, Ints, Pairs, assign, frame_slices

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
    "num_detections",
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
)
FIELDS = ("MOTA", "MOTP", "precision", "recall", *NUMBERS)


@dataclass(frozen=True)
class Matches:
    """The matched pairs (K,) of one video and class, in order of frame and truth, and what each means: bool (K,).

    continued: it goes on, all others are assigned anew. switch: the object was matched to another prediction before.
    transfer: the prediction was last assigned to another object. ascend: a switch to a prediction never matched
    before. migrate: a transfer to an object never matched before.
    """

    pairs: Pairs
    continued: Booleans
    switch: Booleans
    transfer: Booleans
    ascend: Booleans
    migrate: Booleans


def matches(pairs: Pairs) -> Matches:
    """The matches of IoU >= .5 by the rule of py-motmetrics."""
    matched = pairs.where(matched_by_motmetrics(pairs))
    truth, predicted = matched.truth_id[matched.truth], matched.predicted_id[matched.predicted]
    before = previous(truth, predicted)  # what each object was matched to last, -1 if never
    continued = before == predicted
    switch = (before >= 0) & ~continued
    known = np.full(len(truth), -1)  # whom each prediction was last assigned to; continuing does not count
    known[~continued] = previous(predicted[~continued], truth[~continued])
    transfer = (known >= 0) & (known != truth)
    return Matches(
        pairs=matched,
        continued=continued,
        switch=switch,
        transfer=transfer,
        ascend=switch & (previous(predicted, truth) < 0),
        migrate=transfer & (before < 0),
    )


def count(pairs: Pairs) -> Counts:
    """Counts of one video and class, each a number; `distance` is the sum of 1 - IoU over matched pairs."""
    found = matches(pairs)
    matched = found.pairs
    truth = matched.truth_id[matched.truth]
    present = np.bincount(pairs.truth_id, minlength=pairs.num_truth_ids)
    tracked = np.bincount(truth, minlength=pairs.num_truth_ids) / present
    age = _rank(pairs.truth_id)[matched.truth]  # how often the object had been there before
    last = previous(truth, age)

    values = {
        "num_frames": len(np.union1d(pairs.truth_frame, pairs.predicted_frame)),
        "num_objects": len(pairs.truth_frame),
        "num_predictions": len(pairs.predicted_frame),
        "num_unique_objects": pairs.num_truth_ids,
        "num_matches": (~found.switch).sum(),  # a switch is not a match, here
        "num_detections": len(truth),
        "num_switches": found.switch.sum(),
        "num_transfer": found.transfer.sum(),
        "num_ascend": found.ascend.sum(),
        "num_migrate": found.migrate.sum(),
        "num_false_positives": len(pairs.predicted_frame) - len(truth),
        "num_misses": len(pairs.truth_frame) - len(truth),
        "num_fragmentations": ((last >= 0) & (age - last > 1)).sum(),
        "mostly_tracked": (tracked >= 0.8).sum(),
        "partially_tracked": ((tracked >= 0.2) & (tracked < 0.8)).sum(),
        "mostly_lost": (tracked < 0.2).sum(),
        "distance": (1 - matched.iou).sum(),
    }
    return {name: np.array(value, np.float64) for name, value in values.items()}


def scores(counts: Counts) -> dict[str, float]:
    """The scores of counts. MOTP is the mean of 1 - IoU over matches: smaller is better. nan where undefined."""
    value = {name: float(number) for name, number in counts.items()}
    wrong = value["num_misses"] + value["num_switches"] + value["num_false_positives"]
    return {
        "MOTA": 1 - ratio(wrong, value["num_objects"]),
        "MOTP": ratio(value["distance"], value["num_detections"]),
        "precision": ratio(value["num_detections"], value["num_predictions"]),
        "recall": ratio(value["num_detections"], value["num_objects"]),
        **{name: value[name] for name in NUMBERS},
    }


def matched_by_motmetrics(pairs: Pairs) -> Booleans:
    """Which pairs (P,) are matched: those of IoU >= .5 that go on, and an assignment of what is left."""
    is_close = pairs.iou >= MIN_IOU
    close = pairs.where(is_close)
    matched = np.zeros(len(close.truth), np.bool_)
    partner = [-1] * close.num_truth_ids
    truth, predicted = close.truth_id[close.truth].tolist(), close.predicted_id[close.predicted].tolist()
    slices, competing = frame_slices(close)
    for span, is_competing in zip(slices, competing.tolist(), strict=True):
        taken = list(range(span.start, span.stop))
        if is_competing:
            # Two objects may both have had this prediction last: the first keeps it.
            holder = {predicted[i]: i for i in reversed(taken) if partner[truth[i]] == predicted[i]}
            busy = {truth[i] for i in holder.values()}
            rest = np.array([i for i in taken if truth[i] not in busy and predicted[i] not in holder], np.int64)
            taken = list(holder.values())
            if len(rest):
                # So large that one pair more always outweighs any distances.
                weight = 2.0 * len(rest) + 1 + close.iou[rest]
                taken += rest[assign(close.truth[rest], close.predicted[rest], weight)].tolist()
        for i in taken:
            matched[i] = True
            partner[truth[i]] = predicted[i]
    chosen = np.zeros(len(is_close), np.bool_)
    chosen[is_close] = matched
    return chosen


def previous(group: Ints, value: Ints) -> Ints:
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
