"""Upper bounds of inner products: never below them, and worth their while only where they save."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.clustering.data import embeddings
from engine.clustering import bound
from engine.clustering.bound import Bounds, upper_bounds
from engine.clustering.spaces import Metric, Space
from tests.support.clusterable import small_tiles


def flat(seed: int, n: int, dim: int, rank: int, noise: float) -> npt.NDArray[np.float32]:
    """Rows of unit norm in `rank` directions and a little in the others: bounds are at their tightest."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((n, rank)) @ random.standard_normal((rank, dim))
    rows += noise * random.standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made(space: Space, targets: list[float]) -> Bounds:
    found = upper_bounds(space, targets, np.random.default_rng(0))
    assert found is not None
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.sampled_from([5, 24, 130]),
    rank=st.integers(1, 6),
    noise=st.sampled_from([0.0, 1e-4, 1e-3, 0.3]),
    metric=st.sampled_from(["cosine", "euclidean"]),
)
def test_no_bound_is_below_what_it_bounds(
    seed: int, dim: int, rank: int, noise: float, metric: Metric
) -> None:
    """Both bounds, of every pair, with what the space allows for the product itself untouched."""
    rows = flat(seed, 80, dim, rank, noise)
    rows[3] = 0.0
    rows[4] = rows[5]
    space = Space.of(rows, metric)
    with pytest.MonkeyPatch.context() as patch:
        small_tiles(patch)
        bounds = made(space, [0.0, 0.5, 0.9])
    exact = space.rows.astype(np.float64)
    pairs = np.triu_indices(len(rows), 1)
    products = (exact @ exact.T)[pairs]
    added = (bounds.offset - space.offset).astype(np.float64)
    assert set(bounds.widths.values()) < set(bounds.rests)
    for width, rest in bounds.rests.items():
        part = bounds.coordinates[:, :width].astype(np.float64)
        upper = part @ part.T + np.outer(rest, rest).astype(np.float64)
        assert (upper[pairs] >= products - 1e-7).all()  # rests alone are not too small ...
        assert ((upper + added[:, None] + added)[pairs] >= products).all()  # ... nor the bounds


def test_the_error_that_is_allowed_is_larger_than_any_there_is() -> None:
    """What coordinates and rests in float32 are off, against float64."""
    rows = flat(7, 400, 768, 40, 1e-3)
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((768, 160)))[0].astype(np.float32)
    error = bound._projection_error(768, 160)
    coordinates = rows @ basis
    exact = rows.astype(np.float64)
    exact_basis = np.linalg.qr(basis.astype(np.float64))[0]
    exact_basis *= np.sign((exact_basis * basis).sum(axis=0))
    exact_coordinates = exact @ exact_basis
    off = coordinates.astype(np.float64) @ coordinates.T - exact_coordinates @ exact_coordinates.T
    left = np.linalg.norm(exact - exact_coordinates @ exact_basis.T, axis=1)
    assert np.abs(off).max() <= error
    assert (bound._rest(bound._squares(rows), coordinates, error) >= left).all()


def test_bounds_rule_out_most_pairs_of_embeddings() -> None:
    space = Space.of(embeddings("sparse", 4096, 256), "cosine")
    target = space.target(0.3)
    bounds = made(space, [target])
    width = bounds.widths[target]
    part, rest, offset = bounds.coordinates[:, :width], bounds.rests[width], bounds.offset
    assert width <= 128
    values = part[:1000] @ part[1000:2000].T + np.outer(rest[:1000], rest[1000:2000])
    assert np.mean(values + offset[:1000, None] + offset[1000:2000] >= target) < 0.05


def test_no_bounds_where_they_would_not_pay() -> None:
    random = np.random.default_rng(0)
    few = Space.of(embeddings("sparse", 500, 128), "cosine")
    narrow = Space.of(random.standard_normal((5000, 8)).astype(np.float32), "cosine")
    # as strong in every direction, so that bounds tell little
    round_ = random.standard_normal((4096, 96)).astype(np.float32)
    for space, target in ((few, 0.7), (narrow, 0.7), (Space.of(round_, "cosine"), 0.1)):
        assert upper_bounds(space, [target], random) is None


def test_each_target_has_a_width_of_its_own() -> None:
    space = Space.of(embeddings("sparse", 4096, 256), "cosine")
    targets = [space.target(eps) for eps in (0.5, 0.1)]
    widths = made(space, targets).widths
    assert widths[targets[1]] < widths[targets[0]]
