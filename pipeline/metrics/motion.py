"""How fast a trajectory is, as Table 1 of TCD groups them: by the mean IoU of its boxes in consecutive frames.

TCD is Zhang et al., "Integrated Object Detection and Tracking with Tracklet-Conditioned Detection". By whole tracks and
by their boxes (`tracks`, `stability`, `detection`) the groups are the same.
"""

from __future__ import annotations

import numpy as np

from pipeline.metrics.pairs import Floats, Ints, row_by_row

GROUPS = ("slow", "medium", "fast")  # by number; what has no known motion is of the number after the last


def groups(track: Ints, frame: Ints, boxes: Floats) -> Ints:
    """The group of each trajectory (A,), an index into GROUPS; 3 where no two of its boxes are in consecutive frames.

    track (N,): which of the A each box (N, 4) is of, numbers without gaps; at most one a frame (N,). Slow is a mean IoU
    above .8, medium .6 to .8, fast below .6.
    """
    order = np.lexsort((frame, track))
    before = np.flatnonzero((np.diff(track[order]) == 0) & (np.diff(frame[order]) == 1))
    owner, iou = track[order[before]], row_by_row(boxes[order[before]], boxes[order[before + 1]])
    total, number = np.bincount(owner, iou), np.bincount(owner)
    mean = np.full(int(track.max(initial=-1)) + 1, np.nan)
    np.divide(total, number, out=mean[: len(number)], where=number > 0)
    return np.select([mean > 0.8, mean >= 0.6, mean < 0.6], [0, 1, 2], default=len(GROUPS)).astype(np.int64)
