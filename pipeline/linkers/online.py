"""`online`: our own online tracker of plain detections: a track is given out for as long as it probably exists.

One idea in the place of the usual rules (minimal hits, a second look at weak boxes, a threshold to begin): evidence.
A detector's score is a chance, so every box adds its log odds to those of the track that it continues, measured
against `prior`, the score that speaks neither for nor against an object; every frame without a box takes `miss` away.
A track begins, is given out, and ends by this one number, the log odds that there is something: sequential
detection as in Blackman and Popoli (Design and Analysis of Modern Tracking Systems, 1999, chapter 6).

Where a track would be now is a Kalman filter's. How well a box fits that is the IoU of the two, both grown by a margin
on all sides, so that a fast object is found beside where it was expected (buffered IoU: Yang et al., Hard to Track
Objects with Irregular Motions and Similar Appearances, WACV 2023), less what their heights differ by. Strictly
causal: what is given out in a frame depends on no later one. The constants were chosen on real detections of people and
cars (LOG.md); position and size only: for appearance there are `deepsort`, `track_store` and `tracklets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.linkers.parts.assignment import Pairs, match
from pipeline.linkers.parts.kalman import BoxFilter, Floats, SizeFilter
from pipeline.linkers.parts.open_tracks import OpenTracks, follow
from pipeline.linkers.parts.overlaps import iou
from pipeline.linkers.parts.ranges import ANY, check
from pipeline.records import Detections, Track, VideoInfo

NEEDS: frozenset[str] = frozenset()
_SUREST, _LEAST_SURE = 0.98, 0.02  # a score says no more than this, nor less: no detector is as sure as it claims


@dataclass(frozen=True)
class Settings:
    """min_score: boxes below it take no part.

    Evidence, in log odds. prior: the score (0 to 1) that counts for nothing; begin: of a box that begins a track;
    certain: of a track whose boxes are given out; most: what a track can gather; miss: lost with every frame without
    a box; end: of a track that is given up (the defaults keep a sure track for 16 frames). whole_tracks: a track that
    is ever certain is given out from its first box on, which is no longer causal.

    Fit. min_fit: of a box and a track, at most 1; margin: by which boxes are grown, of their width and height on
    either side; size_weight: what a difference of heights takes off, of the log of their ratio; score_weight (0 to
    1): share of the fit that is scaled by the box's score. same_class: only boxes of a track's class may continue it.

    Motion, as shares of a box's height. process, velocity: standard deviations that a frame adds to position and
    size, and to their velocities; measurement: of a detected box.
    """

    min_score: float = 0.1
    prior: float = 0.2
    begin: float = 1.0
    certain: float = 2.2
    most: float = 9.0
    miss: float = 0.9
    end: float = -6.0
    whole_tracks: bool = False
    min_fit: float = 0.05
    margin: float = 0.25
    size_weight: float = 0.3
    score_weight: float = 0.4
    same_class: bool = True
    process: float = 0.07
    velocity: float = 0.08
    measurement: float = 0.09

    def __post_init__(self) -> None:
        shares = ("min_score", "min_fit", "score_weight")
        amounts = ("miss", "margin", "size_weight", "process", "velocity")
        check(
            self,
            {
                **dict.fromkeys(shares, (0, 1)),
                **dict.fromkeys(amounts, (0, np.inf)),
                **dict.fromkeys(("begin", "certain", "most", "end"), ANY),
                "prior": (_LEAST_SURE, _SUREST),
            },
            above={"measurement": (0, np.inf)},
        )
        linker = type(self).__module__.rpartition(".")[2]  # `offline` has these too
        if not self.end < self.most:
            raise ValueError(f"linker {linker}.end is {self.end}; it must be below {linker}.most, {self.most}")
        if not self.certain <= self.most:
            raise ValueError(
                f"linker {linker}.certain is {self.certain}; it must be at most {linker}.most, {self.most}"
            )


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tracks of one video; the detections come back as they are."""
    return list(frames), follow(Tracker(settings), frames, boxes="detected", whole_tracks=settings.whole_tracks)


class _Tracks(OpenTracks):
    """evidence: float64 (N,), log odds that there is something."""

    _COLUMNS = (*OpenTracks._COLUMNS, "evidence")

    def __init__(self, box_filter: BoxFilter) -> None:
        super().__init__(box_filter)
        self.evidence = np.empty(0)


class Tracker:
    """Goes from frame to frame; see `parts.open_tracks.follow`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tracks = _Tracks(SizeFilter(settings.process, settings.velocity, settings.measurement))

    def step(self, frame: Detections) -> None:
        """The tracks have their boxes of the next frame."""
        tracks, settings = self.tracks, self.settings
        tracks.age()
        tracks.predict()
        evidence = log_odds(frame.scores, settings.prior)
        rows, boxes = self._match(frame)
        tracks.extend(rows, boxes, frame)
        tracks.evidence[rows] = np.minimum(tracks.evidence[rows] + evidence[boxes], settings.most)
        tracks.evidence[tracks.missed > 0] -= settings.miss
        tracks.keep(tracks.evidence >= settings.end)

        free = np.ones(len(frame), np.bool_)
        free[boxes] = False
        new = np.flatnonzero(free & (evidence >= settings.begin) & (frame.scores >= settings.min_score))
        tracks.begin(new, frame)
        tracks.evidence[len(tracks) - len(new) :] = np.minimum(evidence[new], settings.most)
        tracks.confirmed = tracks.evidence >= settings.certain

    def _match(self, frame: Detections) -> Pairs:
        """Tracks and boxes that belong together: those of the greatest total fit above the least."""
        settings = self.settings
        expected, boxes = self.tracks.filter.boxes(self.tracks.states), frame.boxes.astype(np.float64)
        fit = iou(_grown(expected, settings.margin), _grown(boxes, settings.margin))
        allowed = (fit > 0) & (frame.scores >= settings.min_score)
        if settings.same_class:
            allowed &= self.tracks.label[:, None] == frame.labels
        height, theirs = expected[:, 3] - expected[:, 1], boxes[:, 3] - boxes[:, 1]
        height = np.maximum(height, np.finfo(np.float64).tiny)  # of an expected box that is turned over, and fits none
        fit -= settings.size_weight * np.abs(np.subtract.outer(np.log(height), np.log(theirs)))
        fit *= 1 - settings.score_weight + settings.score_weight * frame.scores
        return match(-fit, allowed & (fit > settings.min_fit), -settings.min_fit)


def log_odds(scores: NDArray[np.floating], prior: float) -> Floats:
    """What scores (N,) in [0, 1] say for an object, in log odds against the prior; bounded."""
    chance = np.clip(scores.astype(np.float64), _LEAST_SURE, _SUREST)
    return np.log(chance / (1 - chance)) - np.log(prior / (1 - prior))


def _grown(boxes: Floats, margin: float) -> Floats:
    """Boxes (N, 4) with a margin on every side, a share of their width and height."""
    more = margin * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - more, boxes[:, 2:] + more], axis=1)
