"""What is told of the clusters: members, centroids, the long tail, the way inward."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clustering import Clustering, cluster_rules, dbscan, inward
from engine.types import FloatVector


def around(centres: FloatVector, each: int, seed: int = 0, spread: float = 0.05) -> FloatVector:
    rng = np.random.default_rng(seed)
    rows = np.repeat(centres, each, axis=0)
    rows = rows + spread * rng.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def angles(*degrees: float) -> FloatVector:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def assert_sound(clustering: Clustering, vectors: FloatVector) -> None:
    """What holds of every clustering."""
    n = len(vectors)
    members = [row for cluster in clustering.clusters for row in cluster.members.tolist()]
    assert sorted([*members, *clustering.long_tail.rows.tolist()]) == list(range(n))
    assert [cluster.number for cluster in clustering.clusters] == list(range(len(clustering.clusters)))
    for cluster in clustering.clusters:
        assert cluster.size == len(cluster.members) > 0
        assert np.all(np.diff(cluster.members) > 0)
        np.testing.assert_array_equal(clustering.labels[cluster.members], cluster.number)
        assert cluster.core_count == clustering.core[cluster.members].sum() > 0
        assert cluster.centroid.dtype == np.float32
        assert np.linalg.norm(cluster.centroid) == pytest.approx(1.0, abs=1e-6)
    assert not clustering.core[clustering.long_tail.rows].any()
    assert np.all(clustering.labels[clustering.long_tail.rows] == -1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(0, 4), n=st.integers(0, 90))
def test_every_row_is_in_one_cluster_or_in_the_long_tail(seed: int, groups: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = around(rng.standard_normal((3, 6)).astype(np.float32), n, seed, spread=0.6)[
        rng.permutation(3 * n)
    ]
    names = [f"g{number}" for number in rng.integers(groups, size=3 * n)] if groups else None
    clustering = cluster_rules(vectors, names, eps=0.2, min_samples=4)
    assert_sound(clustering, vectors)
    if names is None:
        labels, core = dbscan(vectors, eps=0.2, min_samples=4)
        np.testing.assert_array_equal(clustering.labels, labels)
        np.testing.assert_array_equal(clustering.core, core)
        return
    offset = 0
    for group in sorted(set(names)):
        rows = np.flatnonzero([name == group for name in names])
        labels, core = dbscan(vectors[rows], eps=0.2, min_samples=4)
        np.testing.assert_array_equal(clustering.labels[rows], np.where(labels < 0, -1, labels + offset))
        np.testing.assert_array_equal(clustering.core[rows], core)
        offset += labels.max(initial=-1) + 1
    assert offset == len(clustering.clusters)
    assert all(names[row] == cluster.group for cluster in clustering.clusters for row in cluster.members)
    nearest = clustering.long_tail.nearest
    for row, number in zip(clustering.long_tail.rows, nearest, strict=True):
        assert number == -1 or clustering.clusters[number].group == names[row]


def test_groups_are_clustered_apart_in_sorted_order() -> None:
    vectors = angles(0, 0, 1, 1, 90, 90)
    clustering = cluster_rules(
        vectors, ["spam", "none", "spam", "none", "none", "none"], eps=0.1, min_samples=2
    )
    assert clustering.labels.tolist() == [2, 0, 2, 0, 1, 1]
    assert [cluster.group for cluster in clustering.clusters] == ["none", "none", "spam"]
    together = cluster_rules(vectors, None, eps=0.1, min_samples=2)
    assert together.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert [cluster.group for cluster in together.clusters] == [None, None]


def test_the_centroid_is_the_direction_of_the_members_mean() -> None:
    clustering = cluster_rules(angles(0, 10, 20), None, eps=0.1, min_samples=2)
    np.testing.assert_allclose(clustering.clusters[0].centroid, angles(10)[0], atol=1e-6)


def test_noise_knows_its_nearest_cluster() -> None:
    vectors = angles(0, 0, 90, 90, 30, 200)
    tail = cluster_rules(vectors, None, eps=0.05, min_samples=2).long_tail
    assert tail.rows.tolist() == [4, 5]
    assert tail.nearest.tolist() == [0, 1]
    np.testing.assert_allclose(tail.cosine, np.cos(np.deg2rad([30, 110])), atol=1e-6)


def test_the_rows_near_a_cluster_go_from_the_nearest_to_the_farthest() -> None:
    tail = cluster_rules(angles(0, 90, 180), None, eps=0.05, min_samples=2).long_tail
    assert tail.near(0, -1.0).tolist() == [], "there is no cluster"
    tail = cluster_rules(angles(0, 0, 90, 90, 40, 30, 200, 35), None, eps=0.001, min_samples=2).long_tail
    assert tail.near(0, 0.7).tolist() == [5, 7, 4]
    assert tail.near(0, 0.8).tolist() == [5, 7]
    assert tail.near(1, -1.0).tolist() == [6]
    assert tail.near(1, 0.0).tolist() == []


def test_noise_of_a_group_without_clusters_has_no_nearest_one() -> None:
    tail = cluster_rules(angles(0, 0, 1), ["a", "a", "b"], eps=0.05, min_samples=2).long_tail
    assert tail.rows.tolist() == [2]
    assert tail.nearest.tolist() == [-1]
    assert np.isnan(tail.cosine).all()


def test_nothing_to_cluster() -> None:
    for groups in (None, []):
        clustering = cluster_rules(np.empty((0, 4), np.float32), groups, eps=0.4, min_samples=6)
        assert clustering.clusters == ()
        assert clustering.labels.shape == clustering.core.shape == clustering.long_tail.rows.shape == (0,)


def test_members_that_cancel_out_still_have_a_centroid() -> None:
    vectors = np.array([[1, 0], [-1, 0]], np.float32)
    clustering = cluster_rules(np.concatenate([vectors, angles(90, 270)]), None, eps=1.5, min_samples=2)
    assert_sound(clustering, np.concatenate([vectors, angles(90, 270)]))


def test_groups_must_match_the_rows() -> None:
    with pytest.raises(ValueError, match="3 vectors need as many groups, not 1"):
        cluster_rules(angles(0, 1, 2), ["a"], eps=0.4, min_samples=2)


def test_inward_goes_from_the_nearest_member_to_the_farthest() -> None:
    vectors = angles(90, 20, 0, 10, 10, 9, 0)
    cluster = cluster_rules(vectors, None, eps=0.1, min_samples=3).clusters[0]
    assert cluster.members.tolist() == [1, 2, 3, 4, 5, 6]
    # the mean direction lies at about 8 degrees; equal rows stay in their order
    assert inward(vectors, cluster).tolist() == [5, 3, 4, 2, 6, 1]


def test_two_runs_give_the_same_bytes() -> None:
    centres = np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)
    vectors = around(centres, 60, spread=0.5)
    one, two = (cluster_rules(vectors, None, eps=0.3, min_samples=4) for _ in range(2))
    assert len(one.clusters) > 1
    for a, b in zip(one.clusters, two.clusters, strict=True):
        assert a.centroid.tobytes() == b.centroid.tobytes()
    assert one.long_tail.cosine.tobytes() == two.long_tail.cosine.tobytes()
