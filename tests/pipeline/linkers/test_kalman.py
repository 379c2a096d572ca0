"""The batched filters against a textbook filter with full matrices, one object at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.linkers.parts.kalman import VALUE, VARIANCE, VELOCITY, AreaFilter, BoxFilter, HeightFilter

FILTERS = {"area": AreaFilter(), "height": HeightFilter()}

# x' = F x, z = H x: four values, then their velocities; the velocity of SORT's aspect ratio is 0 with no variance.
F = np.eye(8) + np.diag(np.ones(4), 4)
H = np.eye(4, 8)


def noise(name: str, height: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariances at the start (8, 8), of a step (8, 8) and of a measurement (4, 4), as the two programs have them."""
    if name == "area":  # abewley/sort, KalmanBoxTracker.__init__
        start = [10, 10, 10, 10, 10_000, 10_000, 10_000, 0]
        return np.diag(start), np.diag([1, 1, 1, 1, 0.01, 0.01, 0.0001, 0]), np.diag([1.0, 1, 10, 10])
    h = height  # nwojke/deep_sort, KalmanFilter
    start = [h / 10, h / 10, 1e-2, h / 10, h / 16, h / 16, 1e-5, h / 16]
    step = [h / 20, h / 20, 1e-2, h / 20, h / 160, h / 160, 1e-5, h / 160]
    measurement = [h / 20, h / 20, 1e-1, h / 20]
    return np.diag(np.square(start)), np.diag(np.square(step)), np.diag(np.square(measurement))


class Textbook:
    """One object's filter."""

    def __init__(self, name: str, measured: np.ndarray) -> None:
        self.name, self.mean = name, np.concatenate([measured, np.zeros(4)])
        self.covariance = noise(name, measured[3])[0]

    def predict(self) -> None:
        if self.name == "area" and self.mean[2] + self.mean[6] <= 0:
            self.mean[6] = 0
        step = noise(self.name, self.mean[3])[1]
        self.mean = F @ self.mean
        self.covariance = F @ self.covariance @ F.T + step

    def spread(self) -> np.ndarray:
        return H @ self.covariance @ H.T + noise(self.name, self.mean[3])[2]

    def update(self, measured: np.ndarray) -> None:
        gain = self.covariance @ H.T @ np.linalg.inv(self.spread())
        self.mean = self.mean + gain @ (measured - H @ self.mean)
        self.covariance = (np.eye(8) - gain @ H) @ self.covariance

    def distance(self, measured: np.ndarray) -> float:
        apart = measured - H @ self.mean
        return float(apart @ np.linalg.inv(self.spread()) @ apart)


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    corners = random.uniform(0, 1000, (count, 2))
    return np.concatenate([corners, corners + random.uniform(5, 200, (count, 2))], axis=1)


@pytest.mark.parametrize("name", FILTERS)
@given(seed=st.integers(0, 10_000))
def test_equals_the_textbook(name: str, seed: int) -> None:
    """Eight frames of five objects, each seen or not at random."""
    random = np.random.default_rng(seed)
    batched = FILTERS[name]
    boxes = random_boxes(random, 5)
    states = batched.begin(batched.measure(boxes))
    singles = [Textbook(name, measured) for measured in batched.measure(boxes)]
    for _ in range(8):
        states = batched.predict(states)
        for single in singles:
            single.predict()
        boxes += random.normal(0, 5, (5, 2))[:, [0, 1, 0, 1]]
        measured = batched.measure(boxes)
        expected = [[single.distance(one) for one in measured] for single in singles]
        np.testing.assert_allclose(batched.distances(states, measured), expected, rtol=1e-9)
        seen = random.random(5) < 0.7
        states[seen] = batched.update(states[seen], measured[seen])
        for index in np.flatnonzero(seen):
            singles[index].update(measured[index])
        for state, single in zip(states, singles, strict=True):
            np.testing.assert_allclose(state[:2].reshape(-1), single.mean, rtol=1e-9, atol=1e-9)
            covariance = single.covariance
            halves = [covariance[:4, :4], covariance[:4, 4:], covariance[4:, 4:]]
            np.testing.assert_allclose(state[2:], [np.diag(half) for half in halves], rtol=1e-9, atol=1e-9)
            rest = [half - np.diag(np.diag(half)) for half in halves]
            assert not np.any(rest), "the four numbers do not move independently"


@pytest.mark.parametrize("box_filter", FILTERS.values(), ids=FILTERS)
class TestEveryFilter:
    def test_boxes_come_back_as_they_were_measured(self, box_filter: BoxFilter) -> None:
        boxes = random_boxes(np.random.default_rng(0), 20)
        np.testing.assert_allclose(box_filter.boxes(box_filter.begin(box_filter.measure(boxes))), boxes, rtol=1e-12)

    def test_no_tracks_are_no_trouble(self, box_filter: BoxFilter) -> None:
        none = np.zeros((0, 4))
        states = box_filter.predict(box_filter.begin(box_filter.measure(none)))
        assert box_filter.update(states, none).shape == (0, 5, 4)
        assert box_filter.boxes(states).shape == (0, 4)
        assert box_filter.distances(states, np.ones((3, 4))).shape == (0, 3)

    def test_learns_a_constant_velocity(self, box_filter: BoxFilter) -> None:
        box, step = np.array([[10.0, 20.0, 50.0, 120.0]]), np.array([3.0, -2.0, 3.0, -2.0])
        states = box_filter.begin(box_filter.measure(box))
        for _ in range(30):
            box = box + step
            states = box_filter.update(box_filter.predict(states), box_filter.measure(box))
        np.testing.assert_allclose(states[0, VELOCITY, :2], [3, -2], atol=0.05)
        np.testing.assert_allclose(box_filter.boxes(box_filter.predict(states)), box + step, atol=0.5)

    def test_changes_nothing_in_place(self, box_filter: BoxFilter) -> None:
        states = box_filter.begin(box_filter.measure([[0.0, 0.0, 10.0, 10.0]]))
        states[:, VELOCITY] = -1000
        before = states.copy()
        box_filter.update(box_filter.predict(states), box_filter.measure([[0.0, 0.0, 20.0, 20.0]]))
        np.testing.assert_array_equal(states, before)

    def test_is_less_certain_after_each_frame_without_a_box(self, box_filter: BoxFilter) -> None:
        states = box_filter.begin(box_filter.measure([[0.0, 0.0, 40.0, 80.0]]))
        after = box_filter.predict(states)
        assert np.all(box_filter.predict(after)[:, VARIANCE] > after[:, VARIANCE])


def test_an_area_does_not_shrink_to_nothing() -> None:
    states = AreaFilter().begin(AreaFilter().measure([[0.0, 0.0, 10.0, 10.0]]))
    states[0, VELOCITY, 2] = -150
    after = AreaFilter().predict(states)
    assert (after[0, VALUE, 2], after[0, VELOCITY, 2]) == (100, 0)


def test_gate_known_answer() -> None:
    """A box of height 100 seen once, predicted once: S of its centre is 10^2 + 6.25^2 + 5^2 + 5^2."""
    height_filter = HeightFilter()
    measured = height_filter.measure([[0.0, 0.0, 50.0, 100.0]])
    states = height_filter.predict(height_filter.begin(measured))
    spread = 10**2 + 6.25**2 + 5**2 + 5**2
    moved = measured + np.array([30, 0, 0, 0])
    np.testing.assert_allclose(height_filter.distances(states, moved), [[900 / spread]], rtol=1e-12)
