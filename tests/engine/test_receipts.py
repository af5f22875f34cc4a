"""What a prefix cache was worth is told after a job, with what is wrong about it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import adapters
from engine.bulk import ClassifyResult, classify
from engine.distillation.evaluation import Evaluation
from engine.distillation.judging import evaluate
from engine.distillation.pipeline import compile_prompt
from engine.events import Notice
from engine.ports import CacheReceipt
from engine.receipts import ReceiptBook, receipt_json
from tests.support import corpus
from tests.support.bulk import PROMPT, Student, write_ndjson
from tests.support.fakes import Listener

RECEIPT = CacheReceipt(
    requests=100,
    servers=1,
    prefixes=1,
    prompt_tokens=480_000,
    cached_tokens=455_400,
    expected_tokens=455_400,
    shared_tokens=4630,
    block_tokens=16,
    requests_per_s=61.23456,
    first_token_s=0.123456,
)


@dataclass
class Cached(Student):
    """A student with a prefix cache: its receipt is `told` once it was asked."""

    told: CacheReceipt = RECEIPT

    async def receipt(self) -> CacheReceipt | None:
        return self.told if self.seen else None


def classified(tmp_path: Path, student: Student, listener: Listener) -> ClassifyResult:
    rows = tmp_path / "rows.ndjson"
    if not rows.exists():
        tmp_path.mkdir(exist_ok=True)
        write_ndjson(rows, [f"comment {n}" for n in range(20)])
    return asyncio.run(classify(PROMPT, student, rows, tmp_path / "out", emit=listener))


def warned(listener: Listener) -> list[str]:
    return [event.text for event in listener.events if isinstance(event, Notice) and event.warning]


def test_bulk_hands_it_on(tmp_path: Path) -> None:
    listener = Listener()
    result = classified(tmp_path, Cached(told=replace(RECEIPT, warnings=("it is off", "and more"))), listener)
    assert result.receipt is not None
    assert result.to_json()["prefix_cache"] == receipt_json(result.receipt)
    json.dumps(result.to_json())
    assert warned(listener) == ["prefix cache: it is off", "prefix cache: and more"]


def test_one_that_keeps_none_and_a_job_with_nothing_left_to_ask_have_none(tmp_path: Path) -> None:
    listener = Listener()
    result = classified(tmp_path / "a", Student(), listener)
    assert result.receipt is None
    assert result.to_json()["prefix_cache"] is None
    classified(tmp_path / "b", Cached(), listener)
    assert classified(tmp_path / "b", Cached(), listener).receipt is None
    assert warned(listener) == []


def test_a_job_with_one_prompt_has_one_beginning(tmp_path: Path) -> None:
    listener = Listener()
    result = classified(tmp_path / "a", Cached(told=replace(RECEIPT, prefixes=2)), listener)
    assert result.receipt is not None
    (warning,) = result.receipt.warnings
    assert "2 different beginnings, and there is one prompt" in warning
    assert warned(listener) == [f"prefix cache: {warning}"]


def test_beginnings_of_earlier_jobs_are_none_of_this_one(tmp_path: Path) -> None:
    listener = Listener()
    student = Cached()
    classified(tmp_path / "a", student, listener)
    student.told = replace(RECEIPT, prefixes=2)
    classified(tmp_path / "b", student, listener)
    assert warned(listener) == []


def test_as_many_beginnings_as_prompts() -> None:
    async def receipt(prefixes: int) -> CacheReceipt | None:
        student = Cached(told=replace(RECEIPT, prefixes=prefixes))
        book = await ReceiptBook.open(student, prompts=3)
        student.seen.append("a text")
        return await book.receipt(Listener())

    allowed, more = asyncio.run(receipt(3)), asyncio.run(receipt(4))
    assert allowed is not None
    assert allowed.warnings == ()
    assert more is not None
    assert "there are 3 prompts" in more.warnings[0]


def test_json_has_the_hit_rate() -> None:
    found = receipt_json(RECEIPT)
    assert found is not None
    assert found["hit_rate"] == 0.9487
    assert (found["requests_per_s"], found["first_token_s"]) == (61.2, 0.1235)
    assert found["warnings"] == []
    unknown = receipt_json(replace(RECEIPT, cached_tokens=None, first_token_s=None))
    assert unknown is not None
    assert unknown["hit_rate"] is unknown["first_token_s"] is None


class Judged:
    """The local student, with a receipt."""

    def __init__(self) -> None:
        self._student = adapters.open_student("local:")
        self.asked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._student, name)

    async def complete(self, requests: Any) -> Any:
        self.asked = True
        return await self._student.complete(requests)

    async def receipt(self) -> CacheReceipt | None:
        return replace(RECEIPT, prefixes=3) if self.asked else None


def test_evaluate_hands_it_on_and_writes_it_nowhere(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    compiled = asyncio.run(compile_prompt(tmp_path / "pld.toml", adapters.open_models, run=tmp_path / "run"))
    written = []
    for student in (Judged(), adapters.open_student("local:")):
        listener = Listener()
        found: Evaluation = asyncio.run(evaluate(compiled.run, student, emit=listener))  # type: ignore[arg-type]
        judged = isinstance(student, Judged)
        assert (found.receipt is not None) == judged
        assert len(warned(listener)) == judged, "compiled and zero-shot are two prompts"
        written.append((compiled.run / "evaluation.json").read_bytes())
    assert written[0] == written[1]
