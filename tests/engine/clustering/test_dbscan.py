"""C6: labels and core rows are scikit-learn's, numbering included, on the float64 copy of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench.clustering.data import Kind, embeddings
from engine.clustering import DBSCAN, dbscan
from engine.clustering.exact import Backend
from engine.types import FloatVector
from tests.support.clusterable import (
    BACKENDS,
    Case,
    around_topics,
    assert_as_sklearn,
    case,
    cluster,
    distances,
    is_unit,
    reference,
    small_tiles,
    unit,
)

FAST, SLOW = range(40), range(100, 360)


def on_a_circle(*degrees: float) -> FloatVector:
    angles = np.deg2rad(degrees)
    return unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    which: Backend = request.param
    return which


# ---- generated cases


@pytest.mark.parametrize("which", BACKENDS)
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("seed", FAST)  # the slowest to change: a case is made once
def test_generated_cases(seed: int, small: bool, which: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    made, labels, core = case(seed, 1, 300)
    if small:
        small_tiles(monkeypatch)
    found = cluster(made, which, n_jobs=1 + seed % 3)
    np.testing.assert_array_equal(found.labels_, labels, str(made))
    np.testing.assert_array_equal(found.core_sample_indices_, core, str(made))


@pytest.mark.slow
@pytest.mark.parametrize("which", BACKENDS)
@pytest.mark.parametrize("seed", SLOW)
def test_larger_generated_cases(seed: int, which: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:
        small_tiles(monkeypatch, height=100, width=300)
    made, labels, core = case(seed, 100, 3000 if seed % 8 == 0 else 900)
    found = cluster(made, which, n_jobs=1 + seed % 3)
    np.testing.assert_array_equal(found.labels_, labels, str(made))
    np.testing.assert_array_equal(found.core_sample_indices_, core, str(made))


def test_the_generated_cases_have_everything_that_could_go_wrong() -> None:
    seen = {"clusters": 0, "border": 0, "noise": 0, "weights": 0, "float64": 0, "any norms": 0, "zeros": 0}
    for seed in FAST[:50]:
        made, labels, core = case(seed, 1, 300)
        seen["clusters"] += labels.max() > 1
        seen["border"] += np.count_nonzero(labels >= 0) > len(core)
        seen["noise"] += bool((labels < 0).any())
        seen["weights"] += made.weights is not None
        seen["float64"] += made.rows.dtype == np.float64
        seen["any norms"] += made.metric == "cosine" and not is_unit(made.rows)
        seen["zeros"] += not made.rows.any(axis=1).all()
    assert min(seen.values()) >= 6, seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_at_scale(kind: Kind) -> None:
    rows = embeddings(kind, 20_000, 768)
    eps = {"sparse": 0.35, "dense": 0.4}[kind]
    labels, core = reference(Case(rows, "cosine", eps, 6, None))
    assert labels.max() > 1
    for backend in BACKENDS:
        found = DBSCAN(eps=eps, min_samples=6, metric="cosine", backend=backend).fit(rows)
        np.testing.assert_array_equal(found.labels_, labels, backend)
        np.testing.assert_array_equal(found.core_sample_indices_, core, backend)


# ---- pairs at the boundary


@pytest.mark.parametrize("dim", [3, 64, 300])
@pytest.mark.parametrize("side", [-3e-8, -1e-9, -1e-11, 1e-11, 1e-9, 3e-8])
def test_pairs_far_closer_to_eps_than_float32_can_tell(side: float, dim: int, backend: Backend) -> None:
    """A row is core by one pair that is `side` within eps, or is not: so each such pair must be right."""
    rows = around_topics(dim, 60, dim, topics=3, spread=0.6)
    apart = distances(rows)
    np.fill_diagonal(apart, 0.0)
    for row in range(0, 60, 10):
        nearest = np.sort(apart[row])
        eps = float(nearest[4]) + side
        made = Case(rows, "cosine", eps, 5, None)
        if np.abs(apart - eps).min() > 2e-12:
            assert (row in cluster(made, backend).core_sample_indices_) == (side > 0)
            assert_as_sklearn(made, backend)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_pair_at_eps_exactly_is_within_it(metric: Any, backend: Backend) -> None:
    # 3, 4 and 5, and right angles: no rounding anywhere
    rows = np.array([[3.0, 0.0], [0.0, 4.0], [-3.0, 0.0]])
    eps = 5.0 if metric == "euclidean" else 1.0
    at = cluster(Case(rows, metric, eps, 2, None), backend)
    below = cluster(Case(rows, metric, float(np.nextafter(eps, 0.0)), 2, None), backend)
    assert at.labels_.tolist() == [0, 0, 0]
    assert below.labels_.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("weights", [None, np.array([1.0, 1.0, 1.0, 0.5])])
def test_as_many_neighbours_as_min_samples_are_enough(
    weights: npt.NDArray[np.float64] | None, backend: Backend
) -> None:
    rows = on_a_circle(0, 1, 2, 90)
    eps = float(1.0 - np.cos(np.deg2rad(1.5)))
    found = cluster(Case(rows, "cosine", eps, 3, weights), backend)
    assert found.core_sample_indices_.tolist() == [1]
    assert found.labels_.tolist() == [0, 0, 0, -1]


# ---- border rows and numbering


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.sampled_from([(1, 0), (2, 1), (1, 1), (0, 1), (-1, 1), (0, 0)]), min_size=1, max_size=30
    ),
    eps=st.sampled_from([0.05, 0.11, 0.3, 0.6, 1.1, 1.7]),
    min_samples=st.integers(1, 8),
    which=st.sampled_from(BACKENDS),
)
def test_many_equal_rows_and_border_rows(
    rows: list[tuple[int, int]], eps: float, min_samples: int, which: Backend
) -> None:
    made = Case(unit(np.array(rows, np.float64)), "cosine", eps, min_samples, None)
    assert_as_sklearn(made, which)


@settings(max_examples=60, deadline=None)
@given(
    degrees=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    eps=st.sampled_from([0.5, 1.5, 2.5, 4.5]),
    min_samples=st.integers(1, 6),
    which=st.sampled_from(BACKENDS),
)
def test_rows_between_clusters(degrees: list[int], eps: float, min_samples: int, which: Backend) -> None:
    within = float(1.0 - np.cos(np.deg2rad(eps)))
    assert_as_sklearn(Case(on_a_circle(*degrees), "cosine", within, min_samples, None), which)


def test_a_border_row_takes_the_lowest_numbered_of_its_clusters(backend: Backend) -> None:
    rows = on_a_circle(30, 31, 32, 15, 0, -1, -2)
    made = Case(rows, "cosine", float(1.0 - np.cos(np.deg2rad(15.2))), 4, None)
    for turned in (rows, rows[::-1]):
        found = cluster(Case(turned, "cosine", made.eps, 4, None), backend)
        assert 3 not in found.core_sample_indices_
        assert found.labels_.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert_as_sklearn(made, backend)


def test_clusters_are_numbered_by_their_first_core_row_not_their_first_row(backend: Backend) -> None:
    # row 0 is a border row of the second cluster
    rows = on_a_circle(12, 40, 41, 42, 9, 8, 7)
    made = Case(rows, "cosine", float(1.0 - np.cos(np.deg2rad(3.5))), 3, None)
    assert assert_as_sklearn(made, backend).tolist() == [1, 0, 0, 0, 1, 1, 1]


# ---- the function


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 120),
    dim=st.integers(1, 24),
    topics=st.integers(1, 8),
    spread=st.sampled_from([0.1, 0.4, 0.7, 1.5]),
    eps=st.floats(0.01, 1.99),
    min_samples=st.integers(1, 15),
)
def test_the_function_gives_scikit_learns_labels_too(
    *, seed: int, n: int, dim: int, topics: int, spread: float, eps: float, min_samples: int
) -> None:
    rows = around_topics(seed, n, dim, topics=topics, spread=spread)
    assume(not np.any(np.abs(distances(rows) - eps) <= 2e-12))
    expected, expected_core = reference(Case(rows, "cosine", eps, min_samples, None))
    labels, core = dbscan(rows, eps=eps, min_samples=min_samples)
    assert (labels.dtype, core.dtype) == (np.int64, np.bool_)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(np.flatnonzero(core), expected_core)


def test_empty_input() -> None:
    labels, core = dbscan(np.empty((0, 8), np.float32), eps=0.4, min_samples=6)
    assert labels.shape == core.shape == (0,)
    assert labels.dtype == np.int64


@pytest.mark.parametrize(
    ("vectors", "eps", "min_samples", "said"),
    [
        (np.eye(2, dtype=np.float32), 0.0, 1, "eps"),
        (np.eye(2, dtype=np.float32), 2.0, 1, "eps"),
        (np.eye(2, dtype=np.float32), float("nan"), 1, "eps"),
        (np.eye(2, dtype=np.float32), 0.4, 0, "min_samples"),
        (np.eye(2), 0.4, 1, "float32"),
        (np.ones(2, np.float32), 0.4, 1, "shape"),
        (np.ones((2, 0), np.float32), 0.4, 1, "shape"),
        (np.ones((3, 2), np.float32), 0.4, 1, "row 0 has 1.41"),
        (np.array([[1, 0], [np.nan, 0]], np.float32), 0.4, 1, "row 1 has nan"),
        (np.array([[1, 0], [np.inf, 0]], np.float32), 0.4, 1, "row 1 has inf"),
    ],
)
def test_what_is_refused(vectors: FloatVector, eps: float, min_samples: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dbscan(vectors, eps=eps, min_samples=min_samples)
