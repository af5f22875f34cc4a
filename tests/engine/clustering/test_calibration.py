"""Calibrated clustering: what it finds on made-up rules, and that copies and embedders do not fool it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from engine.clustering import Clustering, calibrated_clusters, hdbscan_rules, inward
from engine.clustering.calibration import Calibration
from engine.types import FloatVector
from tests.engine.clustering.test_clusters import angles, assert_sound

DIM = 32


def topics(
    count: int, each: int, *, seed: int = 0, spread: float = 0.9, cone: float = 0.0
) -> tuple[FloatVector, list[int]]:
    """Rows around `count` random directions, and the topic of each; `cone` adds a direction to all."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((count, DIM))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = np.repeat(centres, each, axis=0)
    rows += spread * rng.standard_normal(rows.shape) / np.sqrt(DIM)
    rows += cone * np.ones(DIM) / np.sqrt(DIM)
    order = rng.permutation(len(rows))
    return unit(rows[order]), np.repeat(np.arange(count), each)[order].tolist()


def unit(rows: np.ndarray) -> FloatVector:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def calibrate(
    vectors: FloatVector, labels: list[str] | None = None, *, most: int = 26, within: str | None = "all"
) -> tuple[Clustering, Calibration]:
    names = ["one"] * len(vectors) if labels is None else labels
    return calibrated_clusters(vectors, names, within=within, most=most, seed=7)  # type: ignore[arg-type]


def agreement(found: Clustering, truth: list[int]) -> float:
    """Adjusted Rand index over the clustered rows."""
    inside = found.labels >= 0
    return float(adjusted_rand_score(np.array(truth)[inside], found.labels[inside]))


@pytest.mark.parametrize("cone", [0.0, 1.0, 3.0])
def test_topics_are_found_whatever_direction_the_embedder_adds(cone: float) -> None:
    vectors, truth = topics(8, 40, cone=cone)
    found, made = calibrate(vectors)
    assert made.record["groups"][0]["common_direction"]["taken_off"] == (cone > 0)
    assert len(found.clusters) == 8
    assert agreement(found, truth) > 0.95
    assert len(found.long_tail.rows) < 0.3 * len(vectors)


def test_topics_of_different_density_have_an_eps_each() -> None:
    tight, one = topics(4, 40, seed=1, spread=0.3)
    loose, two = topics(4, 40, seed=2, spread=1.0)
    found, _ = calibrate(np.concatenate([tight, loose]))
    assert agreement(found, one + [4 + topic for topic in two]) > 0.9
    assert len({cluster.eps for cluster in found.clusters}) > 1


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.02])
def test_rows_that_all_come_twice_are_clustered_as_if_they_came_once(noise: float) -> None:
    vectors, _ = topics(8, 40, cone=1.0)
    once, _ = calibrate(vectors)
    jitter = noise * np.random.default_rng(3).standard_normal(vectors.shape) / np.sqrt(DIM)
    twice, made = calibrate(np.concatenate([vectors, unit(vectors + jitter)]))
    n = len(vectors)
    assert adjusted_rand_score(once.labels, twice.labels[:n]) > 0.97
    assert adjusted_rand_score(twice.labels[:n], twice.labels[n:]) > 0.97
    if noise < 0.01:
        assert made.record["groups"][0]["distinct"] == n
        assert made.record["groups"][0]["median_copies"] == 2


def test_rows_that_all_come_eight_times_are_no_cores_for_that() -> None:
    vectors, _ = topics(8, 40, cone=1.0)
    once, _ = calibrate(vectors)
    often, made = calibrate(np.tile(vectors, (8, 1)))
    assert made.record["groups"][0]["min_samples"] < 8
    np.testing.assert_array_equal(often.labels, np.tile(once.labels, 8))


def test_a_rule_that_is_repeated_often_is_a_topic_by_itself() -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32), [30, 30, 30, 1], axis=0)
    found, _ = calibrate(vectors)
    assert [cluster.size for cluster in found.clusters] == [30, 30, 30]
    assert found.long_tail.rows.tolist() == [90]


def test_the_rules_decide_whether_labels_are_clustered_apart() -> None:
    vectors, truth = topics(8, 40)
    by_topic = [f"label {topic % 2}" for topic in truth]
    at_random = [f"label {n % 2}" for n in range(len(truth))]
    for labels, within in ((by_topic, "label"), (at_random, "all")):
        found, made = calibrate(vectors, labels, within=None)
        assert made.within == made.record["within"] == within
        assert (made.record["label_mixing"] > 0.5) == (within == "label")
        assert {cluster.group for cluster in found.clusters} == (set(labels) if within == "label" else {None})
    assert calibrate(vectors, by_topic, within="all")[1].within == "all"


