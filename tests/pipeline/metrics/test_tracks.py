"""CLEAR, identity and HOTA: known cases, parity with py-motmetrics and TrackEval, and what must always hold."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import motmetrics
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs import mot
from pipeline.boxes import iou
from pipeline.metrics import clear, clear_trackeval, hota, identity
from pipeline.metrics.counts import add
from pipeline.metrics.pairs import Rows, pair, rows
from pipeline.metrics.sides import UNNAMED, by_video

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trackeval

METRICS = (hota, clear, clear_trackeval, identity)
MOTMETRICS = {  # ours: theirs
    "MOTA": "mota",
    "MOTP": "motp",
    "IDF1": "idf1",
    "IDP": "idp",
    "IDR": "idr",
    **{name: name for name in ("precision", "recall", *clear.NUMBERS, *identity.NUMBERS)},
}
TRACKEVAL = {  # ours: theirs
    **{name: name for name in (*hota.FIELDS, "IDF1", "IDP", "IDR")},
    **{name: name for name in clear_trackeval.FIELDS},
    **{f"CLR_{name}": name for name in ("MOTA", "MOTP", "MODA", "sMOTA", "MOTAL")},
    **{f"CLR_{name}": name for name in ("MT", "PT", "ML", "MTR", "PTR", "MLR", "Frag")},
}
Video = tuple[Rows, Rows]


def scores(*videos: Video) -> dict[str, float]:
    """Our scores of these videos together."""
    found: dict[str, float] = {}
    for metric in METRICS:
        found.update(metric.scores(add([metric.count(pair(*video)) for video in videos])))
    return found


def by_motmetrics(truth: Rows, predicted: Rows) -> dict[str, float]:
    """Scores by py-motmetrics, under our names; pairs below IoU .5 are not allowed."""
    accumulator = motmetrics.MOTAccumulator()
    for frame in sorted({*truth.frame.tolist(), *predicted.frame.tolist()}):
        a, b = truth[truth.frame == frame], predicted[predicted.frame == frame]
        overlap = iou(a.boxes, b.boxes)
        accumulator.update(a.ids, b.ids, np.where(overlap >= 0.5, 1 - overlap, np.nan), frameid=frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = motmetrics.metrics.create().compute(accumulator, metrics=list(MOTMETRICS.values()), name="video")
    return {ours: float(found[theirs].iloc[0]) for ours, theirs in MOTMETRICS.items()}


def by_trackeval(*videos: Video) -> dict[str, float]:
    """Scores of these videos together by TrackEval, under our names; curves as their means."""
    found: dict[str, float] = {}
    for metric in (
        trackeval.metrics.HOTA(),
        trackeval.metrics.CLEAR({"PRINT_CONFIG": False}),
        trackeval.metrics.Identity({"PRINT_CONFIG": False}),
    ):
        each = {str(index): metric.eval_sequence(trackeval_data(*video)) for index, video in enumerate(videos)}
        found.update((name, float(np.mean(value))) for name, value in metric.combine_sequences(each).items())
    return {ours: found[theirs] for ours, theirs in TRACKEVAL.items()}


def trackeval_data(truth: Rows, predicted: Rows) -> dict[str, Any]:
    """What TrackEval's metrics take."""
    truth_ids, truth_index = np.unique(truth.ids, return_inverse=True)
    predicted_ids, predicted_index = np.unique(predicted.ids, return_inverse=True)
    frames = range(max([*truth.frame.tolist(), *predicted.frame.tolist()], default=-1) + 1)
    return {
        "num_timesteps": len(frames),
        "num_gt_ids": len(truth_ids),
        "num_tracker_ids": len(predicted_ids),
        "num_gt_dets": len(truth),
        "num_tracker_dets": len(predicted),
        "gt_ids": [truth_index[truth.frame == frame] for frame in frames],
        "tracker_ids": [predicted_index[predicted.frame == frame] for frame in frames],
        "similarity_scores": [
            iou(truth.boxes[truth.frame == frame], predicted.boxes[predicted.frame == frame]) for frame in frames
        ],
    }


def crowd(seed: int, frames: int = 12) -> Video:
    """2 to 10 objects that cross in a small place; noise, misses, false alarms, swapped names, empty frames."""
    random = np.random.default_rng(seed)
    objects = 2 + seed % 9
    start, speed = random.uniform(0, 120, (objects, 2)), random.uniform(-9, 9, (objects, 2))
    size = random.uniform(20, 60, (objects, 2))
    names = random.permutation(objects)
    true, found = [], []
    for frame in range(frames):
        if random.random() < 0.3:
            names = random.permutation(objects + 2)[:objects]
        if random.random() < 0.1:
            continue  # nobody is there
        for index in range(objects):
            corner = start[index] + frame * speed[index]
            box = np.concatenate([corner, corner + size[index]])
            if random.random() < 0.85:
                true.append((frame, 3 * index + 1, box))
            if random.random() < 0.8:
                noisy = box + random.normal(0, 4, 4)
                noisy[2:] = np.maximum(noisy[2:], noisy[:2] + 1)
                found.append((frame, 5 * int(names[index]), noisy))
        if random.random() < 0.4:
            corner = random.uniform(0, 150, 2)
            found.append((frame, 999, np.concatenate([corner, corner + random.uniform(10, 50, 2)])))
    truth, predicted = (
        rows([r[0] for r in side], [r[2] for r in side], [r[1] for r in side]) for side in (true, found)
    )
    return truth, predicted


