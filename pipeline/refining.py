"""Refining: what can be done to the tracks of any linker, in this order: short ones dropped, boxes rescored, gaps
filled, boxes smoothed. By default nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.linkers.parts.filling import fill
from pipeline.linkers.parts.rescoring import Rule, rescore, rescore_frames
from pipeline.linkers.parts.smoothing import STRONGEST, smooth
from pipeline.records import Detections, Track


@dataclass(frozen=True)
class Settings:
    """min_length: tracks of fewer boxes are not given out (their boxes are, without an id).

    rescore: what a box's score becomes: the mean of its track's scores, that of the best `share` of them (top), or
    their max; or what is known online: the mean of the best share so far (causal), or a running average in which the
    past counts by `decay`. See `linkers.parts.rescoring`.
    fill: the longest gap, in frames, that gets boxes: linear ones, unless smooth says where they go.
    smooth: all boxes are put on the likeliest smooth course of their track; or only those that were filled in, here or
    by the linker.
    strength: times the smoothing that the boxes themselves suggest. See `linkers.parts.smoothing`.
    """

    min_length: int = 1
    rescore: Rule = "none"
    share: float = 0.5
    decay: float = 0.99
    fill: int = 0
    smooth: Literal["none", "filled", "all"] = "none"
    strength: float = 1.0

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("min_length", self.min_length >= 1, "at least 1"),
            ("share", 0 < self.share <= 1, "above 0 and at most 1"),
            ("decay", 0 <= self.decay <= 1, "from 0 to 1"),
            ("fill", self.fill >= 0, "at least 0"),
            ("strength", 0 < self.strength <= STRONGEST, f"above 0 and at most {STRONGEST:g}"),
        ):
            if not holds:
                raise ValueError(f"refine.{name} is {getattr(self, name)}; it must be {allowed}")


def refine(
    frames: Sequence[Detections], tracks: Sequence[Track], settings: Settings
) -> tuple[list[Detections], list[Track]]:
    """The tracks refined, and the frames with the scores that their boxes now have there.

    Only frames that are on record are filled.
    """
    tracks = [track for track in tracks if len(track) >= settings.min_length]
    if settings.rescore != "none":
        tracks = rescore(tracks, settings.rescore, settings.share, settings.decay)
        frames = rescore_frames(frames, tracks)
    if settings.fill:
        tracks = fill(tracks, np.array([frame.frame_index for frame in frames]), settings.fill)
    if settings.smooth != "none":
        tracks = smooth(tracks, settings.strength, only_made=settings.smooth == "filled")
    return list(frames), tracks
