"""What the metrics of one video (and class) start from: its rows, and every overlapping pair of truth and prediction.

Computed once and shared. The pairs are a sparse list over all frames, not a matrix a frame, so that counting is
array work over the whole video, and only frames where boxes compete for each other are looked at one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.boxes import area

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Booleans = NDArray[np.bool_]

EPSILON = float(np.finfo(np.float64).eps)
_PAIRS_AT_ONCE = 4_000_000  # bounds the memory of crowded videos to some 300 MB


@dataclass(frozen=True)
class Rows:
    """Boxes of one video: frame int64 (N,), rising; boxes float64 (N, 4) xyxy; ids int64 (N,), -1 where none.

    scores float64 (N,): of predictions. kind int8 (N,): what a row of truth does; see `ignoring`.
    motion float64 (N,): a truth's mean IoU with its own boxes of the frames around, nan where unknown.
    track_scores float64 (N,): of a prediction's whole track, nan where unknown.
    """

    frame: Ints
    boxes: Floats
    ids: Ints
    scores: Floats
    kind: NDArray[np.int8]
    motion: Floats
    track_scores: Floats

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, chosen: Ints | Booleans | slice) -> Rows:
        return Rows(*[array[chosen] for array in vars(self).values()])


def rows(
    frame: object,
    boxes: object,
    ids: object = None,
    scores: object = None,
    kind: object = None,
    motion: object = None,
    track_scores: object = None,
) -> Rows:
    """Makes `Rows` from anything array-like, ordered by frame, id, score (best first) and box.

    The order does not depend on the one given, so neither does any score. ids default to -1, scores to 1, kind to 0,
    motion and track_scores to nan.
    """
    frames = np.asarray(frame, np.int64).reshape(-1)
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    count = len(frames)
    made = Rows(
        frames,
        corners,
        np.full(count, -1, np.int64) if ids is None else np.asarray(ids, np.int64).reshape(-1),
        np.ones(count) if scores is None else np.asarray(scores, np.float64).reshape(-1),
        np.zeros(count, np.int8) if kind is None else np.asarray(kind, np.int8).reshape(-1),
        np.full(count, np.nan) if motion is None else np.asarray(motion, np.float64).reshape(-1),
        np.full(count, np.nan) if track_scores is None else np.asarray(track_scores, np.float64).reshape(-1),
    )
    return in_order(made)


def in_order(made: Rows) -> Rows:
    """The rows by frame, id, score (best first) and box."""
    return made[np.lexsort((*made.boxes.T[::-1], -made.scores, made.ids, made.frame))]


@dataclass(frozen=True)
class Pairs:
    """Truth and predictions of one video and class, and the pairs of them that overlap in the same frame.

    truth_frame (N,), predicted_frame (M,): rising. truth_id (N,), predicted_id (M,): 0-based and without gaps, each
    at most once a frame. truth (P,), predicted (P,): row indices of the pairs, ordered by frame, truth, prediction.
    iou (P,): float64 in (0, 1].
    """

    truth_frame: Ints
    truth_id: Ints
    predicted_frame: Ints
    predicted_id: Ints
    truth: Ints
    predicted: Ints
    iou: Floats

    @property
    def num_truth_ids(self) -> int:
        return int(self.truth_id.max(initial=-1)) + 1

    @property
    def num_predicted_ids(self) -> int:
        return int(self.predicted_id.max(initial=-1)) + 1

    @property
    def frame(self) -> Ints:
        """The frame of each pair (P,)."""
        return self.truth_frame[self.truth]

    def where(self, chosen: Booleans) -> Pairs:
        """The same rows with these pairs only."""
        return replace(self, truth=self.truth[chosen], predicted=self.predicted[chosen], iou=self.iou[chosen])


def pair(truth: Rows, predicted: Rows) -> Pairs:
    """The pairs of a video whose rows all have ids (`ids` may be any numbers; they are numbered anew)."""
    first, second, iou = overlaps(truth, predicted)
    return Pairs(
        truth_frame=truth.frame,
        truth_id=np.unique(truth.ids, return_inverse=True)[1].reshape(-1).astype(np.int64),
        predicted_frame=predicted.frame,
        predicted_id=np.unique(predicted.ids, return_inverse=True)[1].reshape(-1).astype(np.int64),
        truth=first,
        predicted=second,
        iou=iou,
    )


def overlaps(truth: Rows, predicted: Rows, *, over: str = "union") -> tuple[Ints, Ints, Floats]:
    """Indices of truth (P,) and predictions (P,) that overlap in the same frame, and by how much (P,), float64.

    over: `union` gives IoU; `prediction` gives the share of the predicted box that lies in the truth's. Ordered by
    truth, then prediction.
    """
    start = np.searchsorted(predicted.frame, truth.frame, "left")
    count = np.searchsorted(predicted.frame, truth.frame, "right") - start  # (N,) predictions in each truth's frame
    ends = np.cumsum(count)
    found: list[tuple[Ints, Ints, Floats]] = []
    begin = 0
    while begin < len(truth):
        done = ends[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, "right")))
        counts = count[begin:stop]
        first = np.repeat(np.arange(begin, stop), counts)
        second = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - start[begin:stop], counts)
        share = row_by_row(truth.boxes[first], predicted.boxes[second], over)
        touching = share > 0
        found.append((first[touching], second[touching], share[touching]))
        begin = stop
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    firsts, seconds, shares = zip(*found, strict=True)
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(shares)


def row_by_row(first: Floats, second: Floats, over: str = "union") -> Floats:
    """Overlap (P,) of boxes (P, 4) each with one of (P, 4), over their union or the second's area; see `overlaps`."""
    width = np.minimum(first[:, 2], second[:, 2]) - np.maximum(first[:, 0], second[:, 0])
    height = np.minimum(first[:, 3], second[:, 3]) - np.maximum(first[:, 1], second[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    whole = area(second)
    if over == "union":
        whole = area(first) + whole - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def frame_slices(pairs: Pairs) -> tuple[list[slice], Booleans]:
    """The pairs of each frame that has any, as slices; and whether boxes compete for each other in it, (F,).

    Where they do not, every pair stands alone, and any assignment takes them all.
    """
    frame = pairs.frame
    bounds = np.flatnonzero(np.diff(frame, prepend=-1, append=-1)) if len(frame) else np.zeros(1, np.int64)
    crowded = (np.bincount(pairs.truth)[pairs.truth] > 1) | (np.bincount(pairs.predicted)[pairs.predicted] > 1)
    competing = np.logical_or.reduceat(crowded, bounds[:-1]) if len(frame) else np.zeros(0, np.bool_)
    return [slice(a, b) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)], competing


def assigned(pairs: Pairs, weight: Floats) -> Booleans:
    """Which pairs (P,) an assignment of the greatest total weight (P,) in each frame takes."""
    taken = np.ones(len(weight), np.bool_)
    slices, competing = frame_slices(pairs)
    for index in np.flatnonzero(competing).tolist():
        span = slices[index]
        taken[span] = False
        taken[span.start + assign(pairs.truth[span], pairs.predicted[span], weight[span])] = True
    return taken


def assign(truth: Ints, predicted: Ints, weight: Floats) -> Ints:
    """Which of one frame's pairs (P,) an assignment of the greatest total weight takes; each row at most once."""
    row = truth - truth.min()
    column = predicted - predicted.min()
    if not row.any() or not column.any():  # one box against several, as most often: the best pair, without a matrix
        return np.array([weight.argmax()])
    index = np.full((row.max() + 1, column.max() + 1), -1)
    index[row, column] = np.arange(len(row))
    weights = np.zeros(index.shape)
    weights[row, column] = weight
    taken = index[linear_sum_assignment(weights, maximize=True)]
    return taken[taken >= 0]