def boxes_at(*places: float) -> np.ndarray:
    """Boxes of 10 x 10 at these x."""
    return np.array([[x, 0, x + 10, 10] for x in places]).reshape(-1, 4)


def two_objects(predicted_ids: tuple[list[int], list[int]]) -> Video:
    """Two objects far apart over 10 frames, found exactly and called by these ids (0: not found)."""
    frame = np.arange(10)
    truth = rows(np.tile(frame, 2), boxes_at(*[0] * 10, *[100] * 10), [1] * 10 + [2] * 10)
    ids = np.concatenate(predicted_ids)
    chosen = ids > 0
    return truth, rows(np.tile(frame, 2)[chosen], boxes_at(*[0] * 10, *[100] * 10)[chosen], ids[chosen])


def one_object(ids: list[int], overlap: float = 1.0) -> Video:
    """One object, found at every frame with this IoU under these ids (0: not found)."""
    frame = np.arange(len(ids))
    truth = rows(frame, boxes_at(*[0] * len(ids)), [1] * len(ids))
    found = np.array(ids) > 0
    boxes = np.tile([0, 0, 10, 10 * overlap], (len(ids), 1))
    return truth, rows(frame[found], boxes[found], np.array(ids)[found])


NOTHING = rows((), ())
FAR = rows([0, 1], boxes_at(500, 500), [1, 1])
CASES: dict[str, tuple[Video, dict[str, float]]] = {
    "perfect": (
        two_objects(([7] * 10, [8] * 10)),
        {"HOTA": 1, "DetA": 1, "AssA": 1, "LocA": 1, "MOTA": 1, "MOTP": 0, "IDF1": 1, "IDSW": 0, "num_matches": 20},
    ),
    "two swap ids half-way": (
        two_objects(([1] * 5 + [2] * 5, [2] * 5 + [1] * 5)),
        {"MOTA": 0.9, "IDF1": 0.5, "num_switches": 2, "num_transfer": 2, "num_ascend": 0, "IDSW": 2},
    ),
    "a new id after a gap": (
        one_object([1] * 4 + [0] * 2 + [2] * 4),
        {"MOTA": 0.7, "IDF1": 8 / 18, "num_switches": 1, "num_ascend": 1, "num_transfer": 0, "num_fragmentations": 1},
    ),
    "a new id after a short gap": (
        one_object([1] * 5 + [0] * 2 + [2] * 3),
        {"MOTA": 0.7, "IDF1": 10 / 18, "num_switches": 1, "num_ascend": 1, "num_misses": 2, "num_fragmentations": 1},
    ),
    "one id for two objects, one after the other": (
        two_objects(([1] * 5 + [0] * 5, [0] * 5 + [1] * 5)),
        {"num_switches": 0, "num_transfer": 1, "num_migrate": 1, "num_misses": 10, "IDSW": 0},
    ),
    "a track split in halves, IoU .9": (
        one_object([1] * 5 + [2] * 5, overlap=0.9),
        # .9 fails the threshold .95, so 18 of 19 thresholds give DetA 1 and AssA .5
        {
            "DetA": 18 / 19,
            "AssA": 9 / 19,
            "HOTA": 18 / 19 * np.sqrt(0.5),
            "IDF1": 0.5,
            "MOTA": 0.9,
            "MOTP": 0.1,
        },
    ),
    # TrackEval skips frames without any prediction, and so sees no gap.
    "an id that comes back": (
        one_object([1] * 3 + [0] * 4 + [1] * 3),
        {"num_switches": 0, "num_fragmentations": 1, "CLR_Frag": 0},
    ),
    "an id that comes back, among others": (
        two_objects(([1] * 3 + [0] * 4 + [1] * 3, [2] * 10)),
        {"num_switches": 0, "num_fragmentations": 1, "CLR_Frag": 1},
    ),
    "found in eight frames of ten": (
        one_object([0] + [1] * 8 + [0], overlap=0.9),
        {"mostly_tracked": 1, "CLR_MT": 0, "CLR_PT": 1, "MOTP": 0.1, "CLR_MOTP": 0.9, "CLR_sMOTA": 0.72},
    ),
    "all missed": (
        (one_object([1] * 5)[0], NOTHING),
        {"MOTA": 0, "HOTA": 0, "IDF1": 0, "num_misses": 5, "mostly_lost": 1, "LocA": 1, "MOTP": np.nan, "IDP": np.nan},
    ),
    "all false": (
        (NOTHING, FAR),
        {"num_false_positives": 2, "HOTA": 0, "IDF1": 0, "MOTA": np.nan, "recall": np.nan, "IDSW": 0, "CLR_MOTA": -2},
    ),
    "nothing at all": (
        (NOTHING, NOTHING),
        {"MOTA": np.nan, "HOTA": np.nan, "IDF1": np.nan, "CLR_MOTA": np.nan, "num_objects": 0},
    ),
    "found elsewhere": ((rows([0, 1], boxes_at(0, 0), [1, 1]), FAR), {"MOTA": -1, "HOTA": 0, "IDF1": 0}),
    "just .5 is a match": (one_object([1] * 4, overlap=0.5), {"num_matches": 4, "IDF1": 1}),
    "just below .5 is none": (one_object([1] * 4, overlap=0.499), {"num_matches": 0, "IDF1": 0, "num_misses": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_known_case(name: str) -> None:
    video, expected = CASES[name]
    found = scores(video)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_motmetrics_keeps_a_pair_where_trackeval_takes_the_closest() -> None:
    """The object is away for a frame and another box is closer when it is back: the two programs differ."""
    truth = rows([0, 2, 1], boxes_at(0, 0, 300), [1, 1, 2])
    predicted = rows([0, 2, 2, 1], boxes_at(0, 3, 0, 300), [1, 1, 2, 3])
    found = scores((truth, predicted))
    assert (found["num_switches"], found["IDSW"]) == (0, 1)


@pytest.mark.data
def test_equals_the_references_on_published_results(data: Path) -> None:
    videos = []
    for name in ("TUD-Campus", "TUD-Stadtmitte"):
        folder = data / "mot15" / name
        truth = by_video(mot.read_truth(str(folder / "gt" / "gt.txt"), name), is_truth=True)
        tracks = by_video(mot.read_tracks(str(folder / "published_result" / f"{name}.txt"), name), is_truth=False)
        videos.append((truth[name].of_class(UNNAMED), tracks[name].of_class(UNNAMED)))
    for chosen in ([videos[0]], [videos[1]], videos):
        found, theirs = scores(*chosen), by_trackeval(*chosen)
        assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-9)
    for video in videos:
        found, theirs = scores(video), by_motmetrics(*video)
        assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in (0, 20, 40)])
