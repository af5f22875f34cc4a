"""DBSCAN in one pass over the upper triangle of the matrix of inner products, tile by tile."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from joblib import cpu_count

from engine.clustering import kernels
from engine.clustering.bound import ALONE, TIGHTEN, Bounds, upper_bounds
from engine.clustering.kernels import Pairs, Tails
from engine.clustering.labeller import Labeller
from engine.clustering.labelling import Labelling, Setting
from engine.clustering.spaces import IntVector, Space
from engine.types import FloatVector

HEIGHT = 512
WIDTH = 2048
_CHUNKS = 16  # of a task
# Pairs collected before they are fed: what they settle need not be looked at again.
_PAIRS = 2**13
# After so many searches by bounds that took longer than the products would have, a tile is computed in full.
_POOR = 3


def label_by_blocks(
    space: Space, settings: Sequence[Setting], weights: IntVector, *, threads: int | None = None
) -> list[Labelling]:
    """DBSCAN of `space` in each of `settings`; a row counts `weights` times, whole numbers of at least 1.

    A tile is not computed where all its rows are core and of one component already. Of the others first an
    upper bound of each product, where that pays, then the products of the pairs that reach eps by it.
    Memory, beside the rows: a sixth to a half of them for the bounds, about 15 MB a thread, and the state of
    `Labeller`.

    `threads` None takes all processors that this process may use; each runs BLAS in one thread.
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it looks for every loaded library

    random = np.random.default_rng(0)  # the labels do not depend on it
    labeller = Labeller(space, settings, weights)
    workers = threads or cpu_count()
    with threadpool_limits(1, user_api="blas"):
        bounds = upper_bounds(space, sorted(set(labeller.state.targets.tolist())), random)
        rest = random.permutation(len(space))
        # In dense regions a few random rows make most others core, and join them. As long as they do, more of
        # them meet all others first.
        core, gained = 0, len(space)
        while gained > HEIGHT * len(settings) and len(rest):
            _Rows(space, bounds, labeller, rest, min(HEIGHT, len(rest))).meet(workers)
            rest = rest[HEIGHT:]
            labeller.flatten()
            before, core = core, int(np.count_nonzero(labeller.state.core))
            gained = core - before
        if len(rest):
            rest = labeller.by_component(np.sort(rest))
            _Rows(space, bounds, labeller, rest, len(rest)).meet(workers)
    return labeller.labellings()


