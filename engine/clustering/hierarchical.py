"""HDBSCAN, scikit-learn's, as another way from rules to clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.clustering.centring import CommonDirection, centred
from engine.clustering.clusters import Clustering, Part, assemble, rows_by_group
from engine.clustering.neighbours import sampled_rows
from engine.clustering.spaces import DoubleVector, IntVector
from engine.types import FloatVector


def hdbscan_rules(
    vectors: FloatVector, groups: Sequence[str] | None, *, min_samples: int, seed: int
) -> Clustering:
    """HDBSCAN (Campello, Moulavi, Sander 2013) of `vectors` (n, d), float32 of unit norm, by cosine.

    `min_samples` is the size of the smallest cluster, and the neighbours, itself included, whose distance is
    a row's density. Clusters are those with the largest excess of mass. A direction that all rows of a
    group share is taken off first. `groups` as in `cluster_rules`; `seed` draws the rows that tell of it.
    All members of a cluster count as cores; its eps is the median distance of a member to the last of those
    neighbours.

    Time is O(n²·d), memory O(n·d). Raises `ValueError` where `groups` has not one entry per row.
    """
    # scikit-learn takes a second to import and is needed only here
    from sklearn.cluster import HDBSCAN  # noqa: PLC0415
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

    parts = []
    for group, rows in rows_by_group(groups, len(vectors)):
        if not len(rows):
            continue
        own = vectors[rows]
        mean = CommonDirection.of(own, sampled_rows(len(own), seed)).mean
        # between unit vectors half the squared distance is the cosine distance: the same neighbours
        own = centred(own, mean)
        if len(rows) <= max(min_samples, 2):
            # scikit-learn refuses what cannot hold a cluster
            parts.append(
                Part(
                    group,
                    rows,
                    np.full(len(rows), -1, np.int64),
                    np.zeros(len(rows), bool),
                    np.empty(0),
                    mean,
                )
            )
            continue
        model = HDBSCAN(
            min_cluster_size=max(2, min_samples),
            min_samples=min_samples,
            algorithm="ball_tree",
            copy=True,
        )
        labels = model.fit(own.astype(np.float64)).labels_.astype(np.int64)
        nearest = NearestNeighbors(n_neighbors=min_samples, algorithm="brute").fit(own)
        last = nearest.kneighbors(own)[0][:, -1].astype(np.float64) ** 2 / 2
        parts.append(Part(group, rows, labels, labels >= 0, _medians(last, labels), mean))
    return assemble(vectors, parts)


def _medians(values: DoubleVector, labels: IntVector) -> DoubleVector:
    """The median of `values` in each cluster."""
    return np.array([np.median(values[labels == number]) for number in range(labels.max(initial=-1) + 1)])
