"""Several settings at once: each as it would be alone, all in one pass over the pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clustering import blocked, dbscan, dbscan_grid, graph
from engine.clustering.exact import Backend, label
from engine.clustering.labelling import Labelling, Setting
from engine.clustering.spaces import Metric
from engine.types import FloatVector
from tests.support.clusterable import BACKENDS, Case, reference, small_tiles


def rows_of(seed: int, n: int = 200, dim: int = 12, spread: float = 0.5) -> FloatVector:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((6, dim))[random.integers(6, size=n)]
    rows = rows + spread * random.standard_normal((n, dim))
    rows = rows[random.integers(n, size=n)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def assert_same(found: Labelling, expected: Labelling) -> None:
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.core, expected.core)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    asked=st.lists(
        st.tuples(
            st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1.2]), st.sampled_from([1, 2, 3, 5, 9, 30])
        ),
        min_size=1,
        max_size=9,
    ),
    metric=st.sampled_from(["cosine", "euclidean"]),
    backend=st.sampled_from(BACKENDS),
    threads=st.sampled_from([1, 3]),
)
def test_each_setting_is_as_it_would_be_alone(
    seed: int, asked: list[tuple[float, int]], metric: Metric, backend: Backend, threads: int
) -> None:
    """In any order, some of them repeated."""
    rows = rows_of(seed, n=120)
    wanted = [Setting(*one) for one in asked]
    with pytest.MonkeyPatch.context() as patch:
        small_tiles(patch)
        together = label(rows, wanted, metric=metric, backend=backend, threads=threads)
    assert [found.setting for found in together] == wanted
    for setting, found in zip(wanted, together, strict=True):
        assert_same(found, label(rows, [setting], metric=metric, backend=backend)[0])
        labels, core = reference(Case(rows, metric, *setting, None))
        np.testing.assert_array_equal(found.labels, labels)
        np.testing.assert_array_equal(np.flatnonzero(found.core), core)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_count_in_every_setting(backend: Backend) -> None:
    rows = rows_of(1)
    random = np.random.default_rng(1)
    for weights in (random.integers(1, 5, 200), random.uniform(0.2, 2.0, 200), random.integers(-3, 5, 200)):
        wanted = [Setting(0.3, 9), Setting(0.1, 4), Setting(0.2, 25)]
        for found in label(rows, wanted, metric="cosine", weights=weights, backend=backend):
            case = Case(rows, "cosine", *found.setting, weights.astype(np.float64))
            np.testing.assert_array_equal(found.labels, reference(case)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_settings_apart_by_less_than_float32_can_tell(backend: Backend) -> None:
    rows = rows_of(5)
    wide = rows.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    apart = np.sort((1.0 - wide @ wide.T).ravel())
    eps = float(apart[len(apart) // 12])
    wanted = [Setting(eps + side, 5) for side in (1e-10, -1e-11, 1e-11, -1e-10, 0.1)]
    found = label(rows, wanted, metric="cosine", backend=backend)
    for one in found:
        np.testing.assert_array_equal(one.labels, reference(Case(rows, "cosine", *one.setting, None))[0])
    assert found[1].core.sum() <= found[2].core.sum()


def test_more_settings_multiply_no_more_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    rows = rows_of(2, n=300, spread=2.0)  # nothing is settled: every tile is due
    multiply: Callable[..., FloatVector] = blocked.Desk.product
    done: list[int] = []

    def counted(self: blocked.Desk, left: FloatVector, right: FloatVector) -> FloatVector:
        done[-1] += len(left) * len(right)
        return multiply(self, left, right)

    monkeypatch.setattr(blocked.Desk, "product", counted)
    monkeypatch.setattr(blocked, "upper_bounds", lambda *_: None)
    eight = [Setting(0.05 * k, 6) for k in range(1, 9)]
    for wanted in ([eight[-1]], eight):
        done.append(0)
        label(rows, wanted, metric="cosine", backend="blocked", threads=1)
    assert done[1] == done[0] > 0


def test_more_settings_search_no_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    search = graph.neighbour_blocks
    spans: list[tuple[int, int]] = []

    def noted(*given: Any, **more: Any) -> Iterator[graph.Block]:
        for block in search(*given, **more):
            spans.append((block.start, block.stop))
            yield block

    monkeypatch.setattr(graph, "neighbour_blocks", noted)
    rows = rows_of(3, n=300)
    label(rows, [Setting(0.05 * k, k) for k in range(1, 9)], metric="cosine", backend="faiss")
    distinct = len(np.unique(rows, axis=0))
    assert sum(stop - start for start, stop in spans) == distinct


def test_the_function_takes_pairs_and_keeps_their_order() -> None:
    rows = rows_of(4)
    wanted = [(0.3, 5), (0.1, 2), (0.3, 5), (0.2, 30)]
    found = dbscan_grid(rows, wanted, threads=1)
    assert [tuple(one.setting) for one in found] == wanted
    for (eps, min_samples), one in zip(wanted, found, strict=True):
        labels, core = dbscan(rows, eps=eps, min_samples=min_samples)
        np.testing.assert_array_equal(one.labels, labels)
        np.testing.assert_array_equal(one.core, core)
    assert not np.shares_memory(found[0].labels, found[2].labels)


def test_no_settings_and_no_rows() -> None:
    assert dbscan_grid(rows_of(0), []) == []
    found = dbscan_grid(np.empty((0, 4), np.float32), [(0.3, 5), (0.1, 2)])
    assert [len(one.labels) for one in found] == [0, 0]


@pytest.mark.parametrize(("wanted", "said"), [((2.0, 5), "eps"), ((0.3, 0), "min_samples")])
def test_one_bad_setting_is_refused(wanted: tuple[float, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dbscan_grid(rows_of(0), [(0.3, 5), wanted])
