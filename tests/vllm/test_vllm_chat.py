"""The adapter for OpenAI's API against a real vLLM server. Its model answers nonsense, in the right form."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from adapters.addresses import parse_openai
from adapters.openai_compatible import OpenAICompatibleChat
from engine.distillation.answers import (
    ExtractionAnswer,
    GeneralAnswer,
    ResolutionAnswer,
    SynthesisAnswer,
    read_answer,
    schema_of,
)
from engine.errors import ModelError
from engine.ports import ChatModel
from engine.types import (
    NO_RETRY,
    Answer,
    AttemptFailure,
    ChatOutcome,
    Failure,
    FinishReason,
    Message,
    Request,
)
from tests.contracts.chat_model import ChatModelContract, check_answer
from tests.vllm.serving import BLOCK, MAX_MODEL_LEN, MODEL, Server

pytestmark = pytest.mark.vllm

LABELS = ("spam", "ok", "hate speech")
TOO_LONG = "Zwischenfall" * MAX_MODEL_LEN


def ask(text: str, *, system: str = "Decide.", max_output_tokens: int = 32, **fields: object) -> Request:
    messages = (Message("system", system), Message("user", text))
    return Request(text[:20], messages, max_output_tokens, **fields)  # type: ignore[arg-type]


def outcomes(address: str, requests: Sequence[Request]) -> list[ChatOutcome]:
    """What becomes of requests that are sent all at once, by a fresh adapter."""

    async def run() -> list[ChatOutcome]:
        model = OpenAICompatibleChat(parse_openai(address))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(model.complete([request])) for request in requests]
        finally:
            await model.aclose()
        return [task.result()[0] for task in tasks]

    return asyncio.run(run())


def answers(address: str, requests: Sequence[Request]) -> list[Answer]:
    """The same, where every request is answered in due form."""
    found = []
    for request, outcome in zip(requests, outcomes(address, requests), strict=True):
        assert isinstance(outcome, Answer), outcome
        check_answer(request, outcome)
        found.append(outcome)
    return found


class TestChat(ChatModelContract):
    @pytest.fixture(autouse=True)
    def _served(self, server: Server) -> None:
        self.address = server.address

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ChatModel]:
        model = OpenAICompatibleChat(parse_openai(self.address))
        try:
            yield model
        finally:
            await model.aclose()

    def requests(self) -> list[Request]:
        return [
            ask("one", choices=LABELS),
            ask("two", schema=schema_of(ExtractionAnswer, LABELS)),
            ask("three"),
            ask("four", temperature=0.7, index=4),
        ]

    def bad_request(self) -> Request:
        return ask(TOO_LONG)


# --- choices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        ("no", "none", "not sure", "nothing of the sort"),
        ("Ja", "Nein", "völlig unklar", "日本語", "🙂"),
        tuple(f"category {number:02d}" for number in range(40)),
    ],
    ids=["words", "prefixes", "not ascii", "many"],
)
def test_an_answer_to_choices_is_one_of_them(server: Server, labels: tuple[str, ...]) -> None:
    requests = [ask(f"{text} {n}", choices=labels) for n in range(8) for text in ("a message", "Was?", "🙂")]
    for answer in answers(server.address, requests):
        assert answer.text in labels
        assert answer.finish_reason is FinishReason.STOP
        assert answer.label_logprobs is not None
        assert set(answer.label_logprobs) == set(labels)


def test_the_likeliest_label_is_chosen(server: Server) -> None:
    """Labels of one token each: others may be begun by several, of which only the likeliest counts."""
    labels = ("A", "B", "C", "D")
    for answer in answers(server.address, [ask(f"a message {n}", choices=labels) for n in range(24)]):
        assert answer.label_logprobs is not None
        assert answer.label_logprobs[answer.text] == max(answer.label_logprobs.values())


def test_the_probabilities_of_labels_are_those_that_draws_have(server: Server) -> None:
    """Labels that begin differently: what is said of each holds over many draws."""
    draws = 200
    (asked,) = answers(server.address, [ask("how likely?", choices=LABELS)])
    assert asked.label_logprobs is not None
    shares = {label: math.exp(value) for label, value in asked.label_logprobs.items()}
    drawn = Counter(
        answer.text
        for answer in answers(
            server.address,
            [ask("how likely?", choices=LABELS, temperature=1.0, index=n) for n in range(draws)],
        )
    )
    distance = sum(abs(drawn[label] / draws - share) for label, share in shares.items()) / 2
    assert distance < 0.1


def test_room_for_the_whole_label_is_the_callers_to_give(server: Server) -> None:
    labels = ("counterintuitive", "characteristically")
    (answer,) = answers(server.address, [ask("cut it", choices=labels, max_output_tokens=1)])
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.text not in labels


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ExtractionAnswer, SynthesisAnswer, GeneralAnswer, ResolutionAnswer])
def test_an_answer_follows_the_schema_or_is_cut(
    server: Server,
    kind: type[ExtractionAnswer | SynthesisAnswer | GeneralAnswer | ResolutionAnswer],
) -> None:
    schema = schema_of(kind, LABELS if kind is ExtractionAnswer else ())
    requests = [
        ask(f"Write it down, {n}.", schema=schema, max_output_tokens=200, temperature=1.0, index=n)
        for n in range(8)
    ]
    for request, answer in zip(requests, answers(server.address, requests), strict=True):
        assert answer.text.lstrip().startswith("{")
        read = read_answer(kind, request.id, answer)
        if isinstance(read, Failure):
            assert (answer.finish_reason, read.reason) == (FinishReason.LENGTH, "cut")
        elif isinstance(read, ExtractionAnswer):
            assert read.label in LABELS


# --- usage and the prefix cache -------------------------------------------------------------------


def test_a_prompt_that_was_seen_before_comes_from_the_cache(server: Server) -> None:
    system = "The allotments open at seven, and close when the last one leaves. " * 60
    requests = [ask(f"row {n}", system=system, choices=LABELS) for n in range(10)]
    hits = server.metric("vllm:prefix_cache_hits_total")
    queries = server.metric("vllm:prefix_cache_queries_total")
    (first,) = answers(server.address, requests[:1])
    later = answers(server.address, requests[1:])
    assert not first.usage.estimated
    assert first.usage.cached_tokens is not None
    assert first.usage.cached_tokens < BLOCK, "nobody has asked this before"
    whole_blocks = first.usage.input_tokens // BLOCK * BLOCK
    assert whole_blocks > 2 * BLOCK
    for answer in later:
        assert answer.usage.cached_tokens is not None
        assert whole_blocks - BLOCK <= answer.usage.cached_tokens <= whole_blocks
    told = sum(answer.usage.cached_tokens or 0 for answer in later)
    asked = sum(answer.usage.input_tokens for answer in (first, *later))
    assert server.metric("vllm:prefix_cache_hits_total") - hits == told
    assert server.metric("vllm:prefix_cache_queries_total") - queries == asked


# --- what cannot be answered ----------------------------------------------------------------------


def test_a_text_that_is_too_long_is_not_asked_again(server: Server) -> None:
    (outcome,) = outcomes(server.address, [ask(TOO_LONG, choices=LABELS)])
    assert isinstance(outcome, AttemptFailure)
    assert (outcome.reason, outcome.retry, outcome.billed) == ("too_long", NO_RETRY, None)


def test_a_model_that_is_not_served_ends_the_run(server: Server) -> None:
    async def check() -> None:
        model = OpenAICompatibleChat(parse_openai(server.address.replace(MODEL, "huge", 1)))
        try:
            with pytest.raises(ModelError, match=r"no such model .*\(GET http\S+/models") as raised:
                await model.complete([ask("who is there?", choices=LABELS)])
        finally:
            await model.aclose()
        assert "\n" not in str(raised.value)

    asyncio.run(check())
