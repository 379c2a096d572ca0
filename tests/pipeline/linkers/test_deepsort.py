"""DeepSORT against a plain reading of the authors' program, one object at a time, and by named cases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pipeline.boxes import iou
from pipeline.linkers import deepsort
from pipeline.linkers.parts.kalman import HeightFilter
from pipeline.records import Detections, Track, VideoInfo, detections

VIDEO = VideoInfo("a", "a.mp4", "folder")
FILTER = HeightFilter()  # held to a textbook filter in test_kalman; here with one object at a time


class Object:
    """One track of the reference (nwojke/deep_sort, Track)."""

    def __init__(self, box: np.ndarray, look: np.ndarray, identity: tuple[int, int]) -> None:
        self.state = FILTER.begin(FILTER.measure(box[None]))
        self.looks, self.hits, self.unseen, self.is_confirmed = [look], 1, 0, False
        self.held, self.given = identity, list[tuple[int, int]]()

    def predict(self) -> None:
        self.state = FILTER.predict(self.state)
        self.unseen += 1

    def update(self, box: np.ndarray, look: np.ndarray, identity: tuple[int, int], n_init: int) -> None:
        self.state = FILTER.update(self.state, FILTER.measure(box[None]))
        self.looks.append(look)
        self.hits, self.unseen, self.held = self.hits + 1, 0, identity
        self.is_confirmed = self.is_confirmed or self.hits >= n_init


def matched(cost: np.ndarray, limit: float) -> list[tuple[int, int]]:
    """min_cost_matching: all that costs too much costs the same, and is dropped."""
    if cost.size == 0:
        return []
    rows, columns = linear_sum_assignment(np.where(cost > limit, limit + 1e-5, cost))
    return [(row, column) for row, column in zip(rows, columns, strict=True) if cost[row, column] <= limit]


def reference(frames: list[Detections], max_age: int = 30, n_init: int = 3, budget: int = 100) -> set:
    """The boxes of each track, as a set of tracks (nwojke/deep_sort, Tracker)."""
    objects: list[Object] = []
    every: list[Object] = []
    for frame in frames:
        boxes, looks = frame.boxes.astype(float), frame.embeddings
        free = [int(box) for box in np.flatnonzero(frame.scores >= np.float32(0.8))]

        def appearance(rows: list[Object], columns: list[int], boxes=boxes, looks=looks) -> np.ndarray:
            cost = np.full((len(rows), len(columns)), 1e5)
            for row, one in enumerate(rows):
                gated = FILTER.distances(one.state, FILTER.measure(boxes[columns]))[0] <= 9.4877
                for column in np.flatnonzero(gated):
                    cost[row, column] = min(1 - float(old @ looks[columns[column]]) for old in one.looks[-budget:])
            return cost

        def shape(rows: list[Object], columns: list[int], boxes=boxes) -> np.ndarray:
            expected = np.array([FILTER.boxes(one.state)[0] for one in rows]).reshape(-1, 4)
            return 1 - iou(expected, boxes[columns])

        for one in objects:
            one.predict()
        unmatched = list(objects)
        rounds = [(appearance, 0.2, lambda one, age=age: one.is_confirmed and one.unseen == age + 1) for age in
                  range(max_age)]  # fmt: skip
        rounds.append((shape, 0.7, lambda one: not one.is_confirmed or one.unseen == 1))
        for distance, limit, takes_part in rounds:
            rows, columns = [one for one in unmatched if takes_part(one)], list(free)
            for row, column in matched(distance(rows, columns), limit):
                box = columns[column]
                rows[row].update(boxes[box], looks[box], (frame.frame_index, box), n_init)
                unmatched.remove(rows[row])
                free.remove(box)
        gone = [one for one in unmatched if not one.is_confirmed or one.unseen > max_age]
        objects = [one for one in objects if one not in gone]
        new = [Object(boxes[box], looks[box], (frame.frame_index, box)) for box in free]
        objects, every = objects + new, every + new
        for one in objects:
            if one.is_confirmed and one.unseen == 0:
                one.given.append(one.held)
    return {frozenset(one.given) for one in every if one.given}


def boxes_of(tracks: list[Track]) -> set:
    """The same of ours."""
    return {frozenset(zip(track.frame_index.tolist(), track.box_id.tolist(), strict=True)) for track in tracks}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def crowd(seed: int, num_frames: int = 16, blur: float = 0.25) -> tuple[list[Detections], list[np.ndarray]]:
    """Objects that walk about in little room, with misses, jitter and false alarms, and who each box is (-1: nobody).

    blur: how much an embedding differs from frame to frame, against what the objects differ by.
    """
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 9))
    corners, steps = random.uniform(0, 150, (count, 2)), random.normal(0, 4, (count, 2))
    sizes, own = random.uniform(20, 60, (count, 2)), random.normal(size=(count, 8))
    frames, who = [], []
    for t in range(num_frames):
        there = np.flatnonzero(random.random(count) < 0.85)
        at = corners[there] + t * steps[there] + random.normal(0, 1.5, (len(there), 2))
        false = random.uniform(0, 150, (int(random.integers(0, 3)), 2))
        boxes = np.concatenate([np.hstack([at, at + sizes[there]]), np.hstack([false, false + 30])])
        seen = own[there] + random.normal(0, blur, (len(there), 8))
        looks = unit(np.concatenate([seen, random.normal(size=(len(false), 8))]))
        frames.append(detections(t, boxes, random.uniform(0.7, 1, len(boxes)), embeddings=looks))
        who.append(np.concatenate([there, np.full(len(false), -1)]))
    return frames, who


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), max_age=st.integers(0, 6), n_init=st.integers(2, 4), budget=st.integers(1, 6))
def test_equals_the_reference(seed: int, max_age: int, n_init: int, budget: int) -> None:
    frames, _ = crowd(seed)
    changed = deepsort.Settings(max_age=max_age, n_init=n_init, nn_budget=budget)
    _, tracks = deepsort.link(frames, VIDEO, changed)
    assert boxes_of(tracks) == reference(frames, max_age, n_init, budget)


RED, GREEN, BLUE = np.eye(3)


def passing(*when: int, speed: float = 4.0, until: int = 20, score: float = 0.9, jump: int = 0) -> list[Detections]:
    """A red object on its way, seen in these frames; from frame `jump` on it is 12 pixels further."""
    frames = []
    for t in range(until):
        x = speed * t + 12 * (0 < jump <= t)
        seen = int(t in when)
        looks = np.array([RED] * seen).reshape(-1, 3)
        frames.append(detections(t, [[x, 0, x + 40, 80]] * seen, [score] * seen, embeddings=looks))
    return frames


def spans(tracks: list[Track]) -> list[tuple[int, int, int]]:
    """(first frame, last frame, number of boxes) of each track."""
    return sorted((int(track.frame_index[0]), int(track.frame_index[-1]), len(track)) for track in tracks)


PASSING_CASES = {
    "given out from its third box on": (passing(*range(10)), {}, [(2, 9, 8)]),
    "whole tracks": (passing(*range(10)), {"whole_tracks": True}, [(0, 9, 10)]),
    "confirmed at once": (passing(*range(10)), {"n_init": 1}, [(0, 9, 10)]),
    "a miss before that closes it": (passing(0, 1, 3, 4, 5, 6), {}, [(5, 6, 2)]),
    "found again in the last frame of max_age": (
        passing(*range(6), *range(10, 15)), {"max_age": 5}, [(2, 14, 9)],
    ),
    "found again a frame later it is another": (
        passing(*range(6), *range(11, 16)), {"max_age": 5}, [(2, 5, 4), (13, 15, 3)],
    ),
    "not confident enough": (passing(*range(10), score=0.7), {}, []),
    "unless asked for": (passing(*range(10), score=0.7), {"min_confidence": 0.7}, [(2, 9, 8)]),
    "appearance finds what IoU has lost": (
        passing(*range(20), jump=10), {"max_iou_distance": 0.3}, [(2, 19, 18)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "changes", "expected"), PASSING_CASES.values(), ids=PASSING_CASES)
@pytest.mark.parametrize("recorded", ["empty frames", "no record of them"])
def test_one_object(recorded: str, frames: list[Detections], changes: dict, expected: list) -> None:
    if recorded == "no record of them":
        frames = [frame for frame in frames if len(frame)]
    _, tracks = deepsort.link(frames, VIDEO, deepsort.Settings(**changes))
    assert spans(tracks) == expected


def after_a_gap(seen_again: list[tuple[float, np.ndarray]]) -> list[list[int]]:
    """Red and green stand at 0 and 50 for ten frames, are hidden for five, and then the boxes are these (x, look).

    Returns for red's and green's track the boxes (by place in the list) that it has then.
    """
    frames = [
        detections(t, [[0, 0, 40, 80], [50, 0, 90, 80]], [0.9, 0.9], embeddings=np.stack([RED, GREEN]))
        for t in range(10)
    ]
    for t in range(15, 20):
        boxes = [[x, 0, x + 40, 80] for x, _ in seen_again]
        looks = np.stack([look for _, look in seen_again])
        frames.append(detections(t, boxes, [0.9] * len(boxes), embeddings=looks))
    _, tracks = deepsort.link(frames, VIDEO, deepsort.Settings())
    return [sorted(set(track.box_id[track.frame_index >= 15].tolist())) for track in tracks[:2]]


def test_two_that_swap_places_unseen_keep_their_ids() -> None:
    assert after_a_gap([(50, RED), (0, GREEN)]) == [[0], [1]]


def test_the_gate_forbids_a_look_alike_far_away() -> None:
    assert after_a_gap([(1000, RED), (50, GREEN)]) == [[], [1]]


def test_the_cascade_lets_those_seen_last_choose_first() -> None:
    """Red, hidden since long, and its look-alike, hidden for a frame: the one box is the look-alike's, though red's
    look is a little nearer."""
    alike = unit(RED + 0.3 * GREEN)
    frames = []
    for t in range(12):
        boxes, looks = [[20, 0, 60, 80]], [alike]
        if t < 8:
            boxes, looks = [*boxes, [0, 0, 40, 80]], [*looks, RED]
        frames.append(detections(t, boxes, [0.9] * len(boxes), embeddings=np.stack(looks)))
    frames.append(detections(12, [[10, 0, 50, 80]], [0.9], embeddings=unit(RED + 0.1 * GREEN)[None]))
    _, tracks = deepsort.link(frames, VIDEO, deepsort.Settings())
    assert [int(track.frame_index[-1]) for track in tracks] == [12, 7]


def test_a_track_is_compared_by_its_last_boxes_only() -> None:
    """An object that turns from red to green and, hidden for some frames, is red again."""
    turned = [RED] * 5 + [unit(RED * (5 - k) + GREEN * k) for k in range(6)] + [GREEN] * 5
    frames = [
        detections(t, [[0, 0, 40, 80]], [0.9], embeddings=look[None])
        for t, look in [*enumerate(turned), *((t, RED) for t in range(20, 26))]
    ]
    _, all_of_it = deepsort.link(frames, VIDEO, deepsort.Settings(nn_budget=None))
    _, the_latest = deepsort.link(frames, VIDEO, deepsort.Settings(nn_budget=3))
    assert (len(all_of_it), len(the_latest)) == (1, 2)


def switches(frames: list[Detections], who: list[np.ndarray]) -> int:
    """How often an object's boxes go from one track to another."""
    _, tracks = deepsort.link(frames, VIDEO, deepsort.Settings())
    number = {
        (f, b): t.track_id for t in tracks for f, b in zip(t.frame_index.tolist(), t.box_id.tolist(), strict=True)
    }
    count = 0
    for one in range(max(int(ids.max(initial=-1)) for ids in who) + 1):
        held = [number.get((t, int(box))) for t, ids in enumerate(who) for box in np.flatnonzero(ids == one)]
        held = [track for track in held if track is not None]
        count += int(np.count_nonzero(np.diff(held)))
    return count


