"""The JSON answers that the phases ask for: one schema each, analysis before conclusion.

The name of a schema is what tells an in-process model which phase it serves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from engine.types import Answer, AnswerSchema, Failure, FinishReason


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExtractionAnswer(_Answer):
    """What the teacher writes for one training sample."""

    analysis: str = Field(description="Why the label holds, in one to three sentences.")
    instruction: str = Field(description="One transferable rule that ends in the label.")
    label: str = Field(description="The sample's label, verbatim.")


class SynthesisAnswer(_Answer):
    """What the synthesizer makes of one cluster."""

    analysis: str = Field(description="What the rules share and where they part.")
    title: str = Field(description="The topic, in at most eight words.")
    instruction: str = Field(description="One instruction that decides the topic.")


class GeneralAnswer(_Answer):
    """Rules that stand ahead of all instructions."""

    analysis: str = Field(description="Where the instructions overlap, and what none of them covers.")
    instruction: str = Field(description="A few tie-break rules, and the label when no instruction applies.")


class Edit(_Answer):
    """One bounded change of a prompt: one instruction replaced, added or dropped."""

    action: Literal["replace", "add", "drop"]
    instruction: str = Field(description="Id of the instruction, or an empty string for a new one.")
    title: str = Field(description="The topic; an empty string keeps the present title.")
    text: str = Field(description="The whole new text; an empty string when dropped.")
    reason: str = Field(description="Which cases this is for.")


class ResolutionAnswer(_Answer):
    """What the resolver proposes for one kind of confusion. No edits: the cases are label noise."""

    analysis: str = Field(description="Why the failures were decided wrongly, what the successes show.")
    edits: list[Edit]


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect of an answer that could be read.

    `kind` is a short word to count by and `line` what is recorded: neither repeats the row's text (C11).
    `shown` is what the model reads where it is asked again, and may quote the row that it was given; "" where
    that is `line`.
    """

    kind: str
    line: str
    shown: str = ""


AnswerT = TypeVar("AnswerT", bound=_Answer)

_NAMES: dict[type[_Answer], str] = {
    ExtractionAnswer: "extraction",
    SynthesisAnswer: "synthesis",
    GeneralAnswer: "general",
    ResolutionAnswer: "resolution",
}

_CONSTANT = "[A-Z]{2,20}(?:_[A-Z]{2,20})+"  # as in HARM_CATEGORY_HARASSMENT; no word of a row
_CATEGORY = re.compile(rf"{_CONSTANT}|[A-Z_]{{2,40}} \({_CONSTANT}(?:, {_CONSTANT})*\)")


def schema_of(kind: type[_Answer], labels: Sequence[str] = ()) -> AnswerSchema:
    """The schema of an answer; `labels` are the values that its field `label` may take."""
    document: dict[str, Any] = kind.model_json_schema()
    if labels:
        document["properties"]["label"]["enum"] = list(labels)
    return AnswerSchema(_NAMES[kind], document)


def read_answer(kind: type[AnswerT], request_id: str, answer: Answer) -> AnswerT | Failure:
    """Parse a model's JSON. A cut, blocked or malformed answer is a `Failure` that says what was wrong,
    without repeating its text (C11)."""
    if answer.finish_reason is not FinishReason.STOP:
        if answer.finish_reason is FinishReason.LENGTH:
            return Failure(request_id, "cut", "the answer reached the limit of output tokens before its end")
        # adapters that know the filter's category give it in place of the answer; any other text is a row's
        category = f": {answer.text}" if _CATEGORY.fullmatch(answer.text) else ""
        return Failure(request_id, "blocked", f"the model's safety filter held the answer back{category}")
    try:
        return kind.model_validate_json(answer.text)
    except ValidationError as exc:
        problems = "; ".join(map(_problem, exc.errors(include_input=False)[:3]))
        return Failure(request_id, "malformed", f"not the JSON that was asked for ({problems})")


def _problem(error: ErrorDetails) -> str:
    # the name of an unknown field is the model's own text
    path = error["loc"][:-1] if error["type"] == "extra_forbidden" else error["loc"]
    return f"{'.'.join(map(str, path)) or 'answer'}: {error['type']}"
