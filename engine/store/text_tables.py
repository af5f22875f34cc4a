"""CSV and NDJSON, record by record: a broken line spoils itself and nothing else.

Memory is bounded by `MAX_RECORD` and the size of a batch, whatever the file holds.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import orjson

from engine.errors import DataError
from engine.store.files import Format, open_file

MAX_RECORD = 16 << 20
"""The longest record that is read, in characters (CSV) or bytes (NDJSON)."""

_DELIMITERS = {"csv": ",;\t|", "tsv": "\t"}
_PEEK_RECORDS = 1000
_HEAD = 1 << 16


class Problem(NamedTuple):
    """Why a row cannot be used: the field (or `line` for all of it) and the reason, without its content."""

    field: str
    reason: str


Values: TypeAlias = tuple[object, ...]
"""One row's values in the order of the columns asked for; None where there is none."""


class Record(NamedTuple):
    """One row of a text file. `line` counts from 1; `size` is what it took up in the file."""

    line: int
    size: int
    values: Values | Problem


def column_names(path: Path, kind: Format, wanted: Sequence[str]) -> list[str]:
    """The columns of a text file: a CSV's header, or the keys of the first 1,000 NDJSON objects."""
    with open_file(path) as stream:
        if kind != "ndjson":
            with _csv_lines(stream) as lines:
                return _read_header(path, lines, kind, wanted)[1]
        keys: dict[str, None] = {}
        for number, (_, raw) in enumerate(_json_lines(stream)):
            if number == _PEEK_RECORDS:
                break
            found = _parse_object(raw)
            if isinstance(found, dict):
                keys.update(dict.fromkeys(found))
    if not keys:
        raise DataError(f"{path}: no line is a JSON object; NDJSON has one object per line")
    return list(keys)


def read_records(
    path: Path,
    kind: Format,
    columns: Sequence[str],
    skip: int = 0,
    watch: Callable[[BinaryIO], None] | None = None,
) -> Iterator[Record]:
    """Every row of a text file once, in order; the first `skip` come as empty records, hardly parsed.

    Blank lines are no rows. The columns must exist (`column_names`). `watch` as in `open_file`.
    """
    with open_file(path, watch) as stream:
        if kind == "ndjson":
            yield from _ndjson_records(stream, columns, skip)
        else:
            with _csv_lines(stream) as lines:
                yield from _csv_records(path, lines, kind, columns, skip)


# --- CSV ---------------------------------------------------------------------------------------


class _TooLongError(Exception):
    pass


_CUT = "too long\n"  # stands for a line over the limit; told by identity
# Stands for a carriage return within a line, which the csv module refuses though pandas writes it unquoted.
# Decoding never makes this surrogate.
_CR = "\ud800"


class _Lines(Iterator[str]):
    """Lines for the csv module that can be taken back: an unclosed quote must cost one line, not the file."""

    def __init__(self, stream: io.TextIOWrapper, end: str) -> None:
        self._stream = stream
        self._end = end
        self._again: deque[str] = deque()
        self.record: list[str] = []
        self.size = 0
        self.line = 0
        """Lines before the current record."""
        self.at_end = False

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        if not line:
            self.at_end = True
            raise StopIteration
        self.record.append(line)
        self.size += len(line)
        if line is _CUT or self.size > MAX_RECORD:
            raise _TooLongError
        return line

    def _read(self) -> str:
        line = self._stream.readline(MAX_RECORD)
        if len(line) == MAX_RECORD and line[-1] != self._end:
            while len(line) == MAX_RECORD and line[-1] != self._end:
                line = self._stream.readline(MAX_RECORD)
            return _CUT
        if self._end == "\r" or "\r" not in line:
            return line
        end = "\r\n" if line.endswith("\r\n") else line[-1:]
        return line.removesuffix(end).replace("\r", _CR) + end

    def next_record(self, *, keep: int | None = None) -> None:
        """Begin a record after the first `keep` lines of this one (all of them unless said)."""
        if keep is not None and keep < len(self.record):
            self._again.extendleft(reversed(self.record[keep:]))
            del self.record[keep:]
        self.line += len(self.record)
        self.record.clear()
        self.size = 0
        self.at_end = False


@contextmanager
def _csv_lines(stream: BinaryIO) -> Iterator[_Lines]:
    newline = re.search(rb"\r?\n|\r", stream.read(_HEAD))
    stream.seek(0)
    end = "\r" if newline is not None and newline[0] == b"\r" else "\n"
    # surrogateescape: bytes that are not UTF-8 survive as lone surrogates and spoil their own row only
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=end) as text:
        yield _Lines(text, end)