def test_shuffled_embeddings_make_it_worse() -> None:
    """The same boxes, but each frame's embeddings are dealt out at random."""
    random = np.random.default_rng(0)
    own, shuffled = 0, 0
    for seed in range(10):
        frames, who = crowd(seed, num_frames=40, blur=0.1)
        dealt = [
            dataclasses.replace(frame, embeddings=frame.embeddings[random.permutation(len(frame))]) for frame in frames
        ]
        own, shuffled = own + switches(frames, who), shuffled + switches(dealt, who)
    assert shuffled > 2 * own > 0


@pytest.mark.parametrize("length", [1e-18, 7, 1e18])
def test_the_length_of_embeddings_does_not_matter(length: float) -> None:
    frames, _ = crowd(3)
    longer = [dataclasses.replace(frame, embeddings=frame.embeddings * np.float32(length)) for frame in frames]
    one, other = (deepsort.link(given, VIDEO, deepsort.Settings())[1] for given in (frames, longer))
    assert boxes_of(one) == boxes_of(other)


def test_classes_are_kept_apart_unless_said_otherwise() -> None:
    frames = [detections(t, [[t, 0, t + 40, 40]], [0.9], [t >= 6], embeddings=RED[None]) for t in range(12)]
    _, apart = deepsort.link(frames, VIDEO, deepsort.Settings())
    _, together = deepsort.link(frames, VIDEO, deepsort.Settings(same_class=False))
    assert spans(apart) == [(2, 5, 4), (8, 11, 4)]
    assert spans(together) == [(2, 11, 10)]


