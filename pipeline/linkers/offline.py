"""`offline`: `online` with the whole video in hand, for tracks that need not be there at once.

Weak boxes may begin tracks, for all of a track's boxes are judged together in the end: a track is given out, from its
first box on, if they gathered enough evidence. Then short gaps are filled, and its boxes are moved to the course that
it is likeliest to have taken. Each of these brought something on real detections; to join tracks over gaps of ten
frames and more cost more than it brought (LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.linkers import online
from pipeline.linkers.parts.filling import fill
from pipeline.linkers.parts.open_tracks import follow
from pipeline.linkers.parts.ranges import ANY, check
from pipeline.linkers.parts.smoothing import STRONGEST, smooth
from pipeline.records import Detections, Track, VideoInfo

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Settings(online.Settings):
    """Those of `online`, some with other defaults, and

    min_evidence: log odds against the prior that a track's boxes must have gathered in all; missing: taken off for each
    frame between its first and its last without a box. min_length: boxes that it must have. fill: missing frames in a
    gap that is filled, 0 for none. smooth: strength of smoothing (`parts.smoothing`), 0 for none.
    """

    prior: float = 0.33
    begin: float = -0.75
    certain: float = 0.0
    whole_tracks: bool = True
    min_evidence: float = 10.0
    missing: float = 0.2
    min_length: int = 2
    fill: int = 6
    smooth: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {"min_length": (1, np.inf), "fill": (0, np.inf)}
        check(self, {"min_evidence": ANY, "missing": (0, np.inf), "smooth": (0, STRONGEST), **counts})


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tracks of one video; the detections come back as they are."""
    tracks = follow(online.Tracker(settings), frames, boxes="detected", whole_tracks=settings.whole_tracks)
    tracks = [track for track in tracks if _is_there(track, settings)]
    tracks = fill(tracks, np.array([frame.frame_index for frame in frames], np.int32), settings.fill)
    if settings.smooth:
        tracks = smooth(tracks, settings.smooth)
    return list(frames), [replace(track, track_id=number) for number, track in enumerate(tracks, start=1)]


def _is_there(track: Track, settings: Settings) -> bool:
    """Whether a track's boxes say enough."""
    missed = int(track.frame_index[-1] - track.frame_index[0]) + 1 - len(track)
    evidence = online.log_odds(track.raw_scores, settings.prior).sum() - settings.missing * missed
    return len(track) >= settings.min_length and bool(evidence >= settings.min_evidence)
