"""Structured answers: what is asked for, what is read, what is told of a bad one (C11)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.answers import (
    Edit,
    ExtractionAnswer,
    GeneralAnswer,
    ResolutionAnswer,
    SynthesisAnswer,
    read_answer,
    schema_of,
)
from engine.types import Answer, Failure, FinishReason

KINDS = {
    ExtractionAnswer: ("extraction", ["analysis", "instruction", "label"]),
    SynthesisAnswer: ("synthesis", ["analysis", "title", "instruction"]),
    GeneralAnswer: ("general", ["analysis", "instruction"]),
    ResolutionAnswer: ("resolution", ["analysis", "edits"]),
}
EDIT = {"action": "add", "instruction": "", "title": "t", "text": "x", "reason": "r"}
PRIVATE = "zebra-crossing"


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_named_closed_and_in_order(kind: Any) -> None:
    name, fields = KINDS[kind]
    schema = schema_of(kind)
    assert schema.name == name
    assert schema.json_schema["type"] == "object"
    assert list(schema.json_schema["properties"]) == schema.json_schema["required"] == fields
    assert fields[0] == "analysis"  # a model that concludes before it reasons rationalises
    assert schema.json_schema["additionalProperties"] is False
    assert schema_of(kind) == schema


def test_the_label_is_one_of_the_task() -> None:
    schema = schema_of(ExtractionAnswer, ("spam", "none"))
    assert schema.json_schema["properties"]["label"]["enum"] == ["spam", "none"]
    assert "enum" not in schema_of(ExtractionAnswer).json_schema["properties"]["label"]


def test_a_good_answer_is_read() -> None:
    text = json.dumps({"analysis": "a", "edits": [EDIT]})
    assert read_answer(ResolutionAnswer, "r", Answer(text)) == ResolutionAnswer(
        analysis="a", edits=[Edit.model_validate(EDIT)]
    )
    padded = '\n {"label": "spam", "analysis": "a", "instruction": "i"} \n'
    assert read_answer(ExtractionAnswer, "r", Answer(padded)) == ExtractionAnswer(
        analysis="a", instruction="i", label="spam"
    )


BAD = {
    "": "answer: json_invalid",
    PRIVATE: "answer: json_invalid",
    '"\ud800"': "answer: string_unicode",
    "[]": "answer: model_type",
    "[" * 5000: "answer: json_invalid",
    json.dumps({"analysis": PRIVATE}): "edits: missing",
    json.dumps({"analysis": [PRIVATE], "edits": []}): "analysis: string_type",
    json.dumps({"analysis": "a", "edits": [], PRIVATE: PRIVATE}): "answer: extra_forbidden",
    json.dumps({"analysis": "a", "edits": [EDIT | {PRIVATE: 1}]}): "edits.0: extra_forbidden",
    json.dumps({"analysis": "a", "edits": [EDIT | {"action": PRIVATE}]}): "edits.0.action: literal_error",
    json.dumps({"analysis": "a", "edits": {PRIVATE: 1}}): "edits: list_type",
}


@pytest.mark.parametrize("text", BAD)
def test_a_malformed_answer_says_where_without_repeating_it(text: str) -> None:
    failure = read_answer(ResolutionAnswer, "r7", Answer(text))
    assert isinstance(failure, Failure)
    assert (failure.id, failure.reason) == ("r7", "malformed")
    assert BAD[text] in failure.detail
    assert PRIVATE not in failure.detail
    assert len(failure.detail) < 300


@settings(deadline=None)
@given(st.text(st.characters(), max_size=30), st.sampled_from(list(KINDS)))
def test_no_text_breaks_the_reader(text: str, kind: Any) -> None:
    assert isinstance(read_answer(kind, "r", Answer(text)), Failure)


def test_a_cut_or_blocked_answer_is_never_read() -> None:
    text = json.dumps({"analysis": "a", "instruction": "i"})
    cut = read_answer(GeneralAnswer, "r", Answer(text, finish_reason=FinishReason.LENGTH))
    blocked = read_answer(GeneralAnswer, "r", Answer(text, finish_reason=FinishReason.BLOCKED))
    assert isinstance(cut, Failure)
    assert isinstance(blocked, Failure)
    assert (cut.reason, blocked.reason) == ("cut", "blocked")
    assert "limit of output tokens" in cut.detail
    assert blocked.detail == "the model's safety filter held the answer back"  # no text of the answer


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("PROHIBITED_CONTENT", True),
        ("SAFETY (HARM_CATEGORY_HARASSMENT)", True),
        ("SAFETY (HARM_CATEGORY_HARASSMENT, HARM_CATEGORY_HATE_SPEECH)", True),
        ("SAFETY", False),  # may be a shouted word of the row
        ("KILL (THEM ALL)", False),
        ("SAFETY (HARM_CATEGORY_HARASSMENT) and more", False),
    ],
)
def test_a_blocked_answer_tells_its_category_and_nothing_else(text: str, told: bool) -> None:
    found = read_answer(GeneralAnswer, "r", Answer(text, finish_reason=FinishReason.BLOCKED))
    assert isinstance(found, Failure)
    assert (text in found.detail) == told