def test_two_plain_objects_are_two_tracks_whatever_the_order_of_boxes() -> None:
    frames, turned = [], []
    for t in range(12):
        boxes = np.array([[3 * t, 0, 3 * t + 20, 20], [3 * t, 50, 3 * t + 20, 70]])
        frames.append(detections(t, boxes, [0.9, 0.9], [0, 1], embeddings=np.stack([RED, GREEN])))
        turned.append(detections(t, boxes[::-1], [0.9, 0.9], [1, 0], embeddings=np.stack([GREEN, RED])))
    for given_frames in (frames, turned):
        back, tracks = deepsort.link(given_frames, VIDEO, deepsort.Settings(whole_tracks=True))
        assert spans(tracks) == [(0, 11, 12), (0, 11, 12)]
        assert all(after is before for after, before in zip(back, given_frames, strict=True))


def test_boxes_without_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="frame 3 of a has boxes without embeddings; deepsort needs them"):
        deepsort.link([detections(3, [[0, 0, 1, 1]], [0.9])], VIDEO, deepsort.Settings())


WRONG = [
    ({"max_cosine_distance": 3}, "linker deepsort.max_cosine_distance is 3; it must be from 0 to 2"),
    ({"max_iou_distance": -0.1}, "linker deepsort.max_iou_distance is -0.1; it must be from 0 to 1"),
    ({"max_age": -1}, "linker deepsort.max_age is -1; it must be at least 0"),
    ({"n_init": 0}, "linker deepsort.n_init is 0; it must be at least 1"),
    ({"nn_budget": 0}, "linker deepsort.nn_budget is 0; it must be none or at least 1"),
    ({"min_confidence": float("nan")}, "linker deepsort.min_confidence is nan; it must be from 0 to 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deepsort.Settings(**changes)
