"""A part: a block of consecutive rows, from reading to its two Parquet files."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

UNUSABLE = "unusable"
"""The reason of a row that has no text to classify."""

_PENDING = -1
_FAILED = -2
_NAN = float("nan")

LabelledEntry: TypeAlias = tuple[int, int, float | None, float | None]
"""Index of the row in its part, index of its label, confidence and margin where the student tells them."""

FailedEntry: TypeAlias = tuple[int, str, str]
"""Index of the row in its part, reason and detail."""

Entry: TypeAlias = LabelledEntry | FailedEntry
"""What became of one row that the student was asked about."""


class Part:
    """Rows `first_row`, `first_row + 1`, … and what became of each.

    Rows are added in order, then the part is sealed; it is complete when every row that was asked about has
    its entry. Of equal texts only the first row is asked about. `known` are entries that an earlier call
    saved. Texts are not kept: about 60 bytes a row and, until the part is sealed, 150 more for telling equal
    texts.

    `saved` and `saved_failed` count the rows of it that are on disk already: the caller keeps them.
    """

    def __init__(self, number: int, first_row: int, known: Sequence[Entry] = ()) -> None:
        self.number = number
        self.first_row = first_row
        self.saved = len(known)
        self.saved_failed = sum(len(entry) == 3 for entry in known)
        self.duplicates = 0
        self.sealed = False
        self._waiting = 0
        self._known = {entry[0]: entry for entry in known}
        self._seen: dict[bytes, int] = {}
        self._files = array("i")
        self._ids: list[str | None] = []
        # the row whose entry holds for this one: itself, or the first row with the same text
        self._source = array("i")
        self._label = array("i")
        self._confidence = array("f")
        self._margin = array("f")
        self._failures: dict[int, tuple[str, str]] = {}

    @property
    def rows(self) -> int:
        """Rows added so far."""
        return len(self._source)

    @property
    def complete(self) -> bool:
        """Whether every row is here and has its label or its failure."""
        return self.sealed and self._waiting == 0

    def add(self, file: int, row_id: str | None, text: str | None, problem: str = "") -> bool:
        """Add the next row; `text` is None where it cannot be used, `problem` says why.

        Returns whether the student has to be asked about it.
        """
        index = len(self._source)
        self._files.append(file)
        self._ids.append(row_id)
        self._label.append(_PENDING)
        self._confidence.append(_NAN)
        self._margin.append(_NAN)
        if text is None:
            self._source.append(index)
            self._fail(index, UNUSABLE, problem)
            return False
        first = self._seen.setdefault(_digest(text), index)
        self._source.append(first)
        if first != index:
            self.duplicates += 1
            return False
        self._waiting += 1
        if (entry := self._known.pop(index, None)) is None:
            return True
        self.settle(entry)
        return False

    def seal(self) -> None:
        """No more rows come."""
        self.sealed = True
        self._seen.clear()
        self._known.clear()

    def settle(self, entry: Entry) -> None:
        """Take in what became of a row that was asked about."""
        self._waiting -= 1
        if len(entry) == 3:
            self._fail(*entry)
            return
        index, label, confidence, margin = entry
        self._label[index] = label
        if confidence is not None:
            self._confidence[index] = confidence
        if margin is not None:
            self._margin[index] = margin

    def _fail(self, index: int, reason: str, detail: str) -> None:
        self._label[index] = _FAILED
        self._failures[index] = (reason, detail)

    # --- what is written -----------------------------------------------------------------------------

    def counts(self, labels: Sequence[str]) -> Mapping[str, int]:
        """Rows per label, in the order of `labels`, those without any left out."""
        found = Counter(self._resolved().tolist())
        return {label: found[index] for index, label in enumerate(labels) if found[index]}

    def classified(
        self, files: Sequence[str], labels: Sequence[str], prompt: str, model: str
    ) -> pl.DataFrame:
        """The rows that have a label, in order: the content of the part's file."""
        resolved = self._resolved()
        rows = np.flatnonzero(resolved >= 0)
        source = np.frombuffer(self._source, np.int32)[rows]
        confidence = np.frombuffer(self._confidence, np.float32)
        margin = np.frombuffer(self._margin, np.float32)
        return self._places(rows, files).with_columns(
            pl.Series("label", labels, pl.String).gather(pl.Series(resolved[rows])),
            pl.Series("confidence", confidence[source], nan_to_null=True),
            pl.Series("margin", margin[source], nan_to_null=True),
            pl.lit(prompt).alias("prompt_sha256"),
            pl.lit(model).alias("model"),
        )

    def failed(self, files: Sequence[str]) -> pl.DataFrame:
        """The rows that have none, in order: the content of the part's failures file."""
        rows = np.flatnonzero(self._resolved() == _FAILED)
        failures = [self._failures[self._source[row]] for row in rows.tolist()]
        return self._places(rows, files).with_columns(
            pl.Series("reason", [reason for reason, _ in failures], pl.String),
            pl.Series("detail", [detail for _, detail in failures], pl.String),
        )

    def _resolved(self) -> npt.NDArray[np.int32]:
        """Per row the index of its label, duplicates included; negative where it has none."""
        own: npt.NDArray[np.int32] = np.frombuffer(self._label, np.int32)
        return own[np.frombuffer(self._source, np.int32)]

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


def _digest(text: str) -> bytes:
    # surrogatepass: half of a surrogate pair in a row must not stop the job
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
