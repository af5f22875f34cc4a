"""The clusters of a grid of densities as a tree, and the best of them that do not overlap.

With the same min_samples, the cores of DBSCAN at a smaller eps are cores at a larger one, and what hangs
together at the smaller hangs together at the larger: the clusters of all eps are a tree, and splitting a
giant cluster by density is going down in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.clustering.labelling import Labelling
from engine.clustering.neighbours import Neighbours
from engine.clustering.spaces import BoolVector, DoubleVector, IntVector


@dataclass(frozen=True, slots=True)
class Node:
    """One cluster of one labelling: `level` in the grid, `number` there, and the nodes into which it falls
    apart at the next smaller eps.
    """

    level: int
    number: int
    children: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class DensityTree:
    """All clusters of `labellings`, which have one min_samples and ascending eps. Children stand ahead of
    their parents in `nodes`; `roots` are the clusters at the largest eps.

    Of each node, float64: its `significance`; its `size`, the share of all rows; and `within`, the share of
    all pairs of neighbours that lie within it.
    """

    labellings: Sequence[Labelling]
    nodes: tuple[Node, ...] = field(repr=False)
    roots: tuple[int, ...]
    significance: DoubleVector = field(repr=False)
    size: DoubleVector = field(repr=False)
    within: DoubleVector = field(repr=False)

    @classmethod
    def of(cls, labellings: Sequence[Labelling], neighbours: Neighbours) -> DensityTree:
        """Build the tree; `neighbours` say what each cluster is worth."""
        nodes: list[Node] = []
        sizes: list[DoubleVector] = []
        within: list[DoubleVector] = []
        below: dict[int, list[int]] = {}  # cluster of the level at hand -> its children
        for level, found in enumerate(labellings):
            above = labellings[level + 1] if level + 1 < len(labellings) else None
            parents: dict[int, list[int]] = {}
            cores = np.flatnonzero(found.core)
            _, first = np.unique(found.labels[cores], return_index=True)
            for number, core in enumerate(cores[first].tolist()):
                if above is not None:
                    parents.setdefault(int(above.labels[core]), []).append(len(nodes))
                nodes.append(Node(level, number, tuple(below.get(number, ()))))
            below = parents
            rows, pairs = _sizes(found.labels, neighbours)
            sizes.append(rows)
            within.append(pairs)
        last = len(labellings) - 1
        rows, pairs = np.concatenate(sizes), np.concatenate(within)
        return cls(
            labellings,
            tuple(nodes),
            tuple(i for i, one in enumerate(nodes) if one.level == last),
            significance(rows, pairs, neighbours),
            rows / neighbours.n,
            pairs / max(1, neighbours.n * neighbours.k),
        )

    def modularity(self, resolution: float) -> DoubleVector:
        """Of each node its term of the modularity: pairs of neighbours within, less what its size gives.

        Newman and Girvan 2004; `resolution` as in Reichardt and Bornholdt 2006, smaller for broader clusters.
        """
        return self.within - resolution * self.size**2

    def best(self, values: DoubleVector) -> tuple[int, ...]:
        """The nodes, none within another, with the largest sum of `values`; ascending.

        Of equals the larger cluster is taken. Nodes of negative value are never taken.
        """
        best = values.tolist()
        taken = [False] * len(best)
        for i, node in enumerate(self.nodes):
            apart = sum(best[child] for child in node.children)
            taken[i] = best[i] >= max(apart, 0.0)
            if not taken[i]:
                best[i] = apart
        chosen = []
        waiting = list(self.roots)
        while waiting:
            i = waiting.pop()
            if taken[i]:
                chosen.append(i)
            else:
                waiting += self.nodes[i].children
        return tuple(sorted(chosen))

    def labels_of(self, chosen: Sequence[int]) -> tuple[IntVector, BoolVector, DoubleVector]:
        """The chosen clusters as one labelling: labels (n,), core flags (n,), and the eps of each cluster.

        A border row that several of them reach goes to the densest. Clusters are numbered by their first row.
        """
        n = len(self.labellings[0].labels)
        labels = np.full(n, -1, np.int64)
        core = np.zeros(n, np.bool_)
        # children, and so smaller eps, stand first: from the back, the densest is written last
        for place in reversed(range(len(chosen))):
            node = self.nodes[chosen[place]]
            labels[self.labellings[node.level].labels == node.number] = place
        for place, i in enumerate(chosen):
            found = self.labellings[self.nodes[i].level]
            cores = (found.labels == self.nodes[i].number) & found.core
            labels[cores] = place
            core |= cores
        _, first = np.unique(labels[labels >= 0], return_index=True)
        order = np.argsort(first)
        renumbered = np.empty(len(chosen) + 1, np.int64)
        renumbered[order] = np.arange(len(chosen))
        renumbered[-1] = -1
        eps = np.array([self.labellings[self.nodes[chosen[i]].level].setting.eps for i in order])
        return renumbered[labels], core, eps


def significance(sizes: DoubleVector, within: DoubleVector, neighbours: Neighbours) -> DoubleVector:
    """How improbable it is by chance that so many neighbours lie within each of several clusters, in nats.

    `sizes` are their rows, `within` the pairs of neighbours inside. It is n_c(n_c - 1)·KL(q || p), with q the
    share of a cluster's ordered pairs that are neighbours and p that of all pairs; 0 where they are no more
    often neighbours than others. The sum over clusters is the significance of the partition (Traag, Krings,
    Van Dooren: Significant scales in community structure, 2013). It has no resolution to choose: unlike
    modularity it merges no clusters for being small.
    """
    pairs = sizes * (sizes - 1.0)
    chance = neighbours.k / max(1, neighbours.n - 1)
    share = np.minimum(1.0, within / np.maximum(pairs, 1.0))
    return np.where(share > chance, pairs * _divergence(share, chance), 0.0)


def _sizes(labels: IntVector, neighbours: Neighbours) -> tuple[DoubleVector, DoubleVector]:
    """Rows of each cluster, and pairs of neighbours within it as the sampled rows tell."""
    count = int(labels.max(initial=-1)) + 1
    sizes = np.bincount(labels[labels >= 0], minlength=count).astype(np.float64)
    own = labels[neighbours.sources]
    inside = (labels[neighbours.rows] == own[:, None]).sum(axis=1)
    within = np.bincount(own[own >= 0], inside[own >= 0], minlength=count).astype(np.float64)
    within *= neighbours.n / max(1, len(neighbours.sources))
    return sizes, within


def _divergence(share: DoubleVector, chance: float) -> DoubleVector:
    if not 0.0 < chance < 1.0:
        return np.zeros_like(share)
    with np.errstate(divide="ignore", invalid="ignore"):
        yes = np.where(share > 0.0, share * np.log(share / chance), 0.0)
        no = np.where(share < 1.0, (1.0 - share) * np.log((1.0 - share) / (1.0 - chance)), 0.0)
    return yes + no
