"""`deepsort`: SORT with a Deep Association Metric (Wojke et al., ICIP 2017): appearance first, then IoU.

Frame by frame, with a Kalman filter: confirmed tracks are matched to the boxes by the cosine distance of embeddings,
the least to any of the track's last `nn_budget` boxes, among the boxes that the filter's gate lets through; tracks seen
in the last frame choose first, then those seen the frame before, and so on (the cascade, section 2.3). What is left of
the tracks seen in the last frame, and the tentative ones, are matched by IoU. A box without a track starts a tentative
one, which is confirmed after `n_init` boxes in a row and closed by the first miss before that.

The names and defaults of the settings are those of the authors' program (nwojke/deep_sort: tracker.py and
deep_sort_app.py; nn_budget is evaluate_motchallenge.py's), and so are the tracks, but for these: boxes of other classes
are no pairs; boxes are given out as they were detected, not filtered; a track is not given out where it has no box,
which theirs is for one frame; with n_init 1 a track is confirmed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.linkers.parts.appearance import unit
from pipeline.linkers.parts.kalman import CHI2_95_OF_4, HeightFilter
from pipeline.linkers.parts.open_tracks import Floats, GivenBoxes, Indices, Mask, OpenTracks, follow
from pipeline.linkers.parts.ranges import check
from pipeline.linkers.parts.selection import in_order
from pipeline.records import Detections, Track, VideoInfo

NEEDS = frozenset({"embeddings"})


@dataclass(frozen=True)
class Settings:
    """max_cosine_distance: the greatest of a pair matched by appearance, 1 - cosine. max_iou_distance: the greatest
    1 - IoU of a pair matched by IoU.

    max_age: how many frames after its last box a track may get the next at the latest. n_init: boxes in a row until a
    track is confirmed. nn_budget: how many of its last boxes a track is compared by; None for all. min_confidence:
    detections below it take no part.
    boxes: `detected`, or `filtered`: where the Kalman filter then says that the box is, as the authors' program gives
    it out. whole_tracks: a track that is confirmed is given out with its boxes from before too. same_class: only boxes
    of a track's class may continue it.
    """

    max_cosine_distance: float = 0.2
    max_iou_distance: float = 0.7
    max_age: int = 30
    n_init: int = 3
    nn_budget: int | None = 100
    min_confidence: float = 0.8
    boxes: GivenBoxes = "detected"
    whole_tracks: bool = False
    same_class: bool = True

    def __post_init__(self) -> None:
        counts = {"max_age": (0, np.inf), "n_init": (1, np.inf), "nn_budget": (1, np.inf)}
        check(self, {"max_cosine_distance": (0, 2), "max_iou_distance": (0, 1), "min_confidence": (0, 1), **counts})


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tracks of one video; the detections come back as they are. Raises ValueError where boxes lack embeddings."""
    for frame in frames:
        if len(frame) and frame.embeddings is None:
            raise ValueError(
                f"frame {frame.frame_index} of {video.video_id} has boxes without embeddings; deepsort needs them"
            )
    ordered = in_order(frames)
    return list(frames), follow(_DeepSort(settings, ordered), ordered, settings.boxes, settings.whole_tracks)


class _DeepSort:
    """looks: (B, E), the normalised embeddings of all boxes of the video, frame after frame; first: the row of each
    frame's first box. A track's gallery is the chain that begins at latest[number] and goes on with previous[row].
    """

    def __init__(self, settings: Settings, frames: Sequence[Detections]) -> None:
        self.settings = settings
        self.tracks = OpenTracks(HeightFilter())
        counts = [len(frame) for frame in frames]
        self.first = dict(zip([frame.frame_index for frame in frames], np.cumsum([0, *counts])[:-1], strict=True))
        given = [f.embeddings for f in frames if f.embeddings is not None and len(f)]
        self.looks = unit(np.concatenate(given)) if given else np.empty((0, 1), np.float32)
        self.previous, self.latest = (np.full(sum(counts), -1, np.intp) for _ in range(2))

    def step(self, frame: Detections) -> None:
        tracks, settings = self.tracks, self.settings
        tracks.age()
        tracks.predict()
        takes_part = frame.scores >= settings.min_confidence
        overlap = tracks.overlap(frame, settings.same_class)
        distance = self._distances(frame, takes_part)
        able = tracks.confirmed & (tracks.missed <= settings.max_age)
        for missed in np.unique(tracks.missed[able]):
            cascade = able & (tracks.missed == missed)
            tracks.associate(frame, distance, cascade, takes_part, settings.max_cosine_distance)
        seen_last_frame = tracks.missed == 1
        tracks.associate(frame, 1 - overlap, seen_last_frame, takes_part, settings.max_iou_distance)
        tracks.keep((tracks.box >= 0) | tracks.confirmed & (tracks.missed <= settings.max_age))

        takes_part[tracks.box[tracks.box >= 0]] = False
        tracks.begin(np.flatnonzero(takes_part), frame)
        tracks.confirmed |= tracks.streak + 1 >= settings.n_init
        self._remember(frame)

    def _distances(self, frame: Detections, takes_part: Mask) -> Floats:
        """Of the appearance of confirmed tracks and boxes (N, M), inf where the gate is shut."""
        tracks = self.tracks
        gate = tracks.filter.distances(tracks.states, tracks.filter.measure(frame.boxes)) <= CHI2_95_OF_4
        gate &= tracks.confirmed[:, None] & takes_part
        if self.settings.same_class:
            gate &= tracks.label[:, None] == frame.labels
        first, budget = self.first.get(frame.frame_index, 0), self.settings.nn_budget or len(self.looks)
        return _nearest(self.looks, self.previous, self.latest[tracks.number], first, gate, budget)

    def _remember(self, frame: Detections) -> None:
        """The boxes of this frame become the latest of their tracks."""
        here = self.tracks.box >= 0
        rows = self.first.get(frame.frame_index, 0) + self.tracks.box[here]
        numbers = self.tracks.number[here]
        self.previous[rows] = self.latest[numbers]
        self.latest[numbers] = rows


# The order of a sum of products is free, so that they are taken several at a time.
@numba.njit(cache=True, fastmath={"reassoc", "contract"})
def _dot(first: NDArray[np.float32], second: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for number in range(len(first)):
        total += first[number] * second[number]
    return total


@numba.njit(cache=True)
def _nearest(
    looks: NDArray[np.float32], previous: Indices, latest: Indices, first: int, wanted: Mask, budget: int
) -> Floats:
    """Cosine distance (N, M) of each box to the nearest of a track's last `budget` boxes, inf where not wanted.

    looks: (B, E) of unit length. latest: (N,), the row of each track's latest box; previous: (B,), of its box before
    each, -1 for none. The frame's boxes are looks[first : first + M]. wanted: (N, M).
    """
    distance = np.full(wanted.shape, np.inf)
    for track in range(wanted.shape[0]):
        candidates = np.flatnonzero(wanted[track])
        if len(candidates) == 0:
            continue
        row = latest[track]
        for _ in range(budget):
            if row < 0:
                break
            for box in candidates:
                distance[track, box] = min(distance[track, box], 1 - _dot(looks[row], looks[first + box]))
            row = previous[row]
    return distance
