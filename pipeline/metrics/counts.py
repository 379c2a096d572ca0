"""Counts: what is counted of one video and class, so that a dataset's scores follow from the sum.

Counts are float64 arrays by name. Most are added; the names in a metric's JOINED hold one number a box and are
strung together instead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

Counts = dict[str, NDArray[np.float64]]


def add(parts: Sequence[Counts], joined: Collection[str] = ()) -> Counts:
    """The counts of several videos or classes (at least one) together."""
    if len(parts) == 1:
        return parts[0]
    return {**total(parts, joined), **{name: np.concatenate([part[name] for part in parts]) for name in joined}}


def total(parts: Sequence[Counts], joined: Collection[str] = ()) -> Counts:
    """The counts that are added, of several videos or classes (at least one) together."""
    return {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0] if name not in joined}


def ratio(part: float, whole: float) -> float:
    """part / whole; nan where there is nothing to divide by."""
    return float(part / whole) if whole else float("nan")
