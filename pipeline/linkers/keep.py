"""`keep`: the model's own identities (`tracklet_id`) as they are once the clips are stitched, for models that track."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.linkers.parts.ranges import check
from pipeline.records import Detections, Track, VideoInfo
from pipeline.tracks import tracks_of

NEEDS = frozenset({"tracklet_id"})


@dataclass(frozen=True)
class Settings:
    """min_length: tracks of fewer boxes are not given out."""

    min_length: int = 1

    def __post_init__(self) -> None:
        check(self, {"min_length": (1, np.inf)})


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tracks from `tracklet_id`; the detections come back as they are."""
    ids = [np.full(len(frame), -1, np.int32) if frame.tracklet_id is None else frame.tracklet_id for frame in frames]
    return list(frames), tracks_of(frames, ids, min_length=settings.min_length)
