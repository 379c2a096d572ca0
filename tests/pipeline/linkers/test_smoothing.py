"""Filling and smoothing: known answers, the dense algebra behind the banded one, and what must never befall a box."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, make_smoothing_spline

from pipeline.boxes import iou
from pipeline.linkers.parts import smoothing
from pipeline.linkers.parts.filling import fill
from pipeline.linkers.parts.smoothing import smooth
from pipeline.records import Track


def track(frames: object, boxes: object, scores: object = 0.5, number: int = 1) -> Track:
    """A track of detections; box_id counts them."""
    frame_index = np.asarray(frames, np.int32)
    count = len(frame_index)
    return Track(
        track_id=number,
        label=0,
        score=0.5,
        frame_index=frame_index,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.broadcast_to(np.asarray(scores, np.float32), count).copy(),
        raw_scores=np.broadcast_to(np.asarray(scores, np.float32), count).copy(),
        box_id=np.arange(count, dtype=np.int32),
        tracked=np.zeros(count, bool),
    )


def along(frames: object, speed: float = 3.0, size: tuple[float, float] = (20, 10)) -> NDArray[np.float64]:
    """Boxes of one size that start at (5, 7) and move to the right."""
    left = 5 + speed * np.asarray(frames, float)
    return np.stack([left, np.full_like(left, 7), left + size[0], np.full_like(left, 7 + size[1])], axis=1)


def jittery(seed: int, count: int = 60, jitter: float = 2.0) -> tuple[Track, NDArray[np.float64]]:
    """An object on a curve, seen with white noise of `jitter` pixels in 60 frames but for some; and the truth."""
    random = np.random.default_rng(seed)
    time = np.arange(count)
    left, top = 100 + 60 * np.sin(time / 12), 80 + 1.5 * time
    truth = np.stack([left, top, left + 50, top + 40], axis=1)
    seen = np.sort(random.choice(count, count - count // 6, replace=False))
    return track(seen, truth[seen] + random.normal(0, jitter, (len(seen), 4))), truth


FILL_CASES = {
    "a gap as long as allowed is filled": ([0, 4], range(5), 3, [0, 1, 2, 3, 4]),
    "a longer one stays open": ([0, 4], range(5), 2, [0, 4]),
    "each gap by itself": ([0, 2, 6, 7, 9], range(12), 1, [0, 1, 2, 6, 7, 8, 9]),
    "frames that there are not get no box": ([0, 4], [0, 1, 3, 4], 3, [0, 1, 3, 4]),
    "nothing before the first or after the last": ([3, 5], range(9), 9, [3, 4, 5]),
    "no gap": ([3, 4, 5], range(9), 9, [3, 4, 5]),
    "one box": ([3], range(9), 9, [3]),
    "none allowed": ([0, 2], range(9), 0, [0, 2]),
}


class TestFill:
    def test_new_boxes_lie_on_the_line_and_so_do_their_scores(self) -> None:
        given_ = track([2, 3, 7], along([2, 3, 7]), [0.2, 0.4, 0.8])
        (filled,) = fill([given_], np.arange(10), longest=3)
        assert filled.frame_index.tolist() == [2, 3, 4, 5, 6, 7]
        assert filled.boxes == pytest.approx(along(range(2, 8)))
        assert filled.scores == pytest.approx([0.2, 0.4, 0.5, 0.6, 0.7, 0.8])
        assert filled.raw_scores == pytest.approx(filled.scores)
        assert filled.box_id.tolist() == [0, 1, -1, -1, -1, 2]
        assert filled.score == given_.score

    def test_a_box_that_rounding_would_leave_no_size_is_the_one_before(self) -> None:
        """One step of float32 wide: halfway on, both sides are rounded to the same number."""
        step = 2.0**-10
        left = np.float32(8192 + step), np.float32(8192 + 2 * step)
        boxes = np.array([[x, 0, x + np.float32(step), 9] for x in left], np.float32)
        (filled,) = fill([track([0, 2], boxes)], np.arange(3), longest=1)
        assert filled.boxes[:, 0].tolist() == [left[0], left[0], left[1]]

    @pytest.mark.parametrize("name", FILL_CASES)
    def test_which_frames(self, name: str) -> None:
        have, there, longest, expected = FILL_CASES[name]
        (filled,) = fill([track(have, along(have))], np.array(there), longest)
        assert filled.frame_index.tolist() == expected
        assert filled.boxes == pytest.approx(along(expected))

    @given(st.sets(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 12), st.integers(0, 1000))
    def test_what_is_there_stays_and_only_allowed_gaps_close(self, have: set[int], longest: int, seed: int) -> None:
        frames = sorted(have)
        corners = np.random.default_rng(seed).uniform(0, 100, (len(frames), 2))
        given_ = track(frames, np.concatenate([corners, corners + 10], axis=1))
        (filled,) = fill([given_], np.arange(41), longest)
        kept = filled.box_id >= 0
        for name in ("frame_index", "boxes", "scores", "raw_scores", "box_id", "tracked"):
            assert np.array_equal(getattr(filled, name)[kept], getattr(given_, name)), name
        gaps = np.diff(filled.frame_index) - 1
        assert not np.any((gaps > 0) & (gaps <= longest))
        assert len(filled) - len(given_) == sum(gap - 1 for gap in np.diff(frames) if 1 < gap <= longest + 1)


class TestSmooth:
    def test_a_straight_course_stays_as_it_is(self) -> None:
        frames = [0, 1, 2, 5, 6, 9, 10, 11, 30, 31]
        growing = along(frames) + np.arange(10)[:, None] * 0 + np.array(frames)[:, None] * [-0.5, -0.2, 0.5, 0.2]
        (smoothed,) = smooth([track(frames, growing)])
        assert smoothed.boxes == pytest.approx(growing, abs=1e-3)

    @pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
    def test_the_banded_system_is_the_smoothing_spline(self, strength: float) -> None:
        """Against scipy's make_smoothing_spline, which takes the same ratio of noise to bend, for tracks together."""
        random = np.random.default_rng(0)
        times = [np.cumsum(random.integers(1, 5, count)).astype(float) for count in (5, 9, 30)]
        owner = np.repeat(np.arange(3), [5, 9, 30])
        values = random.normal(0, 3, (44, 2))
        time = np.concatenate(times)
        system = smoothing._System(
            time, np.flatnonzero((np.diff(owner, prepend=-1) == 0) & (np.diff(owner, append=9) == 0))
        )
        _, bend = system.solve(strength, system.second_differences(values))
        for column in range(2):
            fitted = values[:, column] - strength * system.spread(bend[:, column], 44)
            for number, when in enumerate(times):
                spline = make_smoothing_spline(when, values[owner == number, column], lam=strength)
                assert fitted[owner == number] == pytest.approx(spline(when), abs=1e-8)

    def test_the_strength_is_the_likeliest(self) -> None:
        """Against the density of second differences written out: normal, covariance q (R + ratio Q'Q)."""
        given_, _ = jittery(3)
        time = given_.frame_index.astype(float)
        course = smoothing._centre_and_size(given_.boxes)
        count = len(time)
        difference = np.array([second_difference(time, row, count) for row in range(1, count - 1)])
        steps = np.diff(time)
        rough = np.diag((steps[:-1] + steps[1:]) / 3) + np.diag(steps[1:-1] / 6, 1) + np.diag(steps[1:-1] / 6, -1)
        fitted, _ = smoothing._fit(time, course, np.zeros(count, int), 1.0)
        for column in range(4):
            y = difference @ course[:, column]
            best = max(
                smoothing.RATIOS, key=lambda ratio, y=y: log_density(y, rough + ratio * difference @ difference.T)
            )
            bend = np.linalg.solve(rough + best * difference @ difference.T, y)
            assert fitted[:, column] == pytest.approx(course[:, column] - best * difference.T @ bend, abs=1e-6)

    def test_boxes_in_gaps_lie_on_the_natural_cubic_spline(self) -> None:
        given_, _ = jittery(5)
        (filled,) = fill([given_], np.arange(60), 10)
        (smoothed,) = smooth([filled])
        seen = filled.box_id >= 0
        assert (~seen).any()
        spline = CubicSpline(smoothed.frame_index[seen], smoothed.boxes[seen], bc_type="natural")
        assert smoothed.boxes == pytest.approx(spline(smoothed.frame_index), abs=1e-3)

    def test_only_made_moves_only_those(self) -> None:
        given_, _ = jittery(5)
        (filled,) = fill([given_], np.arange(60), 10)
        (all_moved,), (some_moved,) = smooth([filled]), smooth([filled], only_made=True)
        made = filled.box_id < 0
        assert np.array_equal(some_moved.boxes[made], all_moved.boxes[made])
        assert np.array_equal(some_moved.boxes[~made], filled.boxes[~made])

    def test_what_was_made_is_no_evidence(self) -> None:
        given_, _ = jittery(6)
        (filled,) = fill([given_], np.arange(60), 10)
        (smoothed,) = smooth([given_])
        elsewhere = replace(filled, boxes=np.where(filled.box_id[:, None] < 0, filled.boxes + 50, filled.boxes))
        for one in (filled, elsewhere):
            (moved,) = smooth([one])
            assert moved.boxes[one.box_id >= 0] == pytest.approx(smoothed.boxes, abs=1e-4)

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("jitter", [0.5, 2.0, 6.0])
    def test_comes_nearer_to_the_truth(self, seed: int, jitter: float) -> None:
        given_, truth = jittery(seed, jitter=jitter)
        (smoothed,) = smooth([given_])
        error = [np.abs(one.boxes - truth[one.frame_index]).mean() for one in (given_, smoothed)]
        assert error[1] < 0.75 * error[0]

    def test_good_boxes_are_left_be(self) -> None:
        """A fast object on a curve, boxes exact: moved by less than a thousandth of its size."""
        _, truth = jittery(0)
        (smoothed,) = smooth([track(range(60), truth)])
        assert smoothed.boxes == pytest.approx(truth, abs=0.05)

    def test_a_large_strength_leaves_a_straight_course(self) -> None:
        given_, _ = jittery(1)
        (smoothed,) = smooth([given_], strength=1e12)
        line = np.polynomial.Polynomial.fit(given_.frame_index, given_.boxes[:, 0].astype(float), 1)
        assert smoothed.boxes[:, 0] == pytest.approx(line(given_.frame_index), abs=0.5)

    def test_short_tracks_and_boxes_made_at_the_ends_stay(self) -> None:
        short = [track([0], along([0])), track([0, 4], along([0, 4]), number=2)]
        made_at_ends = replace(track(range(7), along(range(7)), number=3), box_id=np.array([-1, 1, 2, 3, 4, 5, -1]))
        for tracks in ([*short, made_at_ends], [made_at_ends, *short]):
            for before, after in zip(tracks, smooth(tracks), strict=True):
                assert after.boxes == pytest.approx(before.boxes, abs=1e-3)
        assert smooth([]) == []

    @given(st.integers(0, 10_000))
    def test_boxes_remain_boxes_and_nothing_else_changes(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        tracks = []
        for number in range(1, int(random.integers(1, 5)) + 1):
            frames = np.sort(random.choice(30, int(random.integers(1, 12)), replace=False))
            corners = random.uniform(0, 200, (len(frames), 2))
            one = track(frames, np.concatenate([corners, corners + random.uniform(0.1, 40, corners.shape)], axis=1))
            tracks.append(replace(one, track_id=number))
        filled = fill(tracks, np.arange(30), 20)
        for before, after in zip(filled, smooth(filled), strict=True):
            assert (after.boxes[:, :2] < after.boxes[:, 2:]).all()
            assert replace(after, boxes=before.boxes).__dict__.keys() == before.__dict__.keys()
            for name in ("frame_index", "scores", "raw_scores", "box_id", "tracked"):
                assert np.array_equal(getattr(after, name), getattr(before, name))


def second_difference(time: NDArray[np.float64], row: int, count: int) -> NDArray[np.float64]:
    """Row `row` of Q': the second divided difference around that time."""
    weights = np.zeros(count)
    before, after = 1 / (time[row] - time[row - 1]), 1 / (time[row + 1] - time[row])
    weights[row - 1 : row + 2] = before, -before - after, after
    return weights


def log_density(values: NDArray[np.float64], shape: NDArray[np.float64]) -> float:
    """Of a normal distribution of this covariance at its likeliest scale, up to a constant."""
    scale = values @ np.linalg.solve(shape, values) / len(values)
    return float(-0.5 * (len(values) * np.log(scale) + np.linalg.slogdet(shape)[1]))


@pytest.mark.data
@pytest.mark.parametrize(("jitter", "least_gain"), [(0.02, 0.005), (0.05, 0.04), (0.1, 0.09)])
def test_cars_seen_from_a_car_come_nearer_to_the_truth(data: Path, jitter: float, least_gain: float) -> None:
    """KITTI's boxes with the jitter that a detector adds: mean IoU with the truth, in detected frames and in gaps."""
    random = np.random.default_rng(0)
    before, after, line, curve = [], [], [], []
    for sequence in ("0001", "0006", "0010"):
        truth: dict[str, list[list[float]]] = {}
        for words in (text.split() for text in (data / f"kitti/label_02/{sequence}.txt").read_text().splitlines()):
            if words[2] == "Car":
                truth.setdefault(words[1], []).append([float(words[0]), *map(float, words[6:10])])
        rows = [np.array(one) for one in truth.values() if len(one) >= 10]
        seen = []
        for number, row in enumerate(rows, start=1):
            keep = np.flatnonzero(random.random(len(row)) > 0.2)
            sides = np.tile(row[keep, 3:] - row[keep, 1:3], 2)
            boxes = row[keep, 1:] + random.normal(0, jitter, sides.shape) * sides
            seen.append(track(row[keep, 0], boxes, number=number))
        filled = [fill([one], row[:, 0].astype(int), 20)[0] for one, row in zip(seen, rows, strict=True)]
        for one, other, row in zip(filled, smooth(filled), rows, strict=True):
            true = row[np.searchsorted(row[:, 0], one.frame_index), 1:]
            overlap, better = (np.diag(iou(each.boxes, true)) for each in (one, other))
            detected = one.box_id >= 0
            before.extend(overlap[detected]), after.extend(better[detected])
            line.extend(overlap[~detected]), curve.extend(better[~detected])
    assert np.mean(after) - np.mean(before) > least_gain
    assert np.mean(curve) > np.mean(line)
