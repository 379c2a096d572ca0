"""Kalman filters of boxes that move at constant velocity, for all tracks at once.

Four numbers of a box are measured. In the filters of SORT and of DeepSORT every covariance but that of a number with
its own velocity is zero at the start, and no step makes it another: a filter of eight dimensions is four of two, whose
matrices are written out here.

The states of N tracks are one array (N, 5, 4), float64: for each of the four numbers its value, its velocity a frame,
and their variances and covariance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

VALUE, VELOCITY, VARIANCE, COVARIANCE, VELOCITY_VARIANCE = range(5)
CHI2_95_OF_4 = 9.4877  # .95 quantile of chi-square with 4 degrees of freedom: a gate for `distances`


class BoxFilter(ABC):
    """What every filter does; the subclasses say what is measured and how far it may be off.

    boxes: (N, 4) xyxy in pixels; measured: (N, 4), the four numbers of each; states: (N, 5, 4), see the module.
    Nothing is changed in place.
    """

    @abstractmethod
    def measure(self, boxes: ArrayLike) -> Floats:
        """Boxes (N, 4) as what is measured of them (N, 4)."""

    @abstractmethod
    def boxes(self, states: Floats) -> Floats:
        """Where the states say that the boxes are, (N, 4) xyxy."""

    @abstractmethod
    def _first_variances(self, measured: Floats) -> tuple[Floats, Floats]:
        """Of the values and of the velocities of a track that begins, each broadcastable to (N, 4)."""

    @abstractmethod
    def _process_variances(self, states: Floats) -> tuple[Floats, Floats]:
        """What a frame adds to those of the values and of the velocities."""

    @abstractmethod
    def _measurement_variances(self, states: Floats) -> Floats:
        """Of a measurement of these states."""

    def begin(self, measured: Floats) -> Floats:
        """States of tracks that begin with these boxes, at rest."""
        states = np.zeros((len(measured), 5, 4))
        states[:, VALUE] = measured
        states[:, VARIANCE], states[:, VELOCITY_VARIANCE] = self._first_variances(measured)
        return states

    def predict(self, states: Floats) -> Floats:
        """The states one frame on: x = F x, P = F P F' + Q."""
        of_value, of_velocity = self._process_variances(states)
        value, velocity, variance, covariance, velocity_variance = _parts(states)
        after = np.empty_like(states)
        after[:, VALUE] = value + velocity
        after[:, VELOCITY] = velocity
        after[:, VARIANCE] = variance + 2 * covariance + velocity_variance + of_value
        after[:, COVARIANCE] = covariance + velocity_variance
        after[:, VELOCITY_VARIANCE] = velocity_variance + of_velocity
        return after

    def update(self, states: Floats, measured: Floats) -> Floats:
        """The states once these boxes have been seen: K = P H' S^-1, x = x + K (z - H x), P = P - K S K'."""
        value, velocity, variance, covariance, velocity_variance = _parts(states)
        innovation = measured - value
        spread = variance + self._measurement_variances(states)  # S
        gain, velocity_gain = variance / spread, covariance / spread
        after = np.empty_like(states)
        after[:, VALUE] = value + gain * innovation
        after[:, VELOCITY] = velocity + velocity_gain * innovation
        after[:, VARIANCE] = variance - gain * variance
        after[:, COVARIANCE] = covariance - gain * covariance
        after[:, VELOCITY_VARIANCE] = velocity_variance - velocity_gain * covariance
        return after

    def distances(self, states: Floats, measured: Floats) -> Floats:
        """Squared Mahalanobis distances (N, M) of M measurements from N states (DeepSORT's equation 1)."""
        weight = 1 / (states[:, VARIANCE] + self._measurement_variances(states))  # (N, 4)
        total = np.zeros((len(states), len(measured)))
        for number in range(4):
            apart = measured[None, :, number] - states[:, None, VALUE, number]
            total += weight[:, number, None] * apart * apart
        return total


