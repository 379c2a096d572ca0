"""Truth of faces: rows of the one class `face`, whatever file they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from catalogs.parts.tables import of_schema
from pipeline.boxes import from_xywh
from pipeline.schemas import TRUTH

CLASSES = ("face",)
NO_SIZE = "no_size"  # the flag of a box without width or height, which no prediction can match

Array = NDArray[Any]


def table(
    video_id: str,
    frame: Array,
    boxes: Array,
    track: Array | None = None,
    ignore: Array | None = None,
    flags: Sequence[Sequence[str]] | None = None,
) -> pa.Table:
    """Faces as rows of TRUTH, sorted by frame and track.

    frame: (N,), from 0; boxes: (N, 4) left, top, width, height in continuous pixels; track: (N,), from 1, None where
    the source has no identities; ignore: bool (N,), None where all count; flags: of each face. A box of no size is
    ignored, and flagged so. Raises ValueError where a track is twice in a frame: no metric of identities takes that,
    and a run should not have to end to say so.
    """
    count = len(frame)
    boxes = np.asarray(boxes, np.float64).reshape(count, 4)
    empty = (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0)
    words = [list(given) for given in flags] if flags is not None else [[] for _ in range(count)]
    for row in np.flatnonzero(empty):
        words[row].append(NO_SIZE)
    ignored = empty if ignore is None else empty | np.asarray(ignore, np.bool_)
    if track is not None:
        pairs, times = np.unique(np.stack([frame, track], axis=1)[~ignored], axis=0, return_counts=True)
        if (times > 1).any():
            where, who = pairs[np.argmax(times > 1)].tolist()
            raise ValueError(
                f"the truth of {video_id} has track {who} twice in frame {where} (from 0); it must be once"
            )
    order = np.lexsort((np.zeros(count) if track is None else track, frame))
    return of_schema(
        TRUTH,
        from_xywh(boxes).astype(np.float32)[order],
        video_id=video_id,
        frame_index=np.asarray(frame)[order],
        track_id=None if track is None else np.asarray(track)[order],
        class_id=np.zeros(count, np.int16),
        class_name=CLASSES[0],
        ignore=ignored[order],
        flags=[words[row] for row in order],
    )
