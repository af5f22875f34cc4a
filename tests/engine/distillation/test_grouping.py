"""Which method clusters, what is written down of it, and what is told where it went wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.config import ClusterConfig
from engine.distillation.grouping import Grouping, group_rules, most_clusters
from engine.ports import Within
from engine.types import FloatVector, MicroRule
from tests.engine.clustering.test_calibration import topics
from tests.support import corpus


def grouped(
    vectors: FloatVector, labels: list[str], settings: ClusterConfig | None = None, preferred: Within = "all"
) -> Grouping:
    rules = [MicroRule(f"r{n}", label, "text") for n, label in enumerate(labels)]
    settings = settings or ClusterConfig()
    return group_rules(rules, vectors, settings, preferred=preferred, most=26, seed=7)


def labelled(count: int = 6, each: int = 40) -> tuple[FloatVector, list[str]]:
    vectors, truth = topics(count, each, spread=0.6)
    return vectors, [f"label {topic % 2}" for topic in truth]


def test_the_methods() -> None:
    vectors, labels = labelled()
    for settings in (
        ClusterConfig(),
        ClusterConfig(method="dbscan", eps=0.3, min_samples=6),
        ClusterConfig(method="hdbscan", min_samples=8),
    ):
        found = grouped(vectors, labels, settings)
        assert found.figures["method"] == settings.method
        assert found.figures["clusters"] == len(found.clustering.clusters) == 6
        assert found.figures["noise"] == len(found.clustering.long_tail.rows)
        assert found.figures["largest"] == max(one.size for one in found.clustering.clusters)
        assert found.record.items() >= found.figures.items()
        assert ("groups" in found.record) == (settings.method == "calibrated")
        assert found.alarms == ()


@pytest.mark.parametrize("method", ["calibrated", "dbscan", "hdbscan"])
def test_the_configuration_goes_before_the_embedder(method: str) -> None:
    vectors, labels = labelled()
    for within in ("all", "label"):
        found = grouped(vectors, labels, ClusterConfig.model_validate({"method": method, "within": within}))
        assert found.figures["within"] == within
        found = grouped(vectors, labels, ClusterConfig.model_validate({"method": method}), preferred="label")
        assert found.figures["within"] == "label"


def test_dbscan_without_settings_is_the_papers() -> None:
    vectors, labels = labelled()
    found = grouped(vectors, labels, ClusterConfig(method="dbscan"))
    assert (found.figures["eps"], found.figures["min_samples"]) == (0.4, 6)
    assert {cluster.eps for cluster in found.clustering.clusters} == {0.4}


def test_a_giant_cluster_is_told_with_what_to_do() -> None:
    vectors, labels = labelled()
    (alarm,) = grouped(vectors, labels, ClusterConfig(method="dbscan", eps=1.5)).alarms
    assert alarm.startswith("one cluster holds 240 of 240 rules: lower cluster.eps")


def test_nearly_all_noise_is_told_with_what_to_do() -> None:
    vectors, labels = labelled()
    (alarm,) = grouped(vectors, labels, ClusterConfig(method="dbscan", eps=1e-6)).alarms
    assert alarm.startswith("no rules are alike enough to form a cluster: raise cluster.eps")
    few = np.concatenate([np.repeat(vectors[:1], 20, axis=0), vectors[1:]])
    alarms = grouped(
        few, ["label 0", "label 1"] * 129 + ["label 0"], ClusterConfig(method="dbscan", eps=1e-6)
    ).alarms
    assert alarms[0].startswith("239 of 259 rules are outside every cluster: raise cluster.eps")


def test_a_label_without_a_cluster_is_told_with_what_to_do() -> None:
    vectors, labels = labelled()
    alone, _ = topics(4, 1, seed=9)
    found = grouped(np.concatenate([vectors, alone]), [*labels, *["rare"] * 4])
    assert [line for line in found.alarms if "rare" in line] == [
        "no cluster has a rule of 'rare': set cluster.within = \"label\""
    ] or found.figures["within"] == "label"
    found = grouped(np.concatenate([vectors, alone]), [*labels, *["rare"] * 4], ClusterConfig(within="label"))
    (alarm,) = found.alarms
    assert alarm.startswith("no cluster has a rule of 'rare': give it more training rows")


def test_room_for_clusters_follows_the_prompt(tmp_path: Path) -> None:
    config = corpus.config(tmp_path)
    assert most_clusters(config) == 26
    tight = config.model_copy(
        update={"resolve": config.resolve.model_copy(update={"max_prompt_tokens": 200})}
    )
    assert most_clusters(tight) == len(config.labels)
