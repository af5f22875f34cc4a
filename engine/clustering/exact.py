"""DBSCAN on cosine distance, with scikit-learn's labels (C6).

Ester, Kriegel, Sander, Xu: A density-based algorithm for discovering clusters in large spatial databases with
noise. KDD 1996.
"""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np

from engine.clustering.graph import BoolVector, IntVector, radius_graph, row_norms
from engine.types import FloatVector

# Embedders return rows within about 1e-6 of unit norm; a row further off than this was never normalised.
_NORM_TOLERANCE = 1e-3


def dbscan(vectors: FloatVector, *, eps: float, min_samples: int) -> tuple[IntVector, BoolVector]:
    """Cluster the rows of `vectors`, shape (n, d) float32 of unit norm, by cosine distance.

    Two rows are neighbours when their cosine distance is at most `eps`; a row with `min_samples` neighbours
    (itself included) is a core. Returns the labels, int64 (n,), clusters numbered from 0 in the order of
    their first core row, noise -1; and the core flags, bool (n,). Both are those of scikit-learn's
    `DBSCAN(metric="cosine")` on the float64 copy of `vectors`, except where a pair lies within 1e-12 of
    `eps`. A zero row has no direction: its distance is 1 to every other row and 0 to itself.

    Time is O(n²·d) on the distinct rows. Memory is O(n·d) plus the neighbour graph of the distinct rows
    (about 25 bytes for each pair within `eps`); there is never a dense (n, n) matrix.

    Raises `ValueError` for an array of another shape or type, rows that are not finite or not of unit norm,
    an `eps` outside (0, 2) and a `min_samples` below 1.
    """
    vectors = _checked(vectors, eps, min_samples)
    if len(vectors) == 0:
        return np.empty(0, np.int64), np.empty(0, np.bool_)
    # Rules repeat by the thousands. Equal rows have equal neighbourhoods, so one of them, weighted by their
    # number, gives the label of all. The first occurrence stands for them: clusters are numbered by their
    # first core row and a border row takes the lowest number, so keeping their order keeps the numbering.
    first, inverse = distinct_rows(vectors)
    labels, core = _weighted_dbscan(
        vectors if len(first) == len(vectors) else vectors[first],
        np.bincount(inverse, minlength=len(first)),
        eps=eps,
        min_samples=min_samples,
    )
    return labels[inverse], core[inverse]


def distinct_rows(vectors: FloatVector) -> tuple[IntVector, IntVector]:
    """First occurrences of the distinct rows, ascending, and for each row the position of its own among them.

    Zero rows are never equal to one another: scikit-learn puts them at distance 1.
    """
    is_zero = np.logical_not(vectors.any(axis=1))
    seen: dict[object, int] = {}
    first: list[int] = []
    inverse = np.empty(len(vectors), np.int64)
    for row, vector in enumerate(np.ascontiguousarray(vectors)):
        # 128 bits in place of the row itself: a key of 16 bytes, and no two of a billion rows collide
        key: object = row if is_zero[row] else blake2b(vector.data, digest_size=16).digest()
        position = seen.setdefault(key, len(first))
        if position == len(first):
            first.append(row)
        inverse[row] = position
    return np.array(first, np.int64), inverse


def _weighted_dbscan(
    vectors: FloatVector, weights: IntVector, *, eps: float, min_samples: int
) -> tuple[IntVector, BoolVector]:
    """DBSCAN of rows that count `weights` times each, as scikit-learn's `sample_weight` means it."""
    # scikit-learn takes a second to import and is needed only here
    from scipy.sparse import csr_matrix  # noqa: PLC0415
    from sklearn.cluster import DBSCAN  # noqa: PLC0415

    n = len(vectors)
    indptr, indices = radius_graph(vectors, eps)
    # Whoever is in the graph is a neighbour, so every stored distance may be 0: one byte each, and
    # scikit-learn finds the rows already sorted by distance and makes no sorted copy.
    graph = csr_matrix((np.zeros(len(indices), np.int8), indices, indptr), shape=(n, n))
    fit = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(graph, sample_weight=weights)
    core = np.zeros(n, np.bool_)
    core[fit.core_sample_indices_] = True
    return fit.labels_.astype(np.int64), core


def _checked(vectors: FloatVector, eps: float, min_samples: int) -> FloatVector:
    if not (math.isfinite(eps) and 0.0 < eps < 2.0):
        raise ValueError(f"eps is a cosine distance between 0 and 2, both excluded, not {eps}")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1, not {min_samples}")
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype != np.float32:
        raise ValueError(
            f"vectors must be float32 of shape (n, d), not {vectors.dtype} of shape {vectors.shape}"
        )
    vectors = np.ascontiguousarray(vectors)
    norms = row_norms(vectors)
    # written so that a NaN fails it too
    bad = np.flatnonzero(~((np.abs(norms - 1.0) <= _NORM_TOLERANCE) | (norms == 0.0)))
    if bad.size:
        raise ValueError(
            f"vectors must have unit norm: row {bad[0]} has {norms[bad[0]]:g} ({bad.size} such rows)"
        )
    return vectors
