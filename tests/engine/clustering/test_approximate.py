"""Approximate DBSCAN: what is compared is decided exactly, counts once, and its share is told as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import cluster
from sklearn.metrics import adjusted_rand_score

from engine.clustering import DBSCAN, approximate, dbscan, lists, probes
from engine.clustering.approximate import approximate_dbscan
from engine.clustering.lists import Centroids, listed
from engine.clustering.near_equal import stand_ins
from engine.clustering.spaces import Space
from engine.types import FloatVector

EPS, MIN_SAMPLES = 0.3, 5


def unit(rows: npt.NDArray[np.floating]) -> FloatVector:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def topics(seed: int, n: int, dim: int = 24, *, count: int = 30, spread: float = 0.1) -> FloatVector:
    """Rows around `count` directions, and a third around none."""
    random = np.random.default_rng(seed)
    centres = unit(random.standard_normal((count, dim)))
    rows = centres[random.integers(count, size=n)] + spread * random.standard_normal((n, dim))
    alone = random.random(n) < 0.33
    rows[alone] = random.standard_normal((int(alone.sum()), dim))
    return unit(rows)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of any size by lists, with any number of probes."""
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 2)
    monkeypatch.setattr(approximate, "_MOST_PROBED", 1.0)


def probing(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    """So many probes, all of them where None, whatever a sample says."""

    def choose(space: Any, members: Any, centroids: Any, **_: Any) -> probes.Probes:
        return probes.Probes(len(centroids) if count is None else count, 0.5)

    monkeypatch.setattr(approximate, "choose_probes", choose)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("seed", range(6))
def test_with_all_lists_probed_the_labels_are_exact(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    probing(monkeypatch, None)
    random = np.random.default_rng(seed)
    vectors = topics(seed, 500, count=12, spread=0.15)
    vectors = vectors[random.integers(300, size=500)] if seed % 2 else vectors
    vectors[random.integers(500, size=seed)] = 0.0
    for min_samples in (1, 2, 6):
        found = approximate_dbscan(vectors, EPS, min_samples, near_equal=0.0)
        labels, core = dbscan(vectors, eps=EPS, min_samples=min_samples)
        np.testing.assert_array_equal(found.labelling.labels, labels)
        np.testing.assert_array_equal(found.labelling.core, core)
        assert found.probes == found.lists > 20


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_pair_counts_once_and_where_either_of_its_rows_looks(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probing(monkeypatch, count)
    for name, value in (("HEIGHT", 16), ("WIDTH", 32), ("_FLATTEN", 2)):
        monkeypatch.setattr(approximate, name, value)
    vectors = topics(3, 700, count=10, spread=0.2)
    found = approximate_dbscan(vectors, EPS, MIN_SAMPLES, near_equal=0.0, threads=3)
    nearest = Centroids(vectors, np.arange(len(vectors)), 0).nearest(vectors, np.arange(len(vectors)), count)
    looks = (nearest[:, None, :] == nearest[None, :, :1]).any(axis=2)
    rows = vectors.astype(np.float64)
    apart = np.where(looks | looks.T, np.maximum(1.0 - rows @ rows.T, 0.0), 2.0)
    expected = cluster.DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed").fit(apart)
    np.testing.assert_array_equal(found.labelling.labels, expected.labels_)
    np.testing.assert_array_equal(np.flatnonzero(found.labelling.core), expected.core_sample_indices_)
    exact = dbscan(vectors, eps=EPS, min_samples=MIN_SAMPLES)[1]
    assert (found.labelling.core <= exact).all()


def recall_of(vectors: FloatVector, count: int, rows: npt.NDArray[np.int64] | None = None) -> float:
    """The mean over `rows` (all) with neighbours of the share that they are compared with."""
    members = np.arange(len(vectors))
    nearest = Centroids(vectors, members, 0).nearest(vectors, members, count)
    compared = np.zeros((len(vectors), len(vectors)), np.bool_)
    for column in nearest.T:
        compared |= column[:, None] == nearest[:, 0]
    near = vectors @ vectors.T >= 1 - EPS
    np.fill_diagonal(near, val=False)
    some = np.flatnonzero(near.any(axis=1))
    some = some if rows is None else np.intersect1d(some, rows)
    return float(((near & (compared | compared.T)).sum(axis=1)[some] / near.sum(axis=1)[some]).mean())


def test_the_recall_of_the_rows_that_did_not_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SAMPLED", "_NEIGHBOURS"):
        monkeypatch.setattr(probes, name, 10_000)
    vectors, members = topics(6, 800, count=20, spread=0.15), np.arange(800)
    centroids = Centroids(vectors, members, 0)
    found = probes.choose_probes(
        Space.of(vectors, "cosine"), members, centroids, distances=(0.0, EPS), recall=0.9, most=40, seed=0
    )
    sample = np.random.default_rng(0).choice(members, 800, replace=False)
    assert found is not None
    assert found.recall == pytest.approx(recall_of(vectors, found.lists, sample[1::2]), abs=1e-9)
    assert recall_of(vectors, found.lists, sample[::2]) >= 0.9
    assert found.lists > 1
    assert recall_of(vectors, found.lists - 1, sample[::2]) < 0.9


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("wanted", [0.9, 0.97, 0.99])
def test_the_recall_that_is_told_is_that_of_the_graph(wanted: float) -> None:
    vectors = topics(1, 1500, count=30, spread=0.12)
    found = approximate_dbscan(vectors, EPS, MIN_SAMPLES, recall=wanted, near_equal=0.0)
    assert 0 < found.probes < found.lists
    assert found.recall == pytest.approx(recall_of(vectors, found.probes), abs=0.03)
    assert found.recall >= wanted - 0.03
    if found.probes > 1:
        assert recall_of(vectors, found.probes - 1) < wanted + 0.03
    labels = dbscan(vectors, eps=EPS, min_samples=MIN_SAMPLES)[0]
    assert adjusted_rand_score(labels, found.labelling.labels) > 0.85


def test_where_neighbours_are_everywhere_all_pairs_are_compared() -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((2000, 24)))
    found = approximate_dbscan(vectors, 0.6, MIN_SAMPLES)
    assert (found.lists, found.probes, found.recall) == (0, 0, 1.0)
    labels, core = dbscan(vectors, eps=0.6, min_samples=MIN_SAMPLES)
    np.testing.assert_array_equal(found.labelling.labels, labels)
    np.testing.assert_array_equal(found.labelling.core, core)


@pytest.mark.usefixtures("few")
def test_a_row_and_its_near_copies_count_as_one() -> None:
    random = np.random.default_rng(5)
    vectors = topics(5, 1500)
    copies = unit(vectors[:600] + 1e-4 * random.standard_normal((600, 24)))
    both = np.concatenate([vectors, copies, vectors[:100]])
    found = approximate_dbscan(both, EPS, MIN_SAMPLES, near_equal=1e-5)
    # near copies that fell into different lists stay apart
    assert 1500 <= found.representatives < 1520
    same = found.labelling.labels[:600] == found.labelling.labels[1500:2100]
    assert same.mean() > 0.99
    np.testing.assert_array_equal(found.labelling.labels[:100], found.labelling.labels[2100:])
    apart = approximate_dbscan(both, EPS, MIN_SAMPLES, near_equal=0.0)
    assert apart.representatives == 2100


@pytest.mark.usefixtures("few")
def test_equal_runs_give_equal_labels_whatever_the_threads_and_from_a_memory_map(tmp_path: Path) -> None:
    vectors = topics(2, 1500)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    one = approximate_dbscan(vectors, EPS, MIN_SAMPLES, threads=1)
    other = approximate_dbscan(mapped, EPS, MIN_SAMPLES, threads=2)
    assert one.probes
    np.testing.assert_array_equal(one.labelling.labels, other.labelling.labels)
    assert (one.recall, one.probes) == (other.recall, other.probes)


def test_few_rows_and_none() -> None:
    found = approximate_dbscan(topics(0, 40), EPS, MIN_SAMPLES)
    assert (found.lists, found.recall) == (0, 1.0)
    assert approximate_dbscan(np.empty((0, 8), np.float32), EPS, 1).labelling.labels.shape == (0,)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"recall": 0.0}, "recall"),
        ({"recall": 1.5}, "recall"),
        ({"near_equal": -1e-3}, "near_equal"),
        ({"near_equal": EPS}, "near_equal"),
        ({"near_equal": float("nan")}, "near_equal"),
    ],
)
def test_what_is_refused(more: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        approximate_dbscan(topics(0, 40), EPS, MIN_SAMPLES, **more)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unit norm"):
        approximate_dbscan(2 * topics(0, 40), EPS, MIN_SAMPLES)
    with pytest.raises(ValueError, match="eps"):
        approximate_dbscan(topics(0, 40), 2.5, MIN_SAMPLES)


@pytest.mark.usefixtures("few")
def test_the_estimator_tells_its_recall() -> None:
    vectors = topics(4, 1500)
    model = DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="cosine", backend="ivf").fit(3 * vectors)
    assert 0.97 < model.recall_ <= 1.0
    found = approximate_dbscan(unit(3 * vectors), EPS, MIN_SAMPLES)
    assert adjusted_rand_score(found.labelling.labels, model.labels_) > 0.99
    weights = np.random.default_rng(0).integers(1, 4, size=len(vectors))
    weighted = model.fit(vectors, sample_weight=weights).labels_
    repeated = model.fit(np.repeat(vectors, weights, axis=0)).labels_
    np.testing.assert_array_equal(np.repeat(weighted, weights), repeated)
    assert DBSCAN(eps=EPS, metric="cosine").fit(vectors).recall_ == 1.0
    assert DBSCAN(eps=EPS, metric="manhattan").fit(vectors[:50]).recall_ == 1.0


