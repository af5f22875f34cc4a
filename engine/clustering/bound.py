"""Cheap upper bounds of inner products: leading components, and the norms of what they leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.clustering.spaces import ROUNDOFF, BoolVector, Space
from engine.types import FloatVector

# Rows for the components, and for the pairs on which their number is chosen.
_ROWS_FOR_BASIS = 2048
_ROWS_FOR_CHOICE = 512
_WIDTHS = tuple(range(32, 193, 32))
# Components that the second bound adds.
_MORE = 128
# In units of a product in a matrix product: finding a bound that reaches the target and tightening it,
# computing a product alone.
TIGHTEN, ALONE = 6.0, 15.0
# A bound must save at least this share of the work.
_WORTH = 0.2
# Below this many rows or values there is little to save.
_LEAST_ROWS = 4096
_LEAST_DIM = 64
_BLOCK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """Upper bounds of `rows[i] @ rows[j]`, for rows of at most unit norm.

    With an orthonormal basis of k directions, x·y = a·b + p·q where a, b are the coordinates in them and p, q
    what is left of x and y; and p·q ≤ |p||q|. `coordinates` (n, m) are in the basis, the strongest directions
    first; `rests[k]` (n,) the norms of what the first k leave, for those k that are used and for all m.
    The first k coordinates' product, plus that of the rests and both `offset`s (which hold those of the
    space), is never below the value of a pair.

    `widths` gives k for each target: the more of the pairs a target rules out, the fewer will do.
    """

    coordinates: FloatVector
    rests: dict[int, FloatVector]
    offset: FloatVector
    widths: dict[float, int]


def upper_bounds(space: Space, targets: Sequence[float], random: np.random.Generator) -> Bounds | None:
    """Bounds in the directions in which a sample of the rows is strongest; None where they would save too
    little.

    For each of `targets` the number of coordinates is the one at which the bounds, and what is still to be
    computed of pairs that reach the target by them only, cost least on a sample of pairs.
    """
    n, d = space.rows.shape
    if n < _LEAST_ROWS or d < _LEAST_DIM:
        return None
    sample = random.choice(n, min(n, _ROWS_FOR_BASIS), replace=False)
    rows = space.rows[sample]
    basis = _strongest(rows.T @ rows, min(d, _WIDTHS[-1] + _MORE), random)
    trial = _Trial(rows[:_ROWS_FOR_CHOICE], space.offset[sample[:_ROWS_FOR_CHOICE]], basis)
    widths = {target: width for target in targets if (width := trial.best_width(target))}
    if not widths:
        return None
    full = min(max(widths.values()) + _MORE, d)
    error = _projection_error(d, full)
    coordinates = np.empty((n, full), np.float32)
    rests = {width: np.empty(n, np.float32) for width in sorted({*widths.values(), full})}
    for start in range(0, n, _BLOCK):
        part = slice(start, start + _BLOCK)
        block = space.rows[part]
        np.matmul(block, basis[:, :full], out=coordinates[part])
        squares = _squares(block)
        for width, rest in rests.items():
            rest[part] = _rest(squares, coordinates[part, :width], error)
    return Bounds(coordinates, rests, space.offset + np.float32(error), widths)


def _strongest(products: FloatVector, count: int, random: np.random.Generator) -> FloatVector:
    """About the `count` strongest directions of symmetric `products` (d, d), strongest first: orthonormal (d,
    count).

    Two power iterations from random directions (Halko, Martinsson, Tropp: Finding structure with randomness.
    SIAM Review 2011); bounds are true in whatever directions, and all but the last of these are close.
    """
    start = random.standard_normal((len(products), count), dtype=np.float32)
    found = np.linalg.qr((products @ (products @ start)).astype(np.float64))[0]
    order = np.linalg.eigh(found.T @ products @ found)[1][:, ::-1]
    strongest: FloatVector = (found @ order).astype(np.float32)
    return strongest


class _Trial:
    """What bounds of several widths would cost, on a sample of pairs."""

    def __init__(self, rows: FloatVector, offset: FloatVector, basis: FloatVector) -> None:
        self._dim = rows.shape[1]
        self._squares = _squares(rows)
        self._coordinates = rows @ basis
        self._pairs = np.triu_indices(len(rows), 1)
        self._offset = (offset[:, None] + offset)[self._pairs]
        self._products = (rows @ rows.T)[self._pairs]
        self._bounds: dict[int, FloatVector] = {}

    def best_width(self, target: float) -> int:
        """The width at which `target` costs least; 0 where none saves enough."""
        least = target - self._offset
        beyond = self._products < least
        best, best_width = 1.0 - _WORTH, 0
        for width in _WIDTHS:
            if width > self._dim // 2:
                break
            cost = width / self._dim + TIGHTEN * self._passing(width, beyond, least)
            if cost >= best:
                continue
            cost += ALONE * self._passing(min(width + _MORE, self._dim), beyond, least)
            if cost < best:
                best, best_width = cost, width
        return best_width

    def _passing(self, width: int, beyond: BoolVector, least: FloatVector) -> float:
        """The share of pairs that reach their target by the bound only."""
        if width not in self._bounds:
            part = self._coordinates[:, :width]
            rest = _rest(self._squares, part, 0.0)
            self._bounds[width] = (part @ part.T + np.outer(rest, rest))[self._pairs]
        return float(np.mean(beyond & (self._bounds[width] >= least)))


def _projection_error(dim: int, width: int) -> float:
    """How far coordinates in float32 can put an inner product of two rows of at most unit norm off.

    Each coordinate errs by at most about `dim` unit roundoffs, as a basis vector has unit norm, all of them
    together by the square root of `width` times that; and both rows do. What is left of a row errs by as much
    in the square, and by the two sums of squares that it is the difference of.
    """
    return 2.0 * (math.sqrt(width) + 1.0) * (dim + 8) * ROUNDOFF


def _squares(rows: FloatVector) -> FloatVector:
    squares: FloatVector = np.einsum("ij,ij->i", rows, rows)
    return squares


def _rest(squares: FloatVector, coordinates: FloatVector, error: float) -> FloatVector:
    """Norms of what the coordinates leave of rows with norms of `squares`, never too small."""
    rest = squares - _squares(coordinates)
    found: FloatVector = np.sqrt(np.maximum(rest, np.float32(0.0)) + np.float32(error))
    return found
