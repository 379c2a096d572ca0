"""`track_store`: cases with answers known by hand, and any video against the definition written out plainly."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs.synthetic import render
from catalogs.synthetic.paths import SIZE
from catalogs.synthetic.shapes import CLASSES
from pipeline.boxes import iou
from pipeline.linkers import track_store
from pipeline.records import Detections, VideoInfo, detections
from pipeline.schemas import tracks_table
from pipeline.scoring import combine, score, values
from pipeline.simulating import Settings, simulate

VIDEO = VideoInfo("a", "a.mp4", "folder")
Ids = list[list[tuple[int, int]]]  # (frame, box) of each box of each track


def linked(frames: list[Detections], **changes: object) -> Ids:
    _, tracks = track_store.link(frames, VIDEO, track_store.Settings(**changes))
    return sorted(list(zip(t.frame_index.tolist(), t.box_id.tolist(), strict=True)) for t in tracks)


# --- known by hand ---


def look(degrees: float) -> list[float]:
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def place(x: float) -> list[float]:
    """A box 20 wide: two that are d apart have an IoU of (20 - d) / (20 + d)."""
    return [x, 0, x + 20, 20]


Sight = tuple[float, float]  # where it is and, in degrees, what it looks like
Sights = dict[int, list[Sight]]  # by frame index


def video(sights: Sights, labels: dict[int, list[int]] | None = None) -> list[Detections]:
    return [
        detections(
            t,
            [place(x) for x, _ in here],
            0.9 - 0.01 * np.arange(len(here)),
            None if labels is None else labels[t],
            embeddings=np.array([look(degrees) for _, degrees in here]).reshape(-1, 2),
        )
        for t, here in sights.items()
    ]


ONE, TWO = [[(0, 0), (1, 0)]], [[(0, 0)], [(1, 0)]]
CASES: dict[str, tuple[Sights, dict, Ids]] = {
    "a detection that overlaps and looks alike goes on": ({0: [(0, 0)], 1: [(5, 10)]}, {}, ONE),
    "so does one far away that looks alike": ({0: [(0, 0)], 1: [(500, 10)]}, {}, ONE),
    "at 59 degrees the cosine is above .5": ({0: [(0, 0)], 1: [(500, 59)]}, {}, ONE),
    "at 61 degrees it is below: no match, whatever the overlap": ({0: [(0, 0)], 1: [(0, 61)]}, {}, TWO),
    "position alone does not look": ({0: [(0, 0)], 1: [(0, 61)]}, {"match_by": "position"}, ONE),
    "8 px apart the IoU is .43": ({0: [(0, 0)], 1: [(8, 0)]}, {"match_by": "position"}, ONE),
    "9 px apart it is .38, which is none": ({0: [(0, 0)], 1: [(9, 0)]}, {"match_by": "position"}, TWO),
    "an IoU below .4 is worth nothing: .38 and 10 degrees lose against 0 degrees far away": (
        {0: [(0, 0)], 1: [(9, 10), (500, 0)]}, {}, [[(0, 0), (1, 1)], [(1, 0)]],
    ),
    "both weigh the same: 1/3 less overlap is worth more than 45 degrees": (  # .5 + .354 against .333 + .5
        {0: [(0, 0)], 1: [(0, 45), (4, 0)]}, {}, [[(0, 0), (1, 0)], [(1, 1)]],
    ),
    "but less than 50": (  # .5 + .321 against .333 + .5
        {0: [(0, 0)], 1: [(0, 50), (4, 0)]}, {}, [[(0, 0), (1, 1)], [(1, 0)]],
    ),
    "with an IoU weight of 2/3 it is worth more than 50 as well": (  # .667 + .214 against .444 + .333
        {0: [(0, 0)], 1: [(0, 50), (4, 0)]}, {"iou_weight": 2 / 3}, [[(0, 0), (1, 0)], [(1, 1)]],
    ),
    "by appearance alone 0 degrees are worth more than 10 in place": (
        {0: [(0, 0)], 1: [(0, 10), (500, 0)]}, {"match_by": "appearance"}, [[(0, 0), (1, 1)], [(1, 0)]],
    ),
    "after 40 frames without a box a track is alive": ({0: [(0, 0)], 41: [(0, 0)]}, {}, [[(0, 0), (41, 0)]]),
    "after 41 it is dead": ({0: [(0, 0)], 42: [(0, 0)]}, {}, [[(0, 0)], [(42, 0)]]),
    "or never": ({0: [(0, 0)], 999: [(0, 0)]}, {"max_gap": None}, [[(0, 0), (999, 0)]]),
    "what it looked like 5 boxes ago counts": (
        {0: [(0, 0)]} | {t: [(0, 15 * t)] for t in range(1, 5)} | {5: [(500, -50)]}, {},
        [[(t, 0) for t in range(6)]],
    ),
    "6 boxes ago does not": (
        {0: [(0, 0)]} | {t: [(0, 15 * t)] for t in range(1, 6)} | {6: [(500, -50)]}, {},
        [[(t, 0) for t in range(6)], [(6, 0)]],
    ),
    "unless more are remembered": (
        {0: [(0, 0)]} | {t: [(0, 15 * t)] for t in range(1, 6)} | {6: [(500, -50)]}, {"history": 6},
        [[(t, 0) for t in range(7)]],
    ),
    "greedy takes the best pair, though both could have one": (  # S: .5 and .433 for 0 degrees, .321 and none for -50
        {0: [(0, 0), (500, 30)], 1: [(100, 0), (600, -50)]}, {"min_cosine": 0.6},
        [[(0, 0), (1, 0)], [(0, 1)], [(1, 1)]],
    ),
    "Hungarian gives both one": (
        {0: [(0, 0), (500, 30)], 1: [(100, 0), (600, -50)]}, {"min_cosine": 0.6, "assignment": "hungarian"},
        [[(0, 0), (1, 1)], [(0, 1), (1, 0)]],
    ),
    "weak detections take no part": ({0: [(0, 0)], 1: [(0, 0)]}, {"min_score": 0.95}, []),
    "nor do those beyond the best so many": (
        {0: [(0, 0), (100, 90)], 1: [(0, 0), (100, 90)]}, {"max_boxes": 1}, ONE,
    ),
    "short tracks are not given out": ({0: [(0, 0)], 1: [(5, 0), (100, 90)]}, {"min_length": 2}, ONE),
}  # fmt: skip


@pytest.mark.parametrize(("sights", "changes", "expected"), CASES.values(), ids=CASES)
def test_known_by_hand(sights: Sights, changes: dict, expected: Ids) -> None:
    assert linked(video(sights), **changes) == expected


@pytest.mark.parametrize("match_by", ["both", "position", "appearance"])
def test_classes_keep_apart_unless_told_otherwise(match_by: str) -> None:
    frames = video({0: [(0, 0)], 1: [(0, 0)]}, labels={0: [0], 1: [1]})
    assert linked(frames, match_by=match_by) == TWO
    assert linked(frames, match_by=match_by, same_class=False) == ONE


def test_without_embeddings_it_is_the_overlap_that_decides() -> None:
    frames = video({0: [(0, 0), (60, 90)], 1: [(60, 0), (0, 90)]})
    blind = [dataclasses.replace(frame, embeddings=None) for frame in frames]
    swapped, stayed = [[(0, 0), (1, 1)], [(0, 1), (1, 0)]], [[(0, 0), (1, 0)], [(0, 1), (1, 1)]]
    assert linked(frames) == linked(frames, match_by="both") == stayed
    assert linked(blind) == linked(blind, match_by="position") == linked(frames, match_by="position") == swapped


@pytest.mark.parametrize("match_by", ["both", "appearance"])
def test_asking_for_looks_that_are_not_there_is_refused_by_name(match_by: str) -> None:
    message = f"match_by is '{match_by}', and the detections of video 'a' have no embeddings; without them it must be"
    with pytest.raises(ValueError, match=message):
        linked([detections(0, [place(0)], [0.9])], match_by=match_by)
    assert linked([detections(0)], match_by=match_by) == []  # nothing to match is no fault


# --- the definition, written out ---


def by_definition(frames: list[Detections], given: track_store.Settings) -> Ids:
    """Section 3.5, a pair at a time; ties: the better detection, then the older track."""
    weight = {"both": given.iou_weight, "position": 1.0, "appearance": 0.0}[given.match_by]
    tracks: list[list[tuple[int, int]]] = []
    frame_of = {frame.frame_index: frame for frame in frames}

    def similarity(frame: Detections, box: int, other: Detections, seen: int) -> float:
        if given.same_class and frame.labels[box] != other.labels[seen]:
            return -np.inf
        overlap = float(iou(frame.boxes[[box]], other.boxes[[seen]])[0, 0])
        overlap = overlap if overlap >= given.min_iou else 0.0
        if given.match_by == "position":
            return overlap or -np.inf
        one, two = frame.embeddings[box].astype(float), other.embeddings[seen].astype(float)
        cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
        return weight * overlap + (1 - weight) * cosine if cosine >= given.min_cosine else -np.inf

    for frame in frames:
        live = [t for t in tracks if frame.frame_index - t[-1][0] - 1 <= given.max_gap]
        able = [box for box in np.argsort(-frame.scores).tolist() if frame.scores[box] >= given.min_score]
        able = able[: given.max_boxes]
        table = np.full((len(able), len(live)), -np.inf)
        for row, column in np.ndindex(table.shape):
            remembered = live[column][-given.history :]
            table[row, column] = max(similarity(frame, able[row], frame_of[t], seen) for t, seen in remembered)
        choose = greedily if given.assignment == "greedy" else by_trying_all
        column_of = choose(table)
        for row in range(len(table)):
            if row in column_of:
                live[column_of[row]].append((frame.frame_index, able[row]))
            else:
                tracks.append([(frame.frame_index, able[row])])
    return sorted(tracks)


def greedily(table: np.ndarray) -> dict[int, int]:
    table, chosen = table.copy(), {}
    while table.size and table.max() > -np.inf:
        row, column = (int(i) for i in np.unravel_index(table.argmax(), table.shape))
        chosen[row] = column
        table[row], table[:, column] = -np.inf, -np.inf
    return chosen


def by_trying_all(table: np.ndarray) -> dict[int, int]:
    """As many pairs as there can be, of the greatest sum."""
    best: tuple[tuple[int, float], dict[int, int]] = ((0, 0.0), {})
    for choice in itertools.permutations([*range(table.shape[1]), *[None] * len(table)], len(table)):
        pairs = {row: column for row, column in enumerate(choice) if column is not None}
        total = sum(table[pair] for pair in pairs.items())
        if total > -np.inf:
            best = max(best, ((len(pairs), total), pairs), key=lambda one: one[0])
    return best[1]


def random_video(random: np.random.Generator, most: int) -> list[Detections]:
    """Boxes that crowd and resemble each other, in some of the first 9 frames."""
    frames = []
    for t in sorted(random.permutation(9)[:6].tolist()):
        corners = random.uniform(0, 25, (int(random.integers(0, most + 1)), 2))
        looks = random.normal([1, 0], 1, corners.shape)
        boxes = np.concatenate([corners, corners + random.uniform(15, 20, corners.shape)], axis=1)
        scores = random.uniform(0.4, 1, len(corners))
        frames.append(detections(t, boxes, scores, random.integers(0, 2, len(corners)), embeddings=looks))
    return frames


@pytest.mark.parametrize("match_by", ["both", "position", "appearance"])
@pytest.mark.parametrize(("assignment", "most"), [("greedy", 6), ("hungarian", 3)])
@given(seed=st.integers(0, 100_000), same_class=st.booleans(), weight=st.sampled_from([0.1, 0.5, 0.9, 1.0]))
@settings(max_examples=15)
def test_any_video_is_linked_as_defined(
    match_by: str, assignment: str, most: int, seed: int, same_class: bool, weight: float
) -> None:
    changes = {
        "match_by": match_by,
        "assignment": assignment,
        "same_class": same_class,
        "iou_weight": weight,
        "history": 2,
        "max_gap": 1,
        "max_boxes": 4,
        "min_iou": 0.3,
        "min_cosine": 0.2,
    }
    frames = random_video(np.random.default_rng(seed), most)
    assert linked(frames, **changes) == by_definition(frames, track_store.Settings(**changes))


# --- on scenes with known identities ---


GOOD = Settings(
    confusion=(0.03, 0.6),
    certainty=(0.85, 0.4),
    spread=0.1,
    min_score=0.3,
    false_positives=0.3,
    clutter=0,
    evidence=("embeddings",),
)


@cache
def scenes() -> list[tuple[np.ndarray, pa.Table]]:
    """Pictures and truth of three videos."""
    return [render("val", index) for index in (0, 1, 2)]


def scores(change: Callable[[Detections], Detections] = lambda frame: frame, **changes: object) -> dict[str, float]:
    """Over the scenes as a good detector sees them."""
    rows = []
    for pictures, truth in scenes():
        frames = [change(frame) for frame in simulate(truth, len(pictures), CLASSES, GOOD, size=SIZE)]
        frames, tracks = track_store.link(frames, VIDEO, track_store.Settings(**changes))
        name = truth["video_id"][0].as_py()
        rows.append(score(truth, tracks_table(name, frames, tracks, CLASSES), class_agnostic=True))
    return values(combine(rows))[None, None]


def shuffled(frame: Detections) -> Detections:
    order = np.random.default_rng(frame.frame_index).permutation(len(frame))
    return dataclasses.replace(frame, embeddings=frame.embeddings[order])


def test_looks_help_and_shuffled_looks_harm() -> None:
    """As in Figure 8 of the paper: with embeddings it is better than the IoU baseline, if they are the objects' own."""
    baseline, both, harmed = scores(match_by="position"), scores(), scores(shuffled)
    assert both["IDF1"] > baseline["IDF1"] + 0.1
    assert both["num_switches"] < baseline["num_switches"]
    assert harmed["IDF1"] < baseline["IDF1"] - 0.1
    assert harmed["num_switches"] > 2 * baseline["num_switches"]


WRONG_SETTINGS = [
    ({"min_score": 1.1}, "min_score is 1.1; it must be from 0 to 1"),
    ({"max_boxes": 0}, "max_boxes is 0; it must be none or at least 1"),
    ({"match_by": "iou"}, "match_by is 'iou'; it must be one of: auto, both, position, appearance"),
    ({"assignment": "best"}, "assignment is 'best'; it must be one of: greedy, hungarian"),
    ({"iou_weight": -1}, "iou_weight is -1; it must be from 0 to 1"),
    ({"min_iou": float("nan")}, "min_iou is nan; it must be from 0 to 1"),
    ({"min_cosine": -2}, "min_cosine is -2; it must be from -1 to 1"),
    ({"history": 0}, "history is 0; it must be at least 1"),
    ({"max_gap": -1}, "max_gap is -1; it must be none or at least 0"),
    ({"min_length": 0}, "min_length is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_SETTINGS, ids=lambda value: str(value)[:30])
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^linker track_store\.{message}"):
        track_store.Settings(**changes)
