"""Which rows lie within a cosine distance of each other: FAISS searches, float64 decides."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from engine.types import FloatVector

IntVector: TypeAlias = npt.NDArray[np.int64]
BoolVector: TypeAlias = npt.NDArray[np.bool_]

# Searching many rows at once is faster; the second bound holds a block's result below 1 GB even if every pair
# is near, which is little beside the graph that such rows make.
_ROWS_PER_BLOCK = 4096
_PAIRS_PER_BLOCK = 2**25
_VALUES_PER_RECHECK = 2**20


def radius_graph(vectors: FloatVector, eps: float) -> tuple[IntVector, npt.NDArray[np.int32]]:
    """Neighbours of every row of `vectors`: (n, d) float32, C-contiguous, of about unit norm or zero, n ≥ 1.

    Returns the graph in CSR form as `indptr` (n + 1,) and `indices`: the neighbours of row i, itself among
    them, are `indices[indptr[i]:indptr[i + 1]]`. Two rows are neighbours when their cosine distance, computed
    in float64, is at most `eps`; so the graph is symmetric. Memory: one copy of `vectors`, 4 bytes a pair.
    """
    import faiss  # noqa: PLC0415 - heavy and native: loaded when the first graph is built

    n, dim = vectors.shape
    norms = row_norms(vectors)
    margin = _search_error(norms, dim)
    index = faiss.IndexFlatIP(dim)
    index.add(vectors)
    step = min(_ROWS_PER_BLOCK, max(1, _PAIRS_PER_BLOCK // n))
    counts = np.empty(n, np.int64)
    blocks: list[npt.NDArray[np.int32]] = []
    for start in range(0, n, step):
        stop = min(start + step, n)
        limits, products, found = index.range_search(vectors[start:stop], 1.0 - eps - margin)
        rows = np.repeat(np.arange(start, stop), np.diff(limits.astype(np.int64)))
        keep = np.ones(len(found), np.bool_)
        near = np.flatnonzero(products <= 1.0 - eps + margin)
        keep[near] = _within(vectors, norms, rows[near], found[near], eps)
        # Every row is its own neighbour, though the search does not find that of a zero row: set it for all.
        keep &= found != rows
        others = np.bincount(rows[keep] - start, minlength=stop - start)
        own_places = np.cumsum(others) - others
        blocks.append(np.insert(found[keep].astype(np.int32), own_places, np.arange(start, stop)))
        counts[start:stop] = others + 1
    return np.concatenate(([0], np.cumsum(counts))), np.concatenate(blocks)


def row_norms(vectors: FloatVector) -> npt.NDArray[np.float64]:
    """Euclidean norms of the rows, (n,) float64, without a float64 copy of them."""
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.sqrt(squares)


def _search_error(norms: npt.NDArray[np.float64], dim: int) -> float:
    """How far a float32 inner product of two rows can be from their cosine.

    A sum of `dim` products, in any order, errs by at most about `dim` unit roundoffs of the product of the
    norms (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); a few more cover the rounding of the
    threshold. The second part is the distance of the norms themselves from 1.
    """
    unit_roundoff = 2.0**-24
    off = float(np.max(np.abs(norms[norms > 0.0] - 1.0), initial=0.0))
    return (dim + 8) * unit_roundoff * (1.0 + off) ** 2 + off * (2.0 + off)


def _within(
    vectors: FloatVector, norms: npt.NDArray[np.float64], left: IntVector, right: IntVector, eps: float
) -> BoolVector:
    """Whether the cosine distance of each pair, in float64, is at most `eps`."""
    close = np.empty(len(left), np.bool_)
    scale = np.where(norms > 0.0, norms, 1.0)
    step = max(1, _VALUES_PER_RECHECK // vectors.shape[1])
    for start in range(0, len(left), step):
        a, b = left[start : start + step], right[start : start + step]
        products = np.einsum("ij,ij->i", vectors[a].astype(np.float64), vectors[b].astype(np.float64))
        close[start : start + step] = 1.0 - products / (scale[a] * scale[b]) <= eps
    return close
