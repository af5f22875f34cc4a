"""The direction that all vectors of an embedder share, and how it is taken off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.clustering.spaces import IntVector, row_norms
from engine.types import FloatVector

_VALUES_PER_BLOCK = 2**20
# Of a row that lies this near to the mean only rounding errors would be left: it becomes a zero row.
_NOTHING_LEFT = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class CommonDirection:
    """Whether rows share a direction that says nothing of any of them.

    Embedders of whole texts put them into a narrow cone (Ethayarajh 2019; Mu and Viswanath 2018, "All but the
    top"): unrelated texts have cosines of .2 to .5, and no distance tells topics apart before that is taken
    off. A direction counts as common when three of four pairs of rows have a cosine above `chance`, one
    standard deviation of the cosine of two random directions in d dimensions, 1/√d. Topics alone cannot
    bring that about: rows of different topics would have to be alike.

    `squared_mean` is the squared norm of the mean of the rows: 1/n by chance. `lower_quartile` that of the
    cosines of pairs. `mean` is (d,) float32 where it is to be taken off, else None.
    """

    squared_mean: float
    lower_quartile: float
    chance: float
    mean: FloatVector | None = field(repr=False)

    @classmethod
    def of(cls, vectors: FloatVector, sample: IntVector) -> CommonDirection:
        """Of `vectors` (n, d) of unit norm, n ≥ 1; pairs among the rows `sample` are compared."""
        d = vectors.shape[1]
        mean = vectors.mean(axis=0, dtype=np.float64)
        chosen = vectors[sample]
        cosines = (chosen @ chosen.T)[np.triu_indices(len(chosen), 1)]
        quartile = float(np.quantile(cosines, 0.25)) if cosines.size else 0.0
        chance = d**-0.5
        strong = quartile > chance
        return cls(float(mean @ mean), quartile, chance, mean.astype(np.float32) if strong else None)

    def to_json(self) -> dict[str, Any]:
        """The figures behind the decision, for clustering.json."""
        return {
            "taken_off": self.mean is not None,
            "squared_mean": self.squared_mean,
            "lower_quartile_of_cosines": self.lower_quartile,
            "chance": self.chance,
        }


def centred(vectors: FloatVector, mean: FloatVector | None) -> FloatVector:
    """`vectors` (n, d) with `mean` taken off, of unit norm again; as they are where `mean` is None.

    A row of which nothing is left becomes a zero row: it has no direction, and no neighbour.
    """
    if mean is None:
        return vectors
    found = np.empty_like(vectors)
    step = max(1, _VALUES_PER_BLOCK // vectors.shape[1])
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step] - mean
        norms = row_norms(block)[:, None]
        gone = norms < _NOTHING_LEFT
        found[start : start + step] = np.where(gone, 0.0, block / np.where(gone, 1.0, norms))
    return found
