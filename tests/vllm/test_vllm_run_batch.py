"""The requests files of `answer-files:` through the real `vllm run-batch`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adapters.answer_files import AnswerFiles
from adapters.cli.main import app
from engine.distillation.answers import ExtractionAnswer, read_answer, schema_of
from engine.types import NO_RETRY, Answer, AttemptFailure, ChatOutcome, Message, Request
from tests.contracts.chat_model import check_answer
from tests.support import corpus
from tests.vllm.serving import ENGINE, MAX_MODEL_LEN, Environment

pytestmark = pytest.mark.vllm

LABELS = ("spam", "ok", "hate speech")
NAME = "kinds"
# JSON may hold any amount of white space between its parts, and a model of random weights writes just that
COMPACT = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')


def ask(text: str, **fields: Any) -> Request:
    messages = (Message("system", "Decide."), Message("user", text))
    return Request(text[:12], messages, fields.pop("max_output_tokens", 60), **fields)


GOOD = {
    "choices": ask("one", choices=LABELS),
    "choices not ascii": ask("two", choices=("völlig unklar", "日本語")),
    "schema": ask("three", schema=schema_of(ExtractionAnswer, LABELS), max_output_tokens=200),
    "draw": ask("four", temperature=0.7, index=3),
    "text": ask("five"),
}
TOO_LONG = ask("Zwischenfall" * MAX_MODEL_LEN, choices=LABELS)
SPOILT: Mapping[str, tuple[Request, Mapping[str, Any]]] = {
    "http_400": (ask("six"), {"url": "/v1/nowhere"}),
    "http_404": (ask("seven"), {"model": "huge"}),
    "refused": (ask("eight"), {"temperature": -1.0}),
}
"""Requests with what is put wrong in their lines, by what becomes of them."""


def pld(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--json", "--quiet"])


def submitted(folder: Path, requests: Sequence[Request]) -> list[bytes]:
    """The lines of a requests file."""
    asyncio.run(AnswerFiles(folder, name=NAME).submit(requests))
    (path,) = folder.glob("requests-*.jsonl")
    return path.read_bytes().splitlines()


def spoilt(line: bytes, wrong: Mapping[str, Any]) -> bytes:
    document = json.loads(line)
    for name, value in wrong.items():
        (document if name in document else document["body"])[name] = value
    return json.dumps(document).encode()


def test_run_batch_answers_what_is_asked(environment: Environment, tiny_model: Path, tmp_path: Path) -> None:
    """One file with every kind of request, those of an evaluation, and lines that cannot be answered."""
    config = corpus.write(tmp_path / "project", corpus.rows(120))
    run = config.parent / "runs" / "tickets"
    assert pld("compile", config).exit_code == 0
    evaluate = ("evaluate", run, "--no-zero-shot", "--student", "answer-files:student")
    assert pld(*evaluate).exit_code == 75
    rows = (config.parent / "student" / "requests-001.jsonl").read_bytes().splitlines()
    assert len(rows) == 30

    requests = [*GOOD.values(), TOO_LONG, *(request for request, _ in SPOILT.values())]
    lines = submitted(tmp_path / NAME, requests)
    whole, broken = lines[: -len(SPOILT)], lines[-len(SPOILT) :]
    broken = [spoilt(line, wrong) for line, (_, wrong) in zip(broken, SPOILT.values(), strict=True)]
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    asked.write_bytes(b"".join(line + b"\n" for line in (*broken, *whole, *rows)))
    files = ("-i", asked, "-o", answers, "--model", tiny_model)
    environment.run("vllm", "run-batch", *files, *ENGINE, *COMPACT, timeout_s=600)
    for folder in (config.parent / "student", tmp_path / NAME):
        (folder / "answers-001.jsonl").write_bytes(answers.read_bytes())

    model = AnswerFiles(tmp_path / NAME, name=NAME)
    found = asyncio.run(model.collect(requests))
    assert all("are not answers" not in remark and "cut off" not in remark for remark in model.remarks)

    def outcome(request: Request) -> ChatOutcome:
        return found[request.digest(NAME)]

    for request in GOOD.values():
        answer = outcome(request)
        assert isinstance(answer, Answer), answer
        check_answer(request, answer)
        assert not answer.usage.estimated
        if request.choices:
            assert answer.text in request.choices
        if request.schema is not None:
            read = read_answer(ExtractionAnswer, request.id, answer)
            assert isinstance(read, ExtractionAnswer) or read.reason == "cut"
    too_long = outcome(TOO_LONG)
    assert isinstance(too_long, AttemptFailure)
    assert (too_long.reason, too_long.retry) == ("too_long", NO_RETRY)
    for reason, (request, _) in SPOILT.items():
        failure = outcome(request)
        assert isinstance(failure, AttemptFailure)
        assert failure.reason == reason

    done = pld(*evaluate)
    assert done.exit_code == 0, done.stderr
    scores = json.loads(done.stdout)
    assert (scores["n"], scores["failed"], scores["malformed_rate"]) == (30, 0, 0.0)
