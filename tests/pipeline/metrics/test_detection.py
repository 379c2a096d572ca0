"""Average precision of ImageNet VID: known cases, plain loops over boxes, ties, motion, and what truth leaves open."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs import coco
from pipeline.boxes import iou
from pipeline.metrics import detection
from pipeline.metrics.counts import Counts, add, total
from pipeline.metrics.ignoring import DISTRACTOR, REGION, UNSCORED, counted
from pipeline.metrics.pairs import Rows, rows
from pipeline.metrics.sides import Side, by_video


def at(*places: float, size: float = 10) -> list[list[float]]:
    """Boxes of size x size at these x."""
    return [[x, 0, x + size, size] for x in places]


def count(truth: Rows, predicted: Rows, tolerance: float = 0.0) -> Counts:
    """Counts of one video with one class."""
    sides = ({"video": Side(side, np.zeros(len(side), np.int64), ("cat",))} for side in (truth, predicted))
    return detection.count_all(*sides, [("video", "cat")], tolerance)[0]


def scores(*counts: Counts) -> dict[str, float]:
    """Scores of one class, over videos of these counts."""
    whole = add(counts, detection.JOINED)
    return detection.scores(whole, total([whole], detection.JOINED))


def ap(truth: Rows, predicted: Rows, tolerance: float = 0.0) -> float:
    return scores(count(truth, predicted, tolerance))["mAP"]


TRUTH = rows([0, 0, 1], at(0, 100, 0))
CASES: dict[str, tuple[Rows, float]] = {
    "perfect": (rows([0, 0, 1], at(0, 100, 0), scores=[0.9, 0.8, 0.7]), 1.0),
    "nothing found": (rows([], []), 0.0),
    "two of three": (rows([0, 1], at(0, 0), scores=[0.9, 0.8]), 2 / 3),
    "a false one first": (rows([0, 0, 0, 1], at(300, 0, 100, 0), scores=[0.95, 0.9, 0.8, 0.7]), 3 / 4),
    "a false one last": (rows([0, 0, 0, 1], at(300, 0, 100, 0), scores=[0.1, 0.9, 0.8, 0.7]), 1.0),
    # precision 1, 1/2, 2/3, 3/4 falls, once interpolated, as 1, 3/4, 3/4, 3/4
    "a false one second": (rows([0, 0, 0, 1], at(300, 0, 100, 0), scores=[0.85, 0.9, 0.8, 0.7]), (1 + 2 * 3 / 4) / 3),
    "found twice": (rows([0, 0, 0, 1], at(0, 0, 100, 0), scores=[0.95, 0.9, 0.8, 0.7]), (1 + 2 * 3 / 4) / 3),
    "in the wrong frame": (rows([2, 2], at(0, 100), scores=[0.9, 0.8]), 0.0),
    # A tie of a hit and a miss is one threshold, whichever comes first.
    "a tie": (rows([0, 0], at(0, 300), scores=[0.5, 0.5]), 1 / 3 * 1 / 2),
    "just enough overlap": (rows([0], [[0, 0, 10, 5]], scores=[0.5]), 1 / 3),
}


@pytest.mark.parametrize("name", CASES)
def test_known_case(name: str) -> None:
    predicted, expected = CASES[name]
    assert ap(TRUTH, predicted) == pytest.approx(expected, abs=1e-12)


def test_without_truth_there_is_no_ap() -> None:
    assert np.isnan(ap(rows([], []), rows([0], at(0))))


def test_the_second_closest_is_taken_where_the_closest_is_gone() -> None:
    """ImageNet's rule; VOC's would call the second prediction false."""
    truth = rows([0, 0], [[0, 0, 10, 10], [0, 0, 10, 9]])
    predicted = rows([0, 0], at(0, 0), scores=[0.9, 0.8])
    assert ap(truth, predicted) == 1


@pytest.mark.parametrize(
    ("size", "needed"), [(10, 0.25), (20, 4 / 9), (25, 0.5), (100, 0.5)], ids=["10", "20", "25", "100"]
)
def test_small_boxes_are_forgiven(size: float, needed: float) -> None:
    truth = rows([0], at(0, size=size))
    assert detection.min_iou(truth.boxes, 10.0) == pytest.approx([needed])
    inside = rows([0], [[0, 0, size, size * (needed + 0.01)]])
    outside = rows([0], [[0, 0, size, size * (needed - 0.01)]])
    assert (ap(truth, inside, tolerance=10), ap(truth, outside, tolerance=10)) == (1, 0)


def by_loop(truth: Rows, predicted: Rows) -> float:
    """The same by the book: one prediction after the other, and one threshold after the other."""
    free = set(range(len(truth)))
    hit = np.zeros(len(predicted), bool)
    for index in np.argsort(-predicted.scores, kind="stable"):
        overlaps = {
            other: iou(truth.boxes[other : other + 1], predicted.boxes[index : index + 1])[0, 0]
            for other in free
            if truth.frame[other] == predicted.frame[index]
        }
        best = max(overlaps, key=lambda other: overlaps[other], default=None)
        if best is not None and overlaps[best] >= 0.5:
            hit[index] = True
            free.remove(best)
    points = []
    for threshold in sorted(set(predicted.scores.tolist()), reverse=True):
        kept = predicted.scores >= threshold
        points.append((hit[kept].sum() / len(truth), hit[kept].sum() / kept.sum()))
    area, before = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[index:])
        before = recall
    return area


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_equals_a_plain_loop_in_any_order(seed: int, with_ties: bool) -> None:
    random = np.random.default_rng(seed)
    count, number = random.integers(1, 12), random.integers(1, 25)
    place = random.uniform(0, 12, (count, 2))
    truth = rows(random.integers(0, 3, count), np.hstack([place, place + random.uniform(8, 14, (count, 2))]))
    place = random.uniform(0, 12, (number, 2))
    scores = random.random(number)
    frame = random.integers(0, 3, number)
    boxes = np.hstack([place, place + random.uniform(8, 14, (number, 2))])
    if with_ties:
        scores = np.round(scores, 1)
    predicted = rows(frame, boxes, scores=scores)
    order = random.permutation(number)
    shuffled = rows(frame[order], boxes[order], scores=scores[order])
    assert ap(truth, predicted) == pytest.approx(by_loop(truth, predicted), abs=1e-12)
    assert ap(truth, shuffled) == ap(truth, predicted)


def test_videos_are_strung_together_not_averaged() -> None:
    first = count(TRUTH, rows([0], at(300), scores=[0.9]))
    second = count(TRUTH, rows([0, 0, 1], at(0, 100, 0), scores=[0.8, 0.7, 0.6]))
    assert scores(first, second)["mAP"] == pytest.approx(0.5 * 3 / 4)


IGNORED: dict[str, tuple[int, list[float], bool]] = {  # kind, predicted box, does it count
    "matched to a region": (REGION, [200, 0, 300, 100], False),
    "more than half in a region": (REGION, [200, 0, 210, 10], False),
    "less than half in a region": (REGION, [294, 0, 308, 10], True),
    "matched to a distractor": (DISTRACTOR, [200, 0, 300, 90], False),
    "a small one in a distractor": (DISTRACTOR, [200, 0, 210, 10], True),
    "on what is merely not scored": (UNSCORED, [200, 0, 300, 100], True),
    "elsewhere": (REGION, [400, 0, 410, 10], True),
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_is_ignored_excuses(name: str) -> None:
    kind, box, counts = IGNORED[name]
    truth = rows([0, 0], [[0, 0, 10, 10], [200, 0, 300, 100]], kind=[0, kind])
    predicted = rows([0, 0], [[0, 0, 10, 10], box], scores=[0.5, 0.9], ids=[1, 2])
    assert counted(truth, predicted)[1] == counts
    assert ap(truth, predicted) == (0.5 if counts else 1)


def test_a_hit_inside_an_ignored_region_counts() -> None:
    truth = rows([0, 0], [[0, 0, 10, 10], [0, 0, 100, 100]], kind=[0, REGION])
    predicted = rows([0], [[0, 0, 10, 10]], ids=[1])
    assert counted(truth, predicted).tolist() == [True]
    assert ap(truth, predicted) == 1


# A frame holds a cat and a dog, the next nothing. Each case is a prediction of a cat that finds neither, and how false
# it is among the slow, the medium and the fast; nan: as much as the share of all truth that is in the split.
CAT, DOG = [0, 0, 10, 10], [20, 0, 30, 10]
FALSE: dict[str, tuple[list[float], int, list[float], list[float]]] = {  # motions, frame, box, how false
    "most on a slow cat": ([0.95, 0.5], 0, [8, 0, 14, 10], [1, 0, 0]),
    "most on a fast dog": ([0.95, 0.5], 0, [9, 0, 30, 10], [0, 0, 1]),
    "on neither": ([0.95, 0.5], 0, [50, 0, 60, 10], [0.5, 0, 0.5]),
    "on neither, both slow": ([0.95, 1], 0, [50, 0, 60, 10], [1, 0, 0]),
    "as much on either": ([0.95, 0.5], 0, [5, 0, 25, 10], [0.5, 0, 0.5]),
    "on what is in two splits": ([0.9, 0.1], 0, [8, 0, 14, 10], [1, 1, 0]),
    "on what has no motion": ([np.nan, 0.1], 0, [8, 0, 14, 10], [0, 0, 0]),
    "in a frame without truth": ([0.95, 0.5], 1, [0, 0, 10, 10], [np.nan] * 3),
}


@pytest.mark.parametrize("name", FALSE)
def test_how_false_a_prediction_is_in_each_split(name: str) -> None:
    motion, frame, box, expected = FALSE[name]
    truth = Side(rows([0, 0], [CAT, DOG], motion=motion), np.array([0, 1]), ("cat", "dog"))
    found = Side(rows([frame], [box]), np.array([0]), ("cat",))
    counts = detection.count_all({"a": truth}, {"a": found}, [("a", "cat"), ("a", "dog")])
    assert [counts[0][split].tolist() for split in detection.SPLITS[:3]] == [
        pytest.approx([-w], nan_ok=True) for w in expected
    ]
    assert all(len(counts[1][split]) == 0 for split in detection.SPLITS)


@dataclass(frozen=True)
class Box:
    """A box of truth or a prediction, in inclusive whole pixels as ImageNet has them."""

    frame: tuple[int, int]  # video and frame
    label: int
    corners: tuple[float, ...]
    score: float = 1.0
    track: int = -1
    motion: float = np.nan

    def overlap(self, other: Box) -> float:
        width = min(self.corners[2], other.corners[2]) - max(self.corners[0], other.corners[0]) + 1
        height = min(self.corners[3], other.corners[3]) - max(self.corners[1], other.corners[1]) + 1
        shared = max(width, 0) * max(height, 0)
        return shared / (self.area() + other.area() - shared)

    def area(self, more: float = 0) -> float:
        return (self.corners[2] - self.corners[0] + 1 + more) * (self.corners[3] - self.corners[1] + 1 + more)


def by_fgfa(truth: list[Box], found: list[Box], label: int, low: float, high: float) -> float:
    """AP of a class and a range of motions, as FGFA's evaluation defines it: one prediction after the other."""
    ignored = {box for box in truth if not low <= box.motion <= high}
    share = 1 - len(ignored) / len(truth)
    taken: set[Box] = set()
    true, false = [0.0], [0.0]
    for prediction in sorted((box for box in found if box.label == label), key=lambda box: -box.score):
        near = [box for box in truth if box.frame == prediction.frame]
        free = [
            box
            for box in near
            if box.label == label
            and box not in taken
            and prediction.overlap(box) >= min(0.5, box.area() / box.area(more=10))
        ]
        is_true, is_false = 0.0, 0.0
        if free:
            best = max(free, key=prediction.overlap)
            taken.add(best)
            is_true = float(best not in ignored)
        else:
            outside = max((prediction.overlap(box) for box in near if box in ignored), default=-1)
            inside = max((prediction.overlap(box) for box in near if box not in ignored), default=-1)
            if inside > outside:
                is_false = 1.0
            elif inside == outside:
                is_false = sum(box in ignored for box in near) / len(near) if near else share
        true.append(true[-1] + is_true)
        false.append(false[-1] + is_false)
    num_truth = sum(box.label == label and box not in ignored for box in truth)
    if not num_truth:
        return np.nan
    points = [(t / num_truth, t / max(t + f, 1e-9)) for t, f in zip(true, false, strict=True)]
    return sum(
        (points[index][0] - points[index - 1][0]) * max(precision for _, precision in points[index:])
        for index in range(1, len(points))
    )


