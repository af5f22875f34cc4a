"""Confidence calibrated in bulk: what it changes, and what it belongs to."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.bulk import ClassifyResult, classify
from engine.confidence import Calibration
from engine.errors import InterruptedRunError, RunError
from engine.events import Notice
from engine.scheduler import Limits
from engine.stopping import StopSignal
from tests.support.bulk import LABELS, PROMPT, Student, files_of, read_out, write_ndjson
from tests.support.fakes import Listener

TEXTS = [f"comment {n % 80}" for n in range(120)]
CALIBRATION = Calibration(PROMPT.sha256, "student", 500, temperature=2.5)


def run(path: Path, out: Path, student: Student | None = None, **options: Any) -> ClassifyResult:
    return asyncio.run(classify(PROMPT, student or Student(), path, out, **options))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_ndjson(tmp_path / "rows.ndjson", TEXTS)


def tempered(share: float) -> float:
    """The student's share for its label, and the rest evenly to the others, at the temperature."""
    rest = (1 - share) / (len(LABELS) - 1)
    top, other = math.exp(math.log(share) / 2.5), math.exp(math.log(rest) / 2.5)
    return top / (top + 2 * other)


def test_confidence_and_margin_are_those_at_the_temperature(tmp_path: Path, rows: Path) -> None:
    plain = run(rows, tmp_path / "plain")
    result = run(rows, tmp_path / "out", calibration=CALIBRATION)
    told, _ = read_out(tmp_path / "plain")
    found, _ = read_out(tmp_path / "out")
    assert (plain.temperature, result.temperature) == (None, 2.5)
    assert found["label"].equals(told["label"])
    assert found["confidence"].is_null().equals(told["confidence"].is_null())
    for was, now, margin in zip(told["confidence"], found["confidence"], found["margin"], strict=True):
        if was is not None:
            assert now == pytest.approx(tempered(was), abs=1e-5)
            assert margin == pytest.approx(now - (1 - now) / 2, abs=1e-5)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["task"]["temperature"] == 2.5
    assert result.to_json()["temperature"] == 2.5


def test_rows_to_review_are_those_that_are_unsure_at_the_temperature(tmp_path: Path, rows: Path) -> None:
    result = run(rows, tmp_path / "out", calibration=CALIBRATION, review_below=0.6)
    sure, _ = read_out(tmp_path / "out")
    review = pl.read_parquet(tmp_path / "out" / "review-00000.parquet")
    assert sure["confidence"].min() >= 0.6  # type: ignore[operator]
    assert review.filter(pl.col("confidence") >= 0.6).height == 0
    assert result.review == review.height > run(rows, tmp_path / "plain", review_below=0.6).review


@pytest.mark.parametrize(
    ("calibration", "why"),
    [
        (Calibration("another", "student", 500, temperature=2.5), "another prompt"),
        (Calibration(PROMPT.sha256, "other", 500, temperature=2.5), "another student, other"),
        (Calibration(PROMPT.sha256, "student", 9, reason="only 9 rows"), "only 9 rows"),
    ],
)
def test_one_of_something_else_is_not_used_and_said_once(
    tmp_path: Path, rows: Path, calibration: Calibration, why: str
) -> None:
    listener = Listener()
    result = run(rows, tmp_path / "out", calibration=calibration, emit=listener)
    assert result.temperature is None
    said = [event.text for event in listener.events if isinstance(event, Notice)]
    assert len(said) == 1
    assert said[0].startswith("confidence is not calibrated: ")
    assert why in said[0]
    run(rows, tmp_path / "plain")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain")


def test_a_job_does_not_mix_them(tmp_path: Path, rows: Path) -> None:
    run(rows, tmp_path / "whole", calibration=CALIBRATION, part_rows=20)
    stop = StopSignal()
    student = Student(on_request=lambda _: stop.request() if len(student.seen) >= 30 else None)
    options: dict[str, Any] = {"part_rows": 20, "calibration": CALIBRATION}
    with pytest.raises(InterruptedRunError):
        run(rows, tmp_path / "out", student, stop=stop, limits=Limits(concurrency=2), **options)
    with pytest.raises(RunError, match=r"another calibration of confidence: 2\.5, not none"):
        run(rows, tmp_path / "out", part_rows=20)
    run(rows, tmp_path / "out", **options)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole"), "replayed answers are calibrated too"
