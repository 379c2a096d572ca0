"""ByteTrack against a plain reading of the authors' program, one object at a time, and by named cases."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from catalogs.mot import read_detections
from pipeline.boxes import iou
from pipeline.linkers import bytetrack
from pipeline.linkers.parts.kalman import HeightFilter
from pipeline.records import Detections, Track, VideoInfo, detections

VIDEO = VideoInfo("a", "a.mp4", "folder")
FILTER = HeightFilter()  # held to a textbook filter in test_kalman; here with one object at a time


class Object:
    """One track of the reference (ifzhang/ByteTrack, STrack)."""

    def __init__(self, box: np.ndarray, frame_index: int, identity: tuple[int, int]) -> None:
        self.state = FILTER.begin(FILTER.measure(box[None]))
        self.first = self.last = frame_index
        self.is_active, self.is_tracked = frame_index == 0, True
        self.held: tuple[int, int] = identity  # its newest (frame, box)
        self.given: list[tuple[int, int]] = []

    def box(self) -> np.ndarray:
        return FILTER.boxes(self.state)[0]

    def predict(self) -> None:
        if not self.is_tracked:
            self.state[0, 1, 3] = 0
        self.state = FILTER.predict(self.state)

    def update(self, box: np.ndarray, frame_index: int, identity: tuple[int, int]) -> None:
        self.state = FILTER.update(self.state, FILTER.measure(box[None]))
        self.last, self.is_active, self.is_tracked, self.held = frame_index, True, True, identity


def pairs_of(cost: np.ndarray, limit: float) -> list[tuple[int, int]]:
    """What lapjv gives with extend_cost and cost_limit: leaving a row and a column alone costs the limit."""
    if cost.size == 0:
        return []
    rows, columns = linear_sum_assignment(np.minimum(cost, limit))
    return [(row, column) for row, column in zip(rows, columns, strict=True) if cost[row, column] < limit]


def reference(frames: list[Detections], buffer: int = 30, high: float = 0.6, match: float = 0.9) -> set:
    """The boxes of each track, as a set of tracks (ifzhang/ByteTrack, BYTETracker.update)."""
    tracked: list[Object] = []
    lost: list[Object] = []
    every: list[Object] = []
    for frame in frames:
        now, boxes, scores = frame.frame_index, frame.boxes.astype(float), frame.scores.astype(float)

        def cost(objects: list[Object], columns: list[int], fuse: bool, boxes=boxes, scores=scores) -> np.ndarray:
            overlap = iou(np.array([one.box() for one in objects]).reshape(-1, 4), boxes[columns])
            return 1 - overlap * scores[columns] if fuse else 1 - overlap

        strong = [int(box) for box in np.flatnonzero(scores > np.float32(high))]
        weak = [int(box) for box in np.flatnonzero((scores > np.float32(0.1)) & (scores < np.float32(high)))]
        unconfirmed = [one for one in tracked if not one.is_active]
        pool = [one for one in tracked if one.is_active] + lost
        for one in pool:
            one.predict()

        pairs = pairs_of(cost(pool, strong, True), match)
        for row, column in pairs:
            pool[row].update(boxes[strong[column]], now, (now, strong[column]))
        rest = [one for row, one in enumerate(pool) if row not in [pair[0] for pair in pairs] and one.is_tracked]
        free = [box for column, box in enumerate(strong) if column not in [pair[1] for pair in pairs]]

        pairs = pairs_of(cost(rest, weak, False), 0.5)
        for row, column in pairs:
            rest[row].update(boxes[weak[column]], now, (now, weak[column]))
        for row, one in enumerate(rest):
            one.is_tracked = row in [pair[0] for pair in pairs]

        pairs = pairs_of(cost(unconfirmed, free, True), 0.7)
        for row, column in pairs:
            unconfirmed[row].update(boxes[free[column]], now, (now, free[column]))
        gone = [one for row, one in enumerate(unconfirmed) if row not in [pair[0] for pair in pairs]]
        free = [box for column, box in enumerate(free) if column not in [pair[1] for pair in pairs]]

        new = [Object(boxes[box], now, (now, box)) for box in free if scores[box] >= np.float32(high + 0.1)]
        every += new
        alive = [one for one in pool + unconfirmed + new if one not in gone and now - one.last <= buffer]
        tracked, lost = [one for one in alive if one.is_tracked], [one for one in alive if not one.is_tracked]

        worse = []
        for one in tracked:
            for other in lost:
                if iou(one.box()[None], other.box()[None])[0, 0] > 0.85:
                    worse.append(other if one.last - one.first > other.last - other.first else one)
        tracked, lost = [one for one in tracked if one not in worse], [one for one in lost if one not in worse]
        for one in tracked:
            if one.is_active:
                one.given.append(one.held)
    return {frozenset(one.given) for one in every if one.given}


def boxes_of(tracks: list[Track]) -> set:
    """The same of ours."""
    return {frozenset(zip(track.frame_index.tolist(), track.box_id.tolist(), strict=True)) for track in tracks}


def crowd(seed: int, num_frames: int = 20) -> list[Detections]:
    """A few objects that walk about in little room, with weak boxes, misses, jitter and false alarms."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 9))
    corners, steps = random.uniform(0, 150, (count, 2)), random.normal(0, 3, (count, 2))
    sizes = random.uniform(20, 60, (count, 2))
    frames = []
    for t in range(num_frames):
        seen = random.random(count) < 0.85
        at = (corners + t * steps + random.normal(0, 1, (count, 2)))[seen]
        false = random.uniform(0, 150, (int(random.integers(0, 3)), 2))
        boxes = np.concatenate([np.hstack([at, at + sizes[seen]]), np.hstack([false, false + 30])])
        frames.append(detections(t, boxes, random.beta(2, 1, len(boxes))))
    return frames


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), buffer=st.integers(1, 8))
def test_equals_the_reference(seed: int, buffer: int) -> None:
    frames = crowd(seed)
    _, tracks = bytetrack.link(frames, VIDEO, bytetrack.Settings(track_buffer=buffer))
    assert boxes_of(tracks) == reference(frames, buffer)


