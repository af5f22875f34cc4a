"""Rows that are nearly copies of one another, told by one of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from engine.clustering.exact import dbscan_grid
from engine.clustering.spaces import IntVector
from engine.types import FloatVector

# A hundredth of what unrelated rows are apart: the same sentence with another comma, not another sentence.
NEAR_EQUAL = 0.01
_MOST_LEADERS = 16


def near_equal_rows(vectors: FloatVector, distance: float = NEAR_EQUAL) -> tuple[IntVector, IntVector]:
    """Rows that stand for all others, ascending, and for each row the place among them of the one that does.

    `vectors` (n, d) float32 of unit norm or zero. Each row lies within `distance` (cosine) of the one that
    stands for it: a chain of small steps does not make its ends equal. One pass over the pairs of rows.
    """
    linked = dbscan_grid(vectors, [(distance, 1)])[0].labels
    order = np.argsort(linked, kind="stable")
    ends = np.flatnonzero(np.diff(linked[order], append=-1))
    # what so many leaders leave over in a long chain stays apart
    stands = stand_ins(vectors, np.split(order, ends[:-1] + 1), distance, most=_MOST_LEADERS)
    kept, place = np.unique(stands, return_inverse=True)
    return kept, place


def stand_ins(
    vectors: FloatVector, groups: Iterable[IntVector], distance: float, *, most: int | None = None
) -> IntVector:
    """For each row of `vectors` the one that stands for it, (n,): the first of its group that none stands
    for, of those within `distance` of it; itself where there is none.

    `groups` are disjoint sets of row numbers, each in the order in which rows are to stand for others; at
    most `most` of a group do.
    """
    stands = np.arange(len(vectors))
    for group in groups:
        left = group
        for _ in range(len(group) if most is None else most):
            if len(left) < 2:
                break
            near = vectors[left] @ vectors[left[0]] >= 1.0 - distance
            near[0] = True
            stands[left[near]] = left[0]
            left = left[~near]
    return stands
