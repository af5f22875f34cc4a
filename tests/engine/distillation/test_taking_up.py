"""The loop's pass over rules outside every cluster: one earns its place on validation, or is left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from engine.config import ResolveConfig
from engine.config_file import parse_config
from engine.distillation.cases import CaseSelector
from engine.distillation.long_tail import LongTailLibrary
from engine.distillation.resolution import Resolution, Resolver
from engine.distillation.templating import TaskContext
from engine.prompt import CompiledPrompt
from engine.types import Answer, Failure, Instruction, MicroRule, Request, Result, Sample

LABELS = ("none", "spam")
CONFIG = {
    "task": {
        "name": "words",
        "description": "Decide.",
        "labels": list(LABELS),
        "text": "text",
        "label": "label",
    },
    "data": {"file": "rows.csv", "split": "split"},
}


class Lane:
    """A student that calls a text spam where an instruction has its word; a resolver that has no answer."""

    name = "words"

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def stream(
        self, requests: Iterable[Request], **_: object
    ) -> AbstractAsyncContextManager[AsyncIterator[Result[Answer]]]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[AsyncIterator[Result[Answer]]]:
            yield self._answers(requests)

        return opened()

    async def _answers(self, requests: Iterable[Request]) -> AsyncIterator[Result[Answer]]:
        for request in requests:
            self.asked.append(request)
            yield Result(request.id, self._answer(request), "sent")

    def _answer(self, request: Request) -> Answer | Failure:
        if request.schema is not None:
            return Failure(request.id, "malformed", "nothing to say")
        word = request.messages[-1].content.split("word-")[1].split()[0]
        spam = f"word-{word} " in request.messages[0].content
        return Answer("spam" if spam else "none")


def samples(split: str, words: str) -> list[Sample]:
    """Two rows of spam for each word, and as many others."""
    rows = [
        Sample(f"{split}-{word}{n}", f"a word-{word} here", "spam", split) for word in words for n in (1, 2)
    ]
    return rows + [Sample(f"{split}-ok{n}", f"word-ok{n} here", "none", split) for n in range(2 * len(words))]


def resolve(tmp_path: Any, *, validation: str, **settings: Any) -> tuple[Resolution, list[dict[str, Any]]]:
    train = samples("train", "abc")
    rules = [
        MicroRule(one.id, "spam", f"{one.text.split()[1]} means spam") for one in train if one.label == "spam"
    ]
    vectors = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    written: list[dict[str, Any]] = []
    lane = Lane()
    loop = Resolver(
        resolver=lane,
        student=lane,
        train=train,
        validation=samples("validation", validation),
        selector=CaseSelector(vectors, {}, max_tokens=1000, max_cases=4),
        long_tail=LongTailLibrary(rules, vectors, outside=range(6)),
        context=TaskContext(parse_config(CONFIG, base=tmp_path)),
        config=ResolveConfig(max_rounds=1, prune=False, **settings),
        seed=1,
        write_round=lambda _number, record: written.append(orjson.loads(orjson.dumps(record))),
        tell=lambda _line: None,
    )
    start = CompiledPrompt("Decide.", dict.fromkeys(LABELS, ""), (Instruction("I01", "word-a means spam"),))
    return asyncio.run(loop.run(start)), written


def test_a_rare_rule_that_raises_validation_becomes_an_instruction(tmp_path: Any) -> None:
    found, written = resolve(tmp_path, validation="abc")
    taken = found.best.prompt.instructions[1:]
    assert [one.rule_ids for one in taken] == [("train-b1",), ("train-c1",)]
    assert [one.edits for one in taken] == [("long-tail-1",), ("long-tail-2",)]
    assert found.best.macro_f1 == 1.0
    assert [(one["kind"], one["round"]) for one in written] == [("resolve", 1), ("long tail", 2)]
    assert [(one["rule"], one["accepted"]) for one in written[1]["candidates"]] == [
        ("train-b1", True),
        ("train-c1", True),
    ]


def test_one_that_validation_has_no_use_for_is_left_out_with_the_reason(tmp_path: Any) -> None:
    found, written = resolve(tmp_path, validation="ab")
    assert [one.rule_ids for one in found.best.prompt.instructions[1:]] == [("train-b1",)]
    last = written[1]["candidates"][1]
    assert (last["rule"], last["accepted"]) == ("train-c1", False)
    assert last["why"] == "validation macro-F1 stays the same and the prompt is no shorter"


@pytest.mark.parametrize("most", [0, 1])
def test_no_more_than_asked_for_are_tried(tmp_path: Any, most: int) -> None:
    found, written = resolve(tmp_path, validation="abc", long_tail=most)
    assert len(found.best.prompt.instructions) == 1 + most
    assert len(written) == 1 + most
