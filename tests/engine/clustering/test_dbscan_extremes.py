"""What must not show: tiles, threads, memory layouts; what must not break: the extremes of every input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.clustering import graph, spaces
from engine.clustering.exact import Backend, label
from engine.clustering.labelling import Setting
from tests.support.clusterable import (
    BACKENDS,
    Case,
    around_topics,
    assert_as_sklearn,
    cluster,
    reference,
    small_tiles,
)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    which: Backend = request.param
    return which


# ---- tiles, threads, memory


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24), (7, 7), (1, 64), (33, 1000)])
@pytest.mark.parametrize("n_jobs", [1, 4])
def test_tiles_and_threads_do_not_show(
    height: int, width: int, n_jobs: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, height=height, width=width)
    for spread, eps in ((0.3, 0.2), (0.7, 0.35)):
        rows = around_topics(5, 400, 16, topics=6, spread=spread)
        assert_as_sklearn(Case(rows, "cosine", eps, 5, None), backend, n_jobs)


def test_a_graph_that_is_not_kept_is_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_LEAST_ROWS", 20)
    monkeypatch.setattr(graph, "_MOST_ROWS", 20)
    monkeypatch.setattr(graph, "_PAIR", 2**12)  # about 4,000 pairs have room
    rows = around_topics(5, 400, 16, topics=6, spread=0.5)
    starts: list[int] = []
    search = graph.neighbour_blocks

    def noted(*given: Any, start: int = 0, **more: Any) -> Any:
        starts.append(start)
        return search(*given, start=start, **more)

    monkeypatch.setattr(graph, "neighbour_blocks", noted)
    assert_as_sklearn(Case(rows, "cosine", 0.25, 5, None), "faiss")
    assert starts[0] == 0
    assert 0 < starts[1] < 400


@pytest.mark.parametrize(
    "laid_out",
    [
        np.asfortranarray,
        lambda rows: np.repeat(rows, 2, axis=0)[::2],
        lambda rows: np.hstack([rows, rows])[:, : rows.shape[1]],
        lambda rows: rows[::-1].copy()[::-1],
    ],
)
def test_rows_in_any_memory_order(laid_out: Callable[[Any], Any], backend: Backend) -> None:
    rows = around_topics(2, 90, 6, topics=3, spread=0.3)
    expected = assert_as_sklearn(Case(rows, "cosine", 0.1, 4, None), backend)
    found = cluster(Case(laid_out(rows), "cosine", 0.1, 4, None), backend)
    np.testing.assert_array_equal(found.labels_, expected)


def test_a_read_only_memory_map_is_searched_in_place(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = around_topics(4, 200, 12, topics=4, spread=0.4)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    searched: list[spaces.Space] = []
    prepare = spaces.Space.of.__func__  # type: ignore[attr-defined]

    def noted(cls: type[spaces.Space], *given: Any) -> spaces.Space:
        searched.append(prepare(cls, *given))
        return searched[-1]

    monkeypatch.setattr(spaces.Space, "of", classmethod(noted))
    found = label(mapped, [Setting(0.2, 4)], metric="cosine", backend=backend)[0]
    np.testing.assert_array_equal(found.labels, reference(Case(rows, "cosine", 0.2, 4, None))[0])
    assert np.shares_memory(searched[0].rows, mapped)
    assert np.shares_memory(searched[0].original, mapped)


def test_the_input_is_left_alone(backend: Backend) -> None:
    rows = around_topics(1, 60, 5, topics=2, spread=0.3)
    rows[7] = 0.0
    weights = np.ones(60)
    before = rows.copy()
    rows.flags.writeable = weights.flags.writeable = False
    for metric in ("cosine", "euclidean"):
        label(rows, [Setting(0.3, 3)], metric=metric, weights=weights, backend=backend)
    np.testing.assert_array_equal(rows, before)


# ---- extremes


def test_zero_rows_are_equal_to_nothing_but_themselves(backend: Backend) -> None:
    for zero in (np.zeros((9, 4), np.float32), np.full((9, 4), 1e-200)):  # whose squares are zero
        for eps, min_samples, expected in ((0.4, 2, -1), (0.4, 1, None), (1.0, 9, 0)):
            labels = cluster(Case(zero, "cosine", eps, min_samples, None), backend).labels_
            assert labels.tolist() == (list(range(9)) if expected is None else [expected] * 9)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("eps", [1e-300, 1e-12, 2.5, 1e300, np.float32(0.3), np.float64(0.3)])
def test_any_eps(eps: float, metric: Any, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """From "no two rows" to "all of them", and scalars of numpy."""
    small_tiles(monkeypatch)
    rows = around_topics(3, 120, 20, topics=4, spread=0.4)
    made = Case(rows, metric, eps, 3, None)
    if eps > 2:
        assert cluster(made, backend).labels_.tolist() == [0] * 120
    else:
        assert_as_sklearn(made, backend)


@pytest.mark.parametrize("min_samples", [1, 2, 120, 121, 5000, 2**40])
def test_any_min_samples(min_samples: int, backend: Backend) -> None:
    rows = around_topics(3, 120, 8, topics=4, spread=0.4)
    for eps in (0.2, 1.99):
        assert_as_sklearn(Case(rows, "cosine", eps, min_samples, None), backend)


@pytest.mark.parametrize("unit_of_length", [1e-30, 1e-100, 1e30, 1e100])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_tiny_and_huge_rows(unit_of_length: float, metric: Any, backend: Backend) -> None:
    rows = around_topics(3, 120, 20, topics=4, spread=0.4).astype(np.float64)
    expected = reference(Case(rows, metric, 0.6, 4, None))[0]
    eps = 0.6 if metric == "cosine" else 0.6 * unit_of_length
    found = cluster(Case(rows * unit_of_length, metric, eps, 4, None), backend)
    np.testing.assert_array_equal(found.labels_, expected)


def test_rows_far_from_the_origin_and_one_far_from_them(backend: Backend) -> None:
    rows = around_topics(3, 120, 20, topics=4, spread=0.4).astype(np.float64)
    expected = reference(Case(rows, "euclidean", 0.6, 4, None))[0]
    moved = np.vstack([rows + 1000.0, np.full((1, 20), -1e6)])
    found = cluster(Case(moved, "euclidean", 0.6, 4, None), backend)
    np.testing.assert_array_equal(found.labels_, [*expected, -1])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rows_too_large_to_square_are_refused(metric: Any, backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"a row has a norm beyond 1e\+150.*scale the rows"):
        cluster(Case(np.full((3, 2), 1e200), metric, 0.5, 2, None), backend)


def test_one_row(backend: Backend) -> None:
    for rows in (np.ones((1, 3)), np.zeros((1, 3), np.float32)):
        for metric in ("cosine", "euclidean"):
            assert cluster(Case(rows, metric, 0.4, 1, None), backend).labels_.tolist() == [0]
            assert cluster(Case(rows, metric, 0.4, 2, None), backend).labels_.tolist() == [-1]


def test_all_rows_equal(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    for metric in ("cosine", "euclidean"):
        for rows in (np.full((200, 5), 0.1), np.full((200, 5), -3, np.float32)):
            made = Case(rows, metric, 0.01, 200, None)
            assert cluster(made, backend).labels_.tolist() == [0] * 200
            weights = np.full(200, 0.5)  # these are not collapsed
            made = Case(rows, metric, 0.01, 100, weights)
            assert cluster(made, backend).labels_.tolist() == [0] * 200
