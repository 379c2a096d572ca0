"""`bytetrack`: every box counts, also a weak one (Zhang et al., ByteTrack, ECCV 2022).

Frame by frame, with a Kalman filter: tracks are first matched to the strong boxes, by IoU times score; those that had
a box in the last frame and got none now are then matched to the weak boxes by IoU, which keep a track alive while its
object is hidden or blurred but start none. A strong box without a track starts one, which must be seen again in the
next frame.

Defaults are those of the authors' evaluation (ifzhang/ByteTrack, tools/track.py); their names there: track_high_thresh
is `track_thresh`, track_low_thresh is .1 and new_track_thresh `track_thresh + 0.1` in the code, fuse_score is the
opposite of `mot20`. The names here are those of Ultralytics and BoT-SORT. Tracks are those of the authors' program,
but for these: boxes of other classes are no pairs; boxes are given out as they were detected, not filtered; a box whose
score is just track_high_thresh is weak, not unused; and a lost track is closed when `track_buffer` is over, where
their program matches it once more. Their filters of the result by area and aspect ratio are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.linkers.parts.kalman import VELOCITY, HeightFilter
from pipeline.linkers.parts.open_tracks import GivenBoxes, OpenTracks, follow
from pipeline.linkers.parts.overlaps import iou
from pipeline.linkers.parts.ranges import check
from pipeline.records import DEFAULT_FPS, Detections, Track, VideoInfo

NEEDS: frozenset[str] = frozenset()

# Constants of the authors' program.
WEAK_LIMIT = 0.5  # of 1 - IoU, with a weak box
UNCONFIRMED_LIMIT = 0.7  # of the cost of a track seen once with its second box
DUPLICATE_IOU = 0.85  # above it a track that has a box and one that has none are one object
HEIGHT = 3  # the place of the height among what HeightFilter measures


@dataclass(frozen=True)
class Settings:
    """track_high_thresh: boxes above this score are strong. track_low_thresh: those above this are weak, the others
    take no part. new_track_thresh: the least score of a box that starts a track.

    match_thresh: what a pair of a track and a strong box may cost, which is 1 - IoU * score, or 1 - IoU without
    fuse_score. track_buffer: frames without a box that a track outlives, in a video of 30 frames a second; int(fps / 30
    * track_buffer) in others.
    boxes: `detected`, or `filtered`: where the Kalman filter then says that the box is, as the authors' program gives
    it out. whole_tracks: a track that is confirmed is given out with its first box too. same_class: only boxes of a
    track's class may continue it.
    """

    track_high_thresh: float = 0.6
    track_low_thresh: float = 0.1
    new_track_thresh: float = 0.7
    match_thresh: float = 0.9
    track_buffer: int = 30
    fuse_score: bool = True
    boxes: GivenBoxes = "detected"
    whole_tracks: bool = False
    same_class: bool = True

    def __post_init__(self) -> None:
        shares = ("track_high_thresh", "track_low_thresh", "new_track_thresh", "match_thresh")
        check(self, {**dict.fromkeys(shares, (0, 1)), "track_buffer": (0, np.inf)})
        if self.track_low_thresh > self.track_high_thresh:
            raise ValueError(
                f"linker bytetrack.track_low_thresh is {self.track_low_thresh}; it must be at most "
                f"track_high_thresh, which is {self.track_high_thresh}"
            )


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tracks of one video; the detections come back as they are."""
    tracker = _ByteTrack(settings, video.fps or DEFAULT_FPS, video.start)
    return list(frames), follow(tracker, frames, settings.boxes, settings.whole_tracks)


class _ByteTrack:
    def __init__(self, settings: Settings, fps: float, first: int) -> None:
        self.settings, self.first = settings, first
        self.max_missed = int(fps / 30 * settings.track_buffer)
        self.tracks = OpenTracks(HeightFilter())

    def step(self, frame: Detections) -> None:
        tracks, settings = self.tracks, self.settings
        tracks.age()
        was_lost = tracks.missed > 1
        tracks.states[was_lost, VELOCITY, HEIGHT] = 0
        tracks.predict(tracks.confirmed)  # a track seen once rests
        overlap = tracks.overlap(frame, settings.same_class)
        cost = 1 - (overlap * frame.scores if settings.fuse_score else overlap)

        strong = frame.scores > settings.track_high_thresh
        weak = (frame.scores > settings.track_low_thresh) & ~strong
        tracks.associate(frame, cost, tracks.confirmed, strong, settings.match_thresh)
        tracks.associate(frame, 1 - overlap, tracks.confirmed & ~was_lost, weak, WEAK_LIMIT)
        tracks.associate(frame, cost, ~tracks.confirmed, strong, UNCONFIRMED_LIMIT)
        tracks.keep((tracks.box >= 0) | tracks.confirmed & (tracks.missed <= self.max_missed))
        tracks.confirmed |= tracks.box >= 0

        starts = strong & (frame.scores >= settings.new_track_thresh)
        starts[tracks.box[tracks.box >= 0]] = False
        tracks.begin(np.flatnonzero(starts), frame)
        if frame.frame_index == self.first:
            tracks.confirmed[:] = True
        self._drop_duplicates(frame.frame_index)

    def _drop_duplicates(self, frame_index: int) -> None:
        """Of a track that has a box and one that has none in the same place the one that was seen for longer stays."""
        tracks = self.tracks
        here, lost = np.flatnonzero(tracks.box >= 0), np.flatnonzero(tracks.box < 0)
        if not len(here) or not len(lost):
            return
        boxes = tracks.filter.boxes(tracks.states)
        same = iou(boxes[here], boxes[lost]) > DUPLICATE_IOU
        if self.settings.same_class:
            same &= tracks.label[here][:, None] == tracks.label[lost]
        here, lost = here[np.nonzero(same)[0]], lost[np.nonzero(same)[1]]
        duration = frame_index - tracks.missed - tracks.began
        keep = np.ones(len(tracks), bool)
        keep[np.where(duration[here] > duration[lost], lost, here)] = False
        tracks.keep(keep)
