"""A map of vectors in two dimensions, for the eye."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine.clustering.centring import CommonDirection, centred
from engine.clustering.collapse import distinct_rows
from engine.clustering.neighbours import sampled_rows
from engine.clustering.spaces import DoubleVector, IntVector
from engine.types import FloatVector

# More points than this hide one another, and take the projection longer than a user waits for a picture.
MOST_POINTS = 1000
_PERPLEXITY = 30.0
_ITERATIONS = 350  # of which 250 exaggerate; on a thousand points later ones move little


@dataclass(frozen=True, slots=True, eq=False)
class RuleMap:
    """Where the distinct rows of n lie on the map, or a sample of them.

    `points` (m, 2) float64; `place` int64 (n,) is the point of each row, -1 for one that is not on the map;
    `distinct` counts the distinct rows.
    """

    points: DoubleVector = field(repr=False)
    place: IntVector = field(repr=False)
    distinct: int

    @property
    def shown(self) -> int:
        return len(self.points)


def map_rules(vectors: FloatVector, *, seed: int) -> RuleMap:
    """Put the rows of `vectors`, (n, d) float32 of unit norm, n ≥ 1, on a map by t-SNE.

    t-SNE (van der Maaten and Hinton 2008, scikit-learn's, begun at the principal components) keeps near rows
    near; two principal components of an embedding hold a fifth of it and lay topics over one another. How far
    distant rows are apart on the map means little. It knows nothing of clusters or labels.

    Equal rows are one point, and a direction that all share is taken off. Of more than `MOST_POINTS`
    distinct rows a sample is drawn with `seed`. The same rows give the same map: it works in one thread.
    """
    distinct, stands = distinct_rows(vectors, np.zeros(len(vectors), np.bool_))
    chosen = sampled_rows(len(distinct), seed, MOST_POINTS)
    place = np.full(len(distinct), -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    rows = vectors[distinct[chosen]]
    rows = centred(rows, CommonDirection.of(rows, np.arange(len(rows))).mean)
    return RuleMap(_project(rows, seed), place[stands], len(distinct))


def _project(rows: FloatVector, seed: int) -> DoubleVector:
    n, d = rows.shape
    if n < 4 or d < 2:  # too few for neighbourhoods: side by side
        return np.stack([np.arange(n, dtype=np.float64), np.zeros(n)], axis=1)
    # scikit-learn takes two seconds to import, and only pictures need this of it
    from sklearn.manifold import TSNE  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    method = TSNE(
        perplexity=min(_PERPLEXITY, (n - 1) / 3),
        max_iter=_ITERATIONS,
        metric="cosine",
        init="pca",
        random_state=seed,
        n_jobs=1,
    )
    with threadpool_limits(1):  # sums in several threads depend on which is first
        return np.asarray(method.fit_transform(rows), np.float64)