def _read_header(path: Path, lines: _Lines, kind: Format, wanted: Sequence[str]) -> tuple[str, list[str]]:
    """The delimiter and the column names. CSV is not always separated by commas: the columns wanted tell."""
    # process-wide, and only ever raised: the module's default refuses fields over 131,072 characters
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))
    text = ""
    try:
        while not text.strip() or text.count('"') % 2:
            text += next(lines)
    except (StopIteration, _TooLongError) as exc:
        raise DataError(f"{path}: has no header line with the names of the columns") from exc
    lines.next_record()
    headers: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS[kind]:
        parsed = csv.reader(io.StringIO(text.lstrip("\r\n"), newline=""), strict=True, delimiter=delimiter)
        with suppress(csv.Error):
            headers[delimiter] = [name.strip() for name in next(parsed)]
    if not headers:
        raise DataError(f"{path}: the header (line 1) is not valid CSV")
    fitting = [d for d, header in headers.items() if wanted and set(wanted) <= set(header)]
    delimiter = fitting[0] if fitting else max(headers, key=lambda d: len(headers[d]))
    for name in wanted:
        if headers[delimiter].count(name) > 1:
            raise DataError(f"{path}: column {name!r} appears twice in the header")
    return delimiter, headers[delimiter]


def _csv_records(
    path: Path, lines: _Lines, kind: Format, columns: Sequence[str], skip: int
) -> Iterator[Record]:
    delimiter, header = _read_header(path, lines, kind, columns)
    places = [header.index(name) for name in columns]
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    values: Values | Problem
    while True:
        keep = None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (csv.Error, _TooLongError) as exc:
            # go on from the line after the one the record began with
            keep = 1
            reader = csv.reader(lines, strict=True, delimiter=delimiter)
            if lines.record[0] is _CUT:
                values = Problem("line", f"longer than {MAX_RECORD >> 20} MiB")
            else:
                unclosed = lines.at_end or isinstance(exc, _TooLongError)
                values = Problem("line", "a quote is never closed" if unclosed else "quotes are misplaced")
        else:
            if not fields:
                lines.next_record()
                continue
            if skip > 0:
                values = ()
            elif len(fields) != len(header):
                values = Problem("line", f"has {len(fields)} fields where the header has {len(header)}")
            else:
                values = _utf8(columns, [fields[place] for place in places])
        skip -= 1
        yield Record(lines.line + 1, lines.size, values)
        lines.next_record(keep=keep)


def _utf8(columns: Sequence[str], fields: list[str]) -> Values | Problem:
    for index, field in enumerate(fields):
        if not field.isascii():
            fields[index] = field = field.replace(_CR, "\r")  # noqa: PLW2901
            try:
                field.encode()
            except UnicodeEncodeError:
                return Problem(columns[index], "is not valid UTF-8")
    # an empty field is no value, as it is for every reader of CSV
    return tuple([field or None for field in fields])


# --- NDJSON ------------------------------------------------------------------------------------


def _json_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines that are not blank; None for one that is too long."""
    number = 0
    while line := stream.readline(MAX_RECORD):
        number += 1
        if len(line) == MAX_RECORD and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_RECORD)
            yield number, None
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.isspace() and line:
            yield number, line


def _parse_object(raw: bytes | None) -> dict[str, Any] | Problem:
    if raw is None:
        return Problem("line", f"longer than {MAX_RECORD >> 20} MiB")
    try:
        value = orjson.loads(raw)
    except ValueError:
        try:
            # the lenient parser knows what Python and JavaScript write: NaN, half of a surrogate pair
            value = _mended(json.loads(raw.decode()))
        except UnicodeDecodeError:
            return Problem("line", "is not valid UTF-8")
        except (ValueError, RecursionError):
            return Problem("line", "is not valid JSON")
    return value if isinstance(value, dict) else Problem("line", "is not a JSON object")


def _mended(value: Any) -> Any:
    """Top-level strings with lone surrogates (an emoji cut in half) get U+FFFD in their place."""
    if not isinstance(value, dict):
        return value
    return {
        key: item.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(item, str)
        else item
        for key, item in value.items()
    }


def _ndjson_records(stream: BinaryIO, columns: Sequence[str], skip: int) -> Iterator[Record]:
    for number, raw in _json_lines(stream):
        size = MAX_RECORD if raw is None else len(raw)
        values: Values | Problem = ()
        if skip > 0:
            skip -= 1
        else:
            found = _parse_object(raw)
            values = found if isinstance(found, Problem) else tuple([found.get(name) for name in columns])
        yield Record(number, size, values)
