"""SORT against a plain reading of the paper and the authors' program, one object at a time, and by named cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from catalogs.mot import read_detections
from pipeline.boxes import iou
from pipeline.linkers import sort
from pipeline.records import Detections, Track, VideoInfo, detections

VIDEO = VideoInfo("a", "a.mp4", "folder")


class Object:
    """One track of the reference: a filter of seven dimensions with full matrices (abewley/sort, KalmanBoxTracker)."""

    F = np.eye(7) + np.diag(np.ones(3), 4)
    H = np.eye(4, 7)
    Q = np.diag([1, 1, 1, 1, 0.01, 0.01, 0.0001])
    R = np.diag([1.0, 1, 10, 10])

    def __init__(self, box: np.ndarray) -> None:
        self.x = np.concatenate([self.measure(box), np.zeros(3)])
        self.P = np.diag([10.0, 10, 10, 10, 1e4, 1e4, 1e4])
        self.unseen = self.streak = 0
        self.boxes: list[tuple[int, int]] = []  # (frame, box) that are given out

    @staticmethod
    def measure(box: np.ndarray) -> np.ndarray:
        width, height = box[2] - box[0], box[3] - box[1]
        return np.array([box[0] + width / 2, box[1] + height / 2, width * height, width / height])

    def box(self) -> np.ndarray:
        width = np.sqrt(self.x[2] * self.x[3])
        height = self.x[2] / width
        x, y = self.x[:2]
        return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])

    def predict(self) -> None:
        if self.x[2] + self.x[6] <= 0:
            self.x[6] = 0
        self.x, self.P = self.F @ self.x, self.F @ self.P @ self.F.T + self.Q
        if self.unseen > 0:
            self.streak = 0
        self.unseen += 1

    def update(self, box: np.ndarray) -> None:
        gain = self.P @ self.H.T @ np.linalg.inv(self.H @ self.P @ self.H.T + self.R)
        self.x = self.x + gain @ (self.measure(box) - self.H @ self.x)
        self.P = (np.eye(7) - gain @ self.H) @ self.P
        self.unseen, self.streak = 0, self.streak + 1


def reference(frames: list[Detections], max_age: int = 1, min_hits: int = 3, iou_threshold: float = 0.3) -> set:
    """The boxes of each track, as a set of tracks."""
    objects: list[Object] = []
    every: list[Object] = []
    for number, frame in enumerate(frames, 1):
        boxes = frame.boxes.astype(float)
        for one in objects:
            one.predict()
        free = set(range(len(boxes)))
        seen: dict[int, Object] = {}
        if objects and len(boxes):
            overlap = iou(boxes, [one.box() for one in objects])
            certain = overlap > iou_threshold
            if certain.sum(0).max() == 1 and certain.sum(1).max() == 1:
                pairs = list(zip(*np.nonzero(certain), strict=True))
            else:
                pairs = list(zip(*linear_sum_assignment(-overlap), strict=True))
            for box, row in pairs:
                if overlap[box, row] >= iou_threshold:
                    objects[row].update(boxes[box])
                    seen[int(box)] = objects[row]
                    free.remove(int(box))
        for box in sorted(free):
            seen[box] = Object(boxes[box])
            objects.append(seen[box])
            every.append(seen[box])
        for box, one in seen.items():
            if one.streak >= min_hits or number <= min_hits:
                one.boxes.append((frame.frame_index, box))
        objects = [one for one in objects if one.unseen <= max_age]
    return {frozenset(one.boxes) for one in every if one.boxes}


def boxes_of(tracks: list[Track]) -> set:
    """The same of ours."""
    return {frozenset(zip(track.frame_index.tolist(), track.box_id.tolist(), strict=True)) for track in tracks}


def crowd(seed: int, num_frames: int = 20) -> list[Detections]:
    """A few objects that walk about in little room, with misses, jitter and false alarms."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 9))
    corners, steps = random.uniform(0, 150, (count, 2)), random.normal(0, 4, (count, 2))
    sizes = random.uniform(20, 60, (count, 2))
    frames = []
    for t in range(num_frames):
        seen = random.random(count) < 0.85
        at = (corners + t * steps + random.normal(0, 1.5, (count, 2)))[seen]
        false = random.uniform(0, 150, (int(random.integers(0, 3)), 2))
        boxes = np.concatenate([np.hstack([at, at + sizes[seen]]), np.hstack([false, false + 30])])
        frames.append(detections(t, boxes, random.uniform(0.2, 1, len(boxes))))
    return frames


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), max_age=st.integers(0, 5), min_hits=st.integers(0, 4))
def test_equals_the_reference(seed: int, max_age: int, min_hits: int) -> None:
    frames = crowd(seed)
    _, tracks = sort.link(frames, VIDEO, sort.Settings(max_age=max_age, min_hits=min_hits))
    assert boxes_of(tracks) == reference(frames, max_age, min_hits)


@pytest.mark.data
@pytest.mark.parametrize("sequence", ["TUD-Campus", "TUD-Stadtmitte", "PETS09-S2L1"])
def test_equals_the_reference_on_real_detections(data: Path, sequence: str) -> None:
    frames = read_detections(str(data / "mot15" / sequence / "det" / "det.txt"))
    _, tracks = sort.link(frames, VIDEO, sort.Settings())
    assert len(tracks) > 5
    assert boxes_of(tracks) == reference(frames)


