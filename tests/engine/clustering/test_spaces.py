"""What float32 is trusted with: a pair is never out below the target, and never in above it and the slack."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clustering.graph import neighbour_blocks
from engine.clustering.spaces import Metric, Space, row_norms


def rows_of(seed: int, dim: int, kind: str, dtype: str) -> npt.NDArray[Any]:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((60, dim))
    if kind == "close":  # the differences are in the last digits of float32
        rows = rows[:1] + 1e-3 * rows
    elif kind == "far":
        rows += 30.0
    elif kind == "any norms":
        rows *= np.exp(random.normal(0.0, 3.0, (60, 1)))
    elif kind == "unit":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[3] = 0.0
    rows[4] = rows[5]
    return rows.astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.sampled_from([1, 2, 7, 64, 501]),
    kind=st.sampled_from(["plain", "close", "far", "any norms", "unit"]),
    dtype=st.sampled_from(["float32", "float64"]),
    metric=st.sampled_from(["cosine", "euclidean"]),
)
def test_the_error_bounds_hold_for_every_pair(
    seed: int, dim: int, kind: str, dtype: str, metric: Metric
) -> None:
    """Any pair's distance taken for eps, which is as close to the target as a pair can be."""
    space = Space.of(rows_of(seed, dim, kind, dtype), metric)
    left, right = (side.astype(np.int64) for side in np.triu_indices(len(space), 1))
    apart = space.distances(left, right)
    targets = np.array([space.target(eps) for eps in apart])
    products = (space.rows @ space.rows.T)[left, right]
    values = products + space.offset[left] + space.offset[right]
    assert values.dtype == np.float32
    assert (values >= targets).all()
    assert (values - space.slack[left] - space.slack[right] <= targets).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distances_in_float64(metric: Metric, dtype: str) -> None:
    rows = rows_of(1, 20, "any norms", dtype)
    wide = rows.astype(np.longdouble)
    norms = np.sqrt((wide**2).sum(axis=1))
    norms[norms == 0] = 1
    left, right = np.arange(0, 30), np.arange(30, 60)
    if metric == "cosine":
        expected = 1 - (wide[left] * wide[right]).sum(axis=1) / (norms[left] * norms[right])
    else:
        expected = np.sqrt(((wide[left] - wide[right]) ** 2).sum(axis=1))
    found = Space.of(rows, metric).distances(left, right)
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-14, atol=1e-15)


def test_float32_rows_of_unit_norm_are_used_in_place() -> None:
    rows = rows_of(2, 16, "unit", "float32")
    space = Space.of(rows, "cosine")
    assert space.rows is rows
    assert space.original is rows
    other = Space.of(2 * rows, "cosine")
    np.testing.assert_allclose(other.rows, rows, rtol=0, atol=1e-6)


def test_norms_of_float32_rows_are_summed_in_float64() -> None:
    rows = np.full((2, 3), 1e-30, np.float32)
    np.testing.assert_allclose(row_norms(rows), np.sqrt(3) * np.float64(np.float32(1e-30)), rtol=1e-15)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["plain", "close", "any norms", "unit"]),
    metric=st.sampled_from(["cosine", "euclidean"]),
)
def test_the_graph_has_each_pair_on_the_right_side_of_each_radius(
    seed: int, kind: str, metric: Metric
) -> None:
    space = Space.of(rows_of(seed, 9, kind, "float32"), metric)
    n = len(space)
    every = np.arange(n)
    apart = np.stack([space.distances(np.full(n, row), every) for row in every])
    np.fill_diagonal(apart, 0.0)  # a zero row is at distance 1 from itself otherwise
    # distances that are there, which are neighbours then, and one beside them
    radii = sorted({float(eps) for eps in np.quantile(apart, [0.1, 0.3, 0.31, 0.6], method="lower")} - {0.0})
    radii = [*radii, radii[-1] * (1 + 1e-9)]
    for radius in radii:
        found = np.zeros((n, n), np.bool_)
        for block in neighbour_blocks(space, radii):
            near = block.within(radius)
            assert (np.diff(near.rows) >= 0).all()
            assert not found[near.rows, near.columns].any()
            found[near.rows, near.columns] = True
        np.testing.assert_array_equal(found, apart <= radius)
