"""Assignment against all there are, counted out, and against scipy on what is too large for that."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pipeline.linkers.parts.assignment import Pairs, greedy, match


def all_assignments(allowed: np.ndarray) -> list[list[tuple[int, int]]]:
    """Every set of allowed pairs in which no row and no column comes twice."""
    num_rows, num_columns = allowed.shape
    found = []
    for count in range(min(num_rows, num_columns) + 1):
        for rows in combinations(range(num_rows), count):
            for columns in permutations(range(num_columns), count):
                pairs = list(zip(rows, columns, strict=True))
                if all(allowed[pair] for pair in pairs):
                    found.append(pairs)
    return found


def problem(seed: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Costs, some of them equal or negative, and what is allowed, from hardly anything to all."""
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(0, largest + 1, 2))
    cost = [random.random(shape), random.normal(size=shape), random.integers(0, 4, shape).astype(float)][seed % 3]
    return cost, random.random(shape) < random.random()


def check_pairs(pairs: Pairs, allowed: np.ndarray) -> None:
    rows, columns = pairs
    assert list(rows) == sorted(set(rows.tolist()))
    assert len(columns) == len(set(columns.tolist()))
    assert allowed[rows, columns].all()


@given(st.integers(0, 100_000))
def test_it_is_the_best_of_all_assignments(seed: int) -> None:
    cost, allowed = problem(seed, 4)
    pairs = match(cost, allowed)
    check_pairs(pairs, allowed)
    best = min((-len(one), sum(cost[pair] for pair in one)) for one in all_assignments(allowed))
    assert (-len(pairs[0]), cost[pairs].sum()) == pytest.approx(best, abs=1e-9)


@given(st.integers(0, 100_000), st.sampled_from([0.3, 0.5, 1.0, 2.5]))
def test_with_a_limit_it_is_the_best_of_all_assignments(seed: int, limit: float) -> None:
    cost, allowed = problem(seed, 4)
    pairs = match(cost, allowed, limit)
    check_pairs(pairs, allowed & (cost < limit))
    best = min(sum(cost[pair] - limit for pair in one) for one in all_assignments(allowed))
    assert (cost[pairs] - limit).sum() == pytest.approx(best, abs=1e-9)


@given(st.integers(0, 100_000))
def test_large_ones_equal_scipy(seed: int) -> None:
    cost, allowed = problem(seed, 60)
    for limit in (0.5, 1000.0):
        expensive = np.where(allowed & (cost < limit), cost, limit)
        reference = expensive[linear_sum_assignment(expensive)] - limit
        ours = match(cost, allowed, limit)
        assert (cost[ours] - limit).sum() == pytest.approx(reference.sum(), abs=1e-7)
    assert len(match(cost, allowed)[0]) == int((reference < 0).sum())


X = np.inf
CASES = {
    "each has one": ([[0.1, X], [X, 0.2]], 1.0, [(0, 0), (1, 1)]),
    "the best for one is not the best for both": ([[0.1, 0.2], [0.1, 0.9]], 1.0, [(0, 1), (1, 0)]),
    "two poor pairs do not outweigh a good one": ([[0.1, 0.9], [0.9, X]], 1.0, [(0, 0)]),
    "but as many as can be do": ([[0.1, 0.9], [0.9, X]], None, [(0, 1), (1, 0)]),
    "more rows than columns": ([[0.5], [0.3], [0.4]], 1.0, [(1, 0)]),
    "more columns than rows": ([[0.5, 0.3, 0.4]], 1.0, [(0, 1)]),
    "at the limit is not below it": ([[0.7]], 0.7, []),
    "nothing is allowed": ([[X, X], [X, X]], 1.0, []),
    "nothing is allowed, without a limit": ([[X, X], [X, X]], None, []),
    "one gives way for another": ([[0.0, 0.3, X], [0.1, X, X], [X, 0.2, 0.4]], 1.0, [(0, 1), (1, 0), (2, 2)]),
    "one is left alone for two others": ([[0.4, X], [0.1, 0.2], [X, 0.1]], 0.5, [(1, 0), (2, 1)]),
    "no rows": (np.empty((0, 3)), 1.0, []),
    "no columns": (np.empty((3, 0)), None, []),
}  # fmt: skip


@pytest.mark.parametrize(("cost", "limit", "expected"), CASES.values(), ids=CASES)
def test_known_answers(cost: list, limit: float | None, expected: list[tuple[int, int]]) -> None:
    matrix = np.array(cost, float)
    rows, columns = match(matrix, np.isfinite(matrix), limit)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_hungarian_and_greedy_differ() -> None:
    similarity = np.array([[0.9, 0.8], [0.85, 0.1]])
    rows, columns = np.nonzero(similarity)
    assert similarity[match(-similarity, similarity > 0)].sum() == pytest.approx(1.65)
    assert similarity[greedy(rows, columns, -similarity[rows, columns])].sum() == pytest.approx(1.0)


@given(st.integers(0, 100_000))
def test_greedy_takes_the_cheapest_that_is_left(seed: int) -> None:
    cost, allowed = problem(seed, 6)
    left, expected = allowed.copy(), []
    while left.any():
        row, column = np.unravel_index(np.argmin(np.where(left, cost, np.inf)), cost.shape)
        expected.append((int(row), int(column)))
        left[row], left[:, column] = False, False
    rows, columns = np.nonzero(np.tile(allowed, (1, 2)))  # each pair twice
    columns %= cost.shape[1] or 1
    rows, columns = greedy(rows, columns, cost[rows, columns])
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
