"""Calibrated clustering of rules that a large language model wrote, with no setting touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import normalized_mutual_info_score

from engine.clustering import Clustering, calibrated_clusters
from engine.types import FloatVector

MOST = 26  # what fits into a prompt of the default length


@dataclass
class Rules:
    """Recorded rules: vectors, labels and, for Contract-NLI, the hypothesis of each."""

    vectors: FloatVector
    labels: list[str]
    topics: list[str]

    def part(self, rows: np.ndarray) -> Rules:
        return Rules(
            self.vectors[rows], [self.labels[row] for row in rows], [self.topics[row] for row in rows]
        )

    def doubled(self, distance: float) -> Rules:
        """Each row, and a copy at about that cosine distance."""
        noise = np.random.default_rng(1).standard_normal(self.vectors.shape)
        rows = self.vectors + np.sqrt(2 * distance / self.vectors.shape[1]) * noise
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        both = np.concatenate([self.vectors, rows]).astype(np.float32)
        return Rules(both, self.labels * 2, self.topics * 2)

    def halves(self) -> list[Rules]:
        n = len(self.labels)
        return [
            self.part(np.sort(np.random.default_rng(seed).choice(n, n // 2, replace=False)))
            for seed in range(5)
        ]


@pytest.fixture(scope="module")
def folder(pld_data: Path) -> Path:
    found = pld_data.parent / "recorded"
    if not found.is_dir():
        pytest.skip("no recorded rules: set PLD_DATA to the folder that holds data/ and recorded/")
    return found


def load(folder: Path, name: str) -> Rules:
    frame = pl.read_parquet(folder / f"{name}_rules.parquet", columns=["id", "label", "minilm"])
    topics = [one.rsplit("-", 1)[1] for one in frame["id"].to_list()]
    vectors = np.stack(frame["minilm"].to_list()).astype(np.float32)
    return Rules(vectors, frame["label"].to_list(), topics)


def cluster(rules: Rules) -> Clustering:
    return calibrated_clusters(rules.vectors, rules.labels, within=None, most=MOST, seed=7)[0]


def noise(found: Clustering) -> float:
    return len(found.long_tail.rows) / len(found.labels)


def largest(found: Clustering) -> float:
    return max(cluster.size for cluster in found.clusters) / len(found.labels)


def test_contract_nli_is_divided_by_what_is_asked(folder: Path) -> None:
    rules = load(folder, "contract_nli")
    found = cluster(rules)
    assert {one.group for one in found.clusters} == {None}, "a topic has several labels"
    assert 10 <= len(found.clusters) <= 26
    assert largest(found) <= 0.2
    assert noise(found) <= 0.35
    inside = found.labels >= 0
    hypotheses = np.array(rules.topics)[inside]
    assert normalized_mutual_info_score(hypotheses, found.labels[inside]) >= 0.85


def test_stereoset_is_divided_within_its_labels(folder: Path) -> None:
    rules = load(folder, "stereoset")
    found = cluster(rules)
    assert {one.group for one in found.clusters} == set(rules.labels), "and so its purity is 1"
    assert noise(found) <= 0.5
    assert len(found.clusters) <= MOST


@pytest.mark.parametrize("name", ["contract_nli", "stereoset"])
def test_a_half_of_the_rules_is_neither_one_cluster_nor_noise(folder: Path, name: str) -> None:
    rules = load(folder, name)
    whole = cluster(rules)
    for half in rules.halves():
        found = cluster(half)
        # a label's rules in one cluster are at most a third of all; noise is of the whole's order
        assert largest(found) < 0.4
        assert noise(found) < 0.6
        assert len(found.clusters) >= len(whole.clusters) / 2


@pytest.mark.parametrize("name", ["contract_nli", "stereoset"])
@pytest.mark.parametrize("distance", [0.0, 1e-6, 5e-4, 5e-3, 0.02, 0.08])
def test_near_copies_make_neither_one_cluster_nor_noise(folder: Path, name: str, distance: float) -> None:
    found = cluster(load(folder, name).doubled(distance))
    assert largest(found) < 0.4
    assert noise(found) < 0.6
    assert 8 <= len(found.clusters) <= MOST