@pytest.mark.data
@pytest.mark.parametrize("sequence", ["TUD-Campus", "TUD-Stadtmitte", "PETS09-S2L1"])
def test_equals_the_reference_on_real_detections(data: Path, sequence: str) -> None:
    frames = read_detections(str(data / "mot15" / sequence / "det" / "det.txt"))
    changed = bytetrack.Settings(track_high_thresh=0.8, new_track_thresh=0.9, match_thresh=0.8)
    _, tracks = bytetrack.link(frames, VIDEO, changed)
    assert len(tracks) > 5
    assert boxes_of(tracks) == reference(frames, high=0.8, match=0.8)


def passing(scores: list[float], speed: float = 4.0) -> list[Detections]:
    """One object on its way with these scores, unseen where they are 0."""
    return [
        detections(t, [[speed * t, 0, speed * t + 40, 80]] * (score > 0), [score] * (score > 0))
        for t, score in enumerate(scores)
    ]


def spans(tracks: list[Track]) -> list[tuple[int, int, int]]:
    """(first frame, last frame, number of boxes) of each track."""
    return sorted((int(track.frame_index[0]), int(track.frame_index[-1]), len(track)) for track in tracks)


SURE, HIDDEN = 0.9, 0.0
PASSING_CASES = {
    "seen all the time": (passing([SURE] * 10), {}, [(0, 9, 10)]),
    "weak boxes keep it alive": (passing([SURE] * 5 + [0.2] * 10 + [SURE] * 5), {"track_buffer": 3}, [(0, 19, 20)]),
    "too weak ones do not": (
        passing([SURE] * 5 + [0.05] * 10 + [SURE] * 5), {"track_buffer": 3}, [(0, 4, 5), (16, 19, 4)],
    ),
    "weak boxes begin nothing": (passing([0.5] * 10), {}, []),
    "strong ones below new_track_thresh neither": (passing([0.65] * 10), {}, []),
    "but they confirm": (passing([HIDDEN, SURE, 0.65, SURE]), {}, [(2, 3, 2)]),
    "a weak second box does not": (passing([HIDDEN, SURE, 0.5, 0.5]), {}, []),
    "a weak box does not find a lost track again": (passing([SURE] * 5 + [HIDDEN] + [0.5] * 5), {}, [(0, 4, 5)]),
    "hidden for as long as the buffer": (
        passing([SURE] * 6 + [HIDDEN] * 3 + [SURE] * 4), {"track_buffer": 3}, [(0, 12, 10)],
    ),
    "hidden for longer": (
        passing([SURE] * 6 + [HIDDEN] * 4 + [SURE] * 4), {"track_buffer": 3}, [(0, 5, 6), (11, 13, 3)],
    ),
    "begins late: given out from its second box": (passing([HIDDEN] * 3 + [SURE] * 5), {}, [(4, 7, 4)]),
    "begins late, whole tracks": (passing([HIDDEN] * 3 + [SURE] * 5), {"whole_tracks": True}, [(3, 7, 5)]),
    "seen once, whole tracks": (passing([HIDDEN, SURE]), {"whole_tracks": True}, []),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "changes", "expected"), PASSING_CASES.values(), ids=PASSING_CASES)
