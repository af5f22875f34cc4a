"""A part: a block of consecutive rows, from reading to its Parquet files."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from engine.bulk.entries import Entry
from engine.bulk.tally import Tally

COLUMNS = (
    *("row", "file", "id", "label", "confidence", "margin", "cut", "prompt_sha256", "model"),
    *("reason", "detail"),
)
"""The columns of a part's files; no column that is carried along may have one of these names."""

_PENDING = -1
_FAILED = -2
_NAN = float("nan")


class Frames(NamedTuple):
    """A part's rows as they are written, each in exactly one of the three, in order."""

    classified: pl.DataFrame
    review: pl.DataFrame
    failed: pl.DataFrame


class Part:
    """Rows `first_row`, `first_row + 1`, … and what became of each.

    Rows are added in order, then the part is sealed; it is complete when every row is settled. `known` are
    the entries that an earlier call saved, by the row's place in the part. Texts are not kept: about 50 bytes
    a row and its id, and the columns that are carried along. `duplicates` counts rows that were answered by
    an earlier one.
    """

    def __init__(self, number: int, first_row: int, known: dict[int, Entry], tally: Tally) -> None:
        self.number = number
        self.first_row = first_row
        self.known = known
        self.tally = tally
        self.duplicates = 0
        self.sealed = False
        self._files = array("i")
        self._ids: list[str | None] = []
        self._carried: list[pl.DataFrame] = []
        self._label = array("i")
        self._confidence = array("f")
        self._margin = array("f")
        self._cut = array("i")
        self._failures: dict[int, tuple[str, str]] = {}

    @property
    def rows(self) -> int:
        """Rows added so far."""
        return len(self._label)

    @property
    def complete(self) -> bool:
        """Whether every row is here and has its label or its failure."""
        return self.sealed and self.tally.rows == self.rows

    def add(self, file: int, row_id: str | None) -> None:
        """Add the next row."""
        self._files.append(file)
        self._ids.append(row_id)
        self._label.append(_PENDING)
        self._confidence.append(_NAN)
        self._margin.append(_NAN)
        self._cut.append(0)

    def carry(self, frame: pl.DataFrame) -> None:
        """The columns to carry, of the next rows."""
        self._carried.append(frame)

    def seal(self) -> None:
        """No more rows come."""
        self.sealed = True
        self.known.clear()

    def settle(self, index: int, entry: Entry) -> None:
        """Take in what became of the row at that place of the part."""
        self.tally.count(entry)
        if len(entry) == 2:
            self._label[index] = _FAILED
            self._failures[index] = entry
            return
        self._label[index], self._confidence[index], self._margin[index], self._cut[index] = entry

    # --- what is written -----------------------------------------------------------------------------

    def frames(
        self,
        files: Sequence[str],
        labels: Sequence[str],
        *,
        prompt: str,
        model: str,
        carried: dict[str, str],
        review_below: float | None,
    ) -> Frames:
        """The content of the part's files. `carried` has the name in them of each column carried along."""
        label = np.frombuffer(self._label, np.int32)
        confidence = np.frombuffer(self._confidence, np.float32)
        labelled = label >= 0
        unsure = np.zeros_like(labelled)
        if review_below is not None:
            # an unknown confidence compares as False; in double precision, as the tally compares
            unsure = labelled & ~(confidence.astype(np.float64) >= review_below)

        def with_labels(rows: npt.NDArray[np.int64]) -> pl.DataFrame:
            return self._places(rows, files).with_columns(
                pl.Series("label", labels, pl.String).gather(pl.Series(label[rows])),
                pl.Series("confidence", confidence[rows], nan_to_null=True),
                pl.Series("margin", np.frombuffer(self._margin, np.float32)[rows], nan_to_null=True),
                pl.Series("cut", np.frombuffer(self._cut, np.int32)[rows]),
                pl.lit(prompt).alias("prompt_sha256"),
                pl.lit(model).alias("model"),
                *self._kept(rows, carried),
            )

        failed = np.flatnonzero(label == _FAILED)
        failures = [self._failures[row] for row in failed.tolist()]
        return Frames(
            classified=with_labels(np.flatnonzero(labelled & ~unsure)),
            review=with_labels(np.flatnonzero(unsure)),
            failed=self._places(failed, files).with_columns(
                pl.Series("reason", [reason for reason, _ in failures], pl.String),
                pl.Series("detail", [detail for _, detail in failures], pl.String),
                *self._kept(failed, carried),
            ),
        )

    def _places(self, rows: npt.NDArray[np.int64], files: Sequence[str]) -> pl.DataFrame:
        """Which rows these are. Files are plain strings: Parquet packs them, every reader can join parts."""
        file = np.frombuffer(self._files, np.int32)[rows]
        return pl.DataFrame(
            {
                "row": pl.Series(rows + self.first_row, dtype=pl.Int64),
                "file": pl.Series(files, dtype=pl.String).gather(pl.Series(file)),
                "id": pl.Series(self._ids, dtype=pl.String).gather(pl.Series(rows)),
            }
        )

    def _kept(self, rows: npt.NDArray[np.int64], carried: dict[str, str]) -> list[pl.Series]:
        if not carried or not self._carried:
            return []
        frame = pl.concat(self._carried)
        return [frame[column].gather(pl.Series(rows)).alias(name) for column, name in carried.items()]
