"""Boxes that have been given identities become tracks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Detections, Track


def tracks_of(
    frames: Sequence[Detections],
    ids: Sequence[NDArray[np.int32]],
    rescored: Sequence[Detections] | None = None,
    min_length: int = 1,
) -> list[Track]:
    """Tracks from one identity a box; ids[t]: (N_t,), below 0 for a box that belongs to none.

    Tracks are numbered from 1 in the order in which they appear (first frame, then first box). A track's label is the
    class with the largest sum of scores, its score their mean. Of two boxes of one identity in one frame the better
    counts. rescored: the same frames after rescoring, where a linker did that.
    """
    if not frames:
        return []
    after = frames if rescored is None else rescored
    counts = [len(frame) for frame in frames]
    owner = np.concatenate(ids)
    frame_index = np.repeat(np.array([frame.frame_index for frame in frames], np.int32), counts)
    raw = np.concatenate([frame.scores for frame in frames])
    order = np.lexsort((-raw, frame_index, owner))
    order = order[owner[order] >= 0]
    first_of_frame = np.ones(len(order), bool)
    first_of_frame[1:] = (np.diff(owner[order]) != 0) | (np.diff(frame_index[order]) != 0)
    order = order[first_of_frame]

    boxes = np.concatenate([frame.boxes for frame in frames])
    labels = np.concatenate([frame.labels for frame in frames])
    scores = np.concatenate([frame.scores for frame in after])
    box_id = np.concatenate([frame.box_id for frame in frames])
    tracked = np.concatenate([np.zeros(len(f), bool) if f.tracked is None else f.tracked for f in frames])
    groups = np.split(order, np.flatnonzero(np.diff(owner[order])) + 1)
    groups = [group for group in groups if len(group) >= max(min_length, 1)]
    groups.sort(key=lambda group: int(group[0]))
    return [
        Track(
            track_id=number,
            label=int(np.argmax(np.bincount(labels[group], weights=raw[group]))),
            score=float(np.mean(raw[group])),
            frame_index=frame_index[group],
            boxes=boxes[group],
            scores=scores[group],
            raw_scores=raw[group],
            box_id=box_id[group],
            tracked=tracked[group],
        )
        for number, group in enumerate(groups, start=1)
    ]
