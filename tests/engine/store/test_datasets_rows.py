"""Streaming rows to classify: every row once, in order, whatever it holds; memory does not grow."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.store import text_tables
from engine.store.files import fingerprint
from engine.store.rows import RowReader

Seen = tuple[int, str | None, str | None, str | None]
NASTY = '\x00"\r\n,;\t\ufeff\u2028\\{}é😀a '
TEXT = st.one_of(st.text(), st.text(alphabet=NASTY))
TEXTS = st.lists(TEXT, max_size=12)
PROPERTY = settings(max_examples=40, deadline=None)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # a fresh one for every example of a property
        yield Path(name)


def seen(reader: RowReader) -> list[Seen]:
    """Row number, id, text and problem of every row; checks what holds for every batch."""
    found: list[Seen] = []
    for batch in reader:
        assert len(batch) > 0
        assert {i for i, text in enumerate(batch.texts) if text is None} == set(batch.problems)
        ids = batch.ids if batch.ids is not None else [None] * len(batch)
        rows = zip(ids, batch.texts, strict=True)
        found += [(batch.first_row + i, *row, batch.problems.get(i)) for i, row in enumerate(rows)]
    return found


def texts(reader: RowReader) -> list[str | None]:
    return [text for _, _, text, _ in seen(reader)]


def usable(values: list[str]) -> list[str | None]:
    return [None if not value or value.isspace() else value for value in values]


@given(TEXTS, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
       st.booleans(), st.sampled_from([1, 3, 100]))  # fmt: skip
@example(["\r0", "a\rb", "a\r\r\nb"], "\n", csv.QUOTE_MINIMAL, False, 1)
@PROPERTY
def test_csv_gives_back_what_was_written(
    values: list[str], line_end: str, quoting: int, bom: bool, batch_rows: int
) -> None:
    if line_end == "\r":
        quoting = csv.QUOTE_ALL  # an unquoted line feed would be the end of a line
    if line_end == "\n":
        values = [value.rstrip("\r") for value in values]  # unquoted at the end it is part of the line end
    with folder() as path:
        with (path / "d.csv").open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator=line_end, quoting=quoting)  # type: ignore[arg-type]
            writer.writerow(["id", "text"])
            writer.writerows(enumerate(values))
        reader = RowReader([path / "d.csv"], "text", "id", batch_rows=batch_rows)
        rows = seen(reader)
        assert [row[0] for row in rows] == list(range(len(values)))
        assert [row[1] for row in rows] == [str(i) for i in range(len(values))]
        assert [row[2] for row in rows] == usable(values)
        assert rows == seen(reader)


@given(st.lists(st.text(alphabet=st.one_of(st.characters(categories=["L", "Cs"]), st.sampled_from(NASTY)))),
       st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())  # fmt: skip
@example(["\ud83d\ude00", "\ud83d cut", "cut \ude00", "\ufeff\ud800"], "\n", True)
@PROPERTY
def test_ndjson_gives_back_what_was_written(values: list[str], line_end: str, bom: bool) -> None:
    with folder() as path:
        lines = [json.dumps({"n": float("nan"), "text": value}) for value in values] + ['{"text": "last"}']
        data = line_end.join(lines).encode()
        (path / "d.jsonl").write_bytes((b"\xef\xbb\xbf" if bom else b"") + data)
        found = texts(RowReader([path / "d.jsonl"], "text", batch_rows=2))
    # two escapes that belong together are one character; a half alone becomes U+FFFD
    joined = [v.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for v in values]
    assert found == [*usable(joined), "last"]


@given(TEXTS.filter(bool), st.sampled_from([1, 2, 100]))
@PROPERTY
def test_parquet_gives_back_what_was_written(values: list[str], batch_rows: int) -> None:
    with folder() as path:
        frame = pl.DataFrame({"text": values, "n": range(len(values))})
        frame.write_parquet(path / "d.parquet", row_group_size=2)
        reader = RowReader([path / "d.parquet"], "text", "n", batch_rows=batch_rows)
        assert [row[1:3] for row in seen(reader)] == list(
            zip(map(str, range(len(values))), usable(values), strict=True)
        )
        assert reader.count_rows() == len(values)


BAD_LINES = [
    "",
    "  ",
    "{",
    '"',
    'x,"y',
    '"a"b',
    "1,2,3,4",
    '{"text": 1}',
    "[]",
    "\x00",
    "null",
    '{"text":"fine"}',
]


@given(
    st.lists(st.sampled_from(BAD_LINES), max_size=12), st.sampled_from(["csv", "jsonl"]), st.integers(1, 4)
)
@PROPERTY
def test_broken_lines_take_no_other_row_with_them(lines: list[str], kind: str, batch_rows: int) -> None:
    good = {"csv": "77,a good row", "jsonl": '{"id": 77, "text": "a good row"}'}[kind]
    head = ["id,text"] if kind == "csv" else [good]
    with folder() as path:
        body = [part for line in lines for part in (line, good)]
        (path / f"d.{kind}").write_text("\n".join([*head, *body]) + "\n")
        reader = RowReader([path / f"d.{kind}"], "text", "id", batch_rows=batch_rows)
        rows = seen(reader)
        assert [row[0] for row in rows] == list(range(len(rows)))
        found = sum(row[2] == "a good row" for row in rows)
        quoted = kind == "csv" and any(line in ('"', 'x,"y') for line in lines)
        # two stray quotes can pair up and hold what stands between them: that is what CSV says
        assert quoted or found == len(lines) + (kind == "jsonl")
        for start in range(len(rows) + 2):
            reader.skip_rows(start)
            assert seen(reader) == rows[start:]


def test_one_stray_quote_costs_one_line_of_a_long_file(tmp_path: Path) -> None:
    lines = [f"{i},text {i}" for i in range(5000)]
    lines[2000] = '2000,"never closed'
    (tmp_path / "d.csv").write_text("\n".join(["id,text", *lines]))
    rows = seen(RowReader([tmp_path / "d.csv"], "text", "id", batch_rows=700))
    assert [row[0] for row in rows if row[3]] == [2000]
    assert rows[2000][3] == "line: a quote is never closed (line 2002)"
    assert rows[2001][:3] == (2001, "2001", "text 2001")
    assert len(rows) == 5000


def test_a_quote_closed_too_late_to_be_meant_takes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tables, "MAX_RECORD", 10_000)
    lines = ["id,text", '0,"stray', *(f"{i},text {i}" for i in range(1, 3000)), '3000,stray"', "3001,fine"]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    rows = seen(RowReader([tmp_path / "d.csv"], "text", "id"))
    assert [row[0] for row in rows if row[3]] == [0]
    assert len(rows) == 3002


def test_every_kind_of_problem_has_its_words(tmp_path: Path) -> None:
    cases = {
        b"not json": "line: is not valid JSON (line 2)",
        b"17": "line: is not a JSON object (line 3)",
        b'{"text": "a\xff"}': "line: is not valid UTF-8 (line 4)",
        b'{"other": 1}': "text: missing (line 5)",
        b'{"text": null}': "text: missing (line 6)",
        b'{"text": NaN}': "text: missing (line 7)",
        b'{"text": ["a"]}': "text: not a string (line 8)",
        b'{"text": "\\t "}': "text: empty (line 9)",
        b"[" * 5000: "line: is not valid JSON (line 10)",
    }
    (tmp_path / "d.jsonl").write_bytes(b"\n".join([b'{"text": "fine"}', *cases]))
    rows = seen(RowReader([tmp_path / "d.jsonl"], "text"))
    assert [row[3] for row in rows] == [None, *cases.values()]
    latin = "id,text\n1,caf\u00e9\n2,fine\n".encode("latin-1")
    (tmp_path / "d.csv").write_bytes(latin)
    assert [row[3] for row in seen(RowReader([tmp_path / "d.csv"], "text"))] == [
        "text: is not valid UTF-8 (line 2)", None,
    ]  # fmt: skip
    # only the columns that are read must be clean
    assert texts(RowReader([tmp_path / "d.csv"], "id")) == ["1", "2"]


def test_very_long_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tables, "MAX_RECORD", 300_000)
    fine, long = "x" * 200_000, "y" * 700_000
    (tmp_path / "d.csv").write_text(
        f'id,text\n1,{fine}\n2,{long}\n3,fine\n4,"{long[:1000]}\n{long}"\n5,fine\n'
    )
    rows = seen(RowReader([tmp_path / "d.csv"], "text", "id"))
    assert [row[2] for row in rows] == [fine, None, "fine", None, None, "fine"]
    assert [row[3] for row in rows if row[3]] == [
        "line: longer than 0 MiB (line 3)",
        "line: a quote is never closed (line 5)",
        "line: longer than 0 MiB (line 6)",
    ]
    lines = [json.dumps({"text": text}) for text in (fine, long, "fine")]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    assert texts(RowReader([tmp_path / "d.jsonl"], "text")) == [fine, None, "fine"]


def test_long_texts_make_short_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.store.tables.BATCH_BYTES", 100_000)
    frame = pl.DataFrame({"text": [f"{i:05}" * 2000 for i in range(100)]})
    frame.write_parquet(tmp_path / "d.parquet")
    frame.write_csv(tmp_path / "d.csv")
    frame.write_ndjson(tmp_path / "d.ndjson")
    for name in ("d.parquet", "d.csv", "d.ndjson"):
        sizes = [len(batch) for batch in RowReader([tmp_path / name], "text", batch_rows=30)]
        assert sum(sizes) == 100
        # Parquet has to see a first window before it knows how long texts are
        assert max(sizes[1:]) <= 11


def test_several_files_count_on_and_can_be_skipped_into(tmp_path: Path) -> None:
    expected = [f"text {i}" for i in range(60)]
    pl.DataFrame({"text": expected[:20]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"text": expected[20:35]}).write_csv(tmp_path / "b.csv")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in expected[35:])
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    reader = RowReader([tmp_path / "a.parquet", tmp_path / "b*", tmp_path / "*.gz"], "text", batch_rows=8)
    assert texts(reader) == expected
    assert [batch.file_index for batch in reader] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert all(batch.ids is None for batch in reader)
    assert reader.count_rows() is None
    for start in (0, 1, 19, 20, 21, 34, 35, 59, 60, 1000):
        reader.skip_rows(start)
        rows = seen(reader)
        assert [row[0] for row in rows] == list(range(start, 60))
        assert [row[2] for row in rows] == expected[start:]


def test_rows_without_an_id_are_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(
        '{"id": null, "text": "a"}\n{"text": "b"}\n{"id": 3.0, "text": "c"}\nx\n'
    )
    (batch,) = RowReader([tmp_path / "d.jsonl"], "text", "id")
    assert batch.ids == ["", "", "3", ""]
    assert batch.texts == ["a", "b", "c", None]


def test_what_is_missing_is_said_before_reading(tmp_path: Path) -> None:
    pl.DataFrame({"content": ["a"], "number": [1]}).write_parquet(tmp_path / "d.parquet")
    with pytest.raises(DataError, match="no column 'contents'; did you mean 'content'"):
        RowReader([tmp_path / "d.parquet"], "contents")
    with pytest.raises(DataError, match="no column 'id'; there are: 'content', 'number'"):
        RowReader([tmp_path / "d.parquet"], "content", "id")
    with pytest.raises(DataError, match="no such file"):
        RowReader([tmp_path / "e.parquet"], "content")
    with pytest.raises(DataError, match="column 'number' holds Int64, not texts; texts are in 'content'"):
        RowReader([tmp_path / "d.parquet"], "number")


def test_a_damaged_parquet_file_is_one_clear_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pl.DataFrame({"text": [str(x) for x in rng.random(2000)]}).write_parquet(tmp_path / "d.parquet")
    whole = (tmp_path / "d.parquet").read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(4, len(whole), 3):
            damaged[at] ^= 0xFF
        (tmp_path / "d.parquet").write_bytes(damaged[: int(rng.integers(len(whole) // 2, len(whole) + 1))])
        try:
            seen(RowReader([tmp_path / "d.parquet"], "text"))
        except DataError as exc:
            refused += 1
            assert "\n" not in str(exc)  # noqa: PT017 - some damage goes unnoticed, so no `raises`
    assert refused > 30


def test_a_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b"a" * (3 << 20))
    (before,) = fingerprint([path])
    assert fingerprint([path]) == (before,)
    for at, added in ((0, b""), (3 << 20, b"b"), ((3 << 20) - 1, b"")):
        with path.open("r+b") as file:
            file.seek(at)
            file.write(added or b"b")
        (after,) = fingerprint([path])
        assert after != before
        before = after


MEASURE = """
import sys, psutil
from engine.store.rows import RowReader
process, rows, early, late = psutil.Process(), 0, 0, 0
for batch in RowReader([sys.argv[1]], "text", "id"):
    rows += len(batch)
    rss = process.memory_info().rss
    if rows <= 200_000:
        early = max(early, rss)
    late = max(late, rss)
print(rows, early, late)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson"])
def test_memory_is_constant_in_the_number_of_rows(tmp_path: Path, kind: str) -> None:
    n = 1_000_000
    words = np.array([f"w{i:x}" for i in range(50_000)])
    rng = np.random.default_rng(0)
    columns = {str(i): words[rng.integers(0, len(words), n)] for i in range(12)}
    frame: Any = pl.DataFrame(columns).select(text=pl.concat_str(pl.all(), separator=" "))
    frame = frame.with_row_index("id")
    path = tmp_path / f"d.{kind}"
    getattr(frame, f"write_{kind}")(path)
    del frame, columns
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    rows, early, late = map(int, done.stdout.split())
    assert rows == n
    # after a fifth of the rows memory has reached its level
    assert late - early < 48 << 20
    assert late < 400 << 20
