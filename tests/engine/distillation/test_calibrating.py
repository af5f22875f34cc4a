"""Confidence in a compilation: calibrated on validation without a request more, judged on test."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import adapters
from engine.distillation.judging import evaluate
from engine.distillation.pipeline import compile_prompt
from engine.distillation.result import CompileResult
from engine.errors import RunError
from engine.events import StageProgress
from engine.ports import Models
from engine.store.compiled import load_calibration, load_prompt
from engine.types import Answer, ChatOutcome, Request
from tests.support import corpus
from tests.support.fakes import Listener


def boasting(answer: Answer) -> Answer:
    """Four times as sure."""
    told = {label: 4 * value for label, value in (answer.label_logprobs or {}).items()}
    total = math.log(math.fsum(map(math.exp, told.values())))
    return replace(answer, label_logprobs={label: value - total for label, value in told.items()})


def silent(answer: Answer) -> Answer:
    return replace(answer, label_logprobs=None)


def cutting(answer: Answer) -> Answer:
    return replace(answer, cut_characters=100 if answer.text == "praise" else 0)


class Altered:
    """The local student, with its answers changed a little."""

    def __init__(self, change: Callable[[Answer], Answer]) -> None:
        self._inner = adapters.open_student("local:")
        self._change = change
        self.name = f"altered-{change.__name__}"
        self.max_batch = self._inner.max_batch
        self.max_input_tokens = self._inner.max_input_tokens
        self.price = self._inner.price

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        return [
            self._change(one) if isinstance(one, Answer) else one
            for one in await self._inner.complete(requests)
        ]

    async def aclose(self) -> None:
        await self._inner.aclose()


def compiled(folder: Path, change: Callable[[Answer], Answer], **options: Any) -> CompileResult:
    config = corpus.write(folder, corpus.rows(400, noise=0.3))
    config.write_text(config.read_text().replace("max_rounds = 3", "max_rounds = 0"))

    def models(*arguments: Any) -> Models:
        return replace(adapters.open_models(*arguments), student=Altered(change))

    return asyncio.run(compile_prompt(config, models, run=folder / "run", **options))


@pytest.fixture(scope="module")
def boaster(tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    return compiled(tmp_path_factory.mktemp("boaster"), boasting)


def judged(result: CompileResult, change: Callable[[Answer], Answer] = boasting, **options: Any) -> Any:
    return asyncio.run(evaluate(result.run, Altered(change), **options))


def test_a_compilation_leaves_the_temperature(boaster: CompileResult) -> None:
    found = load_calibration(boaster.run)
    assert found is not None
    assert found.temperature is not None
    assert found.temperature > 1.5
    assert found.n == 100
    assert found.why_not(load_prompt(boaster.run).sha256, "altered-boasting") == ""
    told = boaster.to_json()["confidence"]
    assert (told["temperature"], told["ece_calibrated"]) == (found.temperature, found.ece_after)
    manifest = json.loads((boaster.run / "manifest.json").read_bytes())
    assert manifest["validation"]["confidence"] == told


def test_it_takes_no_request_more(tmp_path: Path) -> None:
    counts = []
    for change in (boasting, silent):
        listener = Listener()
        compiled(tmp_path / change.__name__, change, emit=listener)
        last = {event.stage: event for event in listener.events if isinstance(event, StageProgress)}
        counts.append({stage: event.sent + event.cached for stage, event in last.items()})
    assert counts[0] == counts[1]


def test_evaluation_tells_the_error_on_test_as_told_and_calibrated(boaster: CompileResult) -> None:
    found = judged(boaster)
    trust = found.confidence
    assert trust.n == 100
    assert trust.temperature == boaster.validation.confidence.temperature
    assert 0 <= trust.ece_calibrated <= 1
    assert trust.ece_raw != trust.ece_calibrated
    assert found.to_json()["confidence"]["ece_raw"] == trust.ece_raw
    again = judged(boaster, split="validation")
    assert again.confidence == boaster.validation.confidence, "held-out figures, not those of the fit"


def test_it_is_not_tried_on_another_student(boaster: CompileResult) -> None:
    trust = judged(boaster, cutting).confidence
    assert trust.ece_calibrated is trust.temperature is None
    assert "another student, altered-boasting" in trust.reason
    assert trust.ece_raw is not None


def test_a_student_that_tells_nothing_is_not_calibrated(tmp_path: Path) -> None:
    result = compiled(tmp_path, silent)
    found = load_calibration(result.run)
    assert found is not None
    assert (found.n, found.temperature) == (0, None)
    assert "tells no probabilities" in judged(result, silent).confidence.reason


def test_a_run_without_the_file_is_evaluated_all_the_same(tmp_path: Path) -> None:
    result = compiled(tmp_path, boasting)
    path = result.run / "calibration.json"
    path.write_text("{}")
    with pytest.raises(RunError, match="is no calibration"):
        judged(result)
    path.unlink()
    assert "compile again" in judged(result).confidence.reason
    assert compiled(tmp_path, boasting).requests["sent"] == 0
    assert load_calibration(result.run) == result.validation.calibration


def test_evaluation_counts_the_texts_that_were_cut(tmp_path: Path) -> None:
    result = compiled(tmp_path, cutting)
    assert result.validation.cut > 0
    found = judged(result, cutting)
    answered = sum(counts["praise"] for counts in found.compiled.confusion.values())
    assert found.cut == found.to_json()["cut"] == answered > 0
