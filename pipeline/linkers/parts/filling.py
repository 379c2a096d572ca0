"""Gaps in tracks, filled: boxes for the frames in between, on the straight line from the box before to the one after.

`smoothing` moves such boxes on to the curve that the whole track follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.records import Array, Track


def fill(tracks: Sequence[Track], frame_indices: Array, longest: int) -> list[Track]:
    """The tracks with a box in each of the frames of their gaps; every box that is there stays as it is.

    frame_indices: (F,) strictly rising, the frames that there are; others get no box. longest: missing frames in a
    gap, above which it stays open. A new box has box_id -1; its corners and scores lie linearly between its
    neighbours'; but where rounding would leave a tiny box no size it is the one before.
    """
    return [_filled(track, np.asarray(frame_indices), longest) for track in tracks]


def _filled(track: Track, frame_indices: Array, longest: int) -> Track:
    have = track.frame_index
    spanned = slice(np.searchsorted(frame_indices, have[0]), np.searchsorted(frame_indices, have[-1]))
    when = frame_indices[spanned].astype(np.int32)
    before = np.searchsorted(have, when, side="right") - 1  # the track's last box up to then
    missing = np.diff(have) - 1
    is_new = (have[before] != when) & (missing[before] <= longest)
    if not is_new.any():
        return track
    when, before = when[is_new], before[is_new]
    share = (when - have[before]) / (missing[before] + 1)  # float64, so that between equal scores all are equal
    order = np.argsort(np.concatenate([have, when]))

    def merged(old: Array, new: Array) -> Array:
        return np.concatenate([old, new.astype(old.dtype)])[order]

    def between(old: Array) -> Array:
        part = share.reshape(-1, *[1] * (old.ndim - 1))
        return merged(old, (1 - part) * old[before] + part * old[before + 1])

    boxes = between(track.boxes)
    has_size = np.all(boxes[:, :2] < boxes[:, 2:], axis=1, keepdims=True)
    return replace(
        track,
        frame_index=merged(have, when),
        boxes=np.where(has_size, boxes, merged(track.boxes, track.boxes[before])),
        scores=between(track.scores),
        raw_scores=between(track.raw_scores),
        box_id=merged(track.box_id, np.full(len(when), -1)),
        tracked=merged(track.tracked, np.zeros(len(when), bool)),
    )
