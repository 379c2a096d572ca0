"""Smoothing: the likeliest course of an object, given boxes that jitter, and where it was in the frames between.

Centre and size of a track's boxes are each taken for a smooth course seen through white noise, and that course is found
as a cubic smoothing spline. The same estimator has other names: the Kalman (Rauch-Tung-Striebel) smoother of a point
whose velocity is a random walk, and Gaussian-process regression on an integrated Wiener process (Wecker and Ansley,
"The signal extraction approach to nonlinear regression and spline smoothing", 1983). Reinsch's algorithm ("Smoothing by
spline functions", 1967) finds it exactly, for frames however spaced, by one banded system for all tracks at once.

How much to smooth is what the likelihood says (generalised maximum likelihood: Wahba, "A comparison of GCV and GML for
choosing the smoothing parameter", 1985), for each track and each of its coordinates. A short track says little about
itself, so all tracks of the video have a say. Boxes that are right to a hundredth of their size gain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded

from pipeline.records import Track

Floats = NDArray[np.float64]

# Variance of the noise over that of the change of velocity a frame; each smooths over 1.7 times as many frames as the
# one before, from next to none to some thirty on either side.
RATIOS = 8.0 ** np.arange(-3, 8)
SAY_OF_THE_VIDEO = 15  # in boxes; from 5 to 50 the truth is met equally well
STRONGEST = 1000.0  # strength beyond which numbers lose their digits
RESOLUTION = 1e-3  # pixels: there is no less noise than this


def smooth(tracks: Sequence[Track], strength: float = 1.0, only_made: bool = False) -> list[Track]:
    """The tracks with their boxes on the course that each is likeliest to have taken.

    Boxes that a linker made (box_id -1) are no evidence: they are put where the others say. only_made: put those
    there and leave the others as they are. strength: above 0 and at most STRONGEST, times what the likelihood says
    about the noise. Unchanged stay tracks of fewer than three detections, boxes made before the first detection or
    after the last, and a box that would have no size left.
    """
    is_enough = [np.count_nonzero(track.box_id >= 0) >= 3 for track in tracks]
    able = [track for track, enough in zip(tracks, is_enough, strict=True) if enough]
    if not able:
        return list(tracks)
    counts = [len(track) for track in able]
    owner = np.repeat(np.arange(len(able)), counts)
    time = np.concatenate([track.frame_index for track in able]).astype(np.float64)
    boxes = np.concatenate([track.boxes for track in able])
    is_seen = np.concatenate([track.box_id >= 0 for track in able])

    course = _centre_and_size(boxes)
    knots = np.flatnonzero(is_seen)
    fitted, bend = _fit(time[knots], course[knots], owner[knots], strength)
    course[knots] = fitted
    # A box that was made lies between the knots before it and after, if both are of its own track.
    before = np.cumsum(is_seen) - 1
    owner_of_knot = np.append(owner[knots], -1)  # nobody's: after the last, and as [-1] before the first
    made = np.flatnonzero(~is_seen & (owner_of_knot[before] == owner) & (owner_of_knot[before + 1] == owner))
    course[made] = _between(time[made], time[knots], fitted, bend, before[made])

    moved = _corners(course).astype(np.float32)
    is_box = (moved[:, 0] < moved[:, 2]) & (moved[:, 1] < moved[:, 3])
    stays = ~is_box | (is_seen if only_made else False)
    moved[stays] = boxes[stays]
    smoothed = iter(np.split(moved, np.cumsum(counts)[:-1]))
    return [replace(t, boxes=next(smoothed)) if enough else t for t, enough in zip(tracks, is_enough, strict=True)]


def _fit(time: Floats, values: Floats, owner: NDArray[np.intp], strength: float) -> tuple[Floats, Floats]:
    """The splines' values and second derivatives (N, D) at time (N,); owner: (N,), whose row each is, in order."""
    first, last = np.ones(len(time), bool), np.ones(len(time), bool)
    first[1:] = last[:-1] = np.diff(owner) != 0
    inner = np.flatnonzero(~first & ~last)
    system = _System(time, inner)
    second = system.second_differences(values)
    starts = np.flatnonzero(np.diff(owner[inner], prepend=-1))
    freedom = np.diff(np.append(starts, len(inner)))[:, None]  # second differences a track

    likelihood = np.empty((len(RATIOS), len(starts), values.shape[1]))
    for row, ratio in enumerate(RATIOS):
        factor, bend = system.solve(ratio, second)
        change = np.add.reduceat(second * bend, starts) / freedom  # likeliest variance of the change of velocity
        determinant = 2 * np.add.reduceat(np.log(factor[0]), starts)[:, None]
        likelihood[row] = -0.5 * (freedom * np.log(change + RESOLUTION**2 / ratio) + determinant)
    of_video = likelihood.sum(axis=1, keepdims=True) / freedom.sum()
    best = RATIOS[np.argmax(likelihood + SAY_OF_THE_VIDEO * of_video, axis=0)] * strength  # (tracks, D)

    bends = np.zeros_like(values)
    fitted = values.copy()
    for column in range(values.shape[1]):
        ratio = np.repeat(best[:, column], freedom[:, 0])
        _, bend = system.solve(ratio, second[:, column])
        bends[inner, column] = bend
        fitted[:, column] -= system.spread(ratio * bend, len(time))
    return fitted, bends


