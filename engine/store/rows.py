"""Rows to classify, streamed: memory is constant in their number (C5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from engine.errors import DataError
from engine.store.fields import TextColumns, TextFields
from engine.store.files import find_files
from engine.store.tables import Table, check_columns, count_rows, problem_of, read_table, word_of
from engine.store.text_tables import Problem


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Consecutive rows of one file, at least one.

    `first_row` is the number of the first, from 0 over all files together. `texts[i]` is None exactly where
    `problems` has `i`, with the reason in words that never show the row's content. `ids` is None where no id
    column was named; a row without a usable id has "" there and is classified all the same. `carried` has the
    columns to carry, a row for each, None where there are none. `share` is how much of the input's bytes lies
    before the end of this batch, from 0 to 1.
    """

    first_row: int
    file_index: int
    ids: list[str] | None
    texts: list[str | None]
    problems: Mapping[int, str]
    carried: pl.DataFrame | None = None
    share: float = 0.0

    def __len__(self) -> int:
        return len(self.texts)


class RowReader:
    """Every row of some Parquet, CSV or NDJSON files exactly once, broken lines included, in a fixed order.

    `paths` may be globs; files are read in the order given, the matches of a glob by name. `text` is a
    column, or several that make up one text (`engine.store.fields`). `carry` names columns that come beside
    the texts as they are: with their types from Parquet, as strings from text files (other JSON values than
    strings as JSON). Iterating again starts again. Blank lines of text files are no rows. Raises `DataError`
    at once where a file or a column is missing, or a column to carry has not the same type in all files; and
    while iterating where a file is damaged beyond single lines.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        text: TextColumns,
        id_column: str | None = None,
        *,
        carry: Sequence[str] = (),
        batch_rows: int = 4096,
    ) -> None:
        if batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, not {batch_rows}")
        self.paths = find_files(paths)
        self.fields = TextFields(text)
        self.carried: dict[str, pl.DataType] = {}
        """The types of the columns to carry."""
        self._columns = (*self.fields.columns, *(() if id_column is None else (id_column,)))
        self._carry = tuple(carry)
        self._batch_rows = batch_rows
        self._skip = 0
        for path in self.paths:
            found = check_columns(path, self._columns, texts=self.fields.columns, carried=self._carry)
            for name, kind in found.items():
                if self.carried.setdefault(name, kind) != kind:
                    raise DataError(
                        f"{path}: column {name!r} holds {kind}, in {self.paths[0]} {self.carried[name]}; "
                        "a column that is carried along needs one type in all files"
                    )

        self._sizes = [path.stat().st_size for path in self.paths]

    def skip_rows(self, n: int) -> None:
        """Let iteration begin at row `n`. Parquet is not read up to there; text is split into lines only."""
        if n < 0:
            raise ValueError(f"cannot skip {n} rows")
        self._skip = n

    def count_rows(self) -> int | None:
        """Rows in all files, where that is known without reading them (all Parquet), else None."""
        counts = [count_rows(path) for path in self.paths]
        return None if None in counts else sum(count or 0 for count in counts)

    def __iter__(self) -> Iterator[RowBatch]:
        offset = 0
        sizes = self._sizes
        for index, path in enumerate(self.paths):
            end = 0
            skip = max(0, self._skip - offset)
            rows = count_rows(path)
            opened: list[BinaryIO] = []
            tables = read_table(
                path,
                self._columns,
                batch_rows=self._batch_rows,
                skip=skip,
                carry=self._carry,
                watch=opened.append,
            )
            for table in tables:
                end = table.first_row + len(table.rows)
                if table.rows:
                    # the file is closed after its last batch
                    known = opened and not opened[0].closed
                    read = opened[0].tell() if known else sizes[index] * end / rows if rows else sizes[index]
                    share = (sum(sizes[:index]) + read) / max(1, sum(sizes))
                    yield self._batch(table, offset, index, share)
            offset += end

    def _batch(self, table: Table, offset: int, file_index: int, share: float) -> RowBatch:
        n = len(self.fields.columns)
        with_ids = len(self._columns) > n
        ids: list[str] = []
        texts: list[str | None] = []
        problems: dict[int, str] = {}
        for index, row in enumerate(table.rows):
            text = row if isinstance(row, Problem) else self.fields.read(row[:n])
            if isinstance(text, Problem):
                texts.append(None)
                where = "" if table.lines is None else f" (line {table.lines[index]})"
                problems[index] = f"{text.field}: {text.reason}{where}"
            else:
                texts.append(text)
            if with_ids:
                row_id = row if isinstance(row, Problem) else problem_of("id", word_of, row[n])
                ids.append("" if isinstance(row_id, Problem) else row_id)
        return RowBatch(
            first_row=table.first_row + offset,
            file_index=file_index,
            ids=ids if with_ids else None,
            texts=texts,
            problems=problems,
            carried=table.carried,
            share=min(1.0, share),
        )