def test_equals_the_references(seeds: range) -> None:
    for seed in seeds:
        video = crowd(seed)
        found, theirs, others = scores(video), by_motmetrics(*video), by_trackeval(video)
        assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-9, nan_ok=True), seed
        assert {name: found[name] for name in others} == pytest.approx(others, abs=1e-9), seed


def test_videos_add_up_as_in_trackeval() -> None:
    videos = [crowd(seed) for seed in range(12)] + [(crowd(50)[0], NOTHING), (NOTHING, crowd(51)[1])]
    found, theirs = scores(*videos), by_trackeval(*videos)
    assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-9)


def test_counts_of_videos_are_those_of_one_after_the_other() -> None:
    """Two videos with nothing in common, strung together as one, count the same."""
    (a, b), (c, d) = crowd(3), crowd(4)
    strung = tuple(
        rows(
            [*first.frame, *(second.frame + 100)],
            [*first.boxes, *(second.boxes + 1000)],
            [*first.ids, *(second.ids + 5000)],
        )
        for first, second in ((a, c), (b, d))
    )
    for metric in METRICS:
        whole = metric.count(pair(*strung))
        parts = add([metric.count(pair(a, b)), metric.count(pair(c, d))])
        for name, value in whole.items():
            np.testing.assert_allclose(parts[name], value, atol=1e-9, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_the_order_of_boxes_does_not_matter(seed: int, random: Any) -> None:
    video = crowd(seed)
    shuffled = []
    for side in video:
        order = random.sample(range(len(side)), len(side))
        shuffled.append(rows(side.frame[order], side.boxes[order], side.ids[order]))
    assert scores((shuffled[0], shuffled[1])) == pytest.approx(scores(video), abs=0, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_truth_as_its_own_prediction_is_perfect_and_names_do_not_matter(seed: int) -> None:
    truth, predicted = crowd(seed)
    perfect = scores((truth, rows(truth.frame, truth.boxes, 77 - truth.ids)))
    for name in (*hota.FIELDS, "MOTA", "IDF1", "IDP", "IDR", "precision", "recall"):
        assert perfect[name] == pytest.approx(1), name
    renamed = rows(predicted.frame, predicted.boxes, predicted.ids * 2 + 13)
    assert scores((truth, renamed)) == pytest.approx(scores((truth, predicted)), abs=0, nan_ok=True)


def test_pairs_are_all_that_overlap_however_few_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, predicted = crowd(8)
    expected = [
        (i, j, overlap)
        for i in range(len(truth))
        for j in range(len(predicted))
        if truth.frame[i] == predicted.frame[j]
        and (overlap := iou(truth.boxes[i : i + 1], predicted.boxes[j : j + 1])[0, 0]) > 0
    ]
    for at_once in (1, 7, 10**6):
        monkeypatch.setattr("pipeline.metrics.pairs._PAIRS_AT_ONCE", at_once)
        pairs = pair(truth, predicted)
        found = list(zip(pairs.truth.tolist(), pairs.predicted.tolist(), pairs.iou.tolist(), strict=True))
        assert [f[:2] for f in found] == [e[:2] for e in expected]
        assert [f[2] for f in found] == pytest.approx([e[2] for e in expected], abs=1e-15)
