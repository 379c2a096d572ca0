"""How alike two boxes look: embeddings as unit vectors, their cosines and distances, and running means."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


def unit(vectors: NDArray[Any]) -> Float:
    """L2-normalised along the last axis, float32, whatever the length between 1e-18 and 1e18.

    Zeros, which stand for an unknown appearance, stay zeros.
    """
    given = np.asarray(vectors, np.float32)
    length = np.sqrt(np.einsum("...e,...e->...", given, given))[..., None]
    return given / np.maximum(length, np.finfo(np.float32).tiny)


def cosine(first: Float, second: Float) -> Float:
    """Cosines (N, M) of unit vectors (N, E) with unit vectors (M, E); 0 where either appearance is unknown."""
    return np.clip(first @ second.T, -1, 1)


def cosine_of_pairs(first: Float, second: Float) -> Float:
    """Cosines (K,) of unit vectors (K, E) with their partners (K, E)."""
    return np.clip(np.einsum("ke,ke->k", first, second), -1, 1)


def euclidean(cosines: Float) -> Float:
    """Euclidean distances, 0 to 2, of the unit vectors that have these cosines, in the same shape.

    An unknown appearance is sqrt(2) from everything, another unknown one too: as far as looks that share nothing.
    """
    return np.sqrt(2 - 2 * cosines)


class Means:
    """The mean appearance of each of up to `count` tracks: of L2-normalised embeddings, L2-normalised itself.

    Room for `count` is only set aside: rows that are never added to take no memory.
    """

    def __init__(self, count: int, size: int) -> None:
        self._sums = np.zeros((count, size), np.float32)

    def add(self, tracks: NDArray[np.intp], embeddings: Float) -> None:
        """Takes one more unit vector (K, E) into the means of these tracks (K,), each of which is there once."""
        self._sums[tracks] += embeddings

    def of(self, tracks: NDArray[np.intp]) -> Float:
        """Unit vectors (K, E)."""
        return unit(self._sums[tracks])
