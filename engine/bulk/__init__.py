"""Bulk classification: a compiled prompt and a stream of rows in, Parquet parts out."""

from engine.bulk.classify import classify
from engine.bulk.mix import predicted_on_validation
from engine.bulk.result import ClassifyResult

__all__ = ["ClassifyResult", "classify", "predicted_on_validation"]