def passing(*when: int, speed: float = 4.0, until: int = 20, score: float = 0.9) -> list[Detections]:
    """One object on its way, seen in these frames; the frames up to `until` are on record."""
    return [
        detections(t, [[speed * t, 0, speed * t + 40, 80]] * (t in when), [score] * (t in when)) for t in range(until)
    ]


def spans(tracks: list[Track]) -> list[tuple[int, int, int]]:
    """(first frame, last frame, number of boxes) of each track."""
    return sorted((int(track.frame_index[0]), int(track.frame_index[-1]), len(track)) for track in tracks)


PASSING_CASES = {
    "seen all the time": (passing(*range(10)), {}, [(0, 9, 10)]),
    "hidden for one frame, which max_age 1 outlives": (
        # the boxes after the gap are held back until three were matched in a row
        passing(*range(6), *range(7, 12)), {}, [(0, 11, 9)],
    ),
    "hidden for two, which it does not": (passing(*range(6), *range(8, 16)), {}, [(0, 5, 6), (11, 15, 5)]),
    "hidden for five, max_age 5": (passing(*range(6), *range(11, 16)), {"max_age": 5}, [(0, 15, 9)]),
    "hidden for six, max_age 5": (passing(*range(6), *range(12, 16)), {"max_age": 5}, [(0, 5, 6), (15, 15, 1)]),
    "begins late: the first boxes are held back": (passing(*range(5, 12)), {}, [(8, 11, 4)]),
    "begins late, min_hits 0": (passing(*range(5, 12)), {"min_hits": 0}, [(5, 11, 7)]),
    "begins late, whole tracks": (passing(*range(5, 12)), {"whole_tracks": True}, [(5, 11, 7)]),
    "too short for min_hits": (passing(5, 6, 7), {}, []),
    "too short, whole tracks": (passing(5, 6, 7), {"whole_tracks": True}, []),
    "below min_score": (passing(*range(10)), {"min_score": 0.95}, []),
    "too fast for IoU": (passing(0, 1, 2, speed=30), {"min_hits": 0}, [(0, 0, 1), (1, 1, 1), (2, 2, 1)]),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "changes", "expected"), PASSING_CASES.values(), ids=PASSING_CASES)
@pytest.mark.parametrize("recorded", ["empty frames", "no record of them"])
def test_one_object(recorded: str, frames: list[Detections], changes: dict, expected: list) -> None:
    if recorded == "no record of them":
        frames = [frame for frame in frames if len(frame)]
    _, tracks = sort.link(frames, VIDEO, sort.Settings(**changes))
    assert spans(tracks) == expected


def test_two_objects_that_cross_keep_their_ids() -> None:
    """Each goes on in its direction: velocity tells them apart where IoU alone would swap them."""
    frames = [detections(t, [[10 * t, 0, 10 * t + 60, 60], [240 - 10 * t, 8, 300 - 10 * t, 68]], [0.9, 0.8]) for t in
              range(25)]  # fmt: skip
    _, tracks = sort.link(frames, VIDEO, sort.Settings())
    assert [track.box_id.tolist() for track in tracks] == [[0] * 25, [1] * 25]


def test_a_pair_that_is_nobody_elses_is_not_given_up_for_two_below_the_threshold() -> None:
    """IoU .35 alone, or .29 and .29, which would be the assignment of the greatest sum, and then dropped."""
    frames = [detections(t, [[0, 0, 100, 50], [103, 0, 203, 50]], [0.9, 0.9]) for t in range(3)]
    frames.append(detections(3, [[48, 0, 148, 50], [-55, 0, 45, 50]], [0.9, 0.9]))
    _, tracks = sort.link(frames, VIDEO, sort.Settings())
    assert boxes_of(tracks) == reference(frames)
    assert spans(tracks) == [(0, 2, 3), (0, 3, 4)]


def test_classes_are_kept_apart_unless_said_otherwise() -> None:
    frames = [detections(t, [[t, 0, t + 40, 40]], [0.9], [t >= 6]) for t in range(12)]
    _, apart = sort.link(frames, VIDEO, sort.Settings())
    _, together = sort.link(frames, VIDEO, sort.Settings(same_class=False))
    assert spans(apart) == [(0, 5, 6), (9, 11, 3)]
    assert spans(together) == [(0, 11, 12)]


def test_filtered_boxes_are_those_of_the_filter() -> None:
    random = np.random.default_rng(0)
    frames = [detections(t, [random.normal([3 * t, 0, 3 * t + 40, 80], 2)], [0.9]) for t in range(15)]
    (detected,), (filtered,) = (
        sort.link(frames, VIDEO, sort.Settings(boxes=boxes))[1] for boxes in ("detected", "filtered")
    )
    np.testing.assert_array_equal(detected.boxes, np.concatenate([frame.boxes for frame in frames]))
    one, expected = Object(frames[0].boxes[0].astype(float)), []
    for frame in frames:
        if frame.frame_index:
            one.predict()
            one.update(frame.boxes[0].astype(float))
        expected.append(one.box())
    np.testing.assert_allclose(filtered.boxes, expected, rtol=1e-5)
    assert filtered.box_id.tolist() == detected.box_id.tolist() == [0] * 15


WRONG = [
    ({"max_age": -1}, "linker sort.max_age is -1; it must be at least 0"),
    ({"min_hits": -1}, "linker sort.min_hits is -1; it must be at least 0"),
    ({"iou_threshold": 30}, "linker sort.iou_threshold is 30; it must be from 0 to 1"),
    ({"min_score": float("nan")}, "linker sort.min_score is nan; it must be from 0 to 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sort.Settings(**changes)
