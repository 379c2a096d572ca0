"""Some of a frame's boxes, or all of them in another order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Detections

_PER_BOX = ("boxes", "scores", "labels", "box_id", "class_scores", "embeddings", "tracklet_id", "tracked")


def select(frame: Detections, rows: NDArray[Any]) -> Detections:
    """The frame with those boxes only; rows: (N,) booleans, or places (K,) in the order in which the boxes come out.

    Its moves stay whole: they are of the places, too.
    """
    given = {name: getattr(frame, name) for name in _PER_BOX}
    return dataclasses.replace(frame, **{name: value[rows] for name, value in given.items() if value is not None})


def in_order(frames: Sequence[Detections]) -> list[Detections]:
    """The frames with their boxes by box_id, so that of two choices as good as each other the same is always made."""
    return [
        frame if (frame.box_id[1:] > frame.box_id[:-1]).all() else select(frame, np.argsort(frame.box_id))
        for frame in frames
    ]
