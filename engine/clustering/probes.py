"""How many lists of an inverted file a row has to look into, read off a sample of rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.clustering.lists import Centroids
from engine.clustering.spaces import DoubleVector, IntVector, Space

# Sampled rows: half of them choose, the other half say what was reached.
_SAMPLED = 512
# Of a sampled row's neighbours so many are looked at.
_NEIGHBOURS = 32
_VALUES_PER_BLOCK = 2**22


class Probes(NamedTuple):
    """A number of lists, and the recall that it reaches on rows that did not choose it."""

    lists: int
    recall: float


def choose_probes(
    space: Space,
    members: IntVector,
    centroids: Centroids,
    *,
    distances: tuple[float, float],
    recall: float,
    most: int,
    seed: int,
) -> Probes | None:
    """The fewest probes with which `recall` of a row's neighbours are compared with it; None where `most` are
    too few.

    Two rows are compared where the list of one is among the probes of the other. Neighbours are rows of
    `members` at a distance above the first of `distances`, up to the second; the recall of a set of rows is
    the mean over those that have any. `seed` draws the sample, whose neighbours are found by comparing it
    with all of `members`.
    """
    random = np.random.default_rng(seed)
    sample = random.choice(members, min(len(members), _SAMPLED), replace=False)
    sources, others = _neighbours(space, members, sample, distances, random)
    ranks = np.minimum(
        _ranks(space, centroids, sources, others, most), _ranks(space, centroids, others, sources, most)
    )
    chooses = np.isin(sources, sample[::2])
    reached = _recalls(sources[chooses], ranks[chooses], most)
    enough = np.flatnonzero(reached >= recall - 1e-12)
    if not enough.size:
        return None
    count = int(enough[0]) + 1
    return Probes(count, float(_recalls(sources[~chooses], ranks[~chooses], most)[count - 1]))


def _neighbours(
    space: Space,
    members: IntVector,
    sample: IntVector,
    distances: tuple[float, float],
    random: np.random.Generator,
) -> tuple[IntVector, IntVector]:
    """Sampled rows and neighbours of theirs, at most `_NEIGHBOURS` each; float32 decides."""
    near, far = (np.float32(space.target(distance)) for distance in distances)
    found: list[list[IntVector]] = [[] for _ in sample]
    queries = space.rows[sample]
    step = max(1, _VALUES_PER_BLOCK // len(sample))
    for start in range(0, len(members), step):
        columns = members[start : start + step]
        products = queries @ space.rows[columns].T
        for number, row in enumerate(products):
            inside = columns[(row >= far) & (row < near)]
            found[number].append(inside[inside != sample[number]])
    sources, others = [], []
    for row, parts in zip(sample, found, strict=True):
        inside = np.concatenate(parts)
        if len(inside) > _NEIGHBOURS:
            inside = random.choice(inside, _NEIGHBOURS, replace=False)
        sources.append(np.full(len(inside), row))
        others.append(inside)
    return np.concatenate(sources), np.concatenate(others)


def _ranks(space: Space, centroids: Centroids, rows: IntVector, others: IntVector, most: int) -> IntVector:
    """Which of the centroids nearest to `rows[m]` is the list of `others[m]`, from 0; `most` where it is none
    of the first `most`.
    """
    distinct, inverse = np.unique(others, return_inverse=True)
    home = centroids.nearest(space.rows, distinct, 1)[inverse, 0]
    distinct, inverse = np.unique(rows, return_inverse=True)
    probed = centroids.nearest(space.rows, distinct, most)
    found = np.full(len(rows), most, np.int64)
    step = max(1, _VALUES_PER_BLOCK // most)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        pair, rank = np.nonzero(probed[inverse[part]] == home[part, None])
        found[part][pair] = rank
    return found


def _recalls(sources: IntVector, ranks: IntVector, most: int) -> DoubleVector:
    """The recall with 1, 2, … `most` probes, (most,); 1 where no row has a neighbour."""
    if not len(sources):
        return np.ones(most)
    _, row, counts = np.unique(sources, return_inverse=True, return_counts=True)
    shares = np.bincount(ranks, 1.0 / counts[row], minlength=most)[:most]
    return np.cumsum(shares) / len(counts)
