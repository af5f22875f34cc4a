"""An inverted file (IVF) over rows that stay where they are: lists of row numbers around centroids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.clustering.spaces import IntVector
from engine.types import FloatVector

# Directions in which rows and centroids are compared: where neighbours are is seen in the strongest.
_DIRECTIONS = 128
_ROWS_FOR_DIRECTIONS = 4096
# Going through the centroids then costs about what going through a few lists does; and a topic of a few dozen
# rows is seldom cut in two by lists that are smaller than it is.
_LISTS_PER_ROOT = 8.0
# More of either move the recall at a number of probes by less than they cost.
_ROWS_PER_CENTROID = 16
_ITERATIONS = 4
_VALUES_PER_BLOCK = 2**22
# Entries of lists that are put in order at a time.
_ENTRIES = 2**20


class Centroids:
    """Centroids of rows of unit norm, by FAISS's spherical k-means on a sample, in its principal directions.

    Jégou, Douze, Schmid: Product quantization for nearest neighbor search. PAMI 2011 (the inverted file).
    """

    def __init__(self, rows: FloatVector, members: IntVector, seed: int) -> None:
        """Of `rows` (n, d), those numbered `members` are to be listed; `seed` draws the samples."""
        import faiss  # noqa: PLC0415 - heavy and native

        random = np.random.default_rng(seed)
        count = min(len(members), max(1, round(_LISTS_PER_ROOT * len(members) ** 0.5)))
        sample = rows[_drawn(random, members, _ROWS_FOR_DIRECTIONS)]
        strength = (sample.T @ sample).astype(np.float64)
        directions = np.linalg.eigh(strength)[1][:, ::-1][:, :_DIRECTIONS]
        self._directions = np.ascontiguousarray(directions, np.float32)
        means = faiss.Kmeans(
            self._directions.shape[1],
            count,
            niter=_ITERATIONS,
            spherical=True,
            seed=seed,
            min_points_per_centroid=1,  # fewer would be remarked upon on stderr
        )
        means.train(self._projected(rows, _drawn(random, members, _ROWS_PER_CENTROID * count)))
        self._index: Any = means.index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def nearest(self, rows: FloatVector, members: IntVector, k: int) -> npt.NDArray[np.int32]:
        """For each of `members` the `k` centroids of largest inner product, (m, k), the largest first."""
        found = np.empty((len(members), k), np.int32)
        step = max(1, _VALUES_PER_BLOCK // rows.shape[1])
        for start in range(0, len(members), step):
            part = slice(start, start + step)
            found[part] = self._index.search(self._projected(rows, members[part]), k)[1]
        return found

    def _projected(self, rows: FloatVector, members: IntVector) -> FloatVector:
        found = np.empty((len(members), self._directions.shape[1]), np.float32)
        step = max(1, _VALUES_PER_BLOCK // rows.shape[1])
        for start in range(0, len(members), step):
            part = slice(start, start + step)
            np.matmul(rows[members[part]], self._directions, out=found[part])
        return found


def _drawn(random: np.random.Generator, members: IntVector, most: int) -> IntVector:
    return np.sort(random.choice(members, min(len(members), most), replace=False))


def listed(nearest: npt.NDArray[np.int32], lists: int) -> Iterator[IntVector]:
    """For each list in turn the places in `nearest` (m, k) that hold it, ascending, as row · k + column."""
    batches = max(1, min(lists, -(-nearest.size // _ENTRIES)))
    bounds = np.linspace(0, lists, batches + 1).astype(np.int64)
    flat = nearest.ravel()
    for low, high in pairwise(bounds.tolist()):
        # going through all entries for each batch takes less memory than to sort them all
        places = np.flatnonzero((flat >= low) & (flat < high))
        order = np.argsort(flat[places], kind="stable")
        ends = np.cumsum(np.bincount(flat[places] - low, minlength=high - low))
        yield from np.split(places[order], ends[:-1])


@contextmanager
def faiss_threads(threads: int) -> Iterator[None]:
    """FAISS in so many threads for as long as this lasts."""
    import faiss  # noqa: PLC0415 - heavy and native

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