class _Rows:
    """The first `height` rows of `order`, which are to meet all rows that come after them."""

    def __init__(
        self,
        space: Space,
        bounds: Bounds | None,
        labeller: Labeller,
        order: IntVector,
        height: int,
    ) -> None:
        self._space = space
        self._labeller = labeller
        self._order = order
        self._height = height
        self._offset = space.offset[order]
        self._no_rest = np.zeros(len(order), np.float32)
        self._bounds = bounds
        if bounds is not None:
            widest = max(bounds.widths.values())
            self._coordinates = bounds.coordinates[order, :widest]
            self._rests = {width: bounds.rests[width][order] for width in set(bounds.widths.values())}
            self._bound_offset = bounds.offset[order]
        span = WIDTH * _CHUNKS
        # rows that are not core come last in the order and first here: they may become core, and join others
        tasks = [(row, at) for row in range(0, height, HEIGHT) for at in range(row, len(order), span)]
        self._tasks = iter([(row, at, min(at + span, len(order))) for row, at in reversed(tasks)])
        self._taking = threading.Lock()
        self._feeding = threading.Lock()

    def meet(self, workers: int) -> None:
        """Feed every pair that could change anything to the labeller."""
        if workers == 1:
            self._work()
            return
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(self._work) for _ in range(workers)]:
                done.result()

    def _work(self) -> None:
        desk = Desk(self._space.rows.shape[1])
        while (task := self._take()) is not None:
            row, start, stop = task
            rows = slice(row, min(row + HEIGHT, self._height))
            for left in range(start, stop, WIDTH):
                self._tile(desk, rows, slice(left, min(left + WIDTH, stop)))
            with self._feeding:
                self._labeller.flatten()

    def _take(self) -> tuple[int, int, int] | None:
        with self._taking:
            return next(self._tasks, None)

    def _tile(self, desk: Desk, rows: slice, columns: slice) -> None:
        least = self._labeller.open_target(self._order[rows], self._order[columns])
        if least is None:
            return
        if self._bounds is not None and least in self._bounds.widths:
            rows = self._by_bounds(self._bounds, desk, rows, columns, least)
        if rows.start == rows.stop:
            return
        left = desk.gather(self._space.rows, self._order[rows], 0)
        right = desk.gather(self._space.rows, self._order[columns], HEIGHT)
        products = desk.product(left, right)
        while rows.start < rows.stop:
            count, done = self._scan(desk, products, rows, columns, least, self._offset, self._no_rest)
            self._feed(desk, count)
            rows, products = slice(rows.start + done, rows.stop), products[done:]

    def _by_bounds(self, bounds: Bounds, desk: Desk, rows: slice, columns: slice, least: float) -> slice:
        """Feed the pairs of a tile that bounds leave over. Returns the rows for which that were too many."""
        width = bounds.widths[least]
        rest = self._rests[width]
        last = bounds.coordinates.shape[1]
        tails = Tails(bounds.coordinates, width, bounds.rests[width], bounds.rests[last])
        products = desk.product(self._coordinates[rows, :width], self._coordinates[columns, :width])
        poor = 0
        while rows.start < rows.stop and poor < _POOR:
            found, done = self._scan(desk, products, rows, columns, least, self._bound_offset, rest)
            count = kernels.refine(self._labeller.rows, tails, self._labeller.state, desk.pairs, found)
            self._feed(desk, count)
            poor += TIGHTEN * found + ALONE * count > done * products.shape[1]
            rows, products = slice(rows.start + done, rows.stop), products[done:]
        return rows

    def _scan(  # noqa: PLR0917 - of a tile all of these
        self,
        desk: Desk,
        products: FloatVector,
        rows: slice,
        columns: slice,
        least: float,
        offset: FloatVector,
        rest: FloatVector,
    ) -> tuple[int, int]:
        return kernels.scan(
            products,
            self._order[rows],
            self._order[columns],
            offset[rows],
            offset[columns],
            rest[rows],
            rest[columns],
            rows.start - columns.start + 1,
            least,
            self._labeller.state,
            desk.pairs,
            desk.marks,
        )

    def _feed(self, desk: Desk, count: int) -> None:
        if count:
            with self._feeding:
                self._labeller.feed(desk.pairs, count)


class Desk:
    """What one thread works on, allocated once."""

    def __init__(self, dim: int) -> None:
        self.pairs = Pairs(np.empty((_PAIRS + WIDTH, 2), np.int32), np.empty(_PAIRS + WIDTH, np.float32))
        self.marks = np.empty(-(-WIDTH // kernels.WORD), np.uint64)
        self._products = np.empty(HEIGHT * WIDTH, np.float32)
        self._dim = dim
        self._rows: FloatVector | None = None

    def product(self, left: FloatVector, right: FloatVector) -> FloatVector:
        """The inner products of `left` (r, k) with `right` (c, k), (r, c); overwritten by the next."""
        out = self._products[: len(left) * len(right)].reshape(len(left), len(right))
        np.matmul(left, right.T, out=out)
        return out

    def gather(self, vectors: FloatVector, rows: IntVector, start: int) -> FloatVector:
        """Copies of `rows` of `vectors`, at row `start` of the desk."""
        if self._rows is None:
            self._rows = np.empty((HEIGHT + WIDTH, self._dim), np.float32)
        out = self._rows[start : start + len(rows)]
        # row numbers are good; to have them checked would take a buffer
        np.take(vectors, rows, axis=0, out=out, mode="clip")
        return out
