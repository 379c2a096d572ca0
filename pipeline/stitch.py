"""Tracklets of neighbouring clips become one.

A model's tracklet ids are local to a clip. Neighbouring clips share the frames around their seam; where a tracklet of
the one and a tracklet of the other lie on each other in those frames, they are the same object and get one id. Without
shared frames the last frame before the seam is held against the first one after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline import boxes as box_ops
from pipeline.records import Detections

MIN_IOU = 0.5  # of two boxes that may be the same object; the usual bar of the field's metrics


def stitch(clips: Sequence[tuple[Sequence[Detections], NDArray[np.bool_]]]) -> list[Detections]:
    """One video's owned frames in order, with tracklet ids that hold over all of it.

    clips: in order of time, each its frames and which of them it owns (T,). Ids start at 1 in the result; -1 stays.
    """
    frames: list[Detections] = []
    before: Sequence[Detections] = ()
    before_ids: dict[int, int] = {}
    next_id = 1
    for shown, owned in clips:
        same = _matches(before, shown)
        ids: dict[int, int] = {}
        for local in sorted({int(one) for frame in shown for one in _tracklets(frame)}):
            if local in same:
                ids[local] = before_ids[same[local]]
            else:
                ids[local], next_id = next_id, next_id + 1
        frames += [_renamed(frame, ids) for frame, mine in zip(shown, owned, strict=True) if mine]
        before, before_ids = shown, ids
    return frames


def _tracklets(frame: Detections) -> NDArray[np.int32]:
    """Ids of the boxes that belong to a tracklet."""
    if frame.tracklet_id is None:
        return np.empty(0, np.int32)
    return frame.tracklet_id[frame.tracklet_id >= 0]


def _renamed(frame: Detections, ids: dict[int, int]) -> Detections:
    if frame.tracklet_id is None:
        return frame
    renamed = np.array([ids.get(int(one), -1) for one in frame.tracklet_id], np.int32)
    return dataclasses.replace(frame, tracklet_id=renamed)


def _matches(before: Sequence[Detections], after: Sequence[Detections]) -> dict[int, int]:
    """Tracklet of the later clip -> the tracklet of the earlier one that it continues."""
    if not before or not after:
        return {}
    shared = {frame.frame_index: frame for frame in before}
    pairs = [(shared[frame.frame_index], frame) for frame in after if frame.frame_index in shared]
    votes: dict[tuple[int, int], float] = {}
    if not pairs and after[0].frame_index == before[-1].frame_index + 1:
        pairs = [(before[-1], after[0])]
    for one, other in pairs:
        if one.tracklet_id is None or other.tracklet_id is None:
            continue
        overlaps = box_ops.iou(one.boxes, other.boxes)
        alike = (overlaps >= MIN_IOU) & (one.labels[:, None] == other.labels[None])
        alike &= (one.tracklet_id >= 0)[:, None] & (other.tracklet_id >= 0)[None]
        for i, j in np.argwhere(alike):
            key = int(one.tracklet_id[i]), int(other.tracklet_id[j])
            votes[key] = votes.get(key, 0.0) + float(overlaps[i, j])
    if not votes:
        return {}
    rows, columns = sorted({key[0] for key in votes}), sorted({key[1] for key in votes})
    weights = np.array([[votes.get((row, column), 0.0) for column in columns] for row in rows])
    chosen = zip(*linear_sum_assignment(weights, maximize=True), strict=True)
    return {columns[j]: rows[i] for i, j in chosen if weights[i, j] > 0}
