"""Vectors as they come over the wire."""

from __future__ import annotations

import base64

import numpy as np

from engine.types import FloatVector


def read_unit_vector(given: object, cut: int | None = None) -> FloatVector | None:
    """A vector (dim,), the first `cut` numbers of it, scaled to unit norm; None where it has no direction.

    `given` is base64 of little-endian float32, or numbers.
    """
    try:
        if isinstance(given, str):
            vector = np.frombuffer(base64.b64decode(given, validate=True), "<f4").astype(np.float64)
        else:
            vector = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if vector.ndim != 1 or not len(vector):
        return None
    vector = vector[:cut]
    largest = np.abs(vector).max()
    if not 0 < largest < np.inf:  # NaN is neither
        return None
    vector = vector / largest  # so that squares neither overflow nor vanish
    unit: FloatVector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit
