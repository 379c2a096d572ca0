"""`sort`: Simple Online and Realtime Tracking (Bewley et al., ICIP 2016): a Kalman filter and IoU, nothing else.

Frame by frame: where each track should be now is held against the boxes, at the greatest sum of IoU; a pair below
`iou_threshold` is none. A box without a track starts one, a track that had no box for more than `max_age` frames is
closed. The names and defaults of the settings are those of the authors' program (abewley/sort), and so are the tracks,
but for these: boxes of other classes are no pairs; boxes are given out as they were detected, not filtered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.linkers.parts.assignment import Pairs, match
from pipeline.linkers.parts.kalman import AreaFilter
from pipeline.linkers.parts.open_tracks import Floats, GivenBoxes, OpenTracks, follow
from pipeline.linkers.parts.ranges import check
from pipeline.records import Detections, Track, VideoInfo

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Settings:
    """max_age: frames without a box that a track outlives. iou_threshold: the least IoU of a pair.

    min_hits: a track's box is given out once the track was extended so often in a row; and in the first `min_hits`
    frames of the video, where none can have been.
    min_score: detections below it take no part; the authors' program takes all.
    boxes: `detected`, or `filtered`: where the Kalman filter then says that the box is, as the authors' program gives
    it out. whole_tracks: a track that is given out at all is given out with all its boxes, also those that `min_hits`
    holds back. same_class: only boxes of a track's class may continue it.
    """

    max_age: int = 1
    min_hits: int = 3
    iou_threshold: float = 0.3
    min_score: float = 0.0
    boxes: GivenBoxes = "detected"
    whole_tracks: bool = False
    same_class: bool = True

    def __post_init__(self) -> None:
        check(self, {"max_age": (0, np.inf), "min_hits": (0, np.inf), "iou_threshold": (0, 1), "min_score": (0, 1)})


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tracks of one video; the detections come back as they are."""
    tracker = _Sort(settings, video.start + settings.min_hits)
    return list(frames), follow(tracker, frames, settings.boxes, settings.whole_tracks)


class _Sort:
    def __init__(self, settings: Settings, warm: int) -> None:
        self.settings = settings
        self.warm = warm  # the first frame in which a track can have had its hits
        self.tracks = OpenTracks(AreaFilter())

    def step(self, frame: Detections) -> None:
        tracks, settings = self.tracks, self.settings
        tracks.age()
        tracks.predict()
        takes_part = frame.scores >= settings.min_score
        overlap = tracks.overlap(frame, settings.same_class)
        overlap[:, ~takes_part] = 0
        rows, boxes = _pairs(overlap, settings.iou_threshold)
        tracks.extend(rows, boxes, frame)
        takes_part[boxes] = False
        tracks.begin(np.flatnonzero(takes_part), frame)
        tracks.keep(tracks.missed <= settings.max_age)
        tracks.confirmed = (tracks.streak >= settings.min_hits) | (frame.frame_index < self.warm)


def _pairs(overlap: Floats, iou_threshold: float) -> Pairs:
    """Tracks and boxes that belong together by their IoU (N, M), as the authors' program has it.

    Where no track or box has two partners above the threshold those are the pairs. Otherwise the threshold is applied
    after the assignment: pairs below it take part and may cost another its partner.
    """
    certain = overlap > iou_threshold
    if certain.sum(axis=0).max(initial=0) <= 1 and certain.sum(axis=1).max(initial=0) <= 1:
        rows, boxes = np.nonzero(certain)
        return rows, boxes
    rows, boxes = match(1 - overlap, overlap > 0, limit=1.0)
    good = overlap[rows, boxes] >= iou_threshold
    return rows[good], boxes[good]
