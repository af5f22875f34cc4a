"""DBSCAN over a neighbour graph that FAISS searches, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.clustering.labelling import Labelling, Setting
from engine.clustering.spaces import BoolVector, DoubleVector, IntVector, Space
from engine.types import FloatVector

_MOST_ROWS = 4096
_LEAST_ROWS = 64
_PAIRS_PER_BLOCK = 2**22
# Bytes that a pair takes while it is kept.
_PAIR = 16


class Block(NamedTuple):
    """The neighbours of rows `start` to `stop`, those of one row together: `rows`, `columns` int32 (m,) and
    how far `apart` they are, float64 (m,).
    """

    start: int
    stop: int
    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    apart: DoubleVector

    def within(self, eps: float) -> Block:
        """The neighbours within `eps`."""
        near = self.apart <= eps
        return self._replace(rows=self.rows[near], columns=self.columns[near], apart=self.apart[near])


def label_by_graph(
    space: Space, settings: Sequence[Setting], weights: npt.NDArray[Any], *, threads: int | None = None
) -> list[Labelling]:
    """DBSCAN of `space` in each of `settings`; a row counts `weights` (n,) times, whatever numbers they are.

    Two passes over the graph: which rows are core, then how they hang together. In between the graph is kept
    as long as it takes no more memory than the rows; what goes beyond is searched again.

    `threads` None leaves FAISS as many as OpenMP gives it.
    """
    graph = _Graph(space, sorted({one.eps for one in settings}), threads)
    cores = [np.zeros(len(space), np.bool_) for _ in settings]
    for block in graph.blocks():
        for core, one in zip(cores, settings, strict=True):
            core[block.start : block.stop] = _is_core(block.within(one.eps), weights, one.min_samples)
    unions = [_Union(core) for core in cores]
    for block in graph.blocks():
        for union, one in zip(unions, settings, strict=True):
            union.add(block.within(one.eps))
    return [Labelling(one, union.labels(), union.core) for one, union in zip(settings, unions, strict=True)]


class _Graph:
    """The neighbours of every row within the largest of `radii`, itself among them."""

    def __init__(self, space: Space, radii: Sequence[float], threads: int | None) -> None:
        self._space = space
        self._radii = radii
        self._threads = threads
        self._room = max(space.rows.nbytes, 2**24)
        self._kept: list[Block] = []

    def blocks(self) -> Iterator[Block]:
        """All blocks, those that are kept first."""
        yield from list(self._kept)
        start = self._kept[-1].stop if self._kept else 0
        if start == len(self._space):
            return
        keeping = start == 0
        for block in neighbour_blocks(self._space, self._radii, start=start, threads=self._threads):
            size = len(block.rows) * _PAIR
            keeping = keeping and size <= self._room
            if keeping:
                self._kept.append(block)
                self._room -= size
            yield block


def neighbour_blocks(
    space: Space, radii: Sequence[float], *, start: int = 0, threads: int | None = None
) -> Iterator[Block]:
    """The neighbours of each row from `start` on within the largest of `radii`, itself among them.

    Distances are good to the side of each of `radii` on which they lie: those that float32 leaves open are
    computed in float64.
    """
    import faiss  # noqa: PLC0415 - heavy and native: loaded when the first graph is built

    asking, asked, shift = _augmented(space)
    index = faiss.IndexFlatIP(asked.shape[1])
    index.add(asked)
    least = space.target(max(radii)) - shift
    threads_before = faiss.omp_get_max_threads()
    step = _LEAST_ROWS
    try:
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        while start < len(space):
            stop = min(start + step, len(space))
            # FAISS wants more than the radius, the neighbours have it at least
            limits, products, found = index.range_search(
                asking[start:stop], np.nextafter(np.float32(least), np.float32(-np.inf))
            )
            per_row = np.diff(limits.astype(np.int64))
            rows = np.repeat(np.arange(start, stop), per_row)
            yield _decided(space, radii, (start, stop), rows, found, products + np.float32(shift))
            step = min(_MOST_ROWS, max(_LEAST_ROWS, _PAIRS_PER_BLOCK * step // max(1, len(found))))
            start = stop
    finally:
        faiss.omp_set_num_threads(threads_before)


def _augmented(space: Space) -> tuple[FloatVector, FloatVector, float]:
    """Rows and columns whose inner product, plus the third, is that of `space` with the offsets."""
    if space.metric == "cosine":  # all offsets are the same
        return space.rows, space.rows, float(2 * space.offset[0])
    one, offset = np.ones((len(space), 1), np.float32), space.offset[:, None]
    return np.hstack([space.rows, offset, one]), np.hstack([space.rows, one, offset]), 0.0


def _decided(  # noqa: PLR0917 - one use, and these are what a search gives
    space: Space,
    radii: Sequence[float],
    span: tuple[int, int],
    rows: IntVector,
    found: IntVector,
    values: FloatVector,
) -> Block:
    """Which of the pairs `rows[m]`, `found[m]` of product `values[m]` are neighbours, and within which
    radius.
    """
    others = rows != found  # the search may miss a row itself (zero rows) or not: each is set below
    rows, columns, values = rows[others], found[others], values[others]
    certain = values - space.slack[rows] - space.slack[columns]
    # how many of the radii it is within, at most and at least
    targets = np.array([space.target(eps) for eps in reversed(radii)])
    most = np.searchsorted(targets, values, side="right")
    least = np.searchsorted(targets, certain, side="right")
    apart = np.concatenate([[np.inf], np.array(radii)[::-1]])[most]
    unsure = np.flatnonzero(most != least)
    apart[unsure] = space.distances(rows[unsure], columns[unsure])
    near = apart <= radii[-1]
    rows, columns, apart = rows[near], columns[near], apart[near]
    itself = np.arange(*span)
    places = np.searchsorted(rows, itself)
    return Block(
        *span,
        np.insert(rows, places, itself).astype(np.int32),
        np.insert(columns, places, itself).astype(np.int32),
        np.insert(apart, places, 0.0),
    )


def _is_core(block: Block, weights: npt.NDArray[Any], min_samples: int) -> BoolVector:
    """Whether the neighbours of each row of `block` weigh `min_samples`."""
    own = block.rows - block.start
    height = block.stop - block.start
    mass = np.bincount(own, weights[block.columns], minlength=height)
    core: BoolVector = mass >= min_samples
    if weights.dtype.kind == "f":
        # as scikit-learn adds them up, where the order of addition could matter
        error = 1e-12 * np.bincount(own, np.abs(weights[block.columns]), minlength=height)
        bounds = np.searchsorted(own, np.arange(height + 1))
        for row in np.flatnonzero(np.abs(mass - min_samples) <= error):
            columns = np.sort(block.columns[bounds[row] : bounds[row + 1]])
            core[row] = weights[columns].sum() >= min_samples
    return core


class _Union:
    """Components of core rows, from blocks of neighbours."""

    def __init__(self, core: BoolVector) -> None:
        self.core = core
        self._component: IntVector = np.arange(len(core))
        self._border: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []

    def add(self, block: Block) -> None:
        """Take in neighbours; rows that are not core keep their core ones for the end."""
        from scipy.sparse import coo_array  # noqa: PLC0415 - a second to import
        from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

        to_core = self.core[block.columns]
        rows, columns = block.rows[to_core], block.columns[to_core]
        from_core = self.core[rows]
        self._border.append((rows[~from_core], columns[~from_core]))
        left, right = self._component[rows[from_core]], self._component[columns[from_core]]
        new = left != right
        if new.any():
            n = len(self.core)
            edges = coo_array((np.ones(int(new.sum()), np.int8), (left[new], right[new])), shape=(n, n))
            self._component = connected_components(edges, directed=False)[1].astype(np.int64)[self._component]

    def labels(self) -> IntVector:
        """Clusters by their first core row; a border row takes the lowest number among its core ones."""
        n = len(self.core)
        found = np.full(n, -1, np.int64)
        _, first, inverse = np.unique(self._component[self.core], return_index=True, return_inverse=True)
        found[self.core] = np.argsort(np.argsort(first))[inverse]
        lowest = np.full(n, n, np.int64)
        for rows, columns in self._border:
            np.minimum.at(lowest, rows, found[columns])
        border = lowest < n
        found[border] = lowest[border]
        return found
