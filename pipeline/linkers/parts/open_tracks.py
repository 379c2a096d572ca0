"""Online association: the tracks that may still grow, and what a linker that goes frame by frame gives out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.linkers.parts.assignment import match
from pipeline.linkers.parts.kalman import BoxFilter
from pipeline.linkers.parts.overlaps import iou
from pipeline.linkers.parts.selection import in_order
from pipeline.records import Detections, Track, detections
from pipeline.tracks import tracks_of

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]

GivenBoxes = Literal["detected", "filtered"]


class OpenTracks:
    """The tracks that may still grow: arrays with one row a track, in the order in which they began.

    states: float64 (N, 5, 4), see `kalman`. number: int32 (N,), unique in the video. label: int16 (N,).
    began: int64 (N,), index of the first frame. box: intp (N,), which detection of the present frame the track has,
    -1 for none. missed: int64 (N,), frames since it had one; 0 where it has one now. streak: int64 (N,), how often it
    was extended in a row. confirmed: bool (N,), whether its box of this frame is given out.
    """

    _COLUMNS: tuple[str, ...] = ("states", "number", "label", "began", "box", "missed", "streak", "confirmed")

    def __init__(self, box_filter: BoxFilter) -> None:
        self.filter = box_filter
        self.states = np.empty((0, 5, 4))
        self.number = np.empty(0, np.int32)
        self.label = np.empty(0, np.int16)
        self.began, self.missed, self.streak = (np.empty(0, np.int64) for _ in range(3))
        self.box = np.empty(0, np.intp)
        self.confirmed = np.empty(0, np.bool_)
        self._next_number = 0

    def __len__(self) -> int:
        return len(self.number)

    def age(self) -> None:
        """A frame begins, in which no track has a box yet; one that had none in the last has lost its streak."""
        self.streak[self.missed > 0] = 0
        self.missed += 1
        self.box[:] = -1

    def predict(self, moving: Mask | slice = slice(None)) -> None:
        """The filter goes one frame on, for these tracks (N,) or all."""
        self.states[moving] = self.filter.predict(self.states[moving])

    def overlap(self, frame: Detections, same_class: bool) -> Floats:
        """IoU (N, M) of where the tracks should be with the frame's boxes; 0, if asked for, where classes differ."""
        overlap: Floats = iou(self.filter.boxes(self.states), frame.boxes.astype(np.float64))
        if same_class:
            overlap[self.label[:, None] != frame.labels[None]] = 0
        return overlap

    def associate(self, frame: Detections, cost: Floats, tracks: Mask, boxes: Mask, limit: float) -> None:
        """Those of these tracks (N,) and boxes (M,) that are still free go together, below the limit at the least cost.

        cost: (N, M), inf for what is no pair; limit: see `assignment.match`.
        """
        free = boxes.copy()
        free[self.box[self.box >= 0]] = False
        rows, columns = np.flatnonzero(tracks & (self.box < 0)), np.flatnonzero(free)
        if len(rows) and len(columns):
            among = cost[np.ix_(rows, columns)]
            pair_rows, pair_columns = match(among, among < limit, limit)
            self.extend(rows[pair_rows], columns[pair_columns], frame)

    def extend(self, rows: Indices, boxes: Indices, frame: Detections) -> None:
        """These tracks (P,) go on with these boxes (P,) of the frame."""
        if len(rows) == 0:
            return
        measured = self.filter.measure(frame.boxes[boxes])
        self.states[rows] = self.filter.update(self.states[rows], measured)
        self.box[rows] = boxes
        self.missed[rows] = 0
        self.streak[rows] += 1

    def begin(self, boxes: Indices, frame: Detections) -> None:
        """Tracks that begin with these boxes (P,) of the frame, unconfirmed."""
        count = len(boxes)
        if count == 0:
            return
        numbers = np.arange(self._next_number, self._next_number + count, dtype=np.int32)
        self._next_number += count
        new = {
            "states": self.filter.begin(self.filter.measure(frame.boxes[boxes])),
            "number": numbers,
            "label": frame.labels[boxes],
            "began": np.full(count, frame.frame_index),
            "box": boxes,
        }
        for name in self._COLUMNS:
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, new.get(name, np.zeros(count, old.dtype))]))

    def keep(self, rows: Mask) -> None:
        """Closes all tracks but these (N,)."""
        if rows.all():
            return
        for name in self._COLUMNS:
            setattr(self, name, getattr(self, name)[rows])


class Tracker(Protocol):
    """What takes one frame after the other; afterwards its tracks have their boxes of this frame."""

    @property
    def tracks(self) -> OpenTracks: ...

    def step(self, frame: Detections) -> None: ...


def follow(tracker: Tracker, frames: Sequence[Detections], boxes: GivenBoxes, whole_tracks: bool) -> list[Track]:
    """Tracks of one video. A frame without a record, also before the first record, is a frame without detections.

    boxes: whether the detections' boxes are given out or where the filter then says that they are; a filtered box that
    is none (turned over, as a filter may have it after a long gap) is given out as it was detected.
    whole_tracks: a track that is ever confirmed is given out with all its boxes; otherwise only those that it had
    while confirmed, as an online tracker does it.
    """
    numbers: list[NDArray[np.int32]] = []
    shown: list[Detections] = []
    confirmed: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    upcoming = 0
    for frame in in_order(frames):
        while upcoming < frame.frame_index and len(tracker.tracks):
            tracker.step(detections(upcoming))
            upcoming += 1
        tracker.step(frame)
        upcoming = frame.frame_index + 1

        tracks = tracker.tracks
        here = tracks.box >= 0
        confirmed.append(tracks.number[here & tracks.confirmed])
        given = here if whole_tracks else here & tracks.confirmed
        number = np.full(len(frame), -1, np.int32)
        number[tracks.box[given]] = tracks.number[given]
        numbers.append(number)
        if boxes == "filtered":
            frame = _with_boxes(frame, tracks.box[given], tracks.filter.boxes(tracks.states[given]))
        shown.append(frame)
    if whole_tracks:
        ever = np.concatenate(confirmed)
        numbers = [np.where(np.isin(number, ever), number, np.int32(-1)) for number in numbers]
    return tracks_of(shown, numbers)


def _with_boxes(frame: Detections, rows: Indices, boxes: Floats) -> Detections:
    """The frame with these boxes (P, 4) at these rows (P,), but for boxes that are none."""
    new = boxes.astype(np.float32)
    good = np.isfinite(new).all(axis=1) & (new[:, 0] < new[:, 2]) & (new[:, 1] < new[:, 3])
    changed = frame.boxes.copy()
    changed[rows[good]] = new[good]
    return dataclasses.replace(frame, boxes=changed)
