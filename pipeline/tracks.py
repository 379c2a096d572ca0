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

    Tracks are numbered from 1 in the order in which they appear (first frame, then lowest box_id). A track's label is
    the class with the largest sum of scores, its score their mean. Of two boxes of one identity in one frame the better
    counts. rescored: the same frames after rescoring, where a linker did that. min_length: tracks of fewer boxes are
    left out.
    """
    if not frames:
        return []
    after = frames if rescored is None else rescored
    counts = [len(frame) for frame in frames]
    owner = np.concatenate(ids)
    frame_index = np.repeat(np.array([frame.frame_index for frame in frames], np.int32), counts)
    raw = np.concatenate([frame.scores for frame in frames])
    box_id = np.concatenate([frame.box_id for frame in frames])
    order = np.lexsort((box_id, -raw, frame_index, owner))
    order = order[owner[order] >= 0]
    is_better = np.ones(len(order), bool)  # than the other boxes of its identity and frame
    is_better[1:] = (np.diff(owner[order]) != 0) | (np.diff(frame_index[order]) != 0)
    order = order[is_better]
    if len(order) == 0:
        return []

    frame_index, raw, box_id = frame_index[order], raw[order], box_id[order]
    boxes = np.concatenate([frame.boxes for frame in frames])[order]
    labels = np.concatenate([frame.labels for frame in frames])[order]
    scores = np.concatenate([frame.scores for frame in after])[order]
    tracked = np.concatenate([np.zeros(len(f), bool) if f.tracked is None else f.tracked for f in frames])[order]

    starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    means = np.add.reduceat(raw, starts, dtype=np.float64) / lengths
    is_mixed = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
    tracks: list[Track] = []
    for group in np.lexsort((box_id[starts], frame_index[starts])):
        if lengths[group] < min_length:
            continue
        rows = slice(starts[group], starts[group] + lengths[group])
        label = _label(labels[rows], raw[rows]) if is_mixed[group] else labels[starts[group]]
        tracks.append(
            Track(
                track_id=len(tracks) + 1,
                label=int(label),
                score=float(means[group]),
                frame_index=frame_index[rows],
                boxes=boxes[rows],
                scores=scores[rows],
                raw_scores=raw[rows],
                box_id=box_id[rows],
                tracked=tracked[rows],
            )
        )
    return tracks


def _label(labels: NDArray[np.int16], scores: NDArray[np.float32]) -> int:
    """The class with the largest sum of scores; the lowest of several."""
    return int(np.argmax(np.bincount(labels, weights=scores)))