def scene(seed: int) -> tuple[list[Box], list[Box]]:
    """Truth and predictions of two videos of five frames: objects that move, leave and come back, small ones too."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for video, track in itertools.product(range(2), range(random.integers(1, 5))):
        size, start, speed = random.integers(4, 40, 2), random.integers(0, 40, 2), random.integers(-8, 9, 2)
        label, place = int(random.integers(3)), start.astype(float)
        for frame in range(5):
            place = place + speed
            box = Box(
                (video, frame),
                label,
                (*place, *(place + size - 1)),
                track=track,
                motion=float(np.float32(random.random())),
            )
            if random.random() < 0.7:
                truth.append(box)
            if random.random() < 0.8:
                moved = np.array(box.corners) + random.integers(-6, 7, 2).tolist() * 2
                guess = label if random.random() < 0.8 else int(random.integers(3))
                found.append(Box(box.frame, guess, tuple(moved), score=random.random()))
    for _ in range(random.integers(10)):
        place, size = random.integers(0, 60, 2), random.integers(4, 40, 2)
        frame = (int(random.integers(2)), int(random.integers(5)))
        found.append(Box(frame, int(random.integers(3)), (*place, *(place + size)), score=random.random()))
    return truth, found


def of_tracks(truth: list[Box]) -> list[Box]:
    """The same boxes with the motion of their tracks."""
    at = {(box.frame[0], box.track, box.frame[1]): box for box in truth}
    steps: dict[tuple[int, int], list[float]] = {}
    for (video, track, frame), box in at.items():
        if (video, track, frame + 1) in at:
            steps.setdefault((video, track), []).append(box.overlap(at[video, track, frame + 1]))
    return [replace(box, motion=float(np.mean(steps.get((box.frame[0], box.track), [np.nan])))) for box in truth]


def sides(boxes: list[Box]) -> dict[str, Side]:
    """Boxes as the metrics take them: continuous pixels, by video."""
    found = {}
    for video in range(2):
        own = [box for box in boxes if box.frame[0] == video]
        made = Rows(
            frame=np.array([box.frame[1] for box in own], np.int64),
            boxes=np.array([box.corners for box in own]).reshape(-1, 4) + np.array([0, 0, 1, 1]),
            ids=np.array([box.track for box in own], np.int64),
            scores=np.array([box.score for box in own]),
            kind=np.zeros(len(own), np.int8),
            motion=np.array([box.motion for box in own]),
            track_scores=np.full(len(own), np.nan),
        )
        found[str(video)] = Side(made, np.array([box.label for box in own], np.int64), ("cat", "dog", "owl"))
    return found


RANGES = {
    "slow_by_box": (0.9, 1.0),
    "medium_by_box": (0.7, 0.9),
    "fast_by_box": (0.0, 0.7),
    "slow_by_track": (0.8, 1.0),
    "medium_by_track": (0.6, 0.8),
    "fast_by_track": (0.0, 0.6),
}


def test_splits_equal_fgfas_definition() -> None:
    """Also where a class or a split has no truth, and where frames are empty; some of each figure is asked for."""
    asked: Counter[str] = Counter()
    for seed in range(40):
        truth, found = scene(seed)
        groups = list(itertools.product("01", ("cat", "dog", "owl")))
        counts = detection.count_all(sides(truth), sides(found), groups, tolerance=10)
        parts = [add(counts[label::3], detection.JOINED) for label in range(3)]
        whole = total(parts, detection.JOINED)
        for label, part in enumerate(parts):
            ours = detection.scores(part, whole)
            assert ours["mAP"] == pytest.approx(
                by_fgfa([replace(b, motion=1.0) for b in truth], found, label, 0, 1), nan_ok=True
            )
            for split, (low, high) in RANGES.items():
                moving = truth if split.endswith("box") else of_tracks(truth)
                theirs = by_fgfa(moving, found, label, low, high)
                assert ours.get(f"mAP_{split}", np.nan) == pytest.approx(theirs, abs=1e-12, nan_ok=True), (seed, split)
                asked[split] += 0 < theirs < 1
    assert set(asked) == set(detection.SPLITS)
    assert min(asked.values()) >= 5


def test_no_split_of_tracks_where_truth_has_boxes_without_id() -> None:
    truth = rows([0, 1, 2], at(0, 1, 2), ids=[1, 1, 1])
    assert scores(count(truth, truth)) == pytest.approx(
        {"mAP": 1, "mAP_slow_by_track": 1, "mAP_medium_by_track": np.nan, "mAP_fast_by_track": np.nan}, nan_ok=True
    )
    assert scores(count(truth, truth), count(rows([0], at(0)), truth)).keys() == {"mAP"}


@pytest.mark.data
def test_cocos_own_figure_on_cocos_data(data: Path) -> None:
    """AP50 by our matching, read off at COCO's 101 recalls, is pycocotools' .696973."""
    dataset = next((data / "coco_eval" / "gts").glob("*.json"))
    results = data / "coco_eval" / "cocoapi_results.json"
    truth = by_video(coco.read_truth(str(dataset), stills=False), is_truth=True)
    tracks = coco.read_tracks(str(results), str(dataset), stills=False)
    # Scores have three digits; pycocotools breaks ties by the order in the file, so this gives it to ours.
    untied = tracks["score"].to_numpy() - 1e-7 * np.arange(len(tracks))
    tracks = tracks.set_column(tracks.column_names.index("score"), "score", pa.array(untied, pa.float32()))
    found = by_video(tracks, is_truth=False)
    names = coco.read_dataset(str(dataset)).class_names
    parts = detection.count_all(truth, {video: found[video] for video in truth}, [(v, n) for n in names for v in truth])
    figures = []
    for index in range(len(names)):
        counts = add(parts[index * len(truth) : (index + 1) * len(truth)], detection.JOINED)
        if counts["num_truth"]:
            hit = counts["hit"][np.argsort(-counts["score"], kind="stable")]
            precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
            precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
            recall = np.cumsum(hit) / counts["num_truth"]
            figures.append(precision[np.searchsorted(recall, np.linspace(0, 1, 101), side="left")].mean())
    assert np.mean(figures) == pytest.approx(0.696973, abs=1e-6)
