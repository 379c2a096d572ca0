"""How claims fall: differences as by hand, whichever way they turn, and the same resampling for both systems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jobs.claims import judging
from jobs.claims.claim import Claim
from jobs.claims.judging import Drawn, draw, judged

VIDEOS = ("a", "b", "c", "d")
RANDOM = np.random.default_rng(0)
NUMBER = 5  # of seeds


def of(values: Any, metric: str = "recall", subset: str = "all") -> list[dict[tuple[str, str], Any]]:
    """What seeds score in every resampling; values: (S, R + 1)."""
    return [{(subset, metric): row} for row in np.asarray(values, float)]


def once(*values: float) -> Sequence[Sequence[float]]:
    """A single seed."""
    return [values]


NO_SEEDS = Drawn(VIDEOS, np.ones((4, 4), int), np.ones((4, 1), int))


def claim(**changes: Any) -> Claim:
    return Claim(**{"paper": "", "name": "", "text": "", "better": "x", "worse": "y", "metric": "recall", **changes})


@pytest.mark.parametrize(
    ("changes", "x", "y", "difference", "ends", "verdict"),
    [
        ({}, (0.6, 0.5, 0.6, 0.7), (0.4, 0.4, 0.4, 0.4), 0.2, (0.1, 0.3), "holds"),
        ({}, (0.4, 0.4, 0.4, 0.4), (0.6, 0.5, 0.6, 0.7), -0.2, (-0.3, -0.1), "fails"),
        ({}, (0.5, 0.4, 0.5, 0.6), (0.5, 0.5, 0.5, 0.5), 0.0, (-0.1, 0.1), "undecided"),
        ({"margin": 0.15}, (0.5, 0.4, 0.5, 0.6), (0.5, 0.5, 0.5, 0.5), 0.0, (-0.1, 0.1), "holds"),
        ({"margin": 0.15, "near": True}, (0.5, 0.4, 0.5, 0.6), (0.5,) * 4, 0.0, (-0.1, 0.1), "holds"),
        ({"margin": 0.05, "near": True}, (0.9, 0.8, 0.9, 1.0), (0.5,) * 4, 0.4, (0.3, 0.5), "fails"),
        ({"metric": "ms"}, (3, 3, 2, 4), (4, 4, 5, 6), 1.0, (1.0, 3.0), "holds"),
        ({"metric": "ms", "factor": 0.5}, (3, 3, 2, 4), (4, 4, 5, 6), -1.0, (-1.0, 0.5), "undecided"),
        ({}, (0.6, math.nan, 0.6, 0.7), (0.4, 0.4, 0.4, 0.4), 0.2, (0.2, 0.3), "holds"),
        ({}, (math.nan,) * 4, (0.4,) * 4, math.nan, (math.nan, math.nan), "undecided"),
    ],
)
def test_a_difference_is_turned_so_that_it_is_positive_where_the_claim_holds(
    changes: dict[str, Any],
    x: tuple[float, ...],
    y: tuple[float, ...],
    difference: float,
    ends: tuple[float, float],
    verdict: str,
) -> None:
    """The first value is of all videos once, the others of resamplings, whose ends are nearly those of the interval."""
    one = claim(**changes)
    found = judged(one, {"x": of(once(*x), one.metric), "y": of(once(*y), one.metric)}, NO_SEEDS, [0])
    assert (found.better, found.worse) == pytest.approx((x[0], y[0]), nan_ok=True)
    assert found.difference == pytest.approx(difference, nan_ok=True)
    assert (found.low, found.high) == pytest.approx(ends, abs=0.06 * (1 if one.metric == "recall" else 2), nan_ok=True)
    assert found.verdict == verdict


def test_beyond_is_a_difference_of_differences() -> None:
    values = {name: RANDOM.uniform(size=(2, 4)) for name in ("x-fast", "x-slow", "y-fast", "y-slow")}
    units = {
        system: [
            {(subset, "recall"): values[f"{system}-{subset}"][seed] for subset in ("fast", "slow")} for seed in range(2)
        ]
        for system in "xy"
    }
    drawn = Drawn(VIDEOS, np.ones((4, 4), int), np.array([[1, 1], [2, 0], [1, 1], [0, 2]]))
    found = judged(claim(subset="fast", beyond="slow"), units, drawn, [0, 1])
    by_seed = (values["x-fast"] - values["y-fast"]) - (values["x-slow"] - values["y-slow"])  # (S, R + 1)
    assert found.difference == pytest.approx(by_seed[:, 0].mean())
    rounds = [by_seed[0, 1], by_seed[:, 2].mean(), by_seed[1, 3]]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(rounds, [0.025, 0.975])))
    assert found.better == pytest.approx(values["x-fast"][:, 0].mean())


def test_a_system_is_as_good_as_itself_in_every_resampling() -> None:
    """Both see the same videos and seeds, so that what they share cannot blur the difference."""
    drawn = draw(VIDEOS, NUMBER)
    values = RANDOM.normal(0, 100, (NUMBER, len(drawn.weights)))
    found = judged(claim(), {"x": of(values + 1), "y": of(values)}, drawn, range(NUMBER))
    assert (found.low, found.high) == pytest.approx((1, 1))
    assert (found.num_videos, found.seeds) == (4, (0, 1, 2, 3, 4))


def test_the_draws_are_always_the_same_and_begin_with_everything_once() -> None:
    one, other = draw(VIDEOS, 3), draw(VIDEOS, 3)
    assert (one.weights == other.weights).all()
    assert one.weights.shape == (judging.ROUNDS + 1, 4)
    assert (one.weights[0] == 1).all()
    assert (one.seeds[0] == 1).all()
    assert (one.weights.sum(axis=1) == 4).all()
    assert len(np.unique(one.weights[1:], axis=0)) > 10
