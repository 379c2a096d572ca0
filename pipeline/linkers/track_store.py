"""`track_store`: RetinaTrack's online tracker (Lu et al., CVPR 2020, section 3.5): greedy, by overlap and appearance.

Frame by frame: the best detections are matched to the live tracks by the similarity

    S = w * IoU + (1 - w) * cosine of embeddings

where w is `iou_weight` and an IoU below `min_iou` counts as 0. A track is as similar to a detection as the most similar
of its last `history` boxes is; boxes whose cosine is below `min_cosine` are no match. The most similar pair goes first,
then the most similar of what is left, and so on. A detection that is left over is a new track at once. A track
without a box for more than `max_gap` frames is dead.

`position` is the paper's IoU baseline (S = IoU, and no overlap is no match); `appearance` lets embeddings decide alone.

Where the paper is silent: epsilon (`min_cosine`), H (`history`) and the score threshold are not given there. It calls S
a sum of an overlap and a cosine distance, which must mean similarity. Cosines do not see how long an embedding is, so
that normalising them or not is the same; taking them to [0, 1] first orders pairs as w = 2/3 does. Tracks keep to
their class (`same_class`; the paper has one class). Zeros for an embedding are an unknown appearance, of cosine 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.linkers.parts import appearance
from pipeline.linkers.parts.assignment import greedy, match
from pipeline.linkers.parts.candidates import Candidates, Indices, candidates
from pipeline.linkers.parts.overlaps import overlapping
from pipeline.linkers.parts.ranges import check
from pipeline.records import Detections, Track, VideoInfo

NEEDS: frozenset[str] = frozenset()

MatchBy = Literal["auto", "both", "position", "appearance"]
Assignment = Literal["greedy", "hungarian"]

# Pairs (row of boxes, row of tracks) that may be matched, and their S; all (K,). A pair may come more than once.
Similar = tuple[Indices, Indices, NDArray[np.float64]]


@dataclass(frozen=True)
class Settings:
    """min_score: detections below it take no part. max_boxes: of a frame, the best; None: all.

    match_by: `both` (the paper's), `position`, `appearance`, or `auto`: both where there are embeddings, else position.
    iou_weight, min_iou, min_cosine, history: see above. max_gap: frames without a box before a track is dead; None:
    never. assignment: `greedy`, or `hungarian`: as many pairs as there can be, of the greatest total similarity.
    same_class: only boxes of one class match. min_length: tracks of fewer boxes are not given out.
    """

    min_score: float = 0.5
    max_boxes: int | None = 100
    match_by: MatchBy = "auto"
    iou_weight: float = 0.5
    min_iou: float = 0.4
    min_cosine: float = 0.5
    history: int = 5
    max_gap: int | None = 40
    assignment: Assignment = "greedy"
    same_class: bool = True
    min_length: int = 1

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that these settings cannot do without, beside NEEDS."""
        return frozenset({"embeddings"} if self.match_by in ("both", "appearance") else ())

    def __post_init__(self) -> None:
        shares, counts = ("min_score", "iou_weight", "min_iou"), ("max_boxes", "history", "min_length")
        ranges = {**dict.fromkeys(shares, (0, 1)), **dict.fromkeys(counts, (1, np.inf))}
        check(self, {**ranges, "min_cosine": (-1, 1), "max_gap": (0, np.inf)})


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tracks of one video; the detections come back as they are.

    Raises ValueError where the settings ask for embeddings and no frame has any.
    """
    able = [frame.scores >= settings.min_score for frame in frames]
    boxes = candidates(frames, able, settings.max_boxes, looks=settings.match_by != "position")
    if settings.match_by in ("both", "appearance") and boxes.embeddings is None and len(boxes):
        raise ValueError(
            f"linker track_store.match_by is {settings.match_by!r}, and the detections of video {video.video_id!r} "
            "have no embeddings; without them it must be 'auto' or 'position'"
        )
    store = _Store(boxes, settings)
    for frame_index, new in boxes.by_frame():
        store.step(frame_index, new)
    return list(frames), boxes.tracks(store.track, settings.min_length)


class _Store:
    """The tracks so far, as arrays with a row each; a box is called by its place among the candidates."""

    def __init__(self, boxes: Candidates, settings: Settings) -> None:
        self.boxes, self.settings = boxes, settings
        self.max_gap = np.inf if settings.max_gap is None else settings.max_gap
        self.weight = 0.0 if settings.match_by == "appearance" else settings.iou_weight
        self.track = np.full(len(boxes), -1, np.intp)  # of each box
        self.count = 0
        self.live = np.empty(0, np.intp)  # tracks, oldest first
        self.last = np.zeros(len(boxes), np.intp)  # box of each track; room for a track a box
        self.length = np.zeros(len(boxes), np.intp)
        self.seen = np.zeros((len(boxes), settings.history), np.intp)  # its last boxes, the next over the oldest

    def step(self, frame_index: int, new: Indices) -> None:
        """Gives the boxes of the next frame, best first, their tracks."""
        gap = frame_index - self.boxes.frame_index[self.last[self.live]] - 1
        self.live = self.live[gap <= self.max_gap]
        self._match(new, self.live)
        unmatched = new[self.track[new] < 0]
        born = np.arange(self.count, self.count + len(unmatched))
        self.count += len(unmatched)
        self.live = np.concatenate([self.live, born])
        self._extend(born, unmatched)

    def _match(self, new: Indices, tracks: Indices) -> None:
        if self.boxes.embeddings is None:
            self._assign(new, tracks, self._overlapping(new, tracks, -np.inf))
            return
        if self.settings.assignment == "greedy" and self.weight > 0 and len(new):
            # Boxes that do not overlap have an S of 1 - w at most: what is more similar goes first in any case, so
            # that only what it leaves has to be held against boxes anywhere.
            self._assign(new, tracks, self._overlapping(new, tracks, 1 - self.weight))
            tracks = tracks[self.last[tracks] < new[0]]
            new = new[self.track[new] < 0]
        if len(new) and len(tracks):
            self._assign(new, tracks, self._anywhere(new, tracks))

    def _overlapping(self, new: Indices, tracks: Indices, above: float) -> Similar:
        """Boxes that overlap with one of a track's, where S is above this; S is the IoU where there are no looks."""
        owner, seen = self._seen(tracks)
        rows, columns, similarity = self._overlaps(new, seen)
        embeddings = self.boxes.embeddings
        if embeddings is not None:
            cosine = appearance.cosine_of_pairs(embeddings[new[rows]], embeddings[seen[columns]])
            similarity = self.weight * similarity + (1 - self.weight) * cosine
            similarity[cosine < self.settings.min_cosine] = -np.inf
        enough = similarity > above
        return rows[enough], owner[columns[enough]], similarity[enough]

    def _anywhere(self, new: Indices, tracks: Indices) -> Similar:
        """Boxes that a track may be matched to, wherever they are."""
        assert self.boxes.embeddings is not None
        owner, seen = self._seen(tracks)
        cosine = appearance.cosine(self.boxes.embeddings[new], self.boxes.embeddings[seen])
        similarity = (1 - self.weight) * cosine.astype(np.float64)
        rows, columns, overlap = self._overlaps(new, seen)
        similarity[rows, columns] += self.weight * overlap
        similarity[cosine < self.settings.min_cosine] = -np.inf
        if self.settings.same_class:
            similarity[self.boxes.labels[new][:, None] != self.boxes.labels[seen]] = -np.inf
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        best = np.maximum.reduceat(similarity, first, axis=1)  # (N, T)
        rows, columns = np.nonzero(best > -np.inf)
        return rows, columns, best[rows, columns]

    def _seen(self, tracks: Indices) -> tuple[Indices, Indices]:
        """The boxes that tracks remember: the row of `tracks` (K,), rising, and the box (K,) of each."""
        kept = np.arange(self.settings.history) < self.length[tracks][:, None]  # (T, H)
        return np.nonzero(kept)[0], self.seen[tracks][kept]

    def _overlaps(self, new: Indices, seen: Indices) -> tuple[Indices, Indices, NDArray[np.float64]]:
        """Rows of new, rows of seen and the IoU of the pairs that count."""
        min_iou = np.full(len(new), self.settings.min_iou)
        rows, columns, overlap = overlapping(self.boxes.boxes[new], self.boxes.boxes[seen], min_iou)
        if self.settings.same_class:
            same = self.boxes.labels[new][rows] == self.boxes.labels[seen][columns]
            rows, columns, overlap = rows[same], columns[same], overlap[same]
        return rows, columns, overlap

    def _assign(self, new: Indices, tracks: Indices, similar: Similar) -> None:
        rows, columns, similarity = similar
        if self.settings.assignment == "greedy":
            rows, columns = greedy(rows, columns, -similarity)  # ties: the better box, then the older track
        else:
            best = np.full((len(new), len(tracks)), -np.inf)
            np.maximum.at(best, (rows, columns), similarity)
            rows, columns = match(-best, best > -np.inf)
        self._extend(tracks[columns], new[rows])

    def _extend(self, tracks: Indices, new: Indices) -> None:
        """The next box (K,) of each track (K,)."""
        self.track[new] = tracks
        self.last[tracks] = new
        self.seen[tracks, self.length[tracks] % self.settings.history] = new
        self.length[tracks] += 1
