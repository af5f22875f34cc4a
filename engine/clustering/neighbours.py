"""The nearest neighbours of a sample of rows among all of them: what calibration looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.clustering.spaces import IntVector
from engine.types import FloatVector

# Figures of a whole set are read off so many of its rows: a share of a half is then known to ±.016 (95%).
SAMPLE = 4096
_VALUES_PER_BLOCK = 2**23


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The k rows nearest to each of m sampled rows, of n in all, by cosine distance; a row is not its own.

    `sources` int64 (m,) ascending; `rows` int64 (m, k), nearest first; `distances` float32 (m, k).
    """

    n: int
    sources: IntVector = field(repr=False)
    rows: IntVector = field(repr=False)
    distances: FloatVector = field(repr=False)

    @property
    def k(self) -> int:
        return int(self.rows.shape[1])


def sampled_rows(n: int, seed: int, most: int = SAMPLE) -> IntVector:
    """At most `most` of n row numbers, ascending, drawn with `seed`; all of them where they are no more."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False)).astype(np.int64)


def nearest_rows(vectors: FloatVector, sources: IntVector, k: int) -> Neighbours:
    """Search all rows of `vectors`, (n, d) float32 of unit norm, for the `k` < n nearest to each source.

    O(m·n·d) time; beside the result, one block of cosines is held.
    """
    n = len(vectors)
    rows = np.empty((len(sources), k), np.int64)
    distances = np.empty((len(sources), k), np.float32)
    step = max(1, _VALUES_PER_BLOCK // n)
    for start in range(0, len(sources) if k else 0, step):
        block = sources[start : start + step]
        cosine = vectors[block] @ vectors.T
        cosine[np.arange(len(block)), block] = -np.inf
        found = np.sort(np.argpartition(-cosine, k - 1, axis=1)[:, :k], axis=1)
        near = np.take_along_axis(cosine, found, axis=1)
        order = np.argsort(-near, axis=1, kind="stable")
        rows[start : start + step] = np.take_along_axis(found, order, axis=1)
        distances[start : start + step] = 1.0 - np.take_along_axis(near, order, axis=1)
    return Neighbours(n, sources, rows, np.maximum(distances, 0.0))


def label_mixing(neighbours: Neighbours, labels: Sequence[str]) -> float:
    """How far neighbours share their label: 1 all of them do, 0 as often as chance has it.

    Newman's assortativity coefficient of the neighbour graph (Mixing patterns in networks, 2003). `labels`
    name the label of each of the n rows. With a single label it is 1.
    """
    names, number = np.unique(np.asarray(labels), return_inverse=True)
    if len(names) < 2 or neighbours.rows.size == 0:
        return 1.0
    pairs = np.zeros((len(names), len(names)))
    np.add.at(
        pairs, (np.repeat(number[neighbours.sources], neighbours.k), number[neighbours.rows.ravel()]), 1
    )
    pairs /= pairs.sum()
    expected = float(pairs.sum(axis=1) @ pairs.sum(axis=0))
    return float((np.trace(pairs) - expected) / (1.0 - expected)) if expected < 1.0 else 1.0
