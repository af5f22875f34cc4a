"""Vectors in, clusters out. Knows numpy, FAISS and scikit-learn; nothing of prompts or models.

Everything here is synchronous and CPU-bound: asynchronous callers use `asyncio.to_thread`. FAISS runs OpenMP
threads, so a process that has clustered must start others with `spawn`, never `fork`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.clustering.calibration import Calibration, calibrated_clusters
from engine.clustering.clusters import Cluster, Clustering, LongTail, cluster_rules, inward
from engine.clustering.exact import dbscan, dbscan_grid
from engine.clustering.hierarchical import hdbscan_rules
from engine.clustering.labelling import Labelling, Setting

if TYPE_CHECKING:
    from engine.clustering.estimator import DBSCAN

__all__ = [
    "DBSCAN",
    "Calibration",
    "Cluster",
    "Clustering",
    "Labelling",
    "LongTail",
    "Setting",
    "calibrated_clusters",
    "cluster_rules",
    "dbscan",
    "dbscan_grid",
    "hdbscan_rules",
    "inward",
]


def __getattr__(name: str) -> Any:
    if name == "DBSCAN":  # scikit-learn takes a second to import, and only users of the class need it
        from engine.clustering.estimator import DBSCAN  # noqa: PLC0415

        return DBSCAN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
