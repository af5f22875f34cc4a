"""Equal rows, found once: rules repeat by the thousands."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.clustering.spaces import BoolVector, IntVector

_VALUES_PER_BLOCK = 2**20


def distinct_rows(vectors: npt.NDArray[Any], apart: BoolVector) -> tuple[IntVector, IntVector]:
    """First occurrences of the distinct rows of `vectors` (n, d), ascending, and for each row its place
    among them.

    Rows flagged in `apart`, bool (n,), count as distinct, whatever they hold.
    """
    hashes = _hashes(vectors)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    standing = first[inverse]  # for each row the first with its hash
    same = np.flatnonzero((standing != np.arange(len(vectors))) & ~apart & ~apart[standing])
    step = max(1, _VALUES_PER_BLOCK // vectors.shape[1])
    is_copy = np.zeros(len(vectors), np.bool_)
    for start in range(0, len(same), step):
        rows = same[start : start + step]
        # a row of equal hash and other content is only not found to have copies
        is_copy[rows] = (vectors[rows] == vectors[standing[rows]]).all(axis=1)
    kept = np.flatnonzero(~is_copy)
    place = np.empty(len(vectors), np.int64)
    place[kept] = np.arange(len(kept))
    return kept, place[np.where(is_copy, standing, np.arange(len(vectors)))]


def _hashes(vectors: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Multilinear hashes of the rows' bits; equal rows have equal ones."""
    words = np.ascontiguousarray(vectors).view(np.uint32)
    factors = np.random.default_rng(0).integers(2**63, size=words.shape[1], dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    found = np.empty(len(words), np.uint64)
    step = max(1, _VALUES_PER_BLOCK // words.shape[1])
    for start in range(0, len(words), step):
        found[start : start + step] = words[start : start + step].astype(np.uint64) @ factors
    return found
