"""Clusters of rules: members, centroids, and the long tail outside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.clustering.centring import centred
from engine.clustering.exact import dbscan
from engine.clustering.spaces import BoolVector, DoubleVector, IntVector
from engine.types import FloatVector

_VALUES_PER_BLOCK = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Cluster:
    """One cluster. `members` are row numbers, int64 ascending; `centroid` is (d,) float32 of unit norm,
    the direction of the mean of the members.

    `group` is the group whose rows were clustered, None where all were clustered together. `eps` is the
    cosine distance up to which its rows count as neighbours. Where a common direction was taken off the rows
    before they were clustered, `mean` (d,) is what was taken off, and centroid and distances are those of
    what was left; else it is None.
    """

    number: int
    group: str | None
    members: IntVector = field(repr=False)
    core_count: int
    centroid: FloatVector = field(repr=False)
    eps: float
    mean: FloatVector | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        return len(self.members)


@dataclass(frozen=True, slots=True, eq=False)
class LongTail:
    """The rows outside every cluster (DBSCAN's noise), each with the cluster it comes closest to.

    `rows` are row numbers, int64 (m,) ascending; `nearest` cluster numbers, int64 (m,), of the row's group
    where groups were clustered apart, -1 where that has no cluster; `cosine` the similarity with the nearest
    centroid, float32 (m,), NaN where there is none.
    """

    rows: IntVector
    nearest: IntVector
    cosine: FloatVector

    def near(self, number: int, least_cosine: float) -> IntVector:
        """The rows that come closest to cluster `number` and are that near to its centroid, nearest first."""
        close = np.flatnonzero((self.nearest == number) & (self.cosine >= least_cosine))
        return self.rows[close[np.argsort(-self.cosine[close], kind="stable")]]


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """What became of n rows: `labels` int64 (n,), -1 for noise; `core` bool (n,); the clusters by number."""

    labels: IntVector
    core: BoolVector
    clusters: tuple[Cluster, ...] = field(repr=False)
    long_tail: LongTail = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows that were clustered together: `group`, their numbers `rows` ascending, and what became of them.

    `labels` and `core` are (len(rows),), clusters numbered from 0; `eps` float64, one for each cluster;
    `mean` as in `Cluster`.
    """

    group: str | None
    rows: IntVector
    labels: IntVector
    core: BoolVector
    eps: DoubleVector
    mean: FloatVector | None = None


def cluster_rules(
    vectors: FloatVector, groups: Sequence[str] | None, *, eps: float, min_samples: int
) -> Clustering:
    """DBSCAN of the rows of `vectors`, shape (n, d) float32 of unit norm, by cosine distance.

    `groups` None clusters all rows together. Otherwise it names the group of each row: each group is
    clustered apart, in sorted order, and the cluster numbers run on from one group to the next.

    Raises `ValueError` as `dbscan` does, and where `groups` has not one entry per row.
    """
    parts = []
    for group, rows in rows_by_group(groups, len(vectors)):
        labels, core = dbscan(
            vectors if len(rows) == len(vectors) else vectors[rows], eps=eps, min_samples=min_samples
        )
        found = int(labels.max(initial=-1)) + 1
        parts.append(Part(group, rows, labels, core, np.full(found, eps)))
    return assemble(vectors, parts)


def assemble(vectors: FloatVector, parts: Sequence[Part]) -> Clustering:
    """One clustering of all rows of `vectors` (n, d) from `parts` that hold each row once.

    The cluster numbers run on from one part to the next.
    """
    n = len(vectors)
    labels = np.full(n, -1, np.int64)
    core = np.zeros(n, np.bool_)
    nearest = np.full(n, -1, np.int64)
    cosine = np.full(n, np.nan, np.float32)
    clusters: list[Cluster] = []
    for part in parts:
        rows = part.rows
        own = centred(vectors if len(rows) == n else vectors[rows], part.mean)
        found = [
            Cluster(
                number=len(clusters) + number,
                group=part.group,
                members=rows[members],
                core_count=int(part.core[members].sum()),
                centroid=_centroid(own[members]),
                eps=float(part.eps[number]),
                mean=part.mean,
            )
            for number, members in enumerate(_members(part.labels))
        ]
        noise = np.flatnonzero(part.labels == -1)
        if found and noise.size:
            number, similarity = _nearest(own, noise, np.stack([cluster.centroid for cluster in found]))
            nearest[rows[noise]] = number + len(clusters)
            cosine[rows[noise]] = similarity
        labels[rows] = np.where(part.labels == -1, -1, part.labels + len(clusters))
        core[rows] = part.core
        clusters += found
    tail = np.flatnonzero(labels == -1)
    return Clustering(labels, core, tuple(clusters), LongTail(tail, nearest[tail], cosine[tail]))


def inward(vectors: FloatVector, cluster: Cluster) -> IntVector:
    """The members of `cluster`, nearest to its centroid first: row numbers, int64.

    `vectors` are the ones that were clustered, as they came from the embedder. Of rows equally near the first
    goes first.
    """
    nearness = centred(vectors[cluster.members], cluster.mean) @ cluster.centroid
    return cluster.members[np.argsort(-nearness, kind="stable")]


def rows_by_group(groups: Sequence[str] | None, n: int) -> Iterator[tuple[str | None, IntVector]]:
    """The row numbers of each group, ascending, groups in sorted order; all n rows where `groups` is None.

    Raises `ValueError` where `groups` has not n entries.
    """
    if groups is None:
        yield None, np.arange(n)
        return
    if len(groups) != n:
        raise ValueError(f"{n} vectors need as many groups, not {len(groups)}")
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    for group in sorted(rows):
        yield group, np.array(rows[group], np.int64)


def _members(labels: IntVector) -> list[IntVector]:
    """The row numbers of each cluster, ascending, by cluster number."""
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(int(np.max(labels, initial=-1)) + 2))
    return [order[start:stop] for start, stop in itertools.pairwise(bounds)]


def _centroid(members: FloatVector) -> FloatVector:
    mean = members.mean(axis=0, dtype=np.float64)
    norm = float(np.linalg.norm(mean))
    # members that cancel out have no mean direction; that takes an eps near 2, or a cluster of zero rows
    direction = mean / norm if norm > 1e-9 else members[0]
    return np.asarray(direction, np.float32)


def _nearest(vectors: FloatVector, rows: IntVector, centroids: FloatVector) -> tuple[IntVector, FloatVector]:
    """For each of `rows` the nearest centroid (the first of equals) and its cosine similarity."""
    nearest = np.empty(len(rows), np.int64)
    cosine = np.empty(len(rows), np.float32)
    step = max(1, _VALUES_PER_BLOCK // len(centroids))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        similarity = vectors[rows[block]] @ centroids.T
        nearest[block] = similarity.argmax(axis=1)
        cosine[block] = similarity.max(axis=1).clip(-1.0, 1.0)
    return nearest, cosine
