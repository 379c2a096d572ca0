"""The event log of CLEAR MOT: one of each, parity with py-motmetrics' accumulator, and agreement with the scores."""

from __future__ import annotations

from collections import Counter

import motmetrics
import numpy as np
import pytest

from pipeline.boxes import iou
from pipeline.metrics import clear, clear_trackeval
from pipeline.metrics.events import TYPES, events
from pipeline.metrics.pairs import Rows, pair, rows

Event = tuple[int, str, int, int]


def video(*frames: str) -> Rows:
    """Boxes of 10 x 10 far apart: in each frame a row of places, each with the digit of who is there or a dot."""
    found = [
        (frame, place, int(who)) for frame, row in enumerate(frames) for place, who in enumerate(row) if who != "."
    ]
    return rows(
        [frame for frame, _, _ in found],
        [[100 * place, 0, 100 * place + 10, 10] for _, place, _ in found],
        [who for _, _, who in found],
    )


CASES: dict[str, tuple[Rows, Rows, list[Event]]] = {
    "a match that goes on": (
        video("5", "5"),
        video("7", "7"),
        [(0, "MATCH", 0, 0), (1, "MATCH", 0, 0)],
    ),
    "missed and invented": (
        video("5.", "5."),
        video("..7", "8"),
        [(0, "MISS", 0, -1), (0, "FP", -1, 0), (1, "MATCH", 0, 1)],
    ),
    "one side is empty": (video("5"), video(), [(0, "MISS", 0, -1)]),
    "the other side is empty": (video(), video("5"), [(0, "FP", -1, 0)]),
    "nothing": (video(), video(), []),
    "a switch to somebody new": (
        video("5", "5"),
        video("7", "8"),
        [(0, "MATCH", 0, 0), (1, "ASCEND", 0, 1), (1, "SWITCH", 0, 1)],
    ),
    "a prediction goes over to somebody new": (
        video("5.", ".6"),
        video("7.", ".7"),
        [(0, "MATCH", 0, 0), (1, "MIGRATE", 1, 0), (1, "TRANSFER", 1, 0), (1, "MATCH", 1, 0)],
    ),
    "two swap": (
        video("56", "56"),
        video("78", "87"),
        [
            *[(0, "MATCH", 0, 0), (0, "MATCH", 1, 1)],
            *[(1, "TRANSFER", 0, 1), (1, "SWITCH", 0, 1), (1, "TRANSFER", 1, 0), (1, "SWITCH", 1, 0)],
        ],
    ),
    "what goes on comes first in its frame": (
        video(".6", "56"),
        video(".8", "78"),
        [(0, "MATCH", 1, 1), (1, "MATCH", 1, 1), (1, "MATCH", 0, 0)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_known_case(name: str) -> None:
    truth, predicted, expected = CASES[name]
    found = events(pair(truth, predicted))
    assert plain(found) == expected
    is_match = ~np.isin(found["type"], ("MISS", "FP"))
    assert np.isnan(found["distance"][~is_match]).all()
    assert (found["distance"][is_match] == 0).all()


def plain(found: dict[str, np.ndarray]) -> list[Event]:
    return list(zip(*(found[name].tolist() for name in ("frame", "type", "truth_id", "predicted_id")), strict=True))


def crowd(seed: int) -> tuple[Rows, Rows]:
    """Objects that come and go in a small place, found with noise under names that change now and then."""
    random = np.random.default_rng(seed)
    count, frames = int(random.integers(2, 9)), 25
    place, speed = random.uniform(0, 80, (count, 2)), random.uniform(-3, 3, (count, 2))
    names = np.arange(count)
    true, found = [], []
    for frame in range(frames):
        if random.random() < 0.2:
            names = random.permutation(count + 2)[:count]
        for index in range(count):
            corner = place[index] + frame * speed[index]
            if random.random() < 0.8:
                true.append((frame, [*corner, *(corner + 30)], 3 * index + 1))
            if random.random() < 0.8:
                moved = corner + random.normal(0, 4, 2)
                found.append((frame, [*moved, *(moved + random.uniform(26, 34, 2))], int(names[index]) + 100))
    first, second = (rows(*zip(*side, strict=True)) for side in (true, found))
    return first, second


@pytest.mark.parametrize("seed", range(12))
def test_equals_motmetrics(seed: int) -> None:
    truth, predicted = crowd(seed)
    accumulator = motmetrics.MOTAccumulator()
    for frame in sorted({*truth.frame.tolist(), *predicted.frame.tolist()}):
        a, b = truth[truth.frame == frame], predicted[predicted.frame == frame]
        overlap = iou(a.boxes, b.boxes)
        accumulator.update(a.ids, b.ids, np.where(overlap >= 0.5, 1 - overlap, np.nan), frameid=frame)
    theirs = accumulator.mot_events.reset_index()
    found = events(pair(truth, predicted))
    of_truth, of_predicted = (np.append(np.unique(side.ids), -1) for side in (truth, predicted))
    assert found["frame"].tolist() == theirs["FrameId"].tolist()
    assert found["type"].tolist() == theirs["Type"].tolist()
    assert of_truth[found["truth_id"]].tolist() == theirs["OId"].fillna(-1).tolist()
    assert of_predicted[found["predicted_id"]].tolist() == theirs["HId"].fillna(-1).tolist()
    np.testing.assert_allclose(found["distance"], theirs["D"], rtol=0, atol=1e-12)
    if seed == 0:
        assert set(TYPES) == set(theirs["Type"]), "the scene has one of each"


@pytest.mark.parametrize("seed", range(3))
def test_events_are_as_many_as_the_scores_say(seed: int) -> None:
    pairs = pair(*crowd(seed))
    scores, log = clear.scores(clear.count(pairs)), Counter(events(pairs)["type"].tolist())
    assert (log["MATCH"], log["SWITCH"], log["TRANSFER"], log["ASCEND"], log["MIGRATE"], log["MISS"], log["FP"]) == (
        *(scores[f"num_{name}"] for name in ("matches", "switches", "transfer", "ascend", "migrate")),
        *(scores["num_misses"], scores["num_false_positives"]),
    )


@pytest.mark.parametrize("matched_by", [clear.matched_by_motmetrics, clear_trackeval.matched_by_trackeval])
def test_no_box_is_matched_twice(matched_by) -> None:
    for seed in range(6):
        pairs = pair(*crowd(seed))
        matched = pairs.where(matched_by(pairs))
        assert len(np.unique(matched.truth)) == len(np.unique(matched.predicted)) == len(matched.iou) > 0
        assert matched.iou.min() >= 0.5
