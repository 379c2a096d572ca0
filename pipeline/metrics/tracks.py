"""Mean average precision of tracks, of ImageNet VID: how well whole tracks cover whole trajectories of the truth.

The evaluation is that of the ILSVRC development kit (eval_vid_tracking.m), as Zhang et al., "Integrated Object
Detection and Tracking with Tracklet-Conditioned Detection" (section 4.1) report it. A track and a trajectory agree by
their temporal IoU: the frames in which their boxes overlap enough, over the frames that either has. The most confident
track chooses first and takes the trajectory of the highest temporal IoU that is still free; a track that finds none is
false. AP is the area under the interpolated curve over all videos, and the mean is over three temporal thresholds.

The motion groups are those of the same paper's Table 1: a trajectory is slow, medium or fast by the mean IoU of its
boxes in consecutive frames, and in no group if it has none. A track counts in the group of the trajectory that it
takes, else of the one it agrees with most, and if it agrees with none, false, in all. (So does FGFA's evaluation split
boxes by motion, which the paper follows.)

Decided here, where the sources leave it open or differ:
- A track's confidence is its `track_score`; where that is unknown the mean of its boxes' scores, which is the kit's.
  With a score of their own tracks keep their order when boxes are rescored, as in the paper's Table 1.
- Equal confidences enter the curve together; of such tracks the one of the smaller id chooses first, as in the kit.
  Of equal temporal IoUs a track takes that of the larger sum of IoU (the kit: the first), so that truth has 1.
- A box that hits nothing scored and is excused by ignored truth (`ignoring.excused`) is taken out of its track's
  frames; a track without other boxes does not count.
- A track with boxes of several classes, an error in the kit, is one track of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from pipeline.metrics import motion
from pipeline.metrics.counts import Counts
from pipeline.metrics.detection import average_precision, min_iou
from pipeline.metrics.ignoring import SCORED, excused
from pipeline.metrics.motion import GROUPS
from pipeline.metrics.pairs import Booleans, Floats, Ints, Pairs, Rows, pair
from pipeline.metrics.rankings import Ranking

NEEDS_IDS = True
OF_PAIRS = False
OVER_CLASSES = "mean"
THRESHOLDS = {"25": 0.25, "50": 0.5, "75": 0.75}  # of temporal IoU
JOINED = ("score", *(f"{what}_{name}" for what in ("hit", "group") for name in THRESHOLDS))
EVERY_GROUP = -1
FIELDS = (
    "mAP_track",
    *(f"mAP_track_{name}" for name in THRESHOLDS),
    *(f"mAP_track_{group}" for group in GROUPS),
)


@dataclass(frozen=True)
class Agreement:
    """The tracks and the trajectories of one video and class, and which of them agree how well.

    truth, predicted: the boxes, without ignored truth and boxes of no track. close: their pairs of enough IoU (P,).
    score (B,): of the tracks, rounded to float32. counts (B,): which tracks are not excused as a whole.
    trajectory, track (K,): the numbers, as in `close`, of those that share close pairs; tiou (K,): their temporal
    IoU, in (0, 1]; iou (K,): the sum of their pairs' IoU. agreeing (P,): which of these K each pair belongs to.
    """

    truth: Rows
    predicted: Rows
    close: Pairs
    score: Floats
    counts: Booleans
    trajectory: Ints
    track: Ints
    tiou: Floats
    iou: Floats
    agreeing: Ints

    def closest(self) -> Ints:
        """For each track that agrees with any trajectory, which of the K agreements is the best."""
        best_first = np.lexsort((self.trajectory, -self.iou, -self.tiou))
        return best_first[np.unique(self.track[best_first], return_index=True)[1]]

    def groups(self) -> Ints:
        """The motion group (A,) of each trajectory; see `motion`."""
        return motion.groups(self.close.truth_id, self.truth.frame, self.truth.boxes)


def count(truth: Rows, predicted: Rows, tolerance: float = 0.0) -> Counts:
    """Counts of one video and class: score, hit_T and group_T (B',) of each track that counts; num_truth (4,).

    hit_T: whether the track takes a trajectory at the temporal threshold T; group_T: the group in which it counts, an
    index into GROUPS, 3 for none or -1 for all. num_truth: trajectories by group, those of none last.
    tolerance: pixels that small boxes are forgiven, see `detection.count_all`; the development kit has 10.
    """
    found = compare(truth, predicted, tolerance)
    groups = found.groups()
    closest = found.closest()
    counts = {
        "score": found.score[found.counts],
        "num_truth": np.bincount(groups, minlength=len(GROUPS) + 1).astype(np.float64),
    }
    for name, threshold in THRESHOLDS.items():
        takes = _takes(found, threshold)
        group = np.full(len(found.score), EVERY_GROUP)
        group[found.track[closest]] = groups[found.trajectory[closest]]
        group[found.track[takes]] = groups[found.trajectory[takes]]
        hit = np.zeros(len(found.score))
        hit[found.track[takes]] = 1
        counts[f"hit_{name}"] = hit[found.counts]
        counts[f"group_{name}"] = group[found.counts].astype(np.float64)
    return counts


def scores(counts: Counts) -> dict[str, float]:
    """APs of one class, in [0, 1]: at each threshold, and their mean; the groups' are means too. nan without truth."""
    by_threshold: dict[str, float] = {}
    by_group: dict[str, list[float]] = {group: [] for group in GROUPS}
    for name in THRESHOLDS:
        score, hit, group_of = counts["score"], counts[f"hit_{name}"], counts[f"group_{name}"]
        by_threshold[name] = average_precision(score, hit, float(counts["num_truth"].sum()))
        for number, group in enumerate(GROUPS):
            of_group = (group_of == number) | (group_of == EVERY_GROUP)
            num_truth = float(counts["num_truth"][number])
            by_group[group].append(average_precision(score[of_group], hit[of_group], num_truth))
    return {
        "mAP_track": float(np.mean(list(by_threshold.values()))),
        **{f"mAP_track_{name}": value for name, value in by_threshold.items()},
        **{f"mAP_track_{group}": float(np.mean(values)) for group, values in by_group.items()},
    }


def resampled(ranking: Ranking, counts: Counts, whole: Counts, fields: Sequence[str]) -> dict[str, Floats]:
    """`scores` of one class, (R,), where videos are drawn R times; those of these fields.

    counts: of all its videos, in the ranking's order; num_truth is (R, 4). whole: not needed.
    """

    def area(threshold: str, group: int | None) -> Floats:
        hit, group_of, num_truth = counts[f"hit_{threshold}"], counts[f"group_{threshold}"], counts["num_truth"]
        if group is None:
            return ranking.average_precision(hit, 1 - hit, num_truth.sum(axis=1))
        of_group = (group_of == group) | (group_of == EVERY_GROUP)
        return ranking.average_precision(hit * of_group, (1 - hit) * of_group, num_truth[:, group])

    terms: dict[str, list[tuple[str, int | None]]] = {
        "mAP_track": [(name, None) for name in THRESHOLDS],
        **{f"mAP_track_{name}": [(name, None)] for name in THRESHOLDS},
        **{f"mAP_track_{group}": [(name, number) for name in THRESHOLDS] for number, group in enumerate(GROUPS)},
    }
    return {field: np.mean([area(*term) for term in terms[field]], axis=0) for field in fields}


def compare(truth: Rows, predicted: Rows, tolerance: float) -> Agreement:
    """Which tracks and trajectories agree, and how well; boxes do whose IoU is at least `detection.min_iou`."""
    scored = truth[truth.kind == SCORED]
    tracked = predicted[predicted.ids >= 0]
    pairs = pair(scored, tracked)
    close = pairs.where(pairs.iou >= min_iou(scored.boxes, tolerance)[pairs.truth])
    counted = ~excused(truth, tracked)
    counted[close.predicted] = True

    num_tracks = pairs.num_predicted_ids
    key = pairs.truth_id[close.truth] * num_tracks + pairs.predicted_id[close.predicted]
    keys, agreeing, matched = np.unique(key, return_inverse=True, return_counts=True)
    trajectory, track = np.divmod(keys, max(num_tracks, 1))
    trajectory_length = np.bincount(pairs.truth_id)
    track_length = np.bincount(pairs.predicted_id[counted], minlength=num_tracks)
    both = _frames_of_both(pairs, counted, trajectory, track)

    confidence = np.where(np.isnan(tracked.track_scores), tracked.scores, tracked.track_scores)
    mean = np.bincount(pairs.predicted_id, confidence) / np.bincount(pairs.predicted_id)
    return Agreement(
        truth=scored,
        predicted=tracked,
        close=close,
        score=mean.astype(np.float32).astype(np.float64),  # means of one number differ in the last digits of float64
        counts=track_length > 0,
        trajectory=trajectory,
        track=track,
        tiou=matched / (trajectory_length[trajectory] + track_length[track] - both),
        iou=np.bincount(agreeing, close.iou).astype(np.float64),
        agreeing=agreeing,
    )


def _takes(found: Agreement, threshold: float) -> Ints:
    """Which agreements (B'',) are those of tracks with the trajectories that they take; each at most once."""
    enough = np.flatnonzero(found.tiou >= threshold)
    track = found.track[enough]
    keys = (found.trajectory[enough], -found.iou[enough], -found.tiou[enough], track, -found.score[track])
    order = enough[np.lexsort(keys)]  # the last key is the first to tell
    taken: list[int] = []
    busy: set[int] = set()  # tracks
    held: set[int] = set()  # trajectories
    for index, one, other in zip(
        order.tolist(), found.track[order].tolist(), found.trajectory[order].tolist(), strict=True
    ):
        if one not in busy and other not in held:
            busy.add(one)
            held.add(other)
            taken.append(index)
    return np.array(taken, np.int64)


def _frames_of_both(pairs: Pairs, counted: Booleans, trajectory: Ints, track: Ints) -> Ints:
    """In how many frames these trajectories and tracks (K,) both have a box; of tracks only boxes that count."""
    if not len(trajectory):
        return np.zeros(0, np.int64)  # most classes of most videos; sparse matrices take longer than all else together
    num_frames = max(pairs.truth_frame.max(initial=-1), pairs.predicted_frame.max(initial=-1)) + 1
    of_truth = (pairs.truth_id, pairs.truth_frame)
    of_tracks = (pairs.predicted_id[counted], pairs.predicted_frame[counted])
    there = csr_array((np.ones(len(of_truth[0])), of_truth), shape=(pairs.num_truth_ids, num_frames))
    here = csr_array((np.ones(len(of_tracks[0])), of_tracks), shape=(pairs.num_predicted_ids, num_frames))
    both: Ints = (there @ here.T)[trajectory, track].astype(np.int64)
    return both
