"""One way to read Parquet, CSV and NDJSON: bounded batches of rows, every row exactly once, in file order."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import orjson
import polars as pl

from engine.errors import DataError
from engine.store import text_tables
from engine.store.files import check_readable, format_of
from engine.store.text_tables import Problem

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")

BATCH_BYTES = 32 << 20
"""A batch ends early when its rows take up this much, so that long texts do not fill the memory."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one file: `values[row]` in the order of the columns asked for, or why the row is broken.

    `first_row` counts from 0 in the file, skipped rows included; `lines` are the rows' line numbers (from 1)
    in a text file, None in a Parquet file. `carried` has the columns to carry, as tall as `rows`, nulls where
    a row is broken; None where there are none.
    """

    first_row: int
    rows: list[tuple[object, ...] | Problem]
    lines: list[int] | None
    carried: pl.DataFrame | None = None


def columns_of(path: Path, wanted: Sequence[str] = ()) -> list[tuple[str, pl.DataType | None]]:
    """The columns of a file in order, with their types in Parquet and None in a text file.

    The columns `wanted` tell how a CSV is separated; without any, the delimiter that gives most columns does.
    Raises `DataError` for a file that cannot be read at all.
    """
    check_readable(path)
    kind = format_of(path)
    if kind == "parquet":
        with _parquet_errors(path):
            return list(pl.read_parquet_schema(path).items())
    return [(name, None) for name in text_tables.column_names(path, kind, wanted)]


def check_columns(
    path: Path, wanted: Sequence[str], *, texts: Sequence[str] = (), carried: Sequence[str] = ()
) -> dict[str, pl.DataType]:
    """Raise `DataError`, naming the nearest column, where a file lacks one or cannot be read at all.

    `texts` are those among the wanted ones that make up the text. One alone has to hold texts, several may be
    numbers and truth values too. `carried` ones may hold anything; returned is the type of each: the file's
    own in Parquet, strings in a text file.
    """
    schema = dict(columns_of(path, [*wanted, *carried]))
    names = list(schema)
    for name in (*wanted, *carried):
        if name not in names:
            guess = nearest(name, names)
            if not guess.endswith("?") and not look_like_names(path, names):
                # the "names" may be a row of data, and that must not get into a message
                guess = f"; is the first line a header? It has {len(names)} fields"
            raise DataError(f"{path}: no column {name!r}{guess}")
        kind = schema[name]
        if kind is None or name not in wanted:
            continue
        if kind.is_nested() or kind == pl.Binary:
            raise DataError(f"{path}: column {name!r} holds {kind}; text or numbers are needed")
        wordless = kind.is_temporal() or kind.is_decimal()
        if name in texts and (wordless or (len(texts) == 1 and (kind.is_numeric() or kind == pl.Boolean))):
            strings = [repr(other) for other, its in schema.items() if its == pl.String]
            others = f"; texts are in {', '.join(strings[:12])}" if strings else ""
            raise DataError(f"{path}: column {name!r} holds {kind}, not texts{others}")
    return {name: schema[name] or pl.String() for name in carried}


def look_like_names(path: Path, names: Sequence[str]) -> bool:
    """Whether column names are plainly names: a CSV without a header has a row of data in their place."""
    return format_of(path) not in ("csv", "tsv") or all(map(_looks_named, names))


def _looks_named(name: str) -> bool:
    return len(name) <= 40 and name.replace("-", "_").replace(".", "_").isidentifier()


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    batch_rows: int,
    skip: int = 0,
    carry: Sequence[str] = (),
    watch: Callable[[BinaryIO], None] | None = None,
) -> Iterator[Table]:
    """Batches of at most `batch_rows` rows of a file, from row `skip` on.

    `carry` names columns that come beside the rows, as they are. The last batch always ends where the file
    ends; it may be empty. `watch` is given a text file once it is open, see `open_file`. Raises `DataError`
    where the file is damaged. Memory: one batch, at most about `BATCH_BYTES` (Parquet: and one data page per
    column).
    """
    kind = format_of(path)
    if kind == "parquet":
        yield from _parquet_tables(path, columns, batch_rows, skip, carry)
        return
    rows: list[tuple[object, ...] | Problem] = []
    lines: list[int] = []
    number = size = 0
    records = text_tables.read_records(path, kind, [*columns, *carry], skip, watch)
    for number, record in enumerate(records, start=1):
        if number <= skip:
            continue
        rows.append(record.values)
        lines.append(record.line)
        size += record.size
        if len(rows) >= batch_rows or size >= BATCH_BYTES:
            yield _text_table(number - len(rows), rows, lines, len(columns), carry)
            rows, lines, size = [], [], 0
    yield _text_table(number - len(rows), rows, lines, len(columns), carry)


def _text_table(
    first_row: int,
    rows: list[tuple[object, ...] | Problem],
    lines: list[int],
    n_columns: int,
    carry: Sequence[str],
) -> Table:
    if not carry:
        return Table(first_row, rows, lines)
    nothing = (None,) * (n_columns + len(carry))
    values = [nothing if isinstance(row, Problem) else row for row in rows]
    carried = {
        name: pl.Series([_carried(row[place]) for row in values], dtype=pl.String)
        for place, name in enumerate(carry, n_columns)
    }
    return Table(first_row, rows, lines, pl.DataFrame(carried))


def _carried(value: object) -> str | None:
    """A value of a text file as it is carried on: strings as they are, others as JSON."""
    if value is None or isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits, half of a surrogate pair
        return json.dumps(value)


def count_rows(path: Path) -> int | None:
    """How many rows a Parquet file has; None for text, where only reading tells."""
    if format_of(path) != "parquet":
        return None
    with _parquet_errors(path):
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def _parquet_tables(
    path: Path, columns: Sequence[str], batch_rows: int, skip: int, carry: Sequence[str]
) -> Iterator[Table]:
    # Slices, not `collect_batches`: those read ahead whole row groups. The window grows while rows are short,
    # because every slice opens the file anew.
    with _parquet_errors(path):
        source = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        total = int(source.select(pl.len()).collect().item())
        source = source.select(list(dict.fromkeys([*columns, *carry])))
    row = min(skip, total)
    window = batch_rows
    while row < total:
        with _parquet_errors(path):
            frame = source.slice(row, window).collect()
            lists = [frame[name].to_list() for name in columns]
        for start in range(0, frame.height, batch_rows):
            part = [values[start : start + batch_rows] for values in lists]
            carried = frame.select(carry).slice(start, batch_rows) if carry else None
            yield Table(row + start, list(zip(*part, strict=True)), None, carried)
        row += frame.height
        per_row = max(1, frame.estimated_size() // max(1, frame.height))
        window = max(1, min(BATCH_BYTES // int(per_row), 16 * batch_rows))
    yield Table(total, [], None)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as exc:
        # a damaged file can make the reader panic; that is no Exception, hence the second class
        raise DataError(f"{path}: is damaged: it cannot be read as Parquet") from exc
    except FileNotFoundError as exc:
        raise DataError(f"{path}: no such file") from exc
    except OSError as exc:
        raise DataError(f"{path}: cannot be read: {exc.strerror or type(exc).__name__}") from exc


# --- what single values mean -------------------------------------------------------------------

ValueT = TypeVar("ValueT")


def text_of(value: object) -> str:
    """A row's text. Raises `ValueError` with the reason where it is none; never names the content."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("missing")
    if not isinstance(value, str):
        raise ValueError("not a string")  # noqa: TRY004 - one error for all bad values: it is the data
    if not value or value.isspace():
        raise ValueError("empty")
    return value


def word_of(value: object) -> str:
    """An id, label or split as a string: 1 and 1.0 are "1", true is "true". Raises `ValueError` as above."""
    if isinstance(value, str):
        word = value
    elif isinstance(value, bool):
        word = str(value).lower()
    elif isinstance(value, int):
        word = str(value)
    elif isinstance(value, float) and not math.isnan(value):
        # a column of integers with a gap in it comes as floats
        word = str(int(value)) if value.is_integer() else repr(value)
    elif value is None or isinstance(value, float):
        raise ValueError("missing")
    else:
        raise ValueError("neither a string nor a number")
    if not word or word.isspace():
        raise ValueError("missing")
    return word


def is_number(text: str) -> bool:
    """Whether a text is nothing but a number, as they are written in files."""
    return _NUMBER.fullmatch(text.strip()) is not None


def problem_of(field: str, parse: Callable[[object], ValueT], value: object) -> ValueT | Problem:
    """What `parse` makes of a value, or the problem it names."""
    try:
        return parse(value)
    except ValueError as exc:
        return Problem(field, str(exc))


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them (at most 12)."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(repr(name) for name in known[:12])
    return f"; there are: {shown}{', …' if len(known) > 12 else ''}"
