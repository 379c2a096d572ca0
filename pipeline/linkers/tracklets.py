"""`tracklets`: online linking of short tracklets into tracks (SMOT section 5), by IoU and, where present, embeddings.

Frame by frame, with no look ahead: a box whose tracklet is part of an open track continues it. Every other box that may
carry a track (the first of a tracklet, or, where the model gives no tracklets, any detection) is matched to the open
tracks that have no box in this frame, at the least total cost; one that finds none starts a track. A track that has had
no box for more than `max_gap` frames is closed for good: a tracklet that outlasts it is a new one.

SMOT matches by the distance of appearance embeddings alone. Without embeddings the evidence is where the track would
be now: its last box moved on at its own velocity, held against the new box by IoU. Where both are
known both must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline import boxes as box_ops
from pipeline.records import Detections, Track, VideoInfo
from pipeline.tracks import tracks_of

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Settings:
    """min_score: detections below it take no part; boxes of the model's own tracklets do, since the model has judged
    them already. min_start_score: of a box that starts a track, whatever it is.

    min_iou: of a new box with a track's expected one; falls with the gap, as what is expected grows uncertain:
    after g missed frames it is min_iou / (1 + g * gap_slack). max_gap: frames without a box before a track is closed.
    velocity: share of the newest step in the running velocity. max_distance: Euclidean, of L2-normalised embeddings
    (SMOT's .97). embedding_update: share of the newest embedding in a track's mean. min_length: tracks of fewer boxes
    are not given out. same_class: only boxes of a track's class may continue it.
    """

    min_score: float = 0.5
    min_start_score: float = 0.6
    min_iou: float = 0.3
    gap_slack: float = 0.1
    max_gap: int = 30
    velocity: float = 0.4
    max_distance: float = 0.97
    embedding_update: float = 0.1
    min_length: int = 3
    same_class: bool = True

    def __post_init__(self) -> None:
        shares = ("min_score", "min_start_score", "min_iou", "velocity", "embedding_update")
        for name, lowest, highest in (
            *((share, 0, 1) for share in shares),
            ("gap_slack", 0, np.inf),
            ("max_gap", 0, np.inf),
            ("min_length", 1, np.inf),
        ):
            value = getattr(self, name)
            if not lowest <= value <= highest:
                allowed = f"at least {lowest}" if highest == np.inf else f"from {lowest} to {highest}"
                raise ValueError(f"linker tracklets.{name} is {value}; it must be {allowed}")
        if not 0 < self.max_distance <= 2:
            raise ValueError(
                f"linker tracklets.max_distance is {self.max_distance}; it must be above 0 and at most 2, "
                "which unit vectors are apart at most"
            )


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tracks of one video; the detections come back as they are."""
    linker = _Linker(settings)
    ids = [linker.step(frame) for frame in frames]
    return list(frames), tracks_of(frames, ids, min_length=settings.min_length)


@dataclass
class _Open:
    """A track that may still grow."""

    number: int
    label: int
    frame_index: int
    box: NDArray[np.float64]
    step: NDArray[np.float64]  # mean change of the box a frame
    embedding: NDArray[np.float64] | None

    def expected(self, frame_index: int) -> NDArray[np.float64]:
        """Where the box would be by now: the centre moves on, the size stays."""
        drift = np.tile((self.step[:2] + self.step[2:]) / 2, 2)
        return self.box + drift * (frame_index - self.frame_index)


class _Linker:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.open: list[_Open] = []
        self.of_tracklet: dict[int, _Open] = {}
        self.count = 0

    def step(self, frame: Detections) -> NDArray[np.int32]:
        """The track number of each box of the next frame (N,), -1 for none."""
        numbers = np.full(len(frame), -1, np.int32)
        self.open = [track for track in self.open if self._is_open(track, frame)]
        new = []
        for index in self._candidates(frame):
            track = self.of_tracklet.get(_tracklet(frame, index))
            if track is not None and track.frame_index < frame.frame_index and self._is_open(track, frame):
                self._extend(track, frame, index, numbers)
            else:
                new.append(index)
        lost = [track for track in self.open if track.frame_index < frame.frame_index]
        for row, column in self._match(lost, frame, new):
            self._extend(lost[row], frame, new[column], numbers)
        for index in new:
            if numbers[index] < 0 and frame.scores[index] >= self.settings.min_start_score:
                self._start(frame, index, numbers)
        return numbers

    def _is_open(self, track: _Open, frame: Detections) -> bool:
        return frame.frame_index - track.frame_index - 1 <= self.settings.max_gap

    def _candidates(self, frame: Detections) -> list[int]:
        """Boxes that may carry a track: those of tracklets where the model gives them, else all; best first."""
        able = frame.tracklet_id >= 0 if frame.tracklet_id is not None else frame.scores >= self.settings.min_score
        order = np.argsort(-frame.scores, kind="stable")
        return [int(index) for index in order if able[index]]

    def _match(self, lost: Sequence[_Open], frame: Detections, new: Sequence[int]) -> list[tuple[int, int]]:
        """Pairs (lost track, new box) of least total cost among those that the evidence allows."""
        if not lost or not new:
            return []
        gap = np.array([frame.frame_index - track.frame_index - 1 for track in lost])
        expected = np.stack([track.expected(frame.frame_index) for track in lost])
        overlap = box_ops.iou(expected, frame.boxes[list(new)])
        cost = 1 - overlap
        allowed = overlap >= (self.settings.min_iou / (1 + gap * self.settings.gap_slack))[:, None]
        if self.settings.same_class:
            allowed &= np.array([track.label for track in lost])[:, None] == frame.labels[list(new)][None]
        if frame.embeddings is not None:
            theirs = _normalised(frame.embeddings[list(new)])
            ours = np.stack([t.embedding if t.embedding is not None else np.zeros(theirs.shape[1]) for t in lost])
            distance = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
            # Appearance finds again what position has lost: after a gap it alone decides (SMOT section 5).
            allowed = (allowed | (gap > 0)[:, None]) & (distance <= self.settings.max_distance)
            cost = distance / self.settings.max_distance + np.where(gap[:, None] > 0, 0, cost)
        rows, columns = linear_sum_assignment(np.where(allowed, cost, 1e6))
        return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if allowed[row, column]]

    def _start(self, frame: Detections, index: int, numbers: NDArray[np.int32]) -> None:
        box = frame.boxes[index].astype(np.float64)
        track = _Open(
            self.count, int(frame.labels[index]), frame.frame_index, box, np.zeros(4), _embedding(frame, index)
        )
        self.count += 1
        self.open.append(track)
        self._note(track, frame, index, numbers)

    def _extend(self, track: _Open, frame: Detections, index: int, numbers: NDArray[np.int32]) -> None:
        box = frame.boxes[index].astype(np.float64)
        step = (box - track.box) / (frame.frame_index - track.frame_index)
        share = self.settings.velocity
        track.step = share * step + (1 - share) * track.step
        track.box, track.frame_index = box, frame.frame_index
        seen = _embedding(frame, index)
        if seen is not None:
            share = self.settings.embedding_update if track.embedding is not None else 1.0
            old = track.embedding if track.embedding is not None else np.zeros_like(seen)
            track.embedding = _normalised(share * seen + (1 - share) * old)
        self._note(track, frame, index, numbers)

    def _note(self, track: _Open, frame: Detections, index: int, numbers: NDArray[np.int32]) -> None:
        numbers[index] = track.number
        if frame.tracklet_id is not None:
            self.of_tracklet[_tracklet(frame, index)] = track


def _tracklet(frame: Detections, index: int) -> int:
    return -1 if frame.tracklet_id is None else int(frame.tracklet_id[index])


def _embedding(frame: Detections, index: int) -> NDArray[np.float64] | None:
    return None if frame.embeddings is None else _normalised(frame.embeddings[index].astype(np.float64))


def _normalised(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """L2-normalised along the last axis; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)
