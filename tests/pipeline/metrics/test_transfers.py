"""Switches, transfers, ascends and migrates as SMOT's tables count them, held to py-motmetrics, whose words they are.

A switch is an object's: it is found again under another id. A transfer is an id's: it now names another object. SMOT's
"Transfer" is py-motmetrics' num_transfer, which only a pair that is newly made can be, not one that is carried on.
"""

from __future__ import annotations

import warnings

import motmetrics
import numpy as np
import pytest

from pipeline.boxes import iou
from pipeline.metrics import clear
from pipeline.metrics.pairs import Rows, pair, rows

Seen = dict[int, str]  # for each object (or id) a letter a frame: where it is, "." for nowhere

PLACES = {"a": 0.0, "b": 100.0, "c": 200.0, "d": 3.0}  # x of a box of 10 x 10; d overlaps a with IoU .54
COUNTED = ("num_switches", "num_transfer", "num_ascend", "num_migrate")


def boxes(seen: Seen) -> Rows:
    found = [(frame, PLACES[place], name) for name, path in seen.items() for frame, place in enumerate(path)
             if place != "."]  # fmt: skip
    frame, x, names = zip(*found, strict=True) if found else ((), (), ())
    return rows(frame, np.array([[left, 0, left + 10, 10] for left in x]).reshape(-1, 4), names)


CASES: dict[str, tuple[Seen, Seen, tuple[int, int, int, int]]] = {
    "each keeps its own": ({1: "aaaa", 2: "bbbb"}, {1: "aaaa", 2: "bbbb"}, (0, 0, 0, 0)),
    "two swap": ({1: "aaaaaa", 2: "bbbbbb"}, {1: "aaabbb", 2: "bbbaaa"}, (2, 2, 0, 0)),
    "three go round": ({1: "aaaa", 2: "bbbb", 3: "cccc"}, {1: "aabb", 2: "bbcc", 3: "ccaa"}, (3, 3, 0, 0)),
    "a new id after a gap": ({1: "aaaaaaaa"}, {1: "aaa.....", 2: ".....aaa"}, (1, 0, 1, 0)),
    "a new id without a gap": ({1: "aaaaaa"}, {1: "aaa...", 2: "...aaa"}, (1, 0, 1, 0)),
    "the same id after a gap": ({1: "aaaaaa"}, {1: "aa..aa"}, (0, 0, 0, 0)),
    "the same id after the object was away": ({1: "aa..bb"}, {1: "aa..bb"}, (0, 0, 0, 0)),
    "the id of one that left names one that came": ({1: "aaa...", 2: "...bbb"}, {1: "aaabbb"}, (0, 1, 0, 1)),
    # Figure 5b of the paper: the shot changes, and another face is where one was.
    "another face at the same place": ({1: "aaa...", 2: "...aaa"}, {1: "aaaaaa"}, (0, 1, 0, 1)),
    # Back with the object that last had it, it is carried on, though another had it between.
    "an id visits another object": ({1: "aaaaaa", 2: "bbbbbb"}, {1: "aabbaa"}, (0, 1, 0, 1)),
    "an id moves on and a new one comes": ({1: "aaaa", 2: "..bb"}, {1: "aabb", 2: "..aa"}, (1, 1, 1, 1)),
    "a false alarm takes a name": ({1: "..aa"}, {1: "bbaa"}, (0, 0, 0, 0)),
    "a better box does not part a pair": ({1: "aaaa"}, {1: "aadd", 2: "..aa"}, (0, 0, 0, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_counted(case: str) -> None:
    seen, found, expected = CASES[case]
    truth, predicted = boxes(seen), boxes(found)
    counted = clear.scores(clear.count(pair(truth, predicted)))
    assert tuple(int(counted[name]) for name in COUNTED) == expected
    assert by_motmetrics(truth, predicted) == expected


def by_motmetrics(truth: Rows, predicted: Rows) -> tuple[int, ...]:
    accumulator = motmetrics.MOTAccumulator()
    for frame in sorted({*truth.frame.tolist(), *predicted.frame.tolist()}):
        objects, ids = truth[truth.frame == frame], predicted[predicted.frame == frame]
        overlap = iou(objects.boxes, ids.boxes)
        accumulator.update(objects.ids, ids.ids, np.where(overlap >= 0.5, 1 - overlap, np.nan), frameid=frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = motmetrics.metrics.create().compute(accumulator, metrics=list(COUNTED), name="video")
    return tuple(int(found[name].iloc[0]) for name in COUNTED)
