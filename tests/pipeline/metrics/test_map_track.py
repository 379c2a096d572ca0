"""mAP of tracks: known cases, plain loops over tracks and frames, what truth leaves open, and groups by motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs import mot
from pipeline.boxes import iou
from pipeline.metrics import tracks
from pipeline.metrics.counts import add
from pipeline.metrics.ignoring import DISTRACTOR, REGION, UNSCORED
from pipeline.metrics.pairs import Rows, rows
from pipeline.metrics.sides import by_video

Video = tuple[Rows, Rows]
NAMES = {0.25: "mAP_track_25", 0.5: "mAP_track_50", 0.75: "mAP_track_75"}


def scores(*videos: Video, tolerance: float = 0.0) -> dict[str, float]:
    parts = [tracks.count(truth, predicted, tolerance) for truth, predicted in videos]
    return tracks.scores(add(parts, tracks.JOINED))


def track(frames: Sequence[int], x: float = 0, name: int = 1, score: float = 0.9, speed: float = 0) -> Rows:
    """A box of 100 x 100 that starts at x in frame 0 and moves right."""
    left = x + speed * np.asarray(frames, float)
    boxes = np.stack([left, 0 * left, left + 100, 0 * left + 100], axis=1)
    return rows(frames, boxes, [name] * len(left), [score] * len(left))


def together(*parts: Rows) -> Rows:
    columns = ("frame", "boxes", "ids", "scores", "kind", "motion", "track_scores")
    return rows(**{column: np.concatenate([getattr(part, column) for part in parts]) for column in columns})


NOTHING = rows([], [])
TEN = range(10)
ONE = track(TEN)
TWO = together(track(TEN, 0, 1), track(TEN, 500, 2))
CASES: dict[str, tuple[Rows, Rows, tuple[float, float, float]]] = {  # AP at .25, .5, .75
    "perfect": (TWO, TWO, (1, 1, 1)),
    "nothing found": (ONE, NOTHING, (0, 0, 0)),
    "four frames late": (ONE, track(range(4, 12)), (1, 1, 0)),  # 6 frames of 12
    "a quarter": (ONE, track(range(6, 12)), (1, 0, 0)),  # 4 of 12: .333
    "exactly three quarters": (track(range(4)), track(range(3)), (1, 1, 1)),
    "in other frames": (ONE, track(range(20, 30)), (0, 0, 0)),
    "elsewhere": (ONE, track(TEN, 300), (0, 0, 0)),
    # There in all frames, on the object in five of them: 5 of 10, not of 15.
    "drifted away": (ONE, together(track(range(5)), track(range(5, 10), 300)), (1, 1, 0)),
    "found twice, the sure one first": (ONE, together(track(TEN, 0, 1, 0.9), track(TEN, 5, 2, 0.8)), (1, 1, 1)),
    "a false one first": (ONE, together(track(TEN, 300, 5, 0.95), ONE), (0.5, 0.5, 0.5)),
    "a duplicate is false": (
        TWO,
        together(track(TEN, 0, 1, 0.9), track(TEN, 5, 2, 0.8), track(TEN, 500, 3, 0.7)),
        ((1 + 2 / 3) / 2,) * 3,
    ),
    "broken in two": (ONE, together(track(range(6), 0, 1, 0.9), track(range(6, 10), 0, 2, 0.8)), (1, 1, 0)),
    # Each track has half of each object: 5 frames of 10.
    "names swapped": (
        TWO,
        together(*(track(range(a, a + 5), x, n) for a, x, n in ((0, 0, 1), (5, 500, 1), (0, 500, 2), (5, 0, 2)))),
        (1, 1, 0),
    ),
    "boxes without track": (ONE, rows(TEN, ONE.boxes), (0, 0, 0)),
    # Of equal confidence: one threshold for both, whichever comes first.
    "a tie": (ONE, together(track(TEN, 300, 1, 0.3), track(TEN, 0, 2, 0.3)), (0.5, 0.5, 0.5)),
    # Means of .3 over 3 and over 10 boxes differ in float64.
    "a tie but for rounding": (ONE, together(track(range(3), 300, 1, 0.3), track(TEN, 0, 2, 0.3)), (0.5, 0.5, 0.5)),
}


@pytest.mark.parametrize("name", CASES)
def test_known_case(name: str) -> None:
    truth, predicted, expected = CASES[name]
    found = scores((truth, predicted))
    assert [found[field] for field in NAMES.values()] == pytest.approx(expected, abs=1e-12)
    assert found["mAP_track"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert set(found) == set(tracks.FIELDS)


def test_without_truth_there_is_no_ap() -> None:
    assert all(np.isnan(value) for value in scores((NOTHING, ONE)).values())
    assert all(np.isnan(value) for value in scores((NOTHING, NOTHING)).values())


@pytest.mark.parametrize(("size", "needed"), [(10, 0.25), (20, 4 / 9), (25, 0.5)])
def test_small_boxes_are_forgiven(size: float, needed: float) -> None:
    truth = rows([0], [[0, 0, size, size]], [1])
    for height, expected in ((needed + 0.01, 1), (needed - 0.01, 0)):
        predicted = rows([0], [[0, 0, size, size * height]], [1])
        assert scores((truth, predicted), tolerance=10)["mAP_track"] == expected


def test_the_most_sure_chooses_first_and_the_next_takes_what_is_left() -> None:
    """Both cover both objects, which lie almost in one place; the one that the second fits better is gone."""
    truth = together(track(TEN, 0, 1), track(range(8), 20, 2))
    predicted = together(track(TEN, 10, 1, 0.9), track(TEN, 10, 2, 0.8))
    assert scores((truth, predicted))["mAP_track_75"] == 1
    assert scores((truth, predicted))["mAP_track"] == 1


def test_confidence_is_of_the_track_where_it_has_one() -> None:
    """By its boxes the false track is the surer, by its own score the other."""
    both = together(track(TEN, 300, 1, 0.9), track(TEN, 0, 2, 0.5))
    assert scores((ONE, both))["mAP_track"] == pytest.approx(0.5)
    own = rows(both.frame, both.boxes, both.ids, both.scores, track_scores=np.where(both.ids == 1, 0.2, 0.8))
    assert scores((ONE, own))["mAP_track"] == 1
    rescored = rows(own.frame, own.boxes, own.ids, own.scores / 3, track_scores=own.track_scores)
    assert scores((ONE, rescored)) == pytest.approx(scores((ONE, own)), nan_ok=True)


IGNORED: dict[str, tuple[int, Rows, float]] = {  # kind of the truth at 1000, further predictions, AP at .75
    "all in a region": (REGION, track(TEN, 1000, 5, 0.95), 1),
    "a small one in a region": (REGION, rows(TEN, [[1040, 40, 1050, 50]] * 10, [5] * 10, [0.95] * 10), 1),
    "all on a distractor": (DISTRACTOR, track(TEN, 1000, 5, 0.95), 1),
    "a small one on a distractor": (DISTRACTOR, rows(TEN, [[1040, 40, 1050, 50]] * 10, [5] * 10, [0.95] * 10), 0.5),
    "on what is merely not scored": (UNSCORED, track(TEN, 1000, 5, 0.95), 0.5),
    "partly in a region": (REGION, together(track(range(5), 1000, 5, 0.95), track(range(5, 10), 0, 5, 0.95)), 0.5),
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_is_ignored_excuses_tracks(name: str) -> None:
    kind, further, expected = IGNORED[name]
    ignored = track(TEN, 1000)
    ignored = rows(ignored.frame, ignored.boxes, kind=[kind] * 10)
    assert scores((together(ONE, ignored), together(ONE, further)))["mAP_track_75"] == pytest.approx(expected)


def test_frames_in_an_ignored_region_do_not_count_against_a_track() -> None:
    """8 frames on the object, then 12 more in a region: 8 of 10, not of 20; and truth may stop being scored."""
    leaves = together(track(range(8)), track(range(8, 20), 1000))
    region = rows(range(20), track(range(20), 1000).boxes, kind=[REGION] * 20)
    assert scores((ONE, leaves))["mAP_track_50"] == 0
    assert scores((together(ONE, region), leaves))["mAP_track_75"] == 1
    vanishes = rows(range(20), track(range(20)).boxes, [1] * 20, kind=[0] * 10 + [REGION] * 10)
    assert scores((vanishes, track(range(20))))["mAP_track_75"] == 1


def test_a_hit_inside_an_ignored_region_counts() -> None:
    region = rows(TEN, [[-500, -500, 500, 500]] * 10, kind=[REGION] * 10)
    assert scores((together(ONE, region), ONE))["mAP_track"] == 1


# A box of 100 that moves by d has an IoU of (100 - d) / (100 + d) with itself in the next frame.
SPEEDS = {"slow": 5.0, "medium": 17.0, "fast": 40.0}  # IoUs .90, .71, .43


@pytest.mark.parametrize("group", SPEEDS, ids="of {}".format)
def test_a_trajectory_is_of_the_group_of_its_speed(group: str) -> None:
    truth = track(TEN, speed=SPEEDS[group])
    found = scores((truth, truth))
    assert found[f"mAP_track_{group}"] == 1
    assert all(np.isnan(found[f"mAP_track_{other}"]) for other in SPEEDS if other != group)


def test_only_boxes_in_consecutive_frames_tell_the_speed() -> None:
    """It jumps while it is away; one that is seen in every other frame only is of no group, nor is its track."""
    jumps = together(track(range(5), 0), track(range(6, 11), 800))
    assert scores((jumps, jumps))["mAP_track_slow"] == 1
    blinks = track(range(0, 10, 2), 2000, 2)
    found = scores((together(jumps, blinks), together(jumps, track(range(0, 10, 2), 2000, 2, 0.95))))
    assert (found["mAP_track"], found["mAP_track_slow"]) == (1, 1)
    assert np.isnan(found["mAP_track_fast"])


def test_a_false_track_counts_in_the_group_it_is_closest_to_or_in_all() -> None:
    slow, fast = track(TEN, 0, 1), track(TEN, 2000, 2, speed=40)
    truth = together(slow, fast)
    again = track(TEN, 5, 3, 0.95)  # covers the slow one and is surer, so that the plain one is the false one
    found = scores((truth, together(truth, again, track(range(2), 2000, 4, 0.99, speed=40))))
    assert found["mAP_track_slow"] == 1  # of two that cover it the surer takes it, the other comes after
    assert found["mAP_track_fast"] == pytest.approx(0.5)  # a piece of 2 frames is false here, and only here
    nowhere = scores((truth, together(truth, track(TEN, 5000, 3, 0.95))))
    assert nowhere["mAP_track_slow"] == nowhere["mAP_track_fast"] == pytest.approx(0.5)


def scene(seed: int) -> Video:
    """Objects of all speeds that cross in a small place, some with gaps; broken, swapped, doubled and false tracks."""
    random = np.random.default_rng(seed)
    frames = int(random.integers(1, 14))
    true, found = [], []
    for name in range(int(random.integers(1, 7))):
        corner, size = random.uniform(0, 60, 2), random.uniform(8, 40, 2)
        speed = random.normal(0, random.choice([0.5, 4, 12]), 2)
        for copy in range(int(random.integers(0, 3))):
            own = 10 * int(random.integers(0, 5)) + copy  # may be another object's too
            score, noise = round(random.random(), 1), random.choice([0.5, 4])
            for frame in range(frames):
                place = corner + frame * speed + random.normal(0, noise, 2)
                if random.random() < 0.8:
                    found.append((frame, [*place, *(place + size * random.uniform(0.9, 1.1, 2))], own, score))
        for frame in range(frames):
            if random.random() < 0.9:
                true.append((frame, [*(corner + frame * speed), *(corner + frame * speed + size)], 3 * name + 1))
    found = list({(row[0], row[2]): row for row in found}.values())  # one box a frame and track
    chosen = random.permutation(len(found))
    found = [found[index] for index in chosen]
    truth = rows([r[0] for r in true], [r[1] for r in true], [r[2] for r in true])
    return truth, rows(*([r[column] for r in found] for column in range(4)))


def trajectories(side: Rows) -> dict[int, dict[int, np.ndarray]]:
    found: dict[int, dict[int, np.ndarray]] = {}
    for frame, box, name in zip(side.frame.tolist(), side.boxes, side.ids.tolist(), strict=True):
        found.setdefault(name, {})[frame] = box
    return dict(sorted(found.items()))


def temporal_iou(true: dict[int, np.ndarray], found: dict[int, np.ndarray], tolerance: float) -> tuple[float, float]:
    """Temporal IoU, and for ties the sum of IoU where it is enough."""
    enough = []
    for frame in {*true} & {*found}:
        width, height = true[frame][2:] - true[frame][:2]
        overlap = iou(true[frame], found[frame])[0, 0]
        if overlap >= min(0.5, width * height / (width + tolerance) / (height + tolerance)):
            enough.append(overlap)
    return len(enough) / len({*true, *found}), sum(enough)


def speed_group(true: dict[int, np.ndarray]) -> str:
    steps = [iou(true[frame], true[frame + 1])[0, 0] for frame in true if frame + 1 in true]
    if not steps:
        return "none"
    return "slow" if np.mean(steps) > 0.8 else "medium" if np.mean(steps) >= 0.6 else "fast"


@dataclass
class Seen:
    """One video as the loops see it: groups of the truth, agreements (of track, then truth) and confidences."""

    groups: dict[int, str]
    tiou: dict[int, dict[int, tuple[float, float]]]
    confidence: dict[int, float]


def seen(truth: Rows, predicted: Rows, tolerance: float) -> Seen:
    true, found = trajectories(truth), trajectories(predicted)
    return Seen(
        {name: speed_group(boxes) for name, boxes in true.items()},
        {a: {b: temporal_iou(true[b], found[a], tolerance) for b in true} for a in found},
        {name: float(np.float32(predicted.scores[predicted.ids == name].mean())) for name in found},
    )


def by_loop(videos: Sequence[Seen], threshold: float, group: str = "") -> float:
    """The same by the book: one track after the other, and one confidence after the other."""
    results, num_truth = [], 0
    for video in videos:
        num_truth += sum(group in ("", other) for other in video.groups.values())
        free = set(video.groups)
        for name in sorted(video.tiou, key=lambda name: -video.confidence[name]):
            tiou = video.tiou[name]
            possible = [other for other in tiou if other in free and tiou[other][0] >= threshold]
            taken = max(possible, key=lambda other: tiou[other], default=None)
            about = taken if taken is not None else max(tiou, key=lambda other: tiou[other], default=None)
            free -= {taken}
            if group == "" or about is None or tiou[about][0] == 0 or video.groups[about] == group:
                results.append((video.confidence[name], taken is not None))
    if not num_truth:
        return float("nan")
    points = []
    for least in sorted({score for score, _ in results}, reverse=True):
        hit = [hit for score, hit in results if score >= least]
        points.append((sum(hit) / num_truth, sum(hit) / len(hit)))
    area, before = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[index:])
        before = recall
    return area


def check_against_loops(videos: Sequence[Video], tolerance: float) -> None:
    found = scores(*videos, tolerance=tolerance)
    plain = [seen(*video, tolerance) for video in videos]
    for threshold, field in NAMES.items():
        assert found[field] == pytest.approx(by_loop(plain, threshold), abs=1e-12, nan_ok=True), field
    for group in ("", *tracks.GROUPS):
        field = f"mAP_track_{group}" if group else "mAP_track"
        expected = np.mean([by_loop(plain, threshold, group) for threshold in NAMES])
        assert found[field] == pytest.approx(expected, abs=1e-12, nan_ok=True), field


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 10.0]))
def test_equals_plain_loops_over_several_videos(seed: int, tolerance: float) -> None:
    check_against_loops([scene(3 * seed + index) for index in range(3)], tolerance)


@pytest.mark.data
def test_equals_plain_loops_on_a_published_result(data: Path) -> None:
    videos = []
    for name in ("TUD-Campus", "TUD-Stadtmitte"):
        folder = data / "mot15" / name
        truth = by_video(mot.read_truth(str(folder / "gt" / "gt.txt"), name), is_truth=True)[name]
        tracked = by_video(mot.read_tracks(str(folder / "published_result" / f"{name}.txt"), name), is_truth=False)[
            name
        ]
        videos.append((truth.of_class("object"), tracked.of_class("object")))
    check_against_loops(videos, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_order_and_shards_do_not_matter_and_truth_is_perfect(seed: int, random: Random) -> None:
    videos = [scene(4 * seed + index) for index in range(4)]
    whole = scores(*videos)
    shuffled = []
    for truth, predicted in videos:
        a, b = list(range(len(truth))), list(range(len(predicted)))
        random.shuffle(a)
        random.shuffle(b)
        again = rows(predicted.frame[b], predicted.boxes[b], predicted.ids[b], predicted.scores[b])
        shuffled.append((rows(truth.frame[a], truth.boxes[a], truth.ids[a]), again))
    assert scores(*shuffled) == pytest.approx(whole, abs=0, nan_ok=True)
    halves = [add([tracks.count(*video) for video in part], tracks.JOINED) for part in (videos[2:], videos[:2])]
    assert tracks.scores(add(halves, tracks.JOINED)) == pytest.approx(whole, abs=1e-12, nan_ok=True)
    perfect = scores(*((truth, rows(truth.frame, truth.boxes, truth.ids + 7)) for truth, _ in videos))
    assert all(value == 1 or np.isnan(value) for value in perfect.values())
    assert perfect["mAP_track"] == 1
