"""The check of the long bulk benchmark notices what it is there to notice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench.bulk_kills import check, numbers_of, write_rows

NUMBERS = np.array([0, 1, 0, 2, 1, 3])


def write(out: Path, rows: Sequence[int], labels: Sequence[str], failed: Sequence[int] = ()) -> None:
    pl.DataFrame({"row": rows, "label": labels}).write_parquet(out / "part-00000.parquet")
    pl.DataFrame({"row": failed, "reason": [""] * len(failed)}).write_parquet(out / "failures-00000.parquet")


def test_rows_that_all_stand_once_pass(tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 2, 4, 5], ["a", "b", "a", "b", "a"], failed=[3])
    check(tmp_path, NUMBERS)


@pytest.mark.parametrize(
    ("rows", "labels", "failed", "says"),
    [
        ([0, 1, 2, 4], ["a", "b", "a", "b"], [3], "1 rows are missing, 0"),
        ([0, 1, 2, 4, 5], ["a", "b", "a", "b", "a"], [3, 5], "0 rows are missing, 1 stand"),
        ([0, 1, 2, 4, 5], ["a", "b", "b", "b", "a"], [3], "different labels"),
    ],
)
def test_others_do_not(
    tmp_path: Path, rows: list[int], labels: list[str], failed: list[int], says: str
) -> None:
    write(tmp_path, rows, labels, failed)
    with pytest.raises(RuntimeError, match=says):
        check(tmp_path, NUMBERS)


def test_the_share_of_repeated_texts(tmp_path: Path) -> None:
    numbers = numbers_of(30_000, 0.33, seed=1)
    distinct = len(np.unique(numbers))
    assert abs(1 - distinct / 30_000 - 0.33) < 0.02
    assert (numbers[:1] == 0).all()
    assert all(numbers[row] <= numbers[:row].max() + 1 for row in range(1, 200))
    assert len(np.unique(numbers_of(1_000, 0.0, seed=1))) == 1_000
    (path,) = write_rows(pl.DataFrame({"text": ["a b", "c d", "e"]}), numbers[:900], tmp_path)
    texts = pl.read_parquet(path)["text"]
    assert texts.n_unique() == len(np.unique(numbers[:900]))
