"""The boxes of a video that take part in its linking, as flat arrays: frame by frame, the best first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.linkers.parts.appearance import Float, unit
from pipeline.records import Detections, Track
from pipeline.tracks import tracks_of

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Candidates:
    """M boxes of the T frames of a video.

    frames: all of the video; place: (M,), of a box among all boxes of all frames; frame_index: (M,);
    starts: (T + 1,), where each frame's boxes begin; boxes: float64 (M, 4); scores, labels: (M,);
    tracklet: (M,), the model's own tracklets numbered from 0, -1 for a box that is in none;
    embeddings: float32 (M, E), L2-normalised, zeros where a frame has none; None where no frame has any.
    """

    frames: Sequence[Detections]
    place: Indices
    frame_index: NDArray[np.int64]
    starts: Indices
    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]
    labels: NDArray[np.int16]
    tracklet: Indices
    embeddings: Float | None

    def __len__(self) -> int:
        return len(self.place)

    def by_frame(self) -> Iterator[tuple[int, Indices]]:
        """The index of each frame, and which of the M boxes lie in it, best first."""
        rows = np.arange(len(self))
        for frame, start, stop in zip(self.frames, self.starts[:-1], self.starts[1:], strict=True):
            yield frame.frame_index, rows[start:stop]

    def tracks(self, numbers: NDArray[Any], min_length: int) -> list[Track]:
        """Tracks from the number of each box's track (M,), below 0 for a box that is in none."""
        counts = [len(frame) for frame in self.frames]
        ids = np.full(sum(counts), -1, np.int32)
        ids[self.place] = numbers
        return tracks_of(self.frames, np.split(ids, np.cumsum(counts)[:-1]), min_length=min_length)


def candidates(
    frames: Sequence[Detections], able: Sequence[NDArray[np.bool_]], most: int | None = None, looks: bool = True
) -> Candidates:
    """The boxes that `able` allows, (N_t,) for each frame, and of them only the `most` best of each frame.

    looks: whether to keep embeddings. Boxes of equal score come in order of their corners, then of box_id, so that what
    is made of them does not depend on the order in which a frame holds them.
    """
    counts = np.array([len(frame) for frame in frames], np.intp)
    of_frame = np.repeat(np.arange(len(frames)), counts)
    scores = _joined([frame.scores for frame in frames], np.float32)
    boxes = _joined([frame.boxes for frame in frames], np.float64, (4,))
    box_id = _joined([frame.box_id for frame in frames], np.int32)
    place = np.lexsort((box_id, *boxes.T, -scores, of_frame))
    place = place[_joined(able, np.bool_)[place]]
    starts = np.searchsorted(of_frame[place], np.arange(len(frames) + 1))
    if most is not None:
        place = place[np.arange(len(place)) - starts[of_frame[place]] < most]
        starts = np.searchsorted(of_frame[place], np.arange(len(frames) + 1))
    frame_index = np.array([frame.frame_index for frame in frames], np.int64)
    return Candidates(
        frames=frames,
        place=place,
        frame_index=frame_index[of_frame[place]],
        starts=starts,
        boxes=boxes[place],
        scores=scores[place],
        labels=_joined([frame.labels for frame in frames], np.int16)[place],
        tracklet=_tracklets(frames)[place],
        embeddings=_embeddings(frames, place) if looks else None,
    )


def _tracklets(frames: Sequence[Detections]) -> Indices:
    """Tracklets of all boxes, numbered from 0."""
    given = [np.full(len(f), -1, np.int32) if f.tracklet_id is None else f.tracklet_id for f in frames]
    ids, number = np.unique(_joined(given, np.int32), return_inverse=True)
    return np.where(ids[number] < 0, -1, number)


def _embeddings(frames: Sequence[Detections], place: Indices) -> Float | None:
    frames = [frame for frame in frames if len(frame)]  # those of no box may have any width
    size = next((frame.embeddings.shape[1] for frame in frames if frame.embeddings is not None), None)
    if size is None:
        return None
    given = [np.zeros((len(frame), size)) if frame.embeddings is None else frame.embeddings for frame in frames]
    return unit(_joined(given, np.float32, (size,))[place])


def _joined(arrays: Sequence[NDArray[Any]], kind: Any, shape: tuple[int, ...] = ()) -> NDArray[Any]:
    """One array of all; of no row where there are none."""
    return np.concatenate([np.empty((0, *shape), kind), *arrays], dtype=kind)