@pytest.mark.parametrize("recorded", ["empty frames", "no record of them"])
def test_one_object(recorded: str, frames: list[Detections], changes: dict, expected: list) -> None:
    if recorded == "no record of them":
        frames = [frame for frame in frames if len(frame)]
    _, tracks = bytetrack.link(frames, VIDEO, bytetrack.Settings(**changes))
    assert spans(tracks) == expected


@pytest.mark.parametrize(("fps", "expected"), [(30, 2), (60, 1), (None, 2)])
def test_the_buffer_is_of_thirtieths_of_a_second(fps: float | None, expected: int) -> None:
    """Hidden for five frames, with a buffer of three: at 60 frames a second that is six."""
    frames = passing([SURE] * 6 + [HIDDEN] * 5 + [SURE] * 4)
    video = dataclasses.replace(VIDEO, fps=fps)
    _, tracks = bytetrack.link(frames, video, bytetrack.Settings(track_buffer=3))
    assert len(tracks) == expected


def test_score_fusion_prefers_the_surer_of_two_boxes() -> None:
    """The second box lies a little better, the first is surer."""
    frames = passing([SURE] * 4, speed=0)
    frames.append(detections(4, [[3, 0, 43, 80], [2, 0, 42, 80]], [0.95, 0.7]))
    (fused, *_), (plain, *_) = (
        bytetrack.link(frames, VIDEO, bytetrack.Settings(fuse_score=fuse))[1] for fuse in (True, False)
    )
    assert (fused.box_id[-1], plain.box_id[-1]) == (0, 1)


def covered(begins: int) -> list[Detections]:
    """One object stands at 100 up to frame 32 and again from frame 60; another, seen from `begins` on, comes to stand
    in just its place in frame 33, and goes on in frame 40."""
    frames = []
    for t in range(64):
        x = 3 * (min(t, 33) + max(t - 40, 0))
        boxes = [[x, 0, x + 40, 80]] * (t >= begins) + [[100, 0, 140, 80]] * (t <= 32 or t >= 60)
        frames.append(detections(t, boxes, [0.9] * len(boxes)))
    return frames


DUPLICATES = {
    "the moving one was seen for longer: the other is forgotten and begins anew": (
        covered(begins=0), [(0, 32, 33), (0, 63, 64), (61, 63, 3)],
    ),
    "the other was: it takes the moving one's place, who is forgotten": (
        covered(begins=4), [(0, 63, 63), (5, 32, 28), (61, 63, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "expected"), DUPLICATES.values(), ids=DUPLICATES)
def test_of_two_tracks_in_one_place_the_one_seen_for_longer_stays(frames: list[Detections], expected: list) -> None:
    _, tracks = bytetrack.link(frames, VIDEO, bytetrack.Settings())
    assert boxes_of(tracks) == reference(frames)
    assert spans(tracks) == expected


def test_classes_are_kept_apart_unless_said_otherwise() -> None:
    frames = [detections(t, [[t, 0, t + 40, 40]], [0.9], [t >= 6]) for t in range(12)]
    _, apart = bytetrack.link(frames, VIDEO, bytetrack.Settings())
    _, together = bytetrack.link(frames, VIDEO, bytetrack.Settings(same_class=False))
    assert spans(apart) == [(0, 5, 6), (7, 11, 5)]
    assert spans(together) == [(0, 11, 12)]


def test_filtered_boxes_are_smoother_and_of_the_same_detections() -> None:
    random = np.random.default_rng(0)
    frames = [detections(t, [random.normal([3 * t, 0, 3 * t + 40, 80], 2)], [0.9]) for t in range(30)]
    (detected,), (filtered,) = (
        bytetrack.link(frames, VIDEO, bytetrack.Settings(boxes=boxes))[1] for boxes in ("detected", "filtered")
    )
    assert filtered.box_id.tolist() == detected.box_id.tolist()
    truth = np.array([[3 * t, 0, 3 * t + 40, 80] for t in range(30)])[10:]
    assert np.abs(filtered.boxes[10:] - truth).mean() < 0.8 * np.abs(detected.boxes[10:] - truth).mean()


WRONG = [
    ({"track_high_thresh": 1.5}, "linker bytetrack.track_high_thresh is 1.5; it must be from 0 to 1"),
    ({"match_thresh": float("nan")}, "linker bytetrack.match_thresh is nan; it must be from 0 to 1"),
    ({"track_low_thresh": 0.7}, "track_low_thresh is 0.7; it must be at most track_high_thresh, which is 0.6"),
    ({"track_buffer": -1}, "linker bytetrack.track_buffer is -1; it must be at least 0"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bytetrack.Settings(**changes)
