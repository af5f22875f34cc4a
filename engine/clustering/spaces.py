"""Rows prepared for a search in float32 that float64 corrects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.types import FloatVector

IntVector: TypeAlias = npt.NDArray[np.int64]
BoolVector: TypeAlias = npt.NDArray[np.bool_]
DoubleVector: TypeAlias = npt.NDArray[np.float64]
Metric: TypeAlias = Literal["cosine", "euclidean"]

ROUNDOFF = 2.0**-24  # of float32
_DOUBLE_ROUNDOFF = 2.0**-53
# Rows within this of unit norm are searched as they are; others are normalised in a copy.
_UNIT = 1e-6
_LARGEST = 1e150  # norm whose square is far from overflow
# Farther than any two rows, in units of `scale`; larger ones could overflow.
_FARTHEST = 2.5
_VALUES_PER_BLOCK = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """n rows of d values in which "within eps" is an inner product.

    `rows` (n, d) float32, C-contiguous. For rows i and j, `rows[i] @ rows[j] + offset[i] + offset[j]`,
    computed in float32 in any order, is at least `target(eps)` wherever their distance is at most eps; and
    where it is at least that even after `slack[i] + slack[j]` is taken off, their distance is at most eps.
    In between, `within` decides by the distance in float64.

    `original` are the rows as they were given, float32 or float64; `norms` their Euclidean norms, float64,
    1 in place of 0; `scale` what they were divided by.
    """

    metric: Metric
    original: npt.NDArray[Any]
    norms: DoubleVector
    rows: FloatVector
    offset: FloatVector
    slack: FloatVector
    scale: float

    @classmethod
    def of(cls, vectors: npt.NDArray[Any], metric: Metric) -> Space:
        """Prepare `vectors` (n, d), float32 or float64 and finite, n and d at least 1.

        float32 rows of unit norm are used in place for the cosine; anything else is copied once. Raises
        `ValueError` for a row whose norm is beyond 1e150.

        The error of a float32 sum of d products, in any order, is at most about d unit roundoffs of the
        product of the norms (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), and |x||y| ≤
        (|x|² + |y|²) / 2, so that each row has a share of its own; a few more roundoffs cover what else is
        rounded on the way.
        """
        vectors = np.ascontiguousarray(vectors)
        norms = row_norms(vectors)
        if not norms.max() <= _LARGEST:
            raise ValueError(f"a row has a norm beyond {_LARGEST:g}, too large to square: scale the rows")
        if metric == "cosine":
            return cls._of_directions(vectors, norms)
        return cls._of_positions(vectors, norms)

    @classmethod
    def _of_directions(cls, vectors: npt.NDArray[Any], norms: DoubleVector) -> Space:
        n, d = vectors.shape
        norms = np.where(norms > 0.0, norms, 1.0)
        off = float(np.max(np.abs(norms - 1.0)))
        if vectors.dtype == np.float32 and off <= _UNIT:
            rows = vectors
        else:
            off = ROUNDOFF
            rows = np.empty((n, d), np.float32)
            for block in _blocks(n, d):
                rows[block] = vectors[block] / norms[block, None]
        error = (d + 12) * ROUNDOFF * (1.0 + off) ** 2 + off * (2.0 + off)
        offset = np.full(n, error / 2, np.float32)
        return cls("cosine", vectors, norms, rows, offset, np.full(n, error, np.float32), 1.0)

    @classmethod
    def _of_positions(cls, vectors: npt.NDArray[Any], norms: DoubleVector) -> Space:
        n, d = vectors.shape
        # distances do not change with the origin, errors do: the mean is the best place for it
        mean = vectors.mean(axis=0, dtype=np.float64)
        squares = np.empty(n)
        for block in _blocks(n, d):
            centred = vectors[block] - mean
            squares[block] = np.einsum("ij,ij->i", centred, centred)
        scale = float(np.sqrt(squares.max())) or 1.0
        rows = np.empty((n, d), np.float32)
        for block in _blocks(n, d):
            rows[block] = (vectors[block] - mean) / scale
        squares /= scale**2
        moved = 4.0 * _DOUBLE_ROUNDOFF * float(norms.max() + np.linalg.norm(mean)) / scale
        # twice: summed in any order, the offsets have their part in the error, up to that of the product
        error = 2.0 * (d + 16) * ROUNDOFF * squares + 8.0 * moved
        offset = (error - squares) / 2
        slack = error + 4.0 * ROUNDOFF * squares
        return cls(
            "euclidean",
            vectors,
            np.where(norms > 0.0, norms, 1.0),
            rows,
            (offset + 2.0 * ROUNDOFF * squares).astype(np.float32),
            slack.astype(np.float32),
            scale,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def target(self, eps: float) -> float:
        """The least sum of inner product and offsets of two rows within `eps`."""
        if self.metric == "cosine":
            return 1.0 - min(eps, _FARTHEST)
        return -(min(eps / self.scale, _FARTHEST) ** 2) / 2

    def distances(self, left: IntVector, right: IntVector) -> DoubleVector:
        """Distances in float64 of the pairs (left[m], right[m])."""
        found = np.empty(len(left))
        for block in _blocks(len(left), self.original.shape[1]):
            a, b = (self.original[side[block]].astype(np.float64) for side in (left, right))
            if self.metric == "euclidean":
                found[block] = np.linalg.norm(a - b, axis=1)
            else:
                products = np.einsum("ij,ij->i", a, b)
                found[block] = 1.0 - products / (self.norms[left[block]] * self.norms[right[block]])
        return np.maximum(found, 0.0)


def row_norms(vectors: npt.NDArray[Any]) -> DoubleVector:
    """Euclidean norms of the rows, (n,) float64, without a float64 copy of them."""
    squares: DoubleVector = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.sqrt(squares)


def _blocks(n: int, d: int) -> Iterator[slice]:
    step = max(1, _VALUES_PER_BLOCK // d)
    for start in range(0, n, step):
        yield slice(start, start + step)
