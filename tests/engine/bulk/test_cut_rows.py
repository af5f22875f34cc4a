"""Texts that the student has not seen whole: said beside the label, and carried everywhere it goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.bulk import ClassifyResult, classify
from engine.errors import InterruptedRunError, RunError
from engine.fences import read_one
from engine.scheduler import Limits
from engine.stopping import StopSignal
from engine.types import Answer, ChatOutcome, Request
from tests.support.bulk import PROMPT, Student, expected, files_of, read_out, write_ndjson

# every fifth text is too long by so many characters as it is numbered
TEXTS = [f"comment {n % 70} {'long' if n % 70 % 5 == 0 else ''}" for n in range(160)]


def cut_of(text: str) -> int:
    return 1000 + int(text.split()[1]) if "long" in text else 0


class Cutting(Student):
    """Leaves out some characters of long texts."""

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        texts = [read_one(asked.messages[-1].content, "input").text for asked in requests]
        return [
            replace(answer, cut_characters=cut_of(text)) if isinstance(answer, Answer) else answer
            for answer, text in zip(await super().complete(requests), texts, strict=True)
        ]


def run(path: Path, out: Path, student: Student | None = None, **options: Any) -> ClassifyResult:
    return asyncio.run(classify(PROMPT, student or Cutting(), path, out, **options))


def test_what_was_left_out_stands_beside_the_label(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    result = run(path, tmp_path / "out", part_rows=40, review_below=0.75)
    sure, _ = read_out(tmp_path / "out")
    review = pl.concat(map(pl.read_parquet, sorted((tmp_path / "out").glob("review-*.parquet"))))
    rows = pl.concat([sure, review]).sort("row")
    assert rows["cut"].to_list() == [cut_of(text) for text in TEXTS], "equal texts were cut alike"
    assert rows.schema["cut"] == pl.Int32
    assert review["cut"].max() != 0
    assert result.cut == sum(cut_of(text) > 0 for text in TEXTS) > 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert sum(part["cut"] for part in manifest["parts"]) == result.cut
    assert run(path, tmp_path / "out", part_rows=40, review_below=0.75).cut == result.cut


@pytest.mark.parametrize("after", [1, 30, 60])
def test_it_outlives_a_stop(tmp_path: Path, after: int) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    whole = run(path, tmp_path / "whole", part_rows=20)
    stop = StopSignal()
    student = Cutting(on_request=lambda _: stop.request() if len(student.seen) >= after else None)
    with pytest.raises(InterruptedRunError):
        run(path, tmp_path / "out", student, part_rows=20, stop=stop, limits=Limits(concurrency=2))
    result = run(path, tmp_path / "out", part_rows=20)
    assert result.cut == whole.cut
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_failures_are_not_counted_as_cut(tmp_path: Path) -> None:
    texts = [f"{word} {n} long" for n in range(10) for word in ("refuse", "babble", "comment")]
    path = write_ndjson(tmp_path / "rows.ndjson", texts)
    result = run(path, tmp_path / "out")
    assert result.cut == result.classified == sum(not _fails(text) for text in texts) == 10


def _fails(text: str) -> bool:
    return expected(text).startswith(("refused", "malformed"))


def test_a_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    path = write_ndjson(tmp_path / "rows.ndjson", TEXTS)
    run(path, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()) | {"format": 2}))
    with pytest.raises(RunError, match=r"another version \(format 2, not 3\); choose another output folder"):
        run(path, tmp_path / "out")
