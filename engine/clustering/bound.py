"""Cheap upper bounds of inner products: leading components, and the norm of the rest as one more."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.clustering.spaces import ROUNDOFF, Space
from engine.types import FloatVector

# Rows for the components, and for the pairs on which their number is chosen.
_ROWS_FOR_BASIS = 2048
_ROWS_FOR_CHOICE = 512
_WIDTHS = (31, 63, 95, 127, 159, 191, 223, 255, 319, 383)
# Components of the second bound.
_MORE = 128
# In units of a product in a matrix product: looking through 64 bounds of which one reaches the target,
# tightening a bound, computing a product alone.
_LOOK, _TIGHTEN, _ALONE = 4.0, 2.5, 9.0
_LOOKED_AT = 64
# Below this many rows or values there is little to save; and a bound must save at least this share.
_LEAST_ROWS = 4096
_LEAST_DIM = 64
_BLOCK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """Two upper bounds of `rows[i] @ rows[j]`, for rows of at most unit norm.

    `leading` (n, k + 1): the inner product of two of its rows, plus both `offset`s (which hold those of the
    space), is never below the value of the pair. With an orthonormal basis of k directions, x·y = a·b + p·q
    where a, b are the coordinates in them and p, q what is left of x and y; and p·q ≤ |p||q|. `further` (n,
    129) holds the next 128 coordinates and what is left after them.
    """

    leading: FloatVector
    further: FloatVector
    offset: FloatVector


def upper_bounds(space: Space, target: float, random: np.random.Generator) -> Bounds | None:
    """Bounds in the directions in which a sample of the rows is strongest; None where they would save too
    little.

    Their number is the one at which the bounds and what is still to be computed, of pairs that reach `target`
    by them only, cost least on a sample of pairs.
    """
    n, d = space.rows.shape
    if n < _LEAST_ROWS or d < _LEAST_DIM:
        return None
    sample = random.choice(n, _ROWS_FOR_BASIS, replace=False)
    rows = space.rows[sample]
    basis = np.linalg.eigh((rows.T @ rows).astype(np.float64))[1][:, ::-1].astype(np.float32)
    width = _best_width(rows[:_ROWS_FOR_CHOICE], space.offset[sample[:_ROWS_FOR_CHOICE]], basis, target)
    if not width:
        return None
    error = _projection_error(d, width + _MORE)
    further_width = min(width + _MORE, d)
    leading = np.empty((n, width + 1), np.float32)
    further = np.empty((n, further_width - width + 1), np.float32)
    for start in range(0, n, _BLOCK):
        part = slice(start, start + _BLOCK)
        block = space.rows[part]
        coordinates = block @ basis[:, :further_width]
        leading[part, :-1] = coordinates[:, :width]
        leading[part, -1] = _rest(block, coordinates[:, :width], error)
        further[part, :-1] = coordinates[:, width:]
        further[part, -1] = _rest(block, coordinates, error)
    return Bounds(leading, further, space.offset + np.float32(error))


def _best_width(rows: FloatVector, offset: FloatVector, basis: FloatVector, target: float) -> int:
    d = rows.shape[1]
    pairs = np.triu_indices(len(rows), 1)
    least = (target - (offset[:, None] + offset))[pairs]
    beyond = (rows @ rows.T)[pairs] < least
    coordinates = rows @ basis

    def passing(width: int) -> float:
        part = coordinates[:, :width]
        rest = _rest(rows, part, 0.0)
        bounds = part @ part.T + np.outer(rest, rest)
        return float(np.mean(beyond & (bounds[pairs] >= least)))

    best, best_width = 0.8, 0
    for width in _WIDTHS:
        if width > d // 2:
            break
        looked = passing(width)
        cost = (width + 1) / d + _TIGHTEN * looked + _LOOK * (1.0 - (1.0 - looked) ** _LOOKED_AT) / _LOOKED_AT
        if cost >= best:
            continue
        cost += _ALONE * passing(min(width + _MORE, d))
        if cost < best:
            best, best_width = cost, width
    return best_width


def _projection_error(dim: int, width: int) -> float:
    """How far coordinates in float32 can put an inner product of two rows of at most unit norm off.

    Each coordinate errs by at most about `dim` unit roundoffs, as a basis vector has unit norm, all of them
    together by the square root of `width` times that; and both rows do.
    """
    return 2.0 * math.sqrt(width) * (dim + 8) * ROUNDOFF


def _rest(rows: FloatVector, coordinates: FloatVector, error: float) -> FloatVector:
    """Norms of what the coordinates leave of the rows, never too small."""
    rest = np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", coordinates, coordinates)
    found: FloatVector = np.sqrt(np.maximum(rest, np.float32(0.0)) + np.float32(error))
    return found
