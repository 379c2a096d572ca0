"""One video as the report shows it: who is where in each frame, and which track covers which true object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.metrics import ignoring
from pipeline.metrics.clear_trackeval import matched_by_trackeval
from pipeline.metrics.pairs import Booleans, Ints, pair
from pipeline.metrics.sides import Side, by_video, is_unnamed, nothing

_CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Boxes:
    """Boxes of one video, by frame.

    frame: int64 (N,), rising; ids: int64 (N,), 0 where none; boxes: float32 (N, 4) xyxy; names: their classes (N,);
    scores: float32 (N,), 1 for truth; guessed: bool (N,), between detections (interpolated).
    """

    frame: Ints
    ids: Ints
    boxes: NDArray[np.float32]
    names: list[str]
    scores: NDArray[np.float32]
    guessed: Booleans

    def __len__(self) -> int:
        return len(self.frame)

    def at(self, frame: int) -> range:
        """The rows of a frame."""
        start, stop = np.searchsorted(self.frame, [frame, frame + 1])
        return range(int(start), int(stop))

    def tracks(self) -> dict[int, Ints]:
        """The rows of each id, ids rising."""
        order = np.argsort(self.ids, kind="stable")
        order = order[self.ids[order] > 0]
        ids, starts = np.unique(self.ids[order], return_index=True)
        return dict(zip(ids.tolist(), np.split(order, starts)[1:], strict=True))


@dataclass(frozen=True)
class Cover:
    """Which track covers which object, frame by frame: matches of IoU >= .5, one line a match, frames rising.

    frame, object_id, track_id: int64 (P,). switch: bool (P,), the object was last covered by another track: they are
    as many as IDSW. errors: int64 (stop,), misses and false positives of each frame, from 0.
    """

    frame: Ints
    object_id: Ints
    track_id: Ints
    switch: Booleans
    errors: Ints


@dataclass(frozen=True)
class Scene:
    """A video's row of `videos`, its boxes, and its truth where it is known.

    start: its first frame, where it is a range of a file's; length: frames, at least 1.
    """

    video: Mapping[str, Any]
    tracks: Boxes
    truth: Boxes | None
    cover: Cover | None
    start: int
    length: int

    @property
    def video_id(self) -> str:
        return str(self.video["video_id"])

    def busiest_frame(self) -> int:
        """The frame with the most errors where truth has ids, else the one with the most boxes."""
        if self.cover is not None and self.cover.errors.any():
            return int(self.cover.errors.argmax())
        frames = self.tracks.frame if len(self.tracks) or self.truth is None else self.truth.frame
        return int(np.bincount(frames).argmax()) if len(frames) else 0


def make_scene(video: Mapping[str, Any], tracks: pa.Table, truth: pa.Table | None) -> Scene:
    """A scene of one video from the tables of all; truth: rows of TRUTH, None where nothing is known of the video."""
    tracks = of_video(tracks, video["video_id"])
    seen = _boxes(tracks)
    known, cover = None, None
    if truth is not None:
        rows = of_video(truth, video["video_id"])
        known = _boxes(rows.filter(pc.invert(pc.fill_null(rows["ignore"], False))))
    start = video.get("start") or 0  # which runs of old do not have
    frames = [int(side.frame[-1]) + 1 - start for side in (seen, known) if side is not None and len(side)]
    length = max([video["frames_decoded"] or video["frames_declared"] or 1, *frames])
    if truth is not None:
        cover = _cover(_side(rows, is_truth=True), _side(tracks, is_truth=False), start + length)
    return Scene(video, seen, known, cover, start, length)


def of_video(table: pa.Table, video_id: str) -> pa.Table:
    """The rows of one video."""
    return table.filter(pc.equal(table["video_id"].cast(pa.string()), video_id))


def _boxes(table: pa.Table) -> Boxes:
    table = table.take(pc.sort_indices(table, [("frame_index", "ascending")]))
    count = len(table)
    has = set(table.column_names)
    return Boxes(
        frame=np.asarray(table["frame_index"], np.int64),
        ids=np.asarray(pc.fill_null(table["track_id"], 0), np.int64),
        boxes=np.stack([np.asarray(table[name], np.float32) for name in _CORNERS], axis=1).reshape(-1, 4),
        names=[name or "" for name in table["class_name"].cast(pa.string()).to_pylist()],
        scores=np.asarray(table["score"], np.float32) if "score" in has else np.ones(count, np.float32),
        guessed=np.asarray(pc.equal(table["origin"].cast(pa.string()), "interpolated"), np.bool_)
        if "origin" in has
        else np.zeros(count, np.bool_),
    )


def _side(table: pa.Table, *, is_truth: bool) -> Side:
    return next(iter(by_video(table, is_truth=is_truth).values()), nothing())


def _cover(truth: Side, tracks: Side, stop: int) -> Cover | None:
    """The matches of one video, class by class as they are scored; None where truth lacks identities."""
    if truth.lacks_ids:
        return None
    if is_unnamed({"": truth}) or is_unnamed({"": tracks}):
        truth, tracks = truth.without_classes(), tracks.without_classes()
    errors = np.zeros(stop, np.int64)
    found = []
    for name in truth.classes() | tracks.classes():
        true, predicted = truth.of_class(name), tracks.of_class(name)
        predicted = predicted[predicted.ids >= 0]
        predicted = predicted[ignoring.counted(true, predicted)]
        true = true[true.kind == ignoring.SCORED]
        pairs = pair(true, predicted)
        close = pairs.where(matched_by_trackeval(pairs))
        object_id, track_id = true.ids[close.truth], predicted.ids[close.predicted]
        found.append(np.stack([close.frame, object_id, track_id, _switches(object_id, track_id)]))
        for frames in (true.frame, predicted.frame):
            errors += np.bincount(frames, minlength=stop)
        errors -= 2 * np.bincount(close.frame, minlength=stop)
    rows = np.concatenate(found, axis=1) if found else np.zeros((4, 0), np.int64)
    frame, object_id, track_id, switch = rows[:, np.argsort(rows[0], kind="stable")]
    return Cover(frame, object_id, track_id, switch.astype(np.bool_), errors)


def _switches(object_id: Ints, track_id: Ints) -> Booleans:
    """Which matches (P,), in time order, are by another track than the object's one before."""
    order = np.argsort(object_id, kind="stable")
    switch = np.zeros(len(order), np.bool_)
    switch[order[1:]] = (np.diff(object_id[order]) == 0) & (np.diff(track_id[order]) != 0)
    return switch