class AreaFilter(BoxFilter):
    """SORT's: centre x, centre y, area, aspect ratio (width / height); the aspect ratio has no velocity.

    Bewley et al., Simple Online and Realtime Tracking, section 3.2; the variances are those of the authors' program
    (abewley/sort). They are of pixels and pixels squared, whatever the size of the box.
    """

    _FIRST = np.array([10.0, 10.0, 10.0, 10.0]), np.array([1e4, 1e4, 1e4, 0.0])
    _PROCESS = np.array([1.0, 1.0, 1.0, 1.0]), np.array([1e-2, 1e-2, 1e-4, 0.0])
    _MEASUREMENT = np.array([1.0, 1.0, 10.0, 10.0])

    def measure(self, boxes: ArrayLike) -> Floats:
        centre, size = _centre_and_size(boxes)
        return np.concatenate([centre, size[:, :1] * size[:, 1:], size[:, :1] / size[:, 1:]], axis=1)

    def boxes(self, states: Floats) -> Floats:
        area, aspect = states[:, VALUE, 2:3], states[:, VALUE, 3:4]
        width = np.sqrt(area * aspect)
        return _from_centre(states[:, VALUE, :2], np.concatenate([width, area / width], axis=1))

    def predict(self, states: Floats) -> Floats:
        """As of every filter, but that an area which would shrink to nothing stays as it is."""
        shrunk = states[:, VALUE, 2] + states[:, VELOCITY, 2] <= 0
        if shrunk.any():
            states = states.copy()
            states[shrunk, VELOCITY, 2] = 0
        return super().predict(states)

    def _first_variances(self, measured: Floats) -> tuple[Floats, Floats]:
        return self._FIRST

    def _process_variances(self, states: Floats) -> tuple[Floats, Floats]:
        return self._PROCESS

    def _measurement_variances(self, states: Floats) -> Floats:
        return self._MEASUREMENT


class HeightFilter(BoxFilter):
    """DeepSORT's and ByteTrack's: centre x, centre y, aspect ratio (width / height), height, each with a velocity.

    Wojke et al., Simple Online and Realtime Tracking with a Deep Association Metric, section 2.1; the deviations are
    those of the authors' program (nwojke/deep_sort): shares of the height, 1/20 for values and 1/160 for velocities.
    """

    def measure(self, boxes: ArrayLike) -> Floats:
        centre, size = _centre_and_size(boxes)
        return np.concatenate([centre, size[:, :1] / size[:, 1:], size[:, 1:]], axis=1)

    def boxes(self, states: Floats) -> Floats:
        aspect, height = states[:, VALUE, 2:3], states[:, VALUE, 3:4]
        return _from_centre(states[:, VALUE, :2], np.concatenate([aspect * height, height], axis=1))

    def _first_variances(self, measured: Floats) -> tuple[Floats, Floats]:
        height = measured[:, 3]
        return _of_height(height, 2 / 20, of_aspect=1e-2), _of_height(height, 10 / 160, of_aspect=1e-5)

    def _process_variances(self, states: Floats) -> tuple[Floats, Floats]:
        height = states[:, VALUE, 3]
        return _of_height(height, 1 / 20, of_aspect=1e-2), _of_height(height, 1 / 160, of_aspect=1e-5)

    def _measurement_variances(self, states: Floats) -> Floats:
        return _of_height(states[:, VALUE, 3], 1 / 20, of_aspect=1e-1)


class SizeFilter(BoxFilter):
    """Of `online`: centre x, centre y, width, height; only the centre has a velocity. Deviations are shares of height.

    process, velocity: what a frame adds to the deviations of the centre, and of its velocity; twice as much to those of
    the sizes, since nothing announces that they change. measurement: of a detected box, above 0.
    """

    _FIRST_VELOCITY = 0.1
    _MOVES = np.array([1.0, 1.0, 0.0, 0.0])
    _CHANGES = np.array([1.0, 1.0, 4.0, 4.0])

    def __init__(self, process: float, velocity: float, measurement: float) -> None:
        self.process, self.velocity, self.measurement = process, velocity, measurement

    def measure(self, boxes: ArrayLike) -> Floats:
        return np.concatenate(_centre_and_size(boxes), axis=1)

    def boxes(self, states: Floats) -> Floats:
        return _from_centre(states[:, VALUE, :2], states[:, VALUE, 2:])

    def _first_variances(self, measured: Floats) -> tuple[Floats, Floats]:
        square = np.square(measured[:, 3:])
        return self.measurement**2 * square, self._FIRST_VELOCITY**2 * square * self._MOVES

    def _process_variances(self, states: Floats) -> tuple[Floats, Floats]:
        square = np.square(states[:, VALUE, 3:])
        return self.process**2 * square * self._CHANGES, self.velocity**2 * square * self._MOVES

    def _measurement_variances(self, states: Floats) -> Floats:
        return self.measurement**2 * np.square(states[:, VALUE, 3:])


def _of_height(height: Floats, share: float, of_aspect: float) -> Floats:
    """Variances (N, 4) where the deviations are a share of the height (N,), but for that of the aspect ratio."""
    deviations = np.repeat(share * height[:, None], 4, axis=1)
    deviations[:, 2] = of_aspect
    return deviations * deviations


def _parts(states: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Values, velocities, variances, covariances and the velocities' variances, each (N, 4)."""
    return states[:, 0], states[:, 1], states[:, 2], states[:, 3], states[:, 4]


def _centre_and_size(boxes: ArrayLike) -> tuple[Floats, Floats]:
    """Centres (N, 2) and (width, height) (N, 2) of xyxy boxes (N, 4)."""
    corners = np.asarray(boxes, np.float64)
    return (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]


def _from_centre(centre: Floats, size: Floats) -> Floats:
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)
