"""Several settings of DBSCAN at once, for comparing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.clustering.centring import CommonDirection, centred
from engine.clustering.clusters import Clustering, Part, assemble, rows_by_group
from engine.clustering.collapse import distinct_rows
from engine.clustering.exact import dbscan_grid
from engine.clustering.neighbours import sampled_rows
from engine.types import FloatVector


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A clustering for each setting, in their order; `centred`: a common direction was taken off first."""

    clusterings: tuple[Clustering, ...]
    centred: bool


def cluster_grid(
    vectors: FloatVector,
    groups: Sequence[str] | None,
    settings: Sequence[tuple[float, int]],
    *,
    centre: bool,
    seed: int,
) -> Grid:
    """`cluster_rules` for each (eps, min_samples) of `settings`, in their order, in one pass over the pairs.

    With `centre` the direction that all rows of a group share is taken off first, where they share one.
    `seed` draws the rows by which that is judged in a large group. Raises as `cluster_rules`.
    """
    parts: list[list[Part]] = [[] for _ in settings]
    any_centred = False
    for group, rows in rows_by_group(groups, len(vectors)):
        own = vectors if len(rows) == len(vectors) else vectors[rows]
        mean = _common_mean(own, seed) if centre and len(own) else None
        any_centred |= mean is not None
        for place, found in enumerate(dbscan_grid(centred(own, mean), settings)):
            eps = np.full(int(found.labels.max(initial=-1)) + 1, found.setting.eps)
            parts[place].append(Part(group, rows, found.labels, found.core, eps, mean))
    return Grid(tuple(assemble(vectors, one) for one in parts), any_centred)


def _common_mean(rows: FloatVector, seed: int) -> FloatVector | None:
    """The direction that the distinct rows share, as a calibration judges it."""
    kept = rows[distinct_rows(rows, np.zeros(len(rows), np.bool_))[0]]
    return CommonDirection.of(kept, sampled_rows(len(kept), seed)).mean
