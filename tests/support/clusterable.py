"""Generated cases for DBSCAN, what scikit-learn makes of them, and tiles small enough to show on them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import cluster as scikit_learn

from engine.clustering import DBSCAN, blocked, bound, graph, spaces
from engine.clustering.exact import Backend
from engine.types import FloatVector

Labels = npt.NDArray[np.int64]
Metric = Literal["cosine", "euclidean"]

BACKENDS: list[Backend] = ["faiss", "blocked"]

_DIMS = (2, 3, 5, 8, 17, 33, 64, 129, 384, 768)
_MIN_SAMPLES = (1, 2, 3, 4, 6, 9, 14, 25, 40)
# From a distance that is there, far less than float32 can tell.
_BESIDE = (-3e-8, -1e-9, -1e-10, -1e-11, 1e-11, 1e-10, 1e-9, 3e-8)
# Closer than this to eps, float64 cannot tell either.
_UNDECIDED = 2e-12


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Rows (n, d) float32 or float64, and how to cluster them."""

    rows: npt.NDArray[Any]
    metric: Metric
    eps: float
    min_samples: int
    weights: npt.NDArray[Any] | None

    def __repr__(self) -> str:
        kind = "unweighted" if self.weights is None else f"{self.weights.dtype} weights"
        return (
            f"{self.rows.shape} {self.rows.dtype} {self.metric} {self.eps!r} {self.min_samples} {kind}, "
            f"{'unit' if is_unit(self.rows) else 'any'} norms"
        )


def unit(rows: npt.NDArray[np.floating]) -> FloatVector:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def around_topics(seed: int, n: int, dim: int, *, topics: int, spread: float) -> FloatVector:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((topics, dim))
    return unit(centres[random.integers(topics, size=n)] + spread * random.standard_normal((n, dim)))


def is_unit(rows: npt.NDArray[Any]) -> bool:
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    return bool(np.all((np.abs(norms - 1.0) < 1e-6) | (norms == 0.0)))


def distances(rows: npt.NDArray[Any], metric: Metric = "cosine") -> npt.NDArray[np.float64]:
    """All distances (n, n) in float64; a zero row is at cosine distance 1 from every row, itself too."""
    rows = rows.astype(np.float64)
    if metric == "euclidean":
        rows = rows - rows.mean(axis=0)
        squares = np.einsum("ij,ij->i", rows, rows)
        return np.sqrt(np.maximum(squares[:, None] + squares - 2.0 * (rows @ rows.T), 0.0))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(norms > 0, norms, 1.0)
    return np.maximum(1.0 - rows @ rows.T, 0.0)


@functools.lru_cache(maxsize=2)
def case(seed: int, least: int, most: int) -> tuple[Case, Labels, Labels]:
    """A case of `least` to `most` rows, with scikit-learn's labels and core rows on the float64 copy."""
    random = np.random.default_rng(seed)
    made = _case(random, int(random.integers(least, most + 1)))
    return made, *reference(made)


def reference(made: Case) -> tuple[Labels, Labels]:
    """scikit-learn's labels and core rows on the float64 copy of the rows."""
    theirs = scikit_learn.DBSCAN(
        eps=made.eps, min_samples=made.min_samples, metric=made.metric, algorithm="brute"
    )
    theirs.fit(made.rows.astype(np.float64), sample_weight=made.weights)
    return theirs.labels_, theirs.core_sample_indices_


def cluster(made: Case, backend: Backend, n_jobs: int | None = 1) -> DBSCAN:
    found = DBSCAN(
        eps=made.eps,
        min_samples=made.min_samples,
        metric=made.metric,
        algorithm="brute",
        n_jobs=n_jobs,
        backend=backend,
    )
    return found.fit(made.rows, sample_weight=made.weights)


def assert_as_sklearn(made: Case, backend: Backend, n_jobs: int | None = 1) -> npt.NDArray[np.int64]:
    labels, core = reference(made)
    found = cluster(made, backend, n_jobs)
    np.testing.assert_array_equal(found.labels_, labels)
    np.testing.assert_array_equal(found.core_sample_indices_, core)
    return labels


