"""C6: the labels are scikit-learn's, numbering included, on the float64 copy of the vectors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from engine.clustering import dbscan, graph, spaces
from engine.types import FloatVector


def unit(rows: npt.NDArray[np.floating]) -> FloatVector:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def rules(seed: int, n: int, dim: int, *, topics: int, spread: float, zeros: int = 0) -> FloatVector:
    """Rows around a few topics; about half of them repeat earlier rows exactly, in any order."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((topics, dim))
    rows = unit(centres[rng.integers(topics, size=n)] + spread * rng.standard_normal((n, dim)))
    rows = rows[rng.integers(max(1, n // 2), size=n)] if rng.random() < 0.5 else rows
    rows[rng.permutation(n)[:zeros]] = 0.0
    return rows


def distances(vectors: FloatVector) -> npt.NDArray[np.float64]:
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(norms > 0, norms, 1.0)
    return 1.0 - rows @ rows.T


def assert_as_sklearn(vectors: FloatVector, eps: float, min_samples: int) -> npt.NDArray[np.int64]:
    expected = DBSCAN(eps=eps, min_samples=min_samples, metric="cosine").fit(vectors.astype(np.float64))
    labels, core = dbscan(vectors, eps=eps, min_samples=min_samples)
    assert labels.dtype == np.int64
    assert core.dtype == np.bool_
    np.testing.assert_array_equal(labels, expected.labels_)
    np.testing.assert_array_equal(np.flatnonzero(core), expected.core_sample_indices_)
    return labels


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 120),
    dim=st.integers(1, 24),
    topics=st.integers(1, 8),
    spread=st.sampled_from([0.1, 0.4, 0.7, 1.5]),
    zeros=st.integers(0, 3),
    eps=st.floats(0.01, 1.99),
    min_samples=st.integers(1, 15),
)
def test_labels_are_scikit_learns(
    *, seed: int, n: int, dim: int, topics: int, spread: float, zeros: int, eps: float, min_samples: int
) -> None:
    vectors = rules(seed, n, dim, topics=topics, spread=spread, zeros=zeros)
    assume(not np.any(np.abs(distances(vectors) - eps) <= 1e-12))
    assert_as_sklearn(vectors, eps, min_samples)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.sampled_from([-1e-11, 1e-11, -1e-9, 1e-9, -3e-8, 3e-8]),
    dim=st.sampled_from([3, 8, 64]),
    min_samples=st.integers(2, 8),
)
def test_pairs_far_closer_to_eps_than_float32_can_tell(
    seed: int, side: float, dim: int, min_samples: int
) -> None:
    vectors = rules(seed, 60, dim, topics=3, spread=0.6)
    apart = distances(vectors)
    somewhere = np.sort(apart[apart > 1e-3])
    assume(somewhere.size > 0)
    eps = float(somewhere[len(somewhere) // 3]) + side
    assume(0.0 < eps < 2.0)
    assume(not np.any(np.abs(apart - eps) <= 1e-12))
    assert_as_sklearn(vectors, eps, min_samples)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.sampled_from([(1, 0), (2, 1), (1, 1), (0, 1), (-1, 1), (0, 0)]), max_size=30),
    eps=st.sampled_from([0.05, 0.11, 0.3, 0.6, 1.1, 1.7]),
    min_samples=st.integers(1, 8),
)
def test_many_equal_rows_and_border_points(rows: list[tuple[int, int]], eps: float, min_samples: int) -> None:
    vectors = unit(np.array(rows, np.float64).reshape(-1, 2))
    if len(vectors):
        assert_as_sklearn(vectors, eps, min_samples)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = rules(5, 400, 16, topics=6, spread=0.5)
    whole = assert_as_sklearn(vectors, 0.25, 5)
    assert whole.max() > 1
    monkeypatch.setattr(graph, "_LEAST_ROWS", 7)
    monkeypatch.setattr(graph, "_MOST_ROWS", 7)
    monkeypatch.setattr(spaces, "_VALUES_PER_BLOCK", 40)
    np.testing.assert_array_equal(dbscan(vectors, eps=0.25, min_samples=5)[0], whole)


def test_a_border_row_takes_the_lowest_numbered_of_its_clusters() -> None:
    degrees = np.deg2rad([30, 31, 32, 15, 0, -1, -2])
    vectors = unit(np.stack([np.cos(degrees), np.sin(degrees)], axis=1))
    eps = 1 - np.cos(np.deg2rad(15.2))
    labels, core = dbscan(vectors, eps=eps, min_samples=4)
    assert not core[3]
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert_as_sklearn(vectors, eps, 4)


def test_empty_input() -> None:
    labels, core = dbscan(np.empty((0, 8), np.float32), eps=0.4, min_samples=6)
    assert labels.shape == core.shape == (0,)
    assert labels.dtype == np.int64


def test_fewer_rows_than_min_samples_are_all_noise() -> None:
    labels, core = dbscan(np.eye(3, dtype=np.float32)[[0, 0, 1]], eps=0.4, min_samples=4)
    assert labels.tolist() == [-1, -1, -1]
    assert not core.any()


def test_one_row() -> None:
    assert dbscan(np.eye(2, dtype=np.float32)[:1], eps=0.4, min_samples=1)[0].tolist() == [0]


def test_zero_rows_are_equal_to_nothing_but_themselves() -> None:
    vectors = np.zeros((9, 4), np.float32)
    assert dbscan(vectors, eps=0.4, min_samples=2)[0].tolist() == [-1] * 9
    assert dbscan(vectors, eps=1.0, min_samples=9)[0].tolist() == [0] * 9


def test_rows_in_any_memory_order() -> None:
    vectors = rules(2, 80, 6, topics=3, spread=0.3)
    expected = dbscan(vectors, eps=0.2, min_samples=4)[0]
    np.testing.assert_array_equal(dbscan(np.asfortranarray(vectors), eps=0.2, min_samples=4)[0], expected)
    doubled = np.repeat(vectors, 2, axis=0)[::2]
    np.testing.assert_array_equal(dbscan(doubled, eps=0.2, min_samples=4)[0], expected)


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


def test_the_input_is_left_alone() -> None:
    vectors = rules(1, 50, 5, topics=2, spread=0.3, zeros=1)
    before = vectors.copy()
    vectors.flags.writeable = False
    dbscan(vectors, eps=0.3, min_samples=3)
    np.testing.assert_array_equal(vectors, before)


def test_importing_the_package_loads_neither_faiss_nor_scikit_learn() -> None:
    code = (
        "import sys, engine.clustering; print([m for m in ('faiss', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_labels_are_scikit_learns_at_scale(seed: int) -> None:
    vectors = rules(seed, 6_000, 256, topics=60, spread=0.8)
    assert_as_sklearn(vectors, 0.4, 6)
    apart = np.sort(distances(vectors[:2_000])[0])
    assert_as_sklearn(vectors[:2_000], float(apart[len(apart) // 20]) + 1e-10, 6)
