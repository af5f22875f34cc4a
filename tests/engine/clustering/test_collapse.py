"""Equal rows are found once, and no others are taken for equal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clustering import collapse
from engine.clustering.collapse import distinct_rows


def by_hand(rows: npt.NDArray[np.floating], apart: npt.NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    first: dict[object, int] = {}
    kept: list[int] = []
    place: list[int] = []
    for number, row in enumerate(rows):
        key = number if apart[number] else tuple(row.tolist())
        if key not in first:
            first[key] = len(kept)
            kept.append(number)
        place.append(first[key])
    return kept, place


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40),
    apart=st.sets(st.integers(0, 39)),
    dtype=st.sampled_from([np.float32, np.float64]),
    block=st.sampled_from([1, 7, 2**20]),
)
def test_first_occurrences_in_order(
    rows: list[tuple[int, int]], apart: set[int], dtype: type, block: int
) -> None:
    vectors = np.array(rows, dtype)
    flags = np.isin(np.arange(len(rows)), list(apart))
    flags |= np.isin(np.arange(len(rows)), [k for k, row in enumerate(rows) if rows.index(row) in apart])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collapse, "_VALUES_PER_BLOCK", block)
        kept, place = distinct_rows(vectors, flags)
    assert (kept.tolist(), place.tolist()) == by_hand(vectors, flags)


def test_rows_of_equal_hash_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 3, (50, 2)).astype(np.float32)
    monkeypatch.setattr(collapse, "_hashes", lambda vectors: np.zeros(len(vectors), np.uint64))
    kept, place = distinct_rows(rows, np.zeros(50, np.bool_))
    np.testing.assert_array_equal(rows[kept[place]], rows)
    assert len(kept) < 50  # those equal to the first


def test_hashes_tell_rows_apart_that_differ_in_one_bit() -> None:
    rows = np.ones((64, 3))
    bits = rows.view(np.uint64)
    bits[np.arange(64), 1] ^= np.uint64(1) << np.arange(64, dtype=np.uint64)
    assert len(np.unique(collapse._hashes(rows))) == 64


def test_the_order_of_values_counts() -> None:
    rows = np.array([[1.0, 2.0], [2.0, 1.0], [0.0, -0.0], [-0.0, 0.0]], np.float32)
    kept, place = distinct_rows(rows, np.zeros(4, np.bool_))
    assert kept[:2].tolist() == [0, 1]
    np.testing.assert_array_equal(rows[kept[place]], rows)