def _case(random: np.random.Generator, n: int) -> Case:
    dim = int(random.choice(_DIMS))
    metric: Metric = "cosine" if random.random() < 0.6 else "euclidean"
    topics = int(random.integers(1, max(2, n // 12)))
    centres = random.standard_normal((topics, dim))
    spread = random.choice([0.05, 0.3, 0.6, 1.0], size=(topics, 1))  # of each topic its own
    topic = random.integers(topics, size=n)
    rows = centres[topic] + spread[topic] * random.standard_normal((n, dim))
    if random.random() < 0.3:  # few directions, more or less: bounds are at their tightest
        rank = max(1, dim // 8)
        rows = rows[:, :rank] @ random.standard_normal((rank, dim)) + 1e-4 * rows
    if random.random() < 0.4:
        rows = rows[random.integers(max(1, n // 2), size=n)]
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = 1.0
    if metric == "cosine":
        rows /= size
        if random.random() < 0.4:
            rows *= np.exp(random.normal(0.0, 2.0, (n, 1)))
    else:
        unit = float(random.choice([1.0, 1e-3, 1e4]))
        rows = unit * (rows / size.mean() + random.choice([0.0, 1.0]) * random.standard_normal(dim))
    if random.random() < 0.3:
        rows[random.permutation(n)[: random.integers(1, 5)]] = 0.0
    rows = rows.astype(np.float32 if random.random() < 0.7 else np.float64)
    min_samples = int(random.choice(_MIN_SAMPLES[: 5 if n < 60 else None]))
    eps = _eps(random, rows, metric, unit)
    return Case(rows, metric, eps, min_samples, _weights(random, n))


def _eps(random: np.random.Generator, rows: npt.NDArray[Any], metric: Metric, unit: float) -> float:
    """At or right beside one of the smaller distances, but no distance so close that it is undecided."""
    apart = distances(rows, metric)[np.triu_indices(len(rows), 1)]
    apart.sort()
    some = apart[np.searchsorted(apart, 1e-4 * unit) :]
    if not some.size:
        return 0.5 * unit
    for _ in range(100):
        eps = float(some[int(len(some) * random.choice([0.001, 0.005, 0.02, 0.06, 0.2, 0.5]))])
        eps += unit * (float(random.choice(_BESIDE)) if random.random() < 0.6 else 1e-3 * random.random())
        at = np.searchsorted(apart, eps)
        if np.abs(apart[max(0, at - 1) : at + 1] - eps).min() > _UNDECIDED * unit:
            return eps
    raise AssertionError("no eps between the distances")


def _weights(random: np.random.Generator, n: int) -> npt.NDArray[Any] | None:
    kind = random.random()
    if kind < 0.5:
        return None
    if kind < 0.65:
        return random.integers(1, 6, size=n).astype(np.float64)
    if kind < 0.8:
        return random.uniform(0.1, 3.0, size=n)
    return random.integers(-2, 5, size=n).astype(np.float64)  # some inhibit, some do not count


def small_tiles(patch: pytest.MonkeyPatch, *, height: int = 24, width: int = 40) -> None:
    """Let a few hundred rows go through many tiles, bounds, tiles with too many pairs, and several rounds."""
    patch.setattr(blocked, "HEIGHT", height)
    patch.setattr(blocked, "WIDTH", width)
    patch.setattr(blocked, "_CHUNKS", 2)
    patch.setattr(blocked, "_PAIRS", 50)
    patch.setattr(blocked, "_POOR", 1)
    patch.setattr(bound, "_LEAST_ROWS", 30)
    patch.setattr(bound, "_LEAST_DIM", 4)
    patch.setattr(bound, "_ROWS_FOR_BASIS", 50)
    patch.setattr(bound, "_ROWS_FOR_CHOICE", 20)
    patch.setattr(bound, "_WIDTHS", (1, 2, 5, 11, 23, 47, 95))
    patch.setattr(bound, "_MORE", 6)
    patch.setattr(bound, "_WORTH", -100.0)  # bounds pay always
    patch.setattr(bound, "_BLOCK", 33)
    patch.setattr(graph, "_LEAST_ROWS", 13)
    patch.setattr(graph, "_MOST_ROWS", 50)
    patch.setattr(spaces, "_VALUES_PER_BLOCK", 5000)
