"""The tables of a run directory: rules, clusters, failures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from engine.clustering import Clustering
from engine.store import Rejected
from engine.types import Failure, MicroRule


def rules_table(rules: Sequence[MicroRule]) -> pl.DataFrame:
    """rules.parquet: each usable micro-rule with its sample, label and the teacher call behind it."""
    return pl.DataFrame(
        {
            "sample_id": [rule.sample_id for rule in rules],
            "label": [rule.label for rule in rules],
            "instruction": [rule.instruction for rule in rules],
            "analysis": [rule.analysis for rule in rules],
            "request": [rule.request for rule in rules],
        }
    )


def clusters_table(rules: Sequence[MicroRule], clustering: Clustering) -> pl.DataFrame:
    """clusters.parquet: the cluster of each embedded rule, row by row as in vectors.npy.

    -1 is noise: such a rule has its nearest cluster and the cosine to that centroid, others have neither.
    """
    nearest = np.full(len(rules), -1, dtype=np.int64)
    similarity = np.full(len(rules), np.nan, dtype=np.float32)
    nearest[clustering.long_tail.rows] = clustering.long_tail.nearest
    similarity[clustering.long_tail.rows] = clustering.long_tail.cosine
    return pl.DataFrame(
        {
            "sample_id": [rule.sample_id for rule in rules],
            "label": [rule.label for rule in rules],
            "cluster": clustering.labels,
            "core": clustering.core,
            "nearest_cluster": nearest,
            "similarity": similarity,
        }
    )


def failures_table(rejected: Sequence[Rejected], failures: Sequence[tuple[str, Failure]]) -> pl.DataFrame:
    """failures.parquet: what was set aside and why, by stage. `data` rows are named FILE:ROW (C1)."""
    rows = [("data", f"{one.file}:{one.row}", one.field, one.reason) for one in rejected]
    rows += [(stage, one.id, one.reason, one.detail) for stage, one in failures]
    schema = {"stage": pl.String, "id": pl.String, "reason": pl.String, "detail": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")