class _System:
    """Reinsch's matrices Q and R of all tracks: (R + ratio Q'Q) bend = Q'y, and y - ratio Q bend is smooth.

    inner: (I,), the boxes that have a neighbour of their own track on either side. Banded as scipy wants it: row k
    holds the k-th diagonal below the main one.
    """

    def __init__(self, time: Floats, inner: NDArray[np.intp]) -> None:
        self.inner = inner
        step_before, step_after = time[inner] - time[inner - 1], time[inner + 1] - time[inner]
        self.before, self.after = 1 / step_before, 1 / step_after
        self.at = -self.before - self.after
        one, two = np.flatnonzero(np.diff(inner) == 1), np.flatnonzero(inner[2:] - inner[:-2] == 2)
        self.rough = np.zeros((3, len(inner)))
        self.rough[0] = (step_before + step_after) / 3
        self.rough[1, one] = step_after[one] / 6
        self.noise = np.zeros((3, len(inner)))
        self.noise[0] = self.before**2 + self.at**2 + self.after**2
        self.noise[1, one] = self.at[one] * self.before[one + 1] + self.after[one] * self.at[one + 1]
        self.noise[2, two] = self.after[two] * self.before[two + 2]

    def second_differences(self, values: Floats) -> Floats:
        """Q'y (I, D) of values (N, D)."""
        before, at, after = self.before[:, None], self.at[:, None], self.after[:, None]
        inner = self.inner
        return before * values[inner - 1] + at * values[inner] + after * values[inner + 1]

    def spread(self, bend: Floats, count: int) -> Floats:
        """Q bend (N,) of bend (I,)."""
        total = np.zeros(count)
        total[self.inner - 1] += self.before * bend
        total[self.inner] += self.at * bend
        total[self.inner + 1] += self.after * bend
        return total

    def solve(self, ratio: float | Floats, second: Floats) -> tuple[Floats, Floats]:
        """The Cholesky factor for this ratio, one or (I,), and the bend that answers `second` (I,) or (I, D)."""
        factor = cholesky_banded(self.rough + ratio * self.noise, lower=True, check_finite=False)
        return factor, cho_solve_banded((factor, True), second, check_finite=False)


def _between(time: Floats, knots: Floats, values: Floats, bend: Floats, before: NDArray[np.intp]) -> Floats:
    """A natural cubic spline between its knots; before: (M,), the knot before each time (M,)."""
    step = knots[before + 1] - knots[before]
    right = ((time - knots[before]) / step)[:, None]
    left = 1 - right
    line = left * values[before] + right * values[before + 1]
    curve = (left**3 - left) * bend[before] + (right**3 - right) * bend[before + 1]
    return line + curve * (step**2)[:, None] / 6


def _centre_and_size(boxes: NDArray[np.float32]) -> Floats:
    corners = boxes.astype(np.float64)
    return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)


def _corners(course: Floats) -> Floats:
    return np.concatenate([course[:, :2] - course[:, 2:] / 2, course[:, :2] + course[:, 2:] / 2], axis=1)
