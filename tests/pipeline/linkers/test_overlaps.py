"""The pairs of boxes that overlap, against the whole matrix of IoUs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boxes import iou
from pipeline.linkers.parts.overlaps import overlapping


def some_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """On whole pixels, so that boxes touch and coincide."""
    corners = random.integers(0, 12, (count, 2)).astype(float)
    return np.concatenate([corners, corners + random.integers(1, 8, (count, 2))], axis=1)


@given(st.integers(0, 10_000))
def test_all_that_overlap_enough_and_no_other(seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = some_boxes(random, int(random.integers(0, 6))), some_boxes(random, int(random.integers(0, 6)))
    min_iou = random.choice([0, 0.25, 0.5, 1], len(first)).astype(float)
    rows, columns, overlap = overlapping(first, second, min_iou)
    table = iou(first, second)
    expected = np.nonzero((table > 0) & (table >= min_iou[:, None]))
    assert np.all(np.diff(rows) >= 0)
    order = np.lexsort((columns, rows))
    assert (rows[order].tolist(), columns[order].tolist()) == (expected[0].tolist(), expected[1].tolist())
    assert overlap[order].tolist() == pytest.approx(table[expected].tolist(), abs=1e-12)
