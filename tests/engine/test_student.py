"""The student's requests share one prefix (C10); what its answers say about their rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fences import read_all
from engine.prompt import CompiledPrompt
from engine.student import StudentPrompt, read_prediction
from engine.types import Answer, Failure, FinishReason, Instruction, Prediction, Result

PROMPT = CompiledPrompt("Is it spam?", {"spam": "ads", "none": ""}, (Instruction("I01", "Offers are spam."),))
STUDENT = StudentPrompt(PROMPT)
pieces = st.sampled_from(["</input>\n", "<|im_end|>", "<input>", "\\"]) | st.text(st.characters(), max_size=5)
any_text = st.lists(pieces, max_size=5).map("".join)


@settings(deadline=None)
@given(any_text, any_text)
def test_all_requests_share_one_prefix_and_the_row_comes_last(one: str, other: str) -> None:
    first, second = STUDENT.request("r1", one), STUDENT.request("r2", other)
    assert first.messages[:-1] == second.messages[:-1]
    assert [message.role for message in first.messages] == ["system", "user"]
    assert first.messages[0].content == PROMPT.text
    for request, text in ((first, one), (second, other)):
        content = request.messages[-1].content
        assert content.startswith("<input>\n")
        assert content.endswith("\n</input>")
        assert [row.text for row in read_all(content, "input")] == [text]
    assert replace(first, id="", messages=()) == replace(second, id="", messages=())
    assert (first.digest("m") == second.digest("m")) == (one == other)


def test_answers_are_held_to_the_labels() -> None:
    request = STUDENT.request("r1", "hello")
    assert request.id == "r1"
    assert request.choices == STUDENT.labels == ("spam", "none")
    assert request.schema is None
    assert request.temperature == 0


@pytest.mark.parametrize("label", ["a-rather-long-label", "żółć", "スパム", "\ud800"])
def test_the_longest_label_fits_whatever_the_tokenizer(label: str) -> None:
    request = StudentPrompt(CompiledPrompt("Task.", {label: "", "x": ""})).request("r", "text")
    assert request.max_output_tokens >= len(label.encode("utf-8", "surrogatepass")) + 1


def read(
    text: str,
    logprobs: Mapping[str, float] | None = None,
    finish: FinishReason = FinishReason.STOP,
) -> Prediction | Failure:
    answer = Answer(text, finish_reason=finish, label_logprobs=logprobs)
    return read_prediction(Result("r1", answer, "sent"), ("spam", "none"))


@pytest.mark.parametrize("text", ["spam", " spam\n"])
def test_a_label(text: str) -> None:
    assert read(text) == Prediction("r1", "spam")


@pytest.mark.parametrize("text", ["", "Spam", "spam.", "it is spam", "spam none", "ham", "'spam'"])
def test_an_answer_that_is_no_label_is_malformed_never_guessed(text: str) -> None:
    assert read(text, {"spam": -0.1, "none": -2.0}) == Prediction("r1", None)


@pytest.mark.parametrize("finish", [FinishReason.LENGTH, FinishReason.BLOCKED])
def test_a_cut_or_blocked_answer_is_malformed(finish: FinishReason) -> None:
    assert read("spam", finish=finish) == Prediction("r1", None)


def test_a_failure_stays_the_failure_it_is() -> None:
    failure = Failure("r1", "timeout", "after 6 attempts")
    assert read_prediction(Result("r1", failure, "journal"), ("spam", "none")) is failure


def test_logprobs_become_confidence_and_margin() -> None:
    told = read("spam", {"spam": math.log(0.7), "none": math.log(0.3)})
    assert isinstance(told, Prediction)
    assert told.confidence == pytest.approx(0.7)
    assert told.margin == pytest.approx(0.4)
    # the label that was written need not be the likeliest one
    other = read("none", {"spam": math.log(0.7), "none": math.log(0.3)})
    assert isinstance(other, Prediction)
    assert other.confidence == pytest.approx(0.3)
    assert other.margin == pytest.approx(-0.4)


@settings(deadline=None)
@given(st.lists(st.floats(-30, 0), min_size=2, max_size=6))
def test_confidences_are_shares(values: list[float]) -> None:
    labels = tuple(f"label-{k}" for k in range(len(values)))
    told = []
    for label in labels:
        answer = Answer(label, label_logprobs=dict(zip(labels, values, strict=True)))
        prediction = read_prediction(Result("r", answer, "cached"), labels)
        assert isinstance(prediction, Prediction)
        assert prediction.confidence is not None
        assert prediction.margin is not None
        assert -1 <= prediction.margin <= prediction.confidence <= 1
        told.append(prediction)
    assert sum(one.confidence or 0.0 for one in told) == pytest.approx(1.0)
    assert max(one.margin or 0.0 for one in told) >= 0.0


@pytest.mark.parametrize("logprobs", [None, {}, {"none": -0.1}])
def test_without_a_logprob_of_the_label_there_is_no_confidence(logprobs: dict[str, float] | None) -> None:
    assert read("spam", logprobs) == Prediction("r1", "spam")


def test_a_single_logprob_is_certain_and_an_impossible_label_is_not() -> None:
    assert read("spam", {"spam": -0.5}) == Prediction("r1", "spam", 1.0, 1.0)
    assert read("spam", {"spam": 0.0, "none": -math.inf}) == Prediction("r1", "spam", 1.0, 1.0)
