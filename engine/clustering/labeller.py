"""The state of a one-pass DBSCAN: pairs of neighbours in, each once and in any order; labels out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.clustering import kernels
from engine.clustering.kernels import Pairs, Rows, State
from engine.clustering.labelling import Labelling, Setting
from engine.clustering.spaces import IntVector, Space


class Labeller:
    """Labels of n rows in several settings, from their pairs within eps.

    The rows of a component of core rows are joined in a union-find whose root is the smallest row. A row that
    is not core notes its neighbours, fewer than `min_samples` of them: should it become core, they are what
    it is joined to; if it never does, they are its whole neighbourhood and give its border label. So memory
    is O(n·min_samples) for each setting, whatever the number of pairs; and a pair that is core and joined
    already changes nothing.

    `weights` int64 (n,), at least 1 each: how many equal rows a row stands for.
    """

    def __init__(self, space: Space, settings: Sequence[Setting], weights: IntVector) -> None:
        n = len(space)
        order = sorted(range(len(settings)), key=lambda k: (settings[k].min_samples, settings[k].eps))
        self._places = np.argsort(order)
        self._settings = [settings[k] for k in order]
        enough = np.array([one.min_samples for one in self._settings])
        lengths = np.maximum(enough - 1, 1)
        ends = np.cumsum(lengths * n)
        shape = (len(settings), n)
        mass = np.broadcast_to(weights, shape).copy()
        self.state = State(
            targets=np.array([space.target(one.eps) for one in self._settings]),
            radii=np.array([one.eps for one in self._settings], np.float64),
            enough=enough,
            ends=np.searchsorted(enough, enough, side="right"),
            begins=ends - lengths * n,
            lengths=lengths,
            weights=weights,
            mass=mass,
            counts=np.zeros(shape, np.int32),
            noted=np.empty(int(ends[-1]), np.int32),
            core=mass >= enough[:, None],
            parent=np.broadcast_to(np.arange(n, dtype=np.int32), shape).copy(),
        )
        self.rows = Rows(
            original=space.original,
            norms=space.norms,
            euclidean=space.metric == "euclidean",
            searched=space.rows,
            offset=space.offset,
            slack=space.slack,
        )

    def feed(self, pairs: Pairs, count: int) -> None:
        """Take in the first `count` of `pairs`; not two at a time."""
        kernels.feed(self.rows, self.state, pairs, count)

    def flatten(self) -> None:
        """Shorten every way to a root; not while `feed` runs."""
        kernels.flatten(self.state.parent)

    def open_target(self, rows: IntVector, columns: IntVector) -> float | None:
        """The least target that a pair of these rows has to reach to change anything; None where none can."""
        least: float | None = None
        start = 0
        while start < len(self._settings):
            end = int(self.state.ends[start])
            settled = kernels.settled_from(self.state, start, end, rows, columns)
            if settled > start:
                target = float(self.state.targets[settled - 1])
                least = target if least is None else min(least, target)
            start = end
        return least

    def by_component(self, rows: IntVector) -> IntVector:
        """`rows` with those of one component together: large ones first, rows that are not core last.

        Components of the largest eps come first, within them those of the smaller ones.
        """
        keys: list[IntVector] = []
        for core, parent in zip(self.state.core, self.state.parent, strict=True):
            is_core, roots = core[rows], parent[rows].astype(np.int64)
            sizes = np.bincount(roots[is_core], minlength=len(parent))[roots]
            keys += [roots, np.where(is_core, -sizes, 1)]
        return rows[np.lexsort(keys)]

    def labellings(self) -> list[Labelling]:
        """The labels of every setting, in the order in which the settings were given."""
        self.flatten()
        found = [self._labelling(k) for k in range(len(self._settings))]
        return [found[place] for place in self._places]

    def _labelling(self, k: int) -> Labelling:
        core = self.state.core[k].copy()
        labels = np.full(len(core), -1, np.int64)
        # a component's root is its first core row: in the order of the roots they are numbered
        labels[core] = np.unique(self.state.parent[k][core], return_inverse=True)[1]
        kernels.label_border(self.state, k, labels)
        return Labelling(self._settings[k], labels, core)