def test_no_more_clusters_than_there_is_room_for() -> None:
    vectors, truth = topics(12, 30)
    labels = [f"label {topic % 3}" for topic in truth]
    for most in (1, 3, 6, 12):
        found, made = calibrate(vectors, labels, within="label", most=most)
        assert len(found.clusters) <= max(3, most)
        assert {cluster.group for cluster in found.clusters} == set(labels)
        assert {group["chosen_by"] for group in made.record["groups"]} == {
            "significance" if most == 12 else "modularity"
        }


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 60),
    dim=st.integers(1, 6),
    copies=st.integers(1, 4),
    within=st.sampled_from(["all", "label", None]),
)
def test_every_set_is_divided_soundly(seed: int, n: int, dim: int, copies: int, within: str | None) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, dim))
    vectors = np.repeat(unit(rows), copies, axis=0)
    labels = [f"g{k}" for k in rng.integers(3, size=len(vectors))]
    found, made = calibrate(vectors, labels, within=within, most=5)
    assert_sound(found, vectors)
    assert made.within in ("all", "label")
    for cluster in found.clusters:
        assert sorted(inward(vectors, cluster).tolist()) == cluster.members.tolist()
        assert 0 < cluster.eps < 2


def test_inward_and_the_long_tail_are_told_without_the_common_direction() -> None:
    vectors, _ = topics(6, 30, cone=3.0)
    found, _ = calibrate(vectors)
    cluster = found.clusters[0]
    assert cluster.mean is not None
    left = unit(vectors - cluster.mean)
    order = inward(vectors, cluster)
    nearness = left[order] @ cluster.centroid
    assert np.all(np.diff(nearness) <= 1e-6)
    for row, number, cosine in zip(
        found.long_tail.rows, found.long_tail.nearest, found.long_tail.cosine, strict=True
    ):
        assert cosine == pytest.approx(float(left[row] @ found.clusters[number].centroid), abs=1e-5)


def test_the_record_tells_the_figures_behind_the_choice() -> None:
    vectors, truth = topics(8, 40)
    labels = [f"label {topic % 2}" for topic in truth]
    found, made = calibrate(vectors, labels)
    (group,) = made.record["groups"]
    curve = [distance for _, distance in group["k_distance"]]
    assert len(curve) == 201
    assert curve == sorted(curve)
    assert [row["eps"] for row in group["grid"]] == sorted({row["eps"] for row in group["grid"]})
    for row in group["grid"]:
        inside = sum(row["clustered_share"][name] * labels.count(name) for name in set(labels))
        assert inside == pytest.approx(len(vectors) - row["noise"])
    assert len(group["chosen"]) == len(found.clusters)
    assert {one["eps"] for one in group["chosen"]} == {cluster.eps for cluster in found.clusters}


def test_two_runs_give_the_same_bytes() -> None:
    vectors, _ = topics(8, 40, cone=1.0)
    (one, first), (two, second) = calibrate(vectors), calibrate(vectors)
    assert one.labels.tobytes() == two.labels.tobytes()
    assert one.long_tail.cosine.tobytes() == two.long_tail.cosine.tobytes()
    assert first.record == second.record


def test_labels_must_match_the_rows() -> None:
    with pytest.raises(ValueError, match="3 vectors need as many labels, not 1"):
        calibrate(angles(0, 1, 2), ["a"])


def test_hdbscan_finds_topics_too() -> None:
    vectors, truth = topics(8, 40, cone=2.0, spread=0.6)
    found = hdbscan_rules(vectors, None, min_samples=6, seed=7)
    assert_sound(found, vectors)
    assert agreement(found, truth) > 0.9
    assert all(cluster.mean is not None and 0 < cluster.eps < 2 for cluster in found.clusters)
    apart = hdbscan_rules(vectors, [f"g{topic % 2}" for topic in truth], min_samples=6, seed=7)
    assert {cluster.group for cluster in apart.clusters} == {"g0", "g1"}


def test_hdbscan_of_too_few_rows_is_all_noise() -> None:
    for vectors in (angles(), angles(0), angles(0, 1, 2)):
        assert hdbscan_rules(vectors.reshape(-1, 2), None, min_samples=6, seed=7).clusters == ()
