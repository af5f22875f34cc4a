"""Equal texts are classified once in the whole job, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bulk import ClassifyResult, classify, stream
from engine.bulk.entries import Known, digest, single
from engine.bulk.equal_texts import EqualTexts
from engine.bulk.index import INDEX, INDEX_FILES, TextIndex
from engine.errors import CorruptStoreError, InterruptedRunError
from engine.scheduler import Limits
from engine.stopping import StopSignal
from tests.support.bulk import PROMPT, Student, expected, files_of, read_out, write_ndjson

TEXTS = [f"comment {n % 100}" if n % 3 else f"refuse {n % 9}" for n in range(240)]
ENTRIES = [
    *((0, single(0.7), single(0.2), 0), (91, math.nan, math.nan, 2**31 - 1)),
    *(("refused", "why"), ("malformed", "")),
]


def run(path: Path, out: Path, student: Student | None = None, **options: Any) -> ClassifyResult:
    return asyncio.run(classify(PROMPT, student or Student(), path, out, **options))


def stopped(path: Path, out: Path, after: int, **options: Any) -> Student:
    """A call that is stopped after so many answers."""
    stop = StopSignal()
    student = Student(on_request=lambda _: stop.request() if len(student.seen) >= after else None)
    with pytest.raises(InterruptedRunError):
        run(path, out, student, stop=stop, limits=Limits(concurrency=1), **options)
    return student


def test_equal_texts_of_all_parts_are_asked_about_once(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    student = Student(max_batch=7)
    result = run(path, tmp_path / "out", student, part_rows=20)
    assert sorted(student.seen) == sorted(set(TEXTS))
    assert result.duplicates == len(TEXTS) - len(set(TEXTS))
    labelled, failed = read_out(tmp_path / "out")
    got = dict(zip(labelled["row"], labelled["label"], strict=True))
    got |= dict(zip(failed["row"], failed["reason"], strict=True))
    assert [got[row] for row in range(len(TEXTS))] == [expected(text) for text in TEXTS]
    first = {text: row for row, text in reversed(list(enumerate(TEXTS)))}
    told = dict(zip(labelled["row"], labelled["confidence"], strict=True))
    assert all(told[row] == told[first[TEXTS[row]]] for row in told), "its answer, confidence and all"


def test_rows_wait_for_an_equal_text_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_OPEN_ROWS", 1)
    path = write_ndjson(tmp_path / "rows.ndjson", ["slow", *(f"row {n}" for n in range(18)), *["slow"] * 11])

    async def wait() -> None:
        while len(student.seen) < 19:
            await asyncio.to_thread(int)

    student = Student(on_request=lambda text: wait() if text == "slow" else None)
    result = run(path, tmp_path / "out", student, part_rows=10)
    assert student.seen.count("slow") == 1
    assert (result.rows, result.duplicates) == (30, 11)


@settings(max_examples=5, deadline=None)
@given(moments=st.lists(st.integers(1, 40), min_size=1, max_size=2), part_rows=st.integers(20, 250))
def test_what_is_known_survives_a_stop(moments: list[int], part_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_ndjson(Path(folder) / "rows.ndjson", TEXTS)
        out = Path(folder) / "out"
        run(path, Path(folder) / "whole", part_rows=part_rows)
        asked: list[str] = []
        for moment in moments:
            stop = StopSignal()
            student = Student()
            student.on_request = lambda _, s=student, at=moment, stop=stop: (  # type: ignore[misc]
                stop.request() if len(s.seen) >= at else None
            )
            with contextlib.suppress(InterruptedRunError):
                run(path, out, student, part_rows=part_rows, stop=stop, limits=Limits(concurrency=2))
            asked += student.seen
        last = Student()
        run(path, out, last, part_rows=part_rows)
        assert sorted(asked + last.seen) == sorted(set(TEXTS))
        assert files_of(out) == files_of(Path(folder) / "whole"), "duplicates counted alike"


def test_the_index_is_private_holds_no_text_and_goes_at_the_end(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    out = tmp_path / "out"
    stopped(path, out, 60, part_rows=20)
    with sqlite3.connect(out / INDEX) as db:
        rows = db.execute("SELECT hash, known FROM texts").fetchall()
    db.close()
    known = {name: Known.unpack(data) for name, data in rows}
    assert len(known) > 20
    assert all(TEXTS[one.row] in set(TEXTS) and digest(TEXTS[one.row]) == name for name, one in known.items())
    assert all(found.stat().st_mode & 0o777 == 0o600 for found in out.glob(f"{INDEX}*"))
    assert b"comment" not in (out / INDEX).read_bytes()
    run(path, out, part_rows=20)
    assert not {path.name for path in out.iterdir()} & set(INDEX_FILES)


def test_an_index_that_is_gone_costs_repeated_questions_only(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    run(path, tmp_path / "whole", part_rows=20)
    out = tmp_path / "out"
    stopped(path, out, 60, part_rows=20)
    for name in INDEX_FILES:
        (out / name).unlink(missing_ok=True)
    run(path, out, part_rows=20)
    before, after = files_of(tmp_path / "whole"), files_of(out)
    assert before | {"manifest.json": b""} == after | {"manifest.json": b""}


def test_a_part_that_is_gone_on_the_way_is_made_from_the_index(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    run(path, tmp_path / "whole", part_rows=20)
    out = tmp_path / "out"
    first = stopped(path, out, 60, part_rows=20)
    (out / "part-00001.parquet").unlink()
    second = Student()
    run(path, out, second, part_rows=20)
    assert sorted(first.seen + second.seen) == sorted(set(TEXTS)), "nothing is asked about again"
    assert files_of(out) == files_of(tmp_path / "whole"), "a row is no duplicate of itself"


def test_a_damaged_index_is_one_clear_error(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    stopped(path, tmp_path / "out", 60, part_rows=20)
    (tmp_path / "out" / INDEX).write_bytes(b"nothing that SQLite wrote " * 400)
    with pytest.raises(CorruptStoreError, match="delete it") as caught:
        run(path, tmp_path / "out", part_rows=20)
    assert "\n" not in str(caught.value)
    for name in INDEX_FILES:
        (tmp_path / "out" / name).unlink(missing_ok=True)
    assert run(path, tmp_path / "out", part_rows=20).rows == len(TEXTS)


def test_what_is_left_of_a_deleted_manifest_answers_nothing(tmp_path: Path) -> None:
    """Deleting the manifest begins anew: with another prompt, old labels would be wrong ones."""
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    stopped(path, tmp_path / "out", 60, part_rows=20)
    (tmp_path / "out" / "manifest.json").unlink()
    student = Student()
    run(path, tmp_path / "out", student, part_rows=20)
    assert sorted(student.seen) == sorted(set(TEXTS))


@given(row=st.integers(0, 2**62), entry=st.sampled_from(ENTRIES))
def test_known_is_read_as_it_was_written(row: int, entry: Any) -> None:
    found = Known.unpack(Known(row, entry).pack())
    assert found.row == row
    assert repr(found.entry) == repr(entry)
    with pytest.raises(CorruptStoreError):
        Known.unpack(Known(row, entry).pack()[:-1])


def test_nothing_gets_lost_between_memory_and_disk(tmp_path: Path) -> None:
    """A text is known from the moment it is settled, though it goes to disk in between."""

    async def work() -> None:
        index = TextIndex(tmp_path)
        texts = EqualTexts(index)
        name = digest("a")
        await texts.prepare([name])
        assert texts.find(name) is None
        assert [texts.wait(name, 3), texts.wait(name, 8)] == [True, False]
        known = Known(3, ("refused", "why"))
        assert texts.settle(name, known) == [3, 8]
        assert texts.find(name) == known
        await texts.keep()
        assert texts.find(name) == known, "of this batch still"
        await texts.prepare([name])
        assert texts.find(name) == known, "from the disk"
        await texts.prepare([digest("b")])
        index.add({name: Known(5, ("other", ""))})
        assert index.look_up([name]) == {name: known}, "the first one stays"
        index.close()

    asyncio.run(work())
