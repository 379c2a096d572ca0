"""`tracklets`: online linking of short tracklets into tracks, by embeddings or by position.

From "SMOT: Single-Shot Multi Object Tracking" (Li et al., 2020), section 5.

Frame by frame, with no look ahead: a box whose tracklet is part of an open track continues it. Every other box that may
carry a track (the first of a tracklet, or, where the model gives no tracklets, any detection: a tracklet of one box) is
matched to the open tracks that have no box in this frame: as many as can be, at the least total cost. One that finds
none starts a track. A track that has had no box for more than `max_gap` frames is closed for good: a tracklet that
outlasts it is a new one.

By appearance, as SMOT does: the cost is the Euclidean distance of the new box's embedding and the mean of the track's,
both L2-normalised. A mean takes the first box of each tracklet and one more every `refresh` frames, all with the same
weight (the paper does not say which it averages). Classes play no part, as a face is known again whatever the detector
took it for. An embedding of zeros is unknown and resembles nothing.

By position, where there are no embeddings: where the track would be now, its last box moved on at its own velocity, is
held against the new box by IoU. With embeddings, what agrees with tracks of the frame before in both ways goes first,
since two objects may look alike; appearance alone decides about the rest. That is more than the paper does, and better
where embeddings are noisy (LOG.md); `match_by="appearance"` is the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.linkers.parts import appearance
from pipeline.linkers.parts.assignment import match
from pipeline.linkers.parts.candidates import Candidates, Indices, candidates
from pipeline.linkers.parts.overlaps import overlapping
from pipeline.linkers.parts.ranges import check
from pipeline.records import Detections, Track, VideoInfo

NEEDS: frozenset[str] = frozenset()

MatchBy = Literal["auto", "position", "appearance"]

# Pairs (row of tracks, row of boxes) that may be, and what each costs; all (K,).
Possible = tuple[Indices, Indices, NDArray[Any]]


@dataclass(frozen=True)
class Settings:
    """Defaults are the demo's but for max_distance, which is SMOT's; the paper links faces only, by appearance.

    min_score: detections below it take no part; boxes of the model's own tracklets do, since the model has judged
    them already. min_start_score: of a box that starts a track, whatever it is.

    match_by: `appearance` (needs embeddings), `position`, or `auto`: by what there is, as said above.
    min_iou: of a new box with a track's expected one; falls with the gap, as what is expected grows uncertain:
    after g missed frames it is min_iou / (1 + g * gap_slack). max_gap: frames without a box before a track is closed;
    None: never, as in the paper. velocity: share of the newest step in the running velocity. max_distance:
    Euclidean, of L2-normalised embeddings (SMOT's .97). refresh: a tracklet's embedding is taken from its first box
    and every so many frames. min_length: tracks of fewer boxes are not given out. same_class: by position only boxes of
    the class that a track began with may continue it.
    """

    min_score: float = 0.5
    min_start_score: float = 0.6
    match_by: MatchBy = "auto"
    min_iou: float = 0.3
    gap_slack: float = 0.1
    max_gap: int | None = 30
    velocity: float = 0.4
    max_distance: float = 0.97
    refresh: int = 10
    min_length: int = 3
    same_class: bool = True

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that these settings cannot do without, beside NEEDS."""
        return frozenset({"embeddings"} if self.match_by == "appearance" else ())

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("min_score", "min_start_score", "min_iou", "velocity"), (0, 1))
        gaps, counts = dict.fromkeys(("gap_slack", "max_gap"), (0, np.inf)), {"refresh": (1, np.inf)}
        check(self, {**shares, **gaps, **counts, "min_length": (1, np.inf)}, above={"max_distance": (0, 2)})


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tracks of one video; the detections come back as they are.

    Raises ValueError where matching by appearance is asked for and no frame has embeddings.
    """
    able = [f.scores >= settings.min_score if f.tracklet_id is None else f.tracklet_id >= 0 for f in frames]
    boxes = candidates(frames, able, looks=settings.match_by != "position")
    if settings.match_by == "appearance" and boxes.embeddings is None and len(boxes):
        raise ValueError(
            f"linker tracklets.match_by is 'appearance', and the detections of video {video.video_id!r} have no "
            "embeddings; without them it must be 'auto' or 'position'"
        )
    linker = _Linker(boxes, settings)
    for frame_index, new in boxes.by_frame():
        linker.step(frame_index, new)
    return list(frames), boxes.tracks(linker.track, settings.min_length)


class _Linker:
    """The tracks so far, as arrays with a row each; a box is called by its place among the candidates."""

    def __init__(self, boxes: Candidates, settings: Settings) -> None:
        self.boxes, self.settings = boxes, settings
        self.max_gap = np.inf if settings.max_gap is None else settings.max_gap
        self.track = np.full(len(boxes), -1, np.intp)  # of each box
        self.owner = np.full(len(boxes) + 1, -1, np.intp)  # track of each tracklet; the last row is no tracklet's
        self.count = 0
        self.open = np.empty(0, np.intp)  # tracks that may still grow, oldest first
        self.first, self.last = np.zeros((2, len(boxes)), np.intp)  # boxes of each track; room for one a box
        self.drift = np.zeros((len(boxes), 2))  # mean movement of a track's centre a frame
        if boxes.embeddings is not None:
            self.means = appearance.Means(*boxes.embeddings.shape)
            self.refreshed = np.zeros(len(boxes), np.int64)  # frame of the embedding that a mean took last

    def step(self, frame_index: int, new: Indices) -> None:
        """Gives the boxes of the next frame, best first, their tracks."""
        self.open = self.open[self._gap(self.open, frame_index) <= self.max_gap]
        self._continue(frame_index, new)
        self._match(frame_index, new)
        self._start(self._free(new))
        named = new[(self.track[new] >= 0) & (self.boxes.tracklet[new] >= 0)]
        self.owner[self.boxes.tracklet[named]] = self.track[named]

    def _gap(self, tracks: Indices, frame_index: int) -> NDArray[np.int64]:
        """Frames (K,) since each track had a box; -1 where it has one in this frame."""
        return frame_index - self.boxes.frame_index[self.last[tracks]] - 1

    def _free(self, new: Indices) -> Indices:
        return new[self.track[new] < 0]

    def _continue(self, frame_index: int, new: Indices) -> None:
        """Boxes of the tracklets that open tracks are made of."""
        tracks = self.owner[self.boxes.tracklet[new]]
        known = (tracks >= 0) & (self._gap(tracks, frame_index) <= self.max_gap)
        if known.any():
            tracks, best = np.unique(tracks[known], return_index=True)  # of two boxes of a track the better
            self._extend(tracks, new[known][best], begins=False)

    def _match(self, frame_index: int, new: Indices) -> None:
        """The other boxes, with tracks that have no box in this frame."""
        lost, new = self.open[self._gap(self.open, frame_index) >= 0], self._free(new)
        if not len(lost) or not len(new):
            return
        if self.boxes.embeddings is None:
            self._assign(lost, new, self._by_position(lost, new, frame_index))
            return
        if self.settings.match_by == "auto":
            near = lost[self._gap(lost, frame_index) == 0]
            self._assign(near, new, self._by_both(near, new, frame_index))
            lost, new = lost[self._gap(lost, frame_index) >= 0], self._free(new)
        self._assign(lost, new, self._by_appearance(lost, new))

    def _by_position(self, lost: Indices, new: Indices, frame_index: int) -> Possible:
        """Boxes near enough to where a track is expected."""
        gap = self._gap(lost, frame_index)
        expected = self.boxes.boxes[self.last[lost]] + np.tile(self.drift[lost] * (gap + 1)[:, None], 2)
        min_iou = (self.settings.min_iou / (1 + gap * self.settings.gap_slack)).astype(np.float64)
        rows, columns, overlap = overlapping(expected, self.boxes.boxes[new], min_iou)
        if self.settings.same_class:
            same = self.boxes.labels[self.first[lost]][rows] == self.boxes.labels[new][columns]
            rows, columns, overlap = rows[same], columns[same], overlap[same]
        return rows, columns, 1 - overlap

    def _by_appearance(self, lost: Indices, new: Indices) -> Possible:
        """Boxes that look enough like a track."""
        assert self.boxes.embeddings is not None
        distance = appearance.euclidean(appearance.cosine(self.means.of(lost), self.boxes.embeddings[new]))
        rows, columns = np.nonzero(distance <= self.settings.max_distance)
        return rows, columns, distance[rows, columns]

    def _by_both(self, lost: Indices, new: Indices, frame_index: int) -> Possible:
        """Boxes for which both are true; both weigh the same."""
        assert self.boxes.embeddings is not None
        rows, columns, cost = self._by_position(lost, new, frame_index)
        looks = appearance.cosine_of_pairs(self.means.of(lost)[rows], self.boxes.embeddings[new[columns]])
        distance = appearance.euclidean(looks)
        near = distance <= self.settings.max_distance
        return rows[near], columns[near], (cost + distance / self.settings.max_distance)[near]

    def _assign(self, lost: Indices, new: Indices, possible: Possible) -> None:
        """Of what is possible as many pairs as can be, at the least total cost."""
        rows, columns, cost = possible
        costs, allowed = np.zeros((len(lost), len(new))), np.zeros((len(lost), len(new)), np.bool_)
        costs[rows, columns], allowed[rows, columns] = cost, True
        rows, columns = match(costs, allowed)
        self._extend(lost[rows], new[columns], begins=True)

    def _start(self, new: Indices) -> None:
        strong = new[self.boxes.scores[new] >= self.settings.min_start_score]
        tracks = np.arange(self.count, self.count + len(strong))
        self.count += len(strong)
        self.open = np.concatenate([self.open, tracks])
        self.first[tracks] = self.last[tracks] = strong
        self._note(tracks, strong, begins=True)

    def _extend(self, tracks: Indices, new: Indices, begins: bool) -> None:
        """The next box (K,) of each track (K,); begins: it is the first of its tracklet."""
        before = self.last[tracks]
        step = _centres(self.boxes.boxes[new]) - _centres(self.boxes.boxes[before])
        step /= (self.boxes.frame_index[new] - self.boxes.frame_index[before])[:, None]
        share = self.settings.velocity
        self.drift[tracks] = share * step + (1 - share) * self.drift[tracks]
        self.last[tracks] = new
        self._note(tracks, new, begins)

    def _note(self, tracks: Indices, new: Indices, begins: bool) -> None:
        self.track[new] = tracks
        if self.boxes.embeddings is not None:
            now = self.boxes.frame_index[new]
            due = (now - self.refreshed[tracks] >= self.settings.refresh) | begins
            self.means.add(tracks[due], self.boxes.embeddings[new[due]])
            self.refreshed[tracks[due]] = now[due]


def _centres(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) xyxy -> (N, 2)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2
