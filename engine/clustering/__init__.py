"""Vectors in, clusters out. Knows numpy, FAISS and scikit-learn; nothing of prompts or models.

Everything here is synchronous and CPU-bound: asynchronous callers use `asyncio.to_thread`. FAISS runs OpenMP
threads, so a process that has clustered must start others with `spawn`, never `fork`.
"""

from engine.clustering.clusters import Cluster, Clustering, LongTail, cluster_rules, inward
from engine.clustering.exact import dbscan

__all__ = ["Cluster", "Clustering", "LongTail", "cluster_rules", "dbscan", "inward"]
