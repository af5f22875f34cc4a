"""DBSCAN of large sets over an inverted file: not all pairs are compared, and how many are is measured."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import cpu_count

from engine.clustering import kernels
from engine.clustering.blocked import HEIGHT, WIDTH, Desk
from engine.clustering.collapse import distinct_rows
from engine.clustering.exact import check_unit, checked_setting, label
from engine.clustering.kernels import Pairs
from engine.clustering.labeller import Labeller
from engine.clustering.labelling import Labelling, Setting
from engine.clustering.lists import Centroids, faiss_threads, listed
from engine.clustering.near_equal import stand_ins
from engine.clustering.probes import choose_probes
from engine.clustering.spaces import IntVector, Space, row_norms
from engine.types import FloatVector

# Pairs that are missed cost little: a row has other neighbours, a cluster other ways through it.
_RECALL = 0.99
# Cosine distance of rows that are the same text, embedded in different batches.
_SAME = 1e-5
# Beyond this share of all lists comparing everything costs no more.
_MOST_PROBED = 1 / 32
# Fewer rows are compared in no time.
_LEAST_ROWS = 1000
# Lists after which ways to roots are shortened.
_FLATTEN = 32


@dataclass(frozen=True, slots=True, eq=False)
class Approximate:
    """`labelling`, and how near it is to the exact one.

    `recall` is the share of a row's neighbours that it was compared with, the mean over sampled rows that
    have any. Rows were put into `lists` lists and compared with those of `probes` of them; both are 0, and
    recall is 1, where all pairs were compared. `representatives` is how many rows stand for all.
    """

    labelling: Labelling
    recall: float
    lists: int
    probes: int
    representatives: int


def approximate_dbscan(
    vectors: FloatVector,
    eps: float,
    min_samples: int,
    *,
    recall: float = _RECALL,
    near_equal: float = _SAME,
    seed: int = 0,
    threads: int | None = None,
) -> Approximate:
    """`dbscan`, comparing only rows that an inverted file puts near each other.

    A row is compared with those in the lists of the centroids nearest to it (its probes), and with those that
    have its own list among theirs. Pairs compared are decided exactly. How many probes it takes to meet
    `recall` of the pairs within `eps` is read off a sample of rows whose neighbours are found exactly; where
    that is more than one list in 32, or there are few rows, all pairs are compared instead. Rows
    within `near_equal` (cosine distance) of another in their list count as that one, equal ones always do.

    `vectors` (n, d) float32 of unit norm or zero; memory-mapped ones are read where they are, in no order.
    Beside them, memory is O(n·(probes + min_samples)), and 128·√n rows of 128 values to train centroids on.
    `seed` draws the samples. `threads` None takes all processors that this process may use.

    Raises `ValueError` as `dbscan` does, and for a `recall` outside (0, 1] or a `near_equal` that is
    negative or not below `eps`.
    """
    if not 0.0 < recall <= 1.0:
        raise ValueError(f"recall is a share above 0, at most 1, not {recall}")
    if not 0.0 <= near_equal < eps:
        raise ValueError(f"near_equal is a distance from 0 to below eps ({eps}), not {near_equal}")
    setting = checked_setting(eps, min_samples)
    check_unit(vectors)
    return label_by_lists(vectors, setting, recall=recall, near_equal=near_equal, seed=seed, threads=threads)


def label_by_lists(
    vectors: npt.NDArray[Any],
    setting: Setting,
    *,
    weights: npt.NDArray[Any] | None = None,
    recall: float = _RECALL,
    near_equal: float | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Approximate:
    """`approximate_dbscan` of finite float32 or float64 `vectors` of any norm (normalised in a copy).

    `weights` (n,): how often each row counts. Raises `ValueError` where they are not whole numbers from 1 on.
    """
    n = len(vectors)
    counted = np.ones(n, np.int64) if weights is None else weights.astype(np.int64)
    if weights is not None and not (np.all(weights >= 1) and np.array_equal(counted, weights)):
        raise ValueError('backend "ivf" takes whole sample weights from 1 on: leave it at "auto" for others')
    kept, place = distinct_rows(vectors, row_norms(vectors) == 0.0)
    if len(kept) >= _LEAST_ROWS:
        space = Space.of(vectors, "cosine")
        found = _by_lists(
            space,
            setting,
            kept,
            place,
            counted,
            recall,
            min(_SAME, setting.eps / 10) if near_equal is None else near_equal,
            seed,
            threads or cpu_count(),
        )
        if found is not None:
            return found
    (exact,) = label(vectors, [setting], metric="cosine", weights=counted, threads=threads)
    return Approximate(exact, 1.0, 0, 0, len(kept))


def _by_lists(  # noqa: PLR0917 - one use
    space: Space,
    setting: Setting,
    kept: IntVector,
    place: IntVector,
    weights: IntVector,
    recall: float,
    near_equal: float,
    seed: int,
    workers: int,
) -> Approximate | None:
    with faiss_threads(workers):
        centroids = Centroids(space.rows, kept, seed)
        probes = choose_probes(
            space,
            kept,
            centroids,
            distances=(near_equal, setting.eps),
            recall=recall,
            most=max(1, int(_MOST_PROBED * len(centroids))),
            seed=seed,
        )
        if probes is None:
            return None
        nearest = centroids.nearest(space.rows, kept, probes.lists)
    stands = _stand_ins(space, kept, nearest[:, 0], near_equal)
    alone = np.flatnonzero(kept == stands)
    of_row = stands[place]
    # rows that another stands for weigh nothing and meet nobody: they are never core
    mass = np.zeros(len(space), np.int64)
    np.add.at(mass, of_row, weights)
    labeller = Labeller(space, [setting], mass)
    _Search(space, labeller, kept[alone], nearest[alone], len(centroids)).run(workers)
    (found,) = labeller.labellings()
    whole = Labelling(setting, found.labels[of_row], found.core[of_row])
    return Approximate(whole, probes.recall, len(centroids), probes.lists, len(alone))


def _stand_ins(space: Space, kept: IntVector, home: npt.NDArray[np.int32], distance: float) -> IntVector:
    """For each of the rows `kept` the row that stands for it: of its list, within `distance`."""
    if distance == 0.0:
        return kept
    groups = []
    order = np.argsort(home, kind="stable")
    for group in np.split(kept[order], np.flatnonzero(np.diff(home[order])) + 1):
        rows = space.rows[group]
        near = np.zeros(len(group), np.bool_)
        for start in range(0, len(group), HEIGHT):
            reached = rows[start : start + HEIGHT] @ rows.T >= 1.0 - distance
            near[start : start + HEIGHT] = np.count_nonzero(reached, axis=1) > 1
        groups.append(group[near])
    return stand_ins(space.rows, groups, distance)[kept]


class _Search:
    """Which pairs of the rows `members` (m,) are to be compared, and their way into the labeller.

    `nearest` (m, probes) are the lists that each looks into, its own first. A pair whose rows look into each
    other's list is met twice: it counts where the smaller of them looks.
    """

    def __init__(
        self,
        space: Space,
        labeller: Labeller,
        members: IntVector,
        nearest: npt.NDArray[np.int32],
        lists: int,
    ) -> None:
        self._space = space
        self._labeller = labeller
        self._members = members
        self._nearest = nearest
        self._lists = lists
        self._least = float(labeller.state.targets[0])
        self._taking = threading.Lock()
        self._feeding = threading.Lock()
        self._taken = 0
        self._tasks: Iterator[tuple[IntVector, IntVector]] = iter(())

    def run(self, workers: int) -> None:
        """Compare every pair that is to be compared and could change anything."""
        from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it looks for every loaded library

        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            # lists by themselves first: what hangs together there need not be looked at from others
            for tasks in (self._alone(), self._across()):
                self._tasks = tasks
                for done in [pool.submit(self._work) for _ in range(workers)]:
                    done.result()

    def _alone(self) -> Iterator[tuple[IntVector, IntVector]]:
        order = np.argsort(self._nearest[:, 0], kind="stable")
        ends = np.cumsum(np.bincount(self._nearest[:, 0], minlength=self._lists))
        for group in np.split(order, ends[:-1]):
            yield group, group

    def _across(self) -> Iterator[tuple[IntVector, IntVector]]:
        probes = self._nearest.shape[1]
        for places in listed(self._nearest, self._lists):
            rows, column = np.divmod(places, probes)
            yield rows[column > 0], rows[column == 0]

    def _take(self) -> tuple[IntVector, IntVector] | None:
        with self._taking:
            task = next(self._tasks, None)
            self._taken += 1
            flatten = self._taken % _FLATTEN == 0
        if flatten:
            with self._feeding:
                self._labeller.flatten()
        return task

    def _work(self) -> None:
        desk = Desk(self._space.rows.shape[1])
        while (task := self._take()) is not None:
            rows, columns = task
            alone = rows is columns
            if len(columns) and not alone:
                rows = self._unsettled(rows, columns)
            for left in range(0, len(columns), WIDTH):
                right = self._members[columns[left : left + WIDTH]]
                for top in range(0, min(len(rows), left + WIDTH) if alone else len(rows), HEIGHT):
                    ahead = top - left + 1 if alone else -HEIGHT
                    self._tile(desk, self._members[rows[top : top + HEIGHT]], right, ahead, twice=not alone)

    def _unsettled(self, rows: IntVector, columns: IntVector) -> IntVector:
        """Those of `rows` for which a neighbour among `columns` could change anything."""
        core, parent = self._labeller.state.core[0], self._labeller.state.parent[0]
        mine, theirs = self._members[rows], self._members[columns]
        root = parent[theirs[0]]
        if not (core[theirs].all() and (parent[theirs] == root).all()):
            return rows
        settled = core[mine] & (parent[mine] == root)
        return rows[np.flatnonzero(~settled)]

    def _tile(self, desk: Desk, rows: IntVector, columns: IntVector, ahead: int, *, twice: bool) -> None:
        left = desk.gather(self._space.rows, rows, 0)
        right = desk.gather(self._space.rows, columns, HEIGHT)
        products = desk.product(left, right)
        offset, whole = self._space.offset, np.zeros(max(len(rows), len(columns)), np.float32)
        while len(rows):
            count, done = kernels.scan(
                products,
                rows,
                columns,
                offset[rows],
                offset[columns],
                whole[: len(rows)],
                whole[: len(columns)],
                ahead,
                self._least,
                self._labeller.state,
                desk.pairs,
                desk.marks,
            )
            if twice:
                count = self._once(desk.pairs, count)
            if count:
                with self._feeding:
                    self._labeller.feed(desk.pairs, count)
            rows, products, ahead = rows[done:], products[done:], ahead + done

    def _once(self, pairs: Pairs, count: int) -> int:
        """Keep of the first `count` pairs those that count here. Returns how many."""
        i, j = np.searchsorted(self._members, pairs.rows[:count].T)
        mutual = (self._nearest[j] == self._nearest[i, :1]).any(axis=1)
        kept = np.flatnonzero(~mutual | (i < j))
        pairs.rows[: len(kept)] = pairs.rows[kept]
        pairs.values[: len(kept)] = pairs.values[kept]
        return len(kept)
