"""DBSCAN with scikit-learn's labels (C6), in the memory of its rows.

Ester, Kriegel, Sander, Xu: A density-based algorithm for discovering clusters in large spatial databases with
noise. KDD 1996.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.clustering.collapse import distinct_rows
from engine.clustering.graph import label_by_graph
from engine.clustering.labelling import Labelling, Setting
from engine.clustering.spaces import BoolVector, IntVector, Metric, Space, row_norms
from engine.types import FloatVector

Backend: TypeAlias = Literal["auto", "faiss", "blocked"]

# Embedders return rows within about 1e-6 of unit norm; a row further off than this was never normalised.
_NORM_TOLERANCE = 1e-3
# Up to here a search by FAISS takes less than what the blocked backend's compiled loops take to load.
_SMALL = 3000


def dbscan(vectors: FloatVector, *, eps: float, min_samples: int) -> tuple[IntVector, BoolVector]:
    """Cluster the rows of `vectors`, shape (n, d) float32 of unit norm, by cosine distance.

    Two rows are neighbours when their cosine distance is at most `eps`; a row with `min_samples` neighbours
    (itself included) is a core. Returns the labels, int64 (n,), clusters numbered from 0 in the order of
    their first core row, noise -1; and the core flags, bool (n,). Both are those of scikit-learn's
    `DBSCAN(metric="cosine")` on the float64 copy of `vectors`, except where a pair lies within 1e-12 of
    `eps`. A zero row has no direction: its distance is 1 to every other row and 0 to itself.

    Time is O(n²·d) on the distinct rows at worst, memory O(n·d).

    Raises `ValueError` for an array of another shape or type, rows that are not finite or not of unit norm,
    an `eps` outside (0, 2) and a `min_samples` below 1.
    """
    found = dbscan_grid(vectors, [Setting(eps, min_samples)])[0]
    return found.labels, found.core


def dbscan_grid(
    vectors: FloatVector, settings: Sequence[tuple[float, int]], *, threads: int | None = None
) -> list[Labelling]:
    """`dbscan` for several (eps, min_samples) at once, in one pass over the pairs of rows.

    Returns one `Labelling` for each of `settings`, in their order; raises as `dbscan` does. `threads` None
    takes all processors that this process may use.
    """
    asked = [checked_setting(eps, min_samples) for eps, min_samples in settings]
    check_unit(vectors)
    return label(vectors, asked, metric="cosine", threads=threads)


def label(
    vectors: npt.NDArray[Any],
    settings: Sequence[Setting],
    *,
    metric: Metric,
    weights: npt.NDArray[Any] | None = None,
    backend: Backend = "auto",
    threads: int | None = None,
) -> list[Labelling]:
    """DBSCAN of finite float32 or float64 `vectors` (n, d) in each of `settings`.

    `weights` (n,) as scikit-learn's `sample_weight`: None, or real numbers, negative ones too. Equal rows are
    searched once. `backend` as in `DBSCAN`.
    """
    n = len(vectors)
    if n == 0 or not settings:
        return [Labelling(one, np.empty(0, np.int64), np.empty(0, np.bool_)) for one in settings]
    whole = weights is None or bool(
        np.all((weights >= 1) & (weights == np.floor(weights)) & (weights < 2**31))
    )
    counted = np.ones(n, np.int64) if weights is None else weights.astype(np.int64 if whole else np.float64)
    # Equal rows have equal neighbourhoods, so one of them with the weight of all gives the label of all. It
    # is the first: clusters are numbered by their first core row and a border row takes the lowest number,
    # so keeping their order keeps the numbering. Zero rows (and those whose squares are) have no direction,
    # so that no two of them are equal.
    zero = row_norms(vectors) == 0.0 if metric == "cosine" else np.zeros(n, np.bool_)
    kept, place = distinct_rows(vectors, zero) if whole else (np.arange(n), np.arange(n))
    space = Space.of(vectors if len(kept) == n else vectors[kept], metric)
    summed: npt.NDArray[Any] = np.bincount(place, counted, minlength=len(kept)).astype(counted.dtype)
    if whole and _blocked(backend, len(kept), vectors.shape[1], settings):
        # numba takes a second to import
        from engine.clustering.blocked import label_by_blocks  # noqa: PLC0415

        found = label_by_blocks(space, settings, summed, threads=threads)
    else:
        found = label_by_graph(space, settings, summed, threads=threads)
    return [Labelling(one.setting, one.labels[place], one.core[place]) for one in found]


def _blocked(backend: Backend, n: int, dim: int, settings: Sequence[Setting]) -> bool:
    if backend == "auto" and n <= _SMALL:
        return False
    # what the blocked backend notes of each row must stay within the memory of the rows
    noted = sum(one.min_samples for one in settings)
    return backend != "faiss" and noted <= max(1024, 4 * dim)


def checked_setting(eps: float, min_samples: int) -> Setting:
    """The two as a setting for cosine distance; raises `ValueError` as `dbscan` does."""
    found = Setting(float(eps), int(min_samples))
    if not (math.isfinite(found.eps) and 0.0 < found.eps < 2.0):
        raise ValueError(f"eps is a cosine distance between 0 and 2, both excluded, not {found.eps}")
    if found.min_samples < 1 or found.min_samples != min_samples:
        raise ValueError(f"min_samples must be a whole number of at least 1, not {min_samples}")
    return found


def check_unit(vectors: FloatVector) -> None:
    """Raise `ValueError` where `vectors` are not float32 (n, d) with rows of unit norm or zero."""
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype != np.float32:
        raise ValueError(
            f"vectors must be float32 of shape (n, d), not {vectors.dtype} of shape {vectors.shape}"
        )
    norms = row_norms(vectors)
    # written so that a NaN fails it too
    bad = np.flatnonzero(~((np.abs(norms - 1.0) <= _NORM_TOLERANCE) | (norms == 0.0)))
    if bad.size:
        raise ValueError(
            f"vectors must have unit norm: row {bad[0]} has {norms[bad[0]]:g} ({bad.size} such rows)"
        )
