"""Stability of tracks: known errors, which tracks are best matches, and plain loops over them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.boxes import iou
from pipeline.metrics import stability
from pipeline.metrics.counts import add
from pipeline.metrics.ignoring import REGION
from pipeline.metrics.pairs import Rows, rows

Video = tuple[Rows, Rows]


def scores(*videos: Video) -> dict[str, float]:
    return stability.scores(add([stability.count(*video) for video in videos], stability.JOINED))


def still(frames: Sequence[int], x: float = 0, name: int = 1, score: float = 0.9) -> Rows:
    """A box of 100 x 200 at x."""
    return rows(frames, [[x, 0, x + 100, 200]] * len(frames), [name] * len(frames), [score] * len(frames))


def together(*parts: Rows) -> Rows:
    columns = ("frame", "boxes", "ids", "scores", "kind")
    return rows(**{column: np.concatenate([getattr(part, column) for part in parts]) for column in columns})


def errors(found: dict[str, float], group: str = "") -> list[float]:
    """fragment, center, aspect."""
    return [found[f"{error}_error{group}"] for error in ("fragment", "center", "aspect")]


EIGHT = still(range(8))
FRAGMENTS: dict[str, tuple[str, float]] = {  # in which of its frames a trajectory is found, changes / (frames - 1)
    "known answer": ("11011001", 4 / 7),
    "always": ("11111111", 0),
    "a gap": ("11110111", 2 / 7),
    "from the second on": ("01111111", 1 / 7),
    "not at the ends": ("01111110", 2 / 7),
    "every other": ("10101010", 1),
    "one of one": ("1", 0),
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment_error(name: str) -> None:
    pattern, expected = FRAGMENTS[name]
    found = still([frame for frame, letter in enumerate(pattern) if letter == "1"])
    assert errors(scores((still(range(len(pattern))), found))) == pytest.approx([expected, 0, 0])


def test_frames_that_truth_lacks_are_no_change() -> None:
    truth = still([0, 1, 2, 10, 11, 12])
    assert errors(scores((truth, still([0, 1, 2, 5, 10, 11, 12])))) == [0, 0, 0]


def test_a_box_that_is_too_far_off_is_not_found() -> None:
    truth, far = still(range(8)), still([3], 50)
    assert errors(scores((truth, together(still([0, 1, 2, 4, 5, 6, 7]), far))))[0] == pytest.approx(2 / 7)


def test_center_error_is_the_deviation_of_the_offsets() -> None:
    """Offsets of 0, .1, -.1, 0 widths deviate by .0707 (of the population); a constant one of the height by nothing."""
    offset = np.array([0, 10, -10, 0])
    found = rows(range(4), np.stack([offset, 0 * offset + 20, offset + 100, 0 * offset + 220], axis=1), [1] * 4)
    assert errors(scores((still(range(4)), found))) == pytest.approx([0, np.sqrt(0.005), 0])
    down = rows(range(4), np.stack([0 * offset, offset, 0 * offset + 100, offset + 200], axis=1), [1] * 4)
    assert errors(scores((still(range(4)), down))) == pytest.approx([0, np.sqrt(0.005) / 2, 0])


def test_aspect_error_is_that_of_scale_and_of_shape() -> None:
    """About the same centers: sides of 1, 1.21, 1, 1.21 at one shape, then widths (scales 1, 1.1) at one height."""

    def about_the_center(width: Sequence[float], height: Sequence[float]) -> Rows:
        w, h = np.array(width) * 100, np.array(height) * 200
        return rows(range(4), np.stack([50 - w / 2, 100 - h / 2, 50 + w / 2, 100 + h / 2], axis=1), [1] * 4)

    grown, one = [1, 1.21, 1, 1.21], [1.0] * 4
    truth = still(range(4))
    assert errors(scores((truth, about_the_center(grown, grown)))) == pytest.approx([0, 0, 0.105])
    assert errors(scores((truth, about_the_center(grown, one)))) == pytest.approx([0, 0, 0.05 + 0.105])
    assert scores((truth, about_the_center(grown, one)))["stability_error"] == pytest.approx(0.155)


def test_the_surest_track_is_the_match_at_each_threshold_it_reaches() -> None:
    """A sure track with 5 frames of 8 and a gap (changes 2/7 + 1/7), and a steady one that is less sure."""
    sure, steady = still([0, 1, 2, 4, 5], 0, 1, 0.9), still(range(8), 2, 2, 0.5)
    found = scores((EIGHT, together(sure, steady)))
    assert found["fragment_error"] == pytest.approx((3 / 7 + 3 / 7 + 0) / 3)  # at .25 and .5 the sure one


def test_a_track_is_the_match_only_of_the_trajectory_it_agrees_with_best() -> None:
    """It covers both objects, the other with 4 of 8 frames; that one has no match, and counts nowhere."""
    truth = together(EIGHT, still([0, 2, 4, 6], 10, 2))
    assert errors(scores((truth, still(range(8))))) == [0, 0, 0]


def test_without_match_there_is_no_error() -> None:
    nothing = rows([], [])
    for video in ((nothing, nothing), (nothing, EIGHT), (EIGHT, nothing), (EIGHT, still([0])), (EIGHT, still([9], 0))):
        assert all(np.isnan(value) for value in scores(video).values())
    assert set(scores((EIGHT, EIGHT))) == set(stability.FIELDS)


def test_what_is_ignored_neither_helps_nor_harms() -> None:
    """The track goes on in a region for as long again: without it 6 of 14 frames, so it would reach .25 only."""
    region = rows(range(20), still(range(20), 1000).boxes, kind=[REGION] * 20)
    leaves = together(still([0, 1, 2, 4, 5, 7]), still(range(8, 20), 1000))
    alone = stability.count(EIGHT, leaves)
    excused = stability.count(together(EIGHT, region), leaves)
    assert (alone["num_best_matches"].sum(), excused["num_best_matches"].sum()) == (1, 3)
    assert scores((together(EIGHT, region), leaves))["fragment_error"] == pytest.approx(4 / 7)


@pytest.mark.parametrize(("group", "speed"), [("slow", 5.0), ("medium", 17.0), ("fast", 40.0)])
def test_groups_are_those_of_the_speed_of_truth(group: str, speed: float) -> None:
    left = speed * np.arange(8.0)
    truth = rows(range(8), np.stack([left, 0 * left, left + 100, 0 * left + 200], axis=1), [1] * 8)
    found = scores((truth, truth[np.arange(8) != 3]))
    expected = pytest.approx([2 / 7, 0, 0], abs=1e-12)
    assert errors(found) == expected
    assert errors(found, f"_{group}") == expected
    others = {"slow", "medium", "fast"} - {group}
    assert all(np.isnan(found[f"stability_error_{other}"]) for other in others)


def scene(seed: int) -> Video:
    """Objects of all speeds near each other, each followed by some tracks with gaps and noise, a few of one score."""
    random = np.random.default_rng(seed)
    true, found = [], []
    for name in range(int(random.integers(1, 6))):
        corner, size = random.uniform(0, 80, 2), random.uniform(15, 50, 2)
        speed = random.normal(0, random.choice([0.5, 4, 12]), 2)
        shown = np.flatnonzero(random.random(14) < 0.9)
        true += [(frame, [*(corner + frame * speed), *(corner + frame * speed + size)], name, 1.0) for frame in shown]
        for copy in range(int(random.integers(0, 4))):
            score = round(random.random(), 1)
            for frame in np.flatnonzero(random.random(14) < random.choice([0.4, 0.9])):
                place = corner + frame * speed + random.normal(0, random.choice([0.5, 4]), 2)
                grown = size * random.uniform(0.8, 1.25, 2)
                found.append((frame, [*place, *(place + grown)], 10 * name + copy, score))
    truth, predicted = (rows(*([row[column] for row in side] for column in range(4))) for side in (true, found))
    return truth, predicted


def by_loop(truth: Rows, predicted: Rows) -> dict[str, list[list[float]]]:
    """Errors of every best match at every threshold, one trajectory and threshold after the other, by group."""

    def boxes(side: Rows, name: int) -> dict[int, np.ndarray]:
        chosen = side.ids == name
        return dict(zip(side.frame[chosen].tolist(), side.boxes[chosen], strict=True))

    true = {name: boxes(truth, name) for name in sorted(set(truth.ids.tolist()))}
    tracks = {name: boxes(predicted, name) for name in sorted(set(predicted.ids.tolist()))}
    score = {name: float(np.float32(predicted.scores[predicted.ids == name].mean())) for name in tracks}
    found = {
        (a, b): [
            frame for frame in true[a] if frame in tracks[b] and iou(true[a][frame], tracks[b][frame])[0, 0] >= 0.5
        ]
        for a in true
        for b in tracks
    }
    tiou = {(a, b): len(frames) / len({*true[a], *tracks[b]}) for (a, b), frames in found.items()}
    near = {(a, b): sum(iou(true[a][f], tracks[b][f])[0, 0] for f in frames) for (a, b), frames in found.items()}
    closest = {b: max(true, key=lambda a, b=b: (tiou[a, b], near[a, b])) for b in tracks}
    results: dict[str, list[list[float]]] = {"none": [], "slow": [], "medium": [], "fast": []}
    for name, own in true.items():
        steps = [iou(own[frame], own[frame + 1])[0, 0] for frame in own if frame + 1 in own]
        speed = np.mean(steps) if steps else np.nan
        group = "slow" if speed > 0.8 else "medium" if speed >= 0.6 else "fast" if speed < 0.6 else "none"
        for threshold in (0.25, 0.5, 0.75):
            assigned = [b for b in tracks if closest[b] == name and tiou[name, b] >= threshold]
            if not assigned:
                continue
            best = max(assigned, key=lambda b: score[b])
            status = [frame in found[name, best] for frame in own]
            changes = sum(a != b for a, b in pairwise(status))
            errors = []
            for frame in found[name, best]:
                (x1, y1, x2, y2), (u1, v1, u2, v2) = own[frame], tracks[best][frame]
                w, h, p, q = x2 - x1, y2 - y1, u2 - u1, v2 - v1
                center = ((u1 + u2) / 2 - (x1 + x2) / 2) / w, ((v1 + v2) / 2 - (y1 + y2) / 2) / h
                errors.append((*center, np.sqrt(p * q) / np.sqrt(w * h), (p / q) / (w / h)))
            x, y, scale, shape = np.std(errors, axis=0)
            results[group].append([changes / max(len(own) - 1, 1), x + y, scale + shape])
    return results


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_plain_loops_over_several_videos(seed: int) -> None:
    videos = [scene(2 * seed), scene(2 * seed + 1)]
    found = scores(*videos)
    plain = [by_loop(*video) for video in videos]
    every = [row for results in plain for rows in results.values() for row in rows]
    assert errors(found) == pytest.approx(np.mean(every, axis=0) if every else [np.nan] * 3, abs=1e-9, nan_ok=True)
    for group in ("slow", "medium", "fast"):
        own = [row for results in plain for row in results[group]]
        expected = np.mean(own, axis=0) if own else [np.nan] * 3
        assert errors(found, f"_{group}") == pytest.approx(expected, abs=1e-9, nan_ok=True), group
        assert found[f"stability_error_{group}"] == pytest.approx(np.sum(expected), abs=1e-9, nan_ok=True), group


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_order_and_shards_do_not_matter_and_truth_has_no_errors(seed: int, random: Random) -> None:
    videos = [scene(3 * seed + index) for index in range(3)]
    whole = scores(*videos)
    shuffled = []
    for truth, predicted in videos:
        order = list(range(len(predicted)))
        random.shuffle(order)
        again = (predicted.frame[order], predicted.boxes[order], predicted.ids[order], predicted.scores[order])
        shuffled.append((truth, rows(*again)))
    assert scores(*shuffled) == pytest.approx(whole, abs=0, nan_ok=True)
    halves = [add([stability.count(*video) for video in part]) for part in (videos[1:], videos[:1])]
    assert stability.scores(add(halves)) == pytest.approx(whole, abs=1e-12, nan_ok=True)
    perfect = scores(*((truth, rows(truth.frame, truth.boxes, truth.ids + 7)) for truth, _ in videos))
    assert all(value == 0 or np.isnan(value) for value in perfect.values())
    assert perfect["stability_error"] == 0
