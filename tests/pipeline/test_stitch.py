"""Tracklets across seams: shared frames decide, an object keeps its id, another gets its own."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.records import Detections, detections
from pipeline.stitch import stitch


def frame(index: int, *boxes: tuple[float, int], label: int = 0) -> Detections:
    """Boxes of 10 x 10 px given as (left, tracklet_id)."""
    return detections(
        index,
        [[left, 0, left + 10, 10] for left, _ in boxes],
        [0.9] * len(boxes),
        [label] * len(boxes),
        tracklet_id=[number for _, number in boxes],
    )


def owned(*flags: int) -> np.ndarray:
    return np.array(flags, bool)


def ids(frames: list[Detections]) -> list[list[int]]:
    return [[] if one.tracklet_id is None else one.tracklet_id.tolist() for one in frames]


CASES = {
    "nothing": ([], []),
    "one clip is renumbered from 1": ([([frame(0, (0, 7), (50, 3))], owned(1))], [[2, 1]]),
    "no tracklet stays none": ([([frame(0, (0, -1), (50, 3))], owned(1))], [[-1, 1]]),
    "a shared frame joins, whatever the order": (
        [
            ([frame(0, (0, 0), (50, 1)), frame(1, (1, 0), (51, 1))], owned(1, 0)),
            ([frame(1, (51, 0), (1, 1)), frame(2, (52, 0), (2, 1))], owned(1, 1)),
        ],
        [[1, 2], [2, 1], [2, 1]],
    ),
    "without shared frames the seam's two frames are held together": (
        [([frame(0, (0, 0))], owned(1)), ([frame(1, (2, 0))], owned(1))],
        [[1], [1]],
    ),
    "too far apart is another object": (
        [([frame(0, (0, 0))], owned(1)), ([frame(1, (20, 0))], owned(1))],
        [[1], [2]],
    ),
    "another class is another object": (
        [([frame(0, (0, 0))], owned(1)), ([frame(1, (0, 0), label=1)], owned(1))],
        [[1], [2]],
    ),
    "an id lasts over three clips": (
        [([frame(i, (0, i)), frame(i + 1, (0, i))], owned(1, 0)) for i in range(3)],
        [[1], [1], [1]],
    ),
    "a failed clip between, which has no frame at all, ends it": (
        [([frame(0, (0, 0))], owned(1)), ([frame(5000, (0, 0))], owned(1))],
        [[1], [2]],
    ),
    "an empty clip between ends it": (
        [([frame(0, (0, 0))], owned(1)), ([frame(1)], owned(1)), ([frame(2, (0, 0))], owned(1))],
        [[1], [], [2]],
    ),
    "the more shared frames agree, the better": (
        [
            ([frame(0, (0, 0), (4, 1)), frame(1, (0, 0), (4, 1)), frame(2, (0, 0), (4, 1))], owned(1, 0, 0)),
            ([frame(0, (2, 5)), frame(1, (4, 5)), frame(2, (4, 5))], owned(0, 1, 1)),
        ],
        [[1, 2], [2], [2]],
    ),
}


@pytest.mark.parametrize(("clips", "expected"), CASES.values(), ids=CASES)
def test_stitch(clips: list, expected: list[list[int]]) -> None:
    assert ids(stitch(clips)) == expected


def test_frames_of_a_model_without_tracklets_pass_as_they_are() -> None:
    plain = [detections(i, [[0, 0, 5, 5]], [0.5]) for i in range(3)]
    frames = stitch([(plain[:2], owned(1, 0)), (plain[1:], owned(1, 1))])
    assert [one.frame_index for one in frames] == [0, 1, 2]
    assert all(one.tracklet_id is None for one in frames)
