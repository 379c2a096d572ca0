"""The linking of whole videos straight from its definition, in plain numpy: what `benchmark linkers` is held against.

Both take the boxes and scores of one class, frame by frame, and give the sum of scores of each path, greatest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import iou

Floats = NDArray[np.float64]
MIN_IOU, SUPPRESS_IOU, MIN_SUM = 0.5, 0.3, 0.01


def tubes(boxes: Sequence[Floats], scores: Sequence[Floats]) -> Floats:
    """D&T's tubes, where an IoU of .5 is the evidence that two boxes are one object; every frame has as many boxes."""
    evidence = [(iou(a, b) >= MIN_IOU).astype(float) for a, b in pairwise(boxes)]
    left = [one.copy() for one in scores]
    sums: list[float] = []
    for _ in range(len(boxes[0])):
        best, back = np.zeros(len(boxes[0])), []
        for links, before, score in zip(evidence, left, left[1:], strict=False):
            total = (best + before)[:, None] + links  # a step's score is that of both its boxes and the evidence
            back.append(total.argmax(axis=0))
            best = total.max(axis=0) + score
        path = [int(best.argmax())]
        for origin in reversed(back):
            path.append(int(origin[path[-1]]))
        path.reverse()
        sums.append(sum(one[at] for one, at in zip(scores, path, strict=True)))
        for one, at in zip(left, path, strict=True):
            one[at] = -np.inf
    return np.sort(sums)[::-1]


def sequences(boxes: Sequence[Floats], scores: Sequence[Floats]) -> Floats:
    """Seq-NMS's sequences: the path of the greatest sum, again and again, without what was taken or suppressed."""
    overlaps = [iou(a, b) >= MIN_IOU for a, b in pairwise(boxes)]
    left = [one.copy() for one in scores]
    sums: list[float] = []
    while True:
        best, back = [left[0]], []
        for links, score in zip(overlaps, left[1:], strict=True):
            before = np.where(links, best[-1][:, None], 0.0)
            back.append(np.where(before.max(axis=0) > 0, before.argmax(axis=0), -1))
            best.append(score + before.max(axis=0) * (score > -np.inf))
        end = int(np.argmax([one.max() for one in best]))
        at = int(best[end].argmax())
        if not best[end][at] >= MIN_SUM:
            return np.sort(sums)[::-1]
        sums.append(float(best[end][at]))
        for frame in range(end, -1, -1):
            left[frame][iou(boxes[frame][at], boxes[frame])[0] >= SUPPRESS_IOU] = -np.inf
            if frame == 0 or (at := int(back[frame - 1][at])) < 0:
                break
