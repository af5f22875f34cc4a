"""DBSCAN on made-up embeddings, beside scikit-learn and the rate of a matrix product."""

from bench.clustering.data import Kind
from bench.clustering.measure import (
    KINDS,
    measure_approximate,
    measure_backends,
    measure_curve,
    measure_grid,
    measure_speed,
)

__all__ = [
    "KINDS",
    "Kind",
    "measure_approximate",
    "measure_backends",
    "measure_curve",
    "measure_grid",
    "measure_speed",
]
