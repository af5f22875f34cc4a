"""k-distance curves: how far rows are from the neighbour that would make them cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.clustering.clusters import rows_by_group
from engine.clustering.neighbours import nearest_rows, sampled_rows
from engine.clustering.spaces import DoubleVector
from engine.types import FloatVector

# A curve for the eye: with so many rows a share of a half is known to ±.03 (95%).
_SAMPLE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class KDistances:
    """The k-distance curve of the rows that were clustered together (Ester et al. 1996).

    `distances` (m,) float64 ascending, cosine distances to the (`min_samples` - 1)-th neighbour, at evenly
    spread shares of the rows from 0 to 1. `eps` are the settings that were chosen, ascending; a row is a core
    where its distance is at most eps. `group` as in `Cluster`.
    """

    group: str | None
    min_samples: int
    distances: DoubleVector = field(repr=False)
    eps: tuple[float, ...]


def recorded_distances(record: Mapping[str, Any]) -> list[KDistances]:
    """The curves that a calibration looked at: from its `record`."""
    return [
        KDistances(
            one["group"],
            one["min_samples"],
            np.array([distance for _, distance in one["k_distance"]], np.float64),
            tuple(sorted({chosen["eps"] for chosen in one["chosen"]})),
        )
        for one in record["groups"]
    ]


def measured_distances(
    vectors: FloatVector, groups: Sequence[str] | None, *, min_samples: int, eps: float | None, seed: int
) -> list[KDistances]:
    """The curves of rows (n, d), float32 of unit norm, that were clustered as they are.

    `groups` as in `cluster_rules`. Of a large group a sample of rows, drawn with `seed`, is measured.
    """
    found = []
    for group, rows in rows_by_group(groups, len(vectors)):
        own = vectors if len(rows) == len(vectors) else vectors[rows]
        sample = sampled_rows(len(own), seed, _SAMPLE)
        near = nearest_rows(own, sample, min(len(own) - 1, min_samples - 1))
        distances = near.distances[:, -1] if near.k else np.zeros(len(sample), np.float32)
        chosen = () if eps is None else (eps,)
        found.append(KDistances(group, min_samples, np.sort(distances).astype(np.float64), chosen))
    return found
