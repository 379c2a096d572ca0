"""COCO's metrics: known cases, parity with pycocotools in everything it decides, and what truth leaves open."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from catalogs import coco as catalog
from pipeline.boxes import from_xywh
from pipeline.metrics import coco
from pipeline.metrics.counts import add
from pipeline.metrics.ignoring import DISTRACTOR, REGION, UNSCORED
from pipeline.metrics.pairs import Rows, rows
from pipeline.metrics.sides import by_video

Annotations = list[dict[str, Any]]
CLASSES = (3, 5, 8)


def at(*places: float, size: float = 10) -> list[list[float]]:
    """Boxes of size x size at these x."""
    return [[x, 0, x + size, size] for x in places]


def evaluate(truth: Rows, predicted: Rows) -> dict[str, float]:
    return coco.scores(coco.count(truth, predicted))


TRUTH = rows([0, 0, 1], at(0, 100, 0))
MANY = rows([0] * 101, at(*range(500, 600), 0), scores=[0.9] * 100 + [0.8])
CASES: dict[str, tuple[Rows, Rows, dict[str, float]]] = {
    "perfect": (TRUTH, rows([0, 0, 1], at(0, 100, 0)), {"AP": 1, "AR1": 2 / 3, "AR10": 1, "APs": 1, "APm": np.nan}),
    "nothing found": (TRUTH, rows([], []), {"AP": 0, "AP50": 0, "AR100": 0, "ARs": 0, "ARl": np.nan}),
    "no truth": (rows([], []), rows([0], at(0)), dict.fromkeys(coco.FIELDS, np.nan)),
    "two of three": (TRUTH, rows([0, 1], at(0, 0)), {"AP": 67 / 101, "AR100": 2 / 3}),  # recalls 0 to .66
    "a false one first": (
        TRUTH,
        rows([0, 0, 0, 1], at(300, 0, 100, 0), scores=[0.95, 0.9, 0.8, 0.7]),
        {"AP": 3 / 4, "AR1": 1 / 3, "AR10": 1},
    ),
    "found twice": (
        TRUTH,
        rows([0, 0, 0, 1], at(0, 0, 100, 0), scores=[0.95, 0.9, 0.8, 0.7]),
        {"AP": (34 + 67 * 3 / 4) / 101},
    ),
    "IoU .75": (rows([0], at(0)), rows([0], [[0, 0, 10, 7.5]]), {"AP": 0.6, "AP50": 1, "AP75": 1, "AR100": 0.6}),
    "IoU just below .75": (rows([0], at(0)), rows([0], [[0, 0, 10, 7.499]]), {"AP": 0.5, "AP50": 1, "AP75": 0}),
    "the 101st of a frame is not seen": (rows([0], at(0)), MANY, {"AP": 0, "AR100": 0}),
    "32 x 32 is small and medium": (
        rows([0], at(0, size=32)),
        rows([0], at(0, size=32)),
        {"APs": 1, "APm": 1, "APl": np.nan},
    ),
    "a small box on a medium one counts for medium, a free one for none": (
        rows([0], [[0, 0, 32, 40]]),
        rows([0, 0], [[0, 0, 32, 30], [200, 0, 210, 10]], scores=[0.5, 0.9]),
        {"AP50": 0.5, "APm": 0.6, "ARm": 0.6, "APs": np.nan},
    ),
    "the closest truth goes first": (
        rows([0, 0], [[0, 0, 10, 10], [0, 0, 10, 8]]),
        rows([0, 0], [[0, 0, 10, 8], [0, 0, 10, 10]], scores=[0.9, 0.8]),
        {"AP": 1},
    ),
    "of equally close truths the last goes, and the first is left": (
        rows([0, 0], at(0, 4)),
        rows([0, 0], at(2, -1), scores=[0.9, 0.8]),
        {"AP50": 1},
    ),
    "of equally close truths the last goes, and is gone": (
        rows([0, 0], at(0, 4)),
        rows([0, 0], at(2, 5), scores=[0.9, 0.8]),
        {"AP50": 51 / 101},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_known_case(name: str) -> None:
    truth, predicted, expected = CASES[name]
    found = evaluate(truth, predicted)
    assert tuple(found) == coco.FIELDS
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)


BIG = [200.0, 0, 300, 100]
LEFT_OPEN: dict[str, tuple[int, list[list[float]], float]] = {  # kind of BIG, predictions before the true one, AP
    "nothing there": (REGION, [], 1),
    "on a region": (REGION, [BIG], 1),
    "many in a region": (REGION, [[200, 0, 210, 10], [220, 0, 230, 10], [240, 0, 250, 10]], 1),
    "half in a region": (REGION, [[190, 0, 210, 10]], (1 + 9 * 0.5) / 10),  # a share of .5 excuses at IoU .5 alone
    "on a distractor": (DISTRACTOR, [BIG], 1),
    "twice on a distractor": (DISTRACTOR, [BIG, BIG], 0.5),
    "a small one in a distractor": (DISTRACTOR, [[200, 0, 210, 10]], 0.5),
    "on what is merely not scored": (UNSCORED, [BIG], 0.5),
}


@pytest.mark.parametrize("name", LEFT_OPEN)
def test_what_truth_leaves_open(name: str) -> None:
    kind, boxes, expected = LEFT_OPEN[name]
    truth = rows([0, 0], [*at(0), BIG], kind=[0, kind])
    predicted = rows([0] * (1 + len(boxes)), [*at(0), *boxes], scores=[0.5] + [0.9] * len(boxes))
    assert evaluate(truth, predicted)["AP"] == pytest.approx(expected)


def test_scored_truth_is_taken_before_a_region_that_is_closer() -> None:
    truth = rows([0, 0], [[0, 0, 10, 10], [0, 0, 100, 100]], kind=[0, REGION])
    assert evaluate(truth, rows([0], [[0, 0, 10, 6]]))["AP"] == pytest.approx(0.3)  # IoUs .5, .55, .6


def test_areas_are_one_a_row() -> None:
    truth = rows([0], at(0, size=40))
    found = coco.scores(coco.count(truth, rows([0], at(0, size=40)), areas=np.array([500.0])))
    assert (found["APs"], found["ARs"]) == (1, 1)
    assert np.isnan(found["APm"])
    with pytest.raises(ValueError, match=r"areas have the shape \(2,\); there must be one for each of the 1 rows"):
        coco.count(truth, truth, areas=np.zeros(2))


def scene(seed: int) -> tuple[Annotations, Annotations]:
    """Annotations and results of 8 images: crowds, areas of masks, ties of scores and overlaps, empty images."""
    random = np.random.default_rng(seed)
    whole = seed % 2 == 0  # whole pixels: overlaps that lie on the thresholds and overlaps that are equal
    truth: Annotations = []
    found: Annotations = []
    for image in range(1, 9):
        for category in CLASSES:
            size = np.exp(random.uniform(2, 5.5, (random.integers(0, 6), 2)))
            boxes = np.hstack([random.uniform(0, 150, size.shape), size])
            boxes = np.round(boxes) if whole else boxes
            for box in boxes:
                mask = box[2] * box[3] * random.uniform(0.4, 1)
                is_crowd = int(random.random() < 0.2)
                truth.append(row(image, category, box, id=len(truth) + 1, area=mask, iscrowd=is_crowd))
            count = random.integers(101, 140) if (image, category) == (3, CLASSES[0]) else random.integers(0, 20)
            for _ in range(count):
                near = boxes[random.integers(len(boxes))] if len(boxes) else np.array([30, 30, 40, 40])
                box = np.concatenate([near[:2] + random.normal(0, 5, 2), near[2:] * random.uniform(0.8, 1.25, 2)])
                box = np.maximum(np.round(box) if whole else box, 1)
                found.append(row(image, category, box, score=round(random.random(), 2)))
    order = random.permutation(len(found))  # of a tie, pycocotools takes the first in the file
    return truth, [found[index] for index in order]


def row(image: int, category: int, box: np.ndarray, **more: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box.tolist(), **more}


def by_pycocotools(truth: Annotations, found: Annotations) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = {
            "images": [{"id": image} for image in range(1, 9)],
            "annotations": truth,
            "categories": [{"id": category} for category in CLASSES],
        }
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: np.nan if value == -1 else value for name, value in zip(coco.FIELDS, evaluation.stats, strict=True)}


def of_class(annotations: Annotations, category: int) -> tuple[Rows, np.ndarray]:
    """The rows of a class, with their places in the file as ids, so that ties go by these; and their areas."""
    chosen = [index for index, each in enumerate(annotations) if each["category_id"] == category]
    made = rows(
        [annotations[index]["image_id"] for index in chosen],
        from_xywh(np.array([annotations[index]["bbox"] for index in chosen]).reshape(-1, 4)),
        ids=chosen,
        scores=[annotations[index].get("score", 1) for index in chosen],
        kind=[REGION * annotations[index].get("iscrowd", 0) for index in chosen],
    )
    return made, np.array([annotations[index].get("area", 0.0) for index in made.ids])


@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools(seed: int) -> None:
    truth, found = scene(seed)
    each = []
    for category in CLASSES:
        true, areas = of_class(truth, category)
        each.append(list(coco.scores(coco.count(true, of_class(found, category)[0], areas=areas)).values()))
    ours = dict(zip(coco.FIELDS, np.nanmean(each, axis=0), strict=True))
    theirs = by_pycocotools(truth, found)
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert 0 < theirs["AP"] < theirs["AP50"] < 1


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_boxes_does_not_matter(seed: int, random: Any) -> None:
    truth, found = scene(seed)
    shuffled = random.sample(truth, len(truth)), random.sample(found, len(found))
    for category in CLASSES:
        sides = [without_ids(of_class(side, category)[0]) for side in (truth, found)]
        others = [without_ids(of_class(side, category)[0]) for side in shuffled]
        assert evaluate(*others) == pytest.approx(evaluate(*sides), abs=0, nan_ok=True)


def without_ids(side: Rows) -> Rows:
    return rows(side.frame, side.boxes, scores=side.scores, kind=side.kind)


@pytest.mark.parametrize("seed", range(4))
def test_videos_add_up(seed: int) -> None:
    """Counts of the first and the last four frames together are those of all eight."""
    truth, predicted = (of_class(side, CLASSES[0])[0] for side in scene(seed))
    parts = [
        coco.count(truth[first], predicted[second])
        for first, second in (
            (truth.frame <= 4, predicted.frame <= 4),
            (truth.frame > 4, predicted.frame > 4),
        )
    ]
    assert coco.scores(add(parts, coco.JOINED)) == evaluate(truth, predicted)


@pytest.mark.data
def test_cocos_own_figures_on_cocos_data(data: Path) -> None:
    dataset = str(next((data / "coco_eval" / "gts").glob("*.json")))
    tracks = catalog.read_tracks(str(data / "coco_eval" / "cocoapi_results.json"), dataset, stills=False)
    # Scores have three digits; of a tie pycocotools takes the first in the file.
    place = pa.array(np.arange(1, len(tracks) + 1), pa.int32())
    tracks = tracks.set_column(tracks.column_names.index("track_id"), "track_id", place)
    truth, found = by_video(catalog.read_truth(dataset, stills=False), is_truth=True), by_video(tracks, is_truth=False)
    each = []
    for name in catalog.read_dataset(dataset).class_names:
        parts = [coco.count(truth[video].of_class(name), found[video].of_class(name)) for video in truth]
        each.append(list(coco.scores(add(parts, coco.JOINED)).values()))
    ours = dict(zip(coco.FIELDS, np.nanmean(each, axis=0), strict=True))
    known = {"AP": 0.503647, "AP50": 0.696973, "AP75": 0.571667, "AR1": 0.386813, "AR100": 0.595353, "APs": 0.593252}
    assert {name: ours[name] for name in known} == pytest.approx(known, abs=1e-6)
