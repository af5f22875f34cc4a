"""Columns carried along, and rows set aside for a person."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from engine.bulk import ClassifyResult, classify
from engine.errors import ConfigError, DataError, ModelError, RunError
from engine.events import StageProgress
from engine.types import Answer, ChatOutcome, Request, Usage
from tests.support.bulk import LABELS, PROMPT, Student, expected, files_of, read_out, write_ndjson
from tests.support.fakes import Listener

TEXTS = [f"comment {n}" if n % 4 else f"refuse {n}" for n in range(100)]


def run(inputs: Any, out: Path, student: Student | None = None, **options: Any) -> ClassifyResult:
    return asyncio.run(classify(PROMPT, student or Student(), inputs, out, **options))


# --- columns carried along --------------------------------------------------------------------------


@pytest.fixture
def typed(tmp_path: Path) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "text": [*TEXTS, None],
            "score": [*range(100), None],
            "at": [datetime(2024, 5, 1, 12, n % 60, tzinfo=ZoneInfo("Europe/Berlin")) for n in range(101)],
            "price": [Decimal(n) / 4 for n in range(101)],
            "tags": [[f"t{n}", None] for n in range(101)],
            "kind": pl.Series([f"k{n % 3}" for n in range(101)], dtype=pl.Categorical),
            "label": ["gold"] * 101,
        }
    )
    frame.write_parquet(tmp_path / "rows.parquet", row_group_size=17)
    return frame


def test_columns_keep_their_types_in_all_files(tmp_path: Path, typed: pl.DataFrame) -> None:
    keep = {"score": "score", "at": "at", "price": "price", "tags": "tags", "kind": "kind", "label": "gold"}
    run(tmp_path / "rows.parquet", tmp_path / "out", keep=keep, part_rows=30, review_below=0.7)
    seen = []
    for path in sorted((tmp_path / "out").glob("*-*.parquet")):
        frame = pl.read_parquet(path)
        wanted = typed.select(pl.col(old).alias(new) for old, new in keep.items())
        assert frame.select(keep.values()).schema == wanted.schema
        assert frame.select(keep.values()).equals(wanted[frame["row"]])
        seen += frame["row"].to_list()
    assert sorted(seen) == list(range(101))


def test_columns_of_text_files_are_strings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;n;who\nfirst;07;ann\nsecond;8\n;9;\n")
    (tmp_path / "b.ndjson").write_text(
        '{"text": "third", "n": 10, "who": ["x", {"y": null}]}\n{broken\n'
        '{"text": "fourth", "who": "\\ud800"}\n'
        '{"text": "fifth", "n": 1234567890123456789}\n'
    )
    run([tmp_path / "a.csv", tmp_path / "b.ndjson"], tmp_path / "out", keep=["n", "who"])
    labelled, failed = read_out(tmp_path / "out")
    assert labelled.select("row", "n", "who").rows() == [
        (0, "07", "ann"),
        (3, "10", '["x",{"y":null}]'),
        (5, None, "\ufffd"),
        (6, "1234567890123456789", None),
    ]
    assert failed.select("row", "n", "who").rows() == [(1, None, None), (2, "9", None), (4, None, None)]


def test_what_cannot_be_kept_is_refused(tmp_path: Path, typed: pl.DataFrame) -> None:
    rows = tmp_path / "rows.parquet"
    (tmp_path / "more.csv").write_text("text,score\nfine,1\n")
    for inputs, keep, error, says in (
        (rows, ["scores"], DataError, "no column 'scores'; did you mean 'score'"),
        (rows, ["label"], ConfigError, "'label' is a column of the output already"),
        (rows, {"label": "reason"}, ConfigError, "'reason' is a column of the output"),
        (rows, {"score": "x", "at": "x"}, ConfigError, "a name of its own"),
        ([rows, tmp_path / "more.csv"], ["score"], DataError, "needs one type in all files"),
    ):
        with pytest.raises(error, match=says) as caught:
            run(inputs, tmp_path / "out", keep=keep)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    run(rows, tmp_path / "out", keep=["score"])
    with pytest.raises(RunError, match="another columns to keep: score, not score=n"):
        run(rows, tmp_path / "out", keep={"score": "n"})


def test_a_text_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    run(path, tmp_path / "out", keep={"text": "input"})
    labelled, _ = read_out(tmp_path / "out")
    assert [TEXTS[row] for row in labelled["row"]] == labelled["input"].to_list()


# --- rows for a person ------------------------------------------------------------------------------


def test_unsure_rows_stand_in_review_files_instead(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", [*TEXTS, *TEXTS])
    run(path, tmp_path / "plain", part_rows=30)
    everything, failed = read_out(tmp_path / "plain")
    listener = Listener()
    result = run(path, tmp_path / "out", part_rows=30, review_below=0.75, emit=listener)
    sure, failed_too = read_out(tmp_path / "out")
    review = pl.concat(map(pl.read_parquet, sorted((tmp_path / "out").glob("review-*.parquet"))))
    assert failed_too.equals(failed)
    assert sure.schema == review.schema == everything.schema
    assert pl.concat([sure, review]).sort("row").equals(everything)
    assert (sure["confidence"] >= 0.75).all()
    assert sure["confidence"].null_count() == 0, "an unknown confidence is not a sure one"
    assert review.filter(pl.col("confidence") >= 0.75).height == 0
    assert review["confidence"].null_count() == everything["confidence"].null_count() > 0
    assert result.review == review.height > 0
    assert result.classified == everything.height
    last = [event for event in listener.events if isinstance(event, StageProgress)][-1]
    assert last.rows is not None
    assert last.rows.review == result.review
    assert run(path, tmp_path / "out", part_rows=30, review_below=0.75).review == result.review


def test_the_threshold_belongs_to_the_task(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    run(path, tmp_path / "out", review_below=0.6)
    with pytest.raises(RunError, match=r"another review threshold: 0\.6, not 0\.7"):
        run(path, tmp_path / "out", review_below=0.7)
    for wrong in (0.0, -1.0, 1.1, math.nan):
        with pytest.raises(ConfigError, match="review_below"):
            run(path, tmp_path / "other", review_below=wrong)


def test_a_review_file_that_is_gone_is_made_again(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    run(path, tmp_path / "out", review_below=0.7, part_rows=25)
    whole = files_of(tmp_path / "out")
    (tmp_path / "out" / "review-00001.parquet").unlink()
    run(path, tmp_path / "out", review_below=0.7, part_rows=25)
    assert files_of(tmp_path / "out") == whole


class Silent(Student):
    """Answers without probabilities."""

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        self.seen += [request.id for request in requests]
        return [Answer(LABELS[0], Usage(1, 1)) for _ in requests]


@pytest.mark.parametrize("rows", [1, 40, 3000])
def test_a_student_that_tells_no_confidence_is_refused_early(tmp_path: Path, rows: int) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", [f"row {n}" for n in range(rows)])
    student = Silent()
    with pytest.raises(ModelError, match="tells no confidence"):
        run(path, tmp_path / "out", student, review_below=0.6)
    assert not list((tmp_path / "out").glob("*.parquet"))
    assert len(student.seen) <= 1000
    assert run(path, tmp_path / "plain", Silent()).classified == rows


def test_failed_rows_are_no_reason_to_refuse(tmp_path: Path) -> None:
    texts = [f"refuse {n}" for n in range(8)]
    assert expected(texts[0]).startswith("refused")
    path = write_ndjson(tmp_path / "rows.ndjson", texts)
    assert run(path, tmp_path / "out", review_below=0.6).failed == 8
