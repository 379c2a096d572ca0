"""Average precision of ImageNet VID: known cases, a plain loop over boxes, ties, and what truth leaves open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs import coco
from pipeline.boxes import iou
from pipeline.metrics import detection
from pipeline.metrics.counts import add
from pipeline.metrics.ignoring import DISTRACTOR, REGION, UNSCORED, counted
from pipeline.metrics.pairs import Rows, rows
from pipeline.metrics.sides import by_video


def at(*places: float, size: float = 10) -> list[list[float]]:
    """Boxes of size x size at these x."""
    return [[x, 0, x + size, size] for x in places]


def ap(truth: Rows, predicted: Rows, tolerance: float = 0.0) -> float:
    return detection.scores(detection.count(truth, predicted, tolerance))["mAP"]


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
    first = detection.count(TRUTH, rows([0], at(300), scores=[0.9]))
    second = detection.count(TRUTH, rows([0, 0, 1], at(0, 100, 0), scores=[0.8, 0.7, 0.6]))
    together = detection.scores(add([first, second], detection.JOINED))["mAP"]
    assert together == pytest.approx(0.5 * 3 / 4)


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


@pytest.mark.data
def test_cocos_own_figure_on_cocos_data(data: Path) -> None:
    """AP50 by our matching, read off at COCO's 101 recalls, is pycocotools' .696973."""
    dataset = next((data / "coco_eval" / "gts").glob("*.json"))
    results = data / "coco_eval" / "cocoapi_results.json"
    truth = by_video(coco.read_truth(str(dataset)), is_truth=True)
    tracks = coco.read_tracks(str(results), str(dataset))
    # Scores have three digits; pycocotools breaks ties by the order in the file, so this gives it to ours.
    untied = tracks["score"].to_numpy() - 1e-7 * np.arange(len(tracks))
    tracks = tracks.set_column(tracks.column_names.index("score"), "score", pa.array(untied, pa.float32()))
    found = by_video(tracks, is_truth=False)
    figures = []
    for name in coco.read_dataset(str(dataset)).class_names:
        parts: list[dict[str, Any]] = [
            detection.count(truth[video].of_class(name), found[video].of_class(name)) for video in truth
        ]
        counts = add(parts, detection.JOINED)
        if counts["num_truth"]:
            hit = counts["hit"][np.argsort(-counts["score"], kind="stable")]
            precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
            precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
            recall = np.cumsum(hit) / counts["num_truth"]
            figures.append(precision[np.searchsorted(recall, np.linspace(0, 1, 101), side="left")].mean())
    assert np.mean(figures) == pytest.approx(0.696973, abs=1e-6)