def test_what_the_estimator_refuses() -> None:
    vectors = topics(4, 60)
    with pytest.raises(ValueError, match='for metric "cosine"'):
        DBSCAN(eps=EPS, backend="ivf").fit(vectors)
    with pytest.raises(ValueError, match="whole sample weights"):
        DBSCAN(eps=EPS, metric="cosine", backend="ivf").fit(vectors, sample_weight=np.full(60, 0.5))


@settings(max_examples=50, deadline=None)
@given(
    nearest=st.integers(1, 4).flatmap(
        lambda k: st.lists(st.permutations(range(6)).map(lambda p: p[:k]), min_size=1, max_size=30)
    ),
    entries=st.integers(1, 20),
)
def test_every_list_names_the_places_that_hold_it(nearest: list[list[int]], entries: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "_ENTRIES", entries)
        table = np.array(nearest, np.int32)
        found = list(listed(table, 6))
    assert [places.tolist() for places in found] == [
        np.flatnonzero(table.ravel() == number).tolist() for number in range(6)
    ]


def test_one_row_stands_for_others_never_for_a_chain() -> None:
    degrees = np.deg2rad([0, 5, 10, 15, 90])
    rows = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    distance = 1 - np.cos(np.deg2rad(6))
    groups = [np.arange(4), np.array([4])]
    assert stand_ins(rows, groups, distance).tolist() == [0, 0, 2, 2, 4]
    assert stand_ins(rows, groups, distance, most=1).tolist() == [0, 0, 2, 3, 4]
