"""The adapter for Gemini: the contracts, the wire, and every verdict."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.auth import exceptions as auth_errors
from google.genai import errors
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters.addresses import GEMINI_URL
from adapters.gemini import GeminiChat, GeminiEmbedder
from adapters.gemini_client import Access, GeminiClient
from adapters.gemini_models import (
    check_thinking,
    clustering_input,
    takes_temperature,
    thinking_room,
)
from adapters.gemini_wire import ApiError, read_error, read_response, request_frame
from bench.fake_server import Behaviour, serving
from engine.config import Thinking
from engine.distillation.answers import ExtractionAnswer, ResolutionAnswer, schema_of
from engine.errors import ConfigError, ModelError
from engine.ports import FREE, ChatModel, Embedder, Price
from engine.scheduler.endpoint import ChatEndpoint
from engine.types import (
    DOUBTFUL,
    NO_RETRY,
    TRANSIENT,
    Answer,
    AnswerSchema,
    AttemptFailure,
    ChatOutcome,
    Embedding,
    EmbedOutcome,
    FinishReason,
    Message,
    Request,
    Retry,
    Usage,
    rate_limited,
)
from tests.adapters.gemini_server import (
    KEY,
    PER_DAY,
    PER_MINUTE,
    ROW,
    USAGE,
    Server,
    delay,
    generated,
    problem,
    quota,
    reason,
)
from tests.adapters.responding import Asked, http, responding
from tests.contracts.chat_model import ChatModelContract
from tests.contracts.embedder import EmbedderContract
from tests.support.served import compiles_to_the_same_prompt

REFUSED = Behaviour(permanent_status=400, permanent_marker=ROW)
NOWHERE = "http://127.0.0.1:1"
MODEL = "gemini-2.5-flash"


def access(base: str) -> Access:
    return Access(base.removesuffix("/v1"), api_key=KEY, key_hint="check the environment variable X")


def chat(base: str, model: str = MODEL, **options: Any) -> GeminiChat:
    return GeminiChat(model, access(base), **options)


def embedder(base: str, model: str = "gemini-embedding-001", dimensions: int = 768) -> GeminiEmbedder:
    return GeminiEmbedder(model, access(base), dimensions=dimensions)


def ask(text: str = ROW, **fields: Any) -> Request:
    messages = (Message("system", "Decide."), Message("user", text))
    return Request("r1", messages, fields.pop("max_output_tokens", 64), **fields)


def run(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(check)


async def outcome_of(
    response: bytes | None, *, proven: bool = True, request: Request | None = None, **options: Any
) -> ChatOutcome:
    """What becomes of one response; `proven`: the server has answered before."""
    async with responding(http(200, generated())) as server:
        model = chat(server.base, **options)
        if proven:
            await model.complete([ask("first")])
        server.script = lambda asked: response
        try:
            (outcome,) = await model.complete([request or ask()])
        finally:
            await model.aclose()
    return outcome


async def body_of(request: Request, model: str = MODEL, **options: Any) -> dict[str, Any]:
    """The body that is sent for a request."""
    async with responding(http(200, generated())) as server:
        opened = chat(server.base, model, **options)
        await opened.complete([request])
        await opened.aclose()
    (asked,) = server.asked
    assert asked.path == f"/v1beta/models/{model}:generateContent"
    body: dict[str, Any] = asked.json
    return body


# --- the contracts --------------------------------------------------------------------------------


class TestChat(ChatModelContract):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ChatModel]:
        async with responding(Server(bad=ROW)) as server:
            model = chat(server.base)
            yield model
            await model.aclose()

    def requests(self) -> list[Request]:
        schema = schema_of(ExtractionAnswer, ["a", "b"])
        return [
            Request("1", (Message("system", "Decide."), Message("user", "one")), 20, choices=("a", "b")),
            Request("2", (Message("user", "two"),), 20, schema=schema),
            Request("3", (Message("user", "three"),), 20, temperature=0.7, index=4),
        ]

    def bad_request(self) -> Request:
        return ask()

    def test_two_instances_have_one_name(self) -> None:
        assert chat(NOWHERE).name == chat(NOWHERE).name


class TestEmbedder(EmbedderContract):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Embedder]:
        async with serving(REFUSED) as server:
            model = embedder(server.url)
            yield model
            await model.aclose()

    def texts(self) -> list[str]:
        return ["one", "two", "three", "four", "five"]

    def bad_text(self) -> str:
        return ROW

    def test_two_instances_have_one_name(self) -> None:
        assert embedder(NOWHERE).name == embedder(NOWHERE).name


def test_names_hold_what_changes_answers() -> None:
    assert GeminiChat("m", Access()).name == f"gemini:m@{GEMINI_URL}"
    assert GeminiChat("m", Access(vertex=True)).name == "gemini:m@vertex"
    assert chat(NOWHERE, "m", thinking="low").name == f"gemini:m@{NOWHERE}#thinking=low"
    assert chat(NOWHERE, "m", thinking=0).name == f"gemini:m@{NOWHERE}#thinking=0"
    assert embedder(NOWHERE, "e", 64).name == f"gemini:e@{NOWHERE}#64"


def test_limits_and_price() -> None:
    model = chat(NOWHERE, price=Price(1, 2), max_input_tokens=5)
    assert (model.max_batch, model.max_input_tokens, model.price) == (1, 5, Price(1, 2, 8192))
    assert (chat(NOWHERE).max_input_tokens, chat(NOWHERE).price) == (32_000, None)
    assert chat(NOWHERE, price=FREE).price is FREE
    assert (embedder(NOWHERE).max_batch, embedder(NOWHERE).within) == (100, "all")


# --- thinking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "thinking", "room", "sent"),
    [
        ("gemini-2.5-flash", None, 8192, None),
        ("gemini-2.5-flash", 0, 0, {"thinkingBudget": 0}),
        ("gemini-2.5-pro", 512, 1536, {"thinkingBudget": 512}),
        ("gemini-3.8-flash", None, 8192, None),
        ("gemini-flash-latest", None, 8192, None),
        ("gemini-3.8-flash", "low", 4096, {"thinkingLevel": "LOW"}),
        ("gemini-3.5-flash-lite", "minimal", 1024, {"thinkingLevel": "MINIMAL"}),
        ("gemini-3-flash-preview", "high", 24_576, {"thinkingLevel": "HIGH"}),
        ("gemini-3-flash-preview", 0, 1024, {"thinkingBudget": 0}),
        ("gemini-2.0-flash", None, 0, None),
        ("gemma-3-27b-it", None, 0, None),
        ("projects/p/locations/l/endpoints/1", "medium", 8192, {"thinkingLevel": "MEDIUM"}),
    ],
)
def test_thinking_has_room_beside_the_answer(
    model: str, thinking: Thinking | None, room: int, sent: dict[str, Any] | None
) -> None:
    check_thinking(model, thinking)
    options = request_frame(model, ask(max_output_tokens=7), thinking)["generationConfig"]
    assert options["maxOutputTokens"] == 7 + room == 7 + thinking_room(model, thinking)
    assert options.get("thinkingConfig") == sent


def test_the_cap_on_cost_counts_what_may_be_thought() -> None:
    thinks = ChatEndpoint(chat(NOWHERE, price=Price(0, 1), thinking=100))
    assert thinks.most_cost_usd(ask(max_output_tokens=7)) == pytest.approx((7 + 100 + 1024) / 1e6)
    not_at_all = ChatEndpoint(chat(NOWHERE, price=Price(0, 1), thinking=0))
    assert not_at_all.most_cost_usd(ask(max_output_tokens=7)) == pytest.approx(7 / 1e6)


@pytest.mark.parametrize(
    ("model", "thinking", "words"),
    [
        ("gemini-2.5-flash", "low", "takes a number of tokens for `thinking`"),
        ("models/gemini-2.0-flash", 5, "does not think; leave out `thinking`"),
        ("gemini-1.5-pro", "high", "does not think"),
    ],
)
def test_settings_that_a_model_does_not_take(model: str, thinking: Thinking, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_thinking(model, thinking)


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        ("gemini-2.5-pro", True),
        ("gemini-3-flash-preview", True),
        ("gemini-3.1-pro-preview", True),
        ("gemini-3.5-flash", True),
        ("gemini-3.5-flash-lite", False),
        ("gemini-3.6-flash", False),
        ("gemini-4-pro", False),
        ("gemini-flash-latest", False),
        ("gemma-3-27b-it", True),
        ("projects/p/locations/l/endpoints/1", True),
    ],
)
def test_a_temperature_goes_only_to_models_that_heed_it(model: str, takes: bool) -> None:
    assert takes_temperature(model) is takes
    assert ("temperature" in request_frame(model, ask(), None)["generationConfig"]) is takes


def test_a_refused_request_asks_about_the_setting_until_the_model_has_answered() -> None:
    async def check() -> None:
        response = http(400, problem(400, "INVALID_ARGUMENT"))
        first = await outcome_of(response, proven=False, model="gemini-3-pro", thinking="minimal")
        assert first == AttemptFailure(
            "refused", "HTTP 400 (INVALID_ARGUMENT); does the model take thinking = 'minimal'?", NO_RETRY
        )
        later = await outcome_of(response, model="gemini-3-pro", thinking="minimal")
        assert later == AttemptFailure("refused", "HTTP 400 (INVALID_ARGUMENT)", NO_RETRY)

    run(check())


# --- chat: what is sent -----------------------------------------------------------------------------


def test_a_plain_request() -> None:
    async def check() -> None:
        body = await body_of(ask("hello"), thinking=0)
        assert len(body.pop("safetySettings")) == 4
        assert body == {
            "contents": [{"parts": [{"text": "hello"}], "role": "user"}],
            "systemInstruction": {"parts": [{"text": "Decide."}]},
            "generationConfig": {
                "maxOutputTokens": 64,
                "temperature": 0.0,
                "thinkingConfig": {"thinkingBudget": 0},
            },
        }

    run(check())


def test_the_filters_are_off() -> None:
    settings = request_frame(MODEL, ask(), None)["safetySettings"]
    assert {one["category"].removeprefix("HARM_CATEGORY_") for one in settings} == {
        "HARASSMENT",
        "HATE_SPEECH",
        "SEXUALLY_EXPLICIT",
        "DANGEROUS_CONTENT",
    }
    assert {one["threshold"] for one in settings} == {"OFF"}


def test_roles_and_empty_messages() -> None:
    async def check() -> None:
        messages = [
            Message("system", "One."),
            Message("user", "a"),
            Message("assistant", "b"),
            Message("assistant", ""),
            Message("system", "Two."),
            Message("user", "c"),
        ]
        body = await body_of(Request("r", tuple(messages), 9))
        assert body["systemInstruction"] == {"parts": [{"text": "One."}, {"text": "Two."}]}
        assert [(one["role"], one["parts"]) for one in body["contents"]] == [
            ("user", [{"text": "a"}]),
            ("model", [{"text": "b"}]),
            ("user", [{"text": "c"}]),
        ]
        assert "systemInstruction" not in await body_of(Request("r", (Message("user", "a"),), 9))

    run(check())


def test_a_draw_has_its_temperature_and_seed() -> None:
    async def check() -> None:
        drawn = (await body_of(ask(temperature=0.7, index=3)))["generationConfig"]
        assert (drawn["temperature"], drawn["seed"]) == (0.7, 3)
        assert "seed" not in (await body_of(ask(index=3)))["generationConfig"]

    run(check())


def test_choices_are_an_enum() -> None:
    async def check() -> None:
        asked = (await body_of(ask(choices=("spam", "no\ud800ne"))))["generationConfig"]
        assert asked["responseMimeType"] == "text/x.enum"
        assert asked["responseSchema"] == {"type": "STRING", "enum": ["spam", "no\ufffdne"]}
        assert "responseJsonSchema" not in asked

    run(check())


def test_a_schema_keeps_the_order_of_its_properties() -> None:
    async def check() -> None:
        schema = schema_of(ResolutionAnswer)
        asked = (await body_of(ask(schema=schema)))["generationConfig"]
        assert asked["responseMimeType"] == "application/json"
        sent = asked["responseJsonSchema"]
        assert sent.pop("propertyOrdering") == list(schema.json_schema["properties"])
        edit = schema.json_schema["$defs"]["Edit"]
        assert sent["$defs"]["Edit"].pop("propertyOrdering") == list(edit["properties"])
        assert sent == schema.json_schema
        assert json.dumps(sent) == json.dumps(schema.json_schema)

    run(check())


def test_a_property_may_have_any_name() -> None:
    inner = {"type": "object", "properties": {"x": {"type": "string"}}}
    odd = {
        "type": "object",
        "properties": {"properties": inner, "type": {"type": "string", "enum": ["object"]}},
    }
    sent = request_frame(MODEL, ask(schema=AnswerSchema("odd", odd)), None)["generationConfig"]
    got = sent["responseJsonSchema"]
    assert got["propertyOrdering"] == ["properties", "type"]
    assert got["properties"]["properties"]["propertyOrdering"] == ["x"]
    assert list(got["properties"]) == ["properties", "type"]


@given(st.text(max_size=50), st.text(max_size=50))
@example("\ud800", "\udfff")
@settings(max_examples=15)
def test_any_text_can_be_sent(system: str, row: str) -> None:
    async def check() -> None:
        request = Request("r", (Message("system", system), Message("user", row)), 9, choices=(row, "b"))
        body = await body_of(request)
        mended = row.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert body["contents"][0]["parts"] == [{"text": mended}]
        assert body["generationConfig"]["responseSchema"]["enum"] == [mended, "b"]

    run(check())


def test_what_all_rows_share_is_made_once() -> None:
    async def check() -> None:
        async with responding(http(200, generated())) as server:
            model = chat(server.base)
            for row in range(5):
                await model.complete([ask(f"row {row}", choices=("a", "b"))])
            assert model._config.cache_info().misses == 1
            assert [one.json["contents"][0]["parts"][0]["text"] for one in server.asked] == [
                f"row {row}" for row in range(5)
            ]
            await model.aclose()

    run(check())


# --- chat: what comes back ---------------------------------------------------------------------------

NO_ANSWER = AttemptFailure("malformed", "the response holds no answer", DOUBTFUL, unknown_bill=True)
RATINGS = [
    {"category": "HARM_CATEGORY_HARASSMENT", "probability": "HIGH", "blocked": True},
    {"category": "HARM_CATEGORY_HATE_SPEECH", "probability": "LOW"},
    {"category": ROW, "blocked": True},
    "no rating",
]


def ended(why: str) -> AttemptFailure:
    return AttemptFailure("malformed", f"the answer ended by {why}", DOUBTFUL, USAGE)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (generated(), Answer("spam", USAGE)),
        (generated(finish=None), Answer("spam", USAGE)),
        (generated("sp", "MAX_TOKENS"), Answer("sp", USAGE, FinishReason.LENGTH)),
        (generated(None, "MAX_TOKENS"), Answer("", USAGE, FinishReason.LENGTH)),
        (generated("sp", "CONTINUATION"), Answer("sp", USAGE, FinishReason.LENGTH)),
        (generated(finish="MAX_TOKENS", content=None), Answer("", USAGE, FinishReason.LENGTH)),
        (generated(finish="MAX_TOKENS", content={"role": "model"}), Answer("", USAGE, FinishReason.LENGTH)),
        (generated(None, "RECITATION"), Answer("RECITATION", USAGE, FinishReason.BLOCKED)),
        (generated(None, "PROHIBITED_CONTENT"), Answer("PROHIBITED_CONTENT", USAGE, FinishReason.BLOCKED)),
        (generated("x", "BLOCKLIST"), Answer("BLOCKLIST", USAGE, FinishReason.BLOCKED)),
        (generated("x", "SPII"), Answer("SPII", USAGE, FinishReason.BLOCKED)),
        (
            generated(None, "SAFETY", safetyRatings=RATINGS),
            Answer("SAFETY (HARM_CATEGORY_HARASSMENT)", USAGE, FinishReason.BLOCKED),
        ),
        (generated(finish="MALFORMED_FUNCTION_CALL"), ended("MALFORMED_FUNCTION_CALL")),
        (generated(finish="MALFORMED_RESPONSE"), ended("MALFORMED_RESPONSE")),
        (generated(finish="OTHER"), ended("OTHER")),
        (generated(finish=ROW), ended("an unknown reason")),
        (generated(finish=["STOP"]), ended("an unknown reason")),
        (generated(""), AttemptFailure("empty", "the answer has no text", DOUBTFUL, USAGE)),
        (generated(None), AttemptFailure("empty", "the answer has no text", DOUBTFUL, USAGE)),
        (generated(content="x"), AttemptFailure("empty", "the answer has no text", DOUBTFUL, USAGE)),
        (
            generated(
                content={"parts": [{"text": "hm", "thought": True}, {"text": "sp"}, {"text": "am"}, 3]}
            ),
            Answer("spam", USAGE),
        ),
        (
            {
                "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
                "usageMetadata": {"promptTokenCount": 9},
            },
            AttemptFailure(
                "blocked", "the prompt was held back: PROHIBITED_CONTENT", NO_RETRY, Usage(9, 0, 0, 0)
            ),
        ),
        (
            {"promptFeedback": {"blockReason": "SAFETY", "safetyRatings": RATINGS}, "candidates": []},
            AttemptFailure(
                "blocked", "the prompt was held back: SAFETY (HARM_CATEGORY_HARASSMENT)", NO_RETRY
            ),
        ),
        (
            {"promptFeedback": {"blockReason": ROW}},
            AttemptFailure("blocked", "the prompt was held back: an unknown reason", NO_RETRY),
        ),
        (
            {"candidates": [], "usageMetadata": {"promptTokenCount": 5}},
            AttemptFailure("malformed", "the response holds no answer", DOUBTFUL, Usage(5, 0, 0, 0)),
        ),
        ({"candidates": "abc"}, NO_ANSWER),
        ({"candidates": [None]}, NO_ANSWER),
        ({}, NO_ANSWER),
        ({"promptFeedback": {}}, NO_ANSWER),
    ],
)
def test_responses(document: Mapping[str, Any], expected: ChatOutcome) -> None:
    assert read_response(json.dumps(document), ask()) == expected


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"17", b'"candidates"', b'{"candidates":[{"con'])
def test_bodies_that_are_no_answer(body: bytes) -> None:
    async def check() -> None:
        outcome = await outcome_of(http(200, body))
        assert isinstance(outcome, AttemptFailure)
        assert (outcome.reason, outcome.retry, outcome.unknown_bill) == ("malformed", DOUBTFUL, True)

    run(check())


def test_a_body_that_is_no_text() -> None:
    async def check() -> None:
        outcome = await outcome_of(http(200, b"\xff\xfe{"))
        expected = AttemptFailure("malformed", "the response cannot be read", DOUBTFUL, unknown_bill=True)
        assert outcome == expected

    run(check())


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"promptTokenCount": 5, "totalTokenCount": 5}, Usage(5, 0, 0, 0)),
        (
            {
                "promptTokenCount": 100,
                "candidatesTokenCount": 8,
                "thoughtsTokenCount": 30,
                "totalTokenCount": 138,
                "cachedContentTokenCount": 64,
            },
            Usage(100, 38, 30, 64),
        ),
        ({"promptTokenCount": 5, "thoughtsTokenCount": 9, "totalTokenCount": 20}, Usage(5, 15, 9, 0)),
        ({"promptTokenCount": 5, "toolUsePromptTokenCount": 2, "candidatesTokenCount": 1}, Usage(7, 1, 0, 0)),
        ({"promptTokenCount": 5, "candidatesTokenCount": 1, "thoughtsTokenCount": 3}, Usage(5, 4, 3, 0)),
        ({"promptTokenCount": -1, "candidatesTokenCount": True, "totalTokenCount": "9"}, Usage(0, 0, 0, 0)),
        ({"promptTokenCount": 5, "cachedContentTokenCount": 9}, Usage(5, 0, 0, 5)),
    ],
)
def test_usage(told: dict[str, Any], usage: Usage) -> None:
    outcome = read_response(json.dumps(generated(usage=told)), ask())
    assert isinstance(outcome, Answer)
    assert outcome.usage == usage


def test_usage_that_is_not_told_is_estimated() -> None:
    outcome = read_response(json.dumps(generated(usage="none")), ask("a row of some words"))
    assert isinstance(outcome, Answer)
    assert outcome.usage.estimated
    assert outcome.usage.input_tokens > 5
    assert outcome.usage.output_tokens > 0


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (None, ApiError()),
        ([], ApiError()),
        ({"error": "x"}, ApiError()),
        ({"error": {"status": 3, "details": "x"}}, ApiError()),
        (problem(429, "RESOURCE_EXHAUSTED", delay("3s")), ApiError("RESOURCE_EXHAUSTED", after_s=3.0)),
        (problem(429, "X", delay("0.5s"), quota(PER_MINUTE)), ApiError("X", after_s=0.5)),
        (problem(429, "X", delay("20.25s"), quota(PER_MINUTE, PER_DAY)), ApiError("X", "", "", 20.25, True)),
        (problem(429, "X", delay(3)), ApiError("X")),
        (problem(429, "X", delay("-3s")), ApiError("X")),
        (problem(429, "X", delay("nans")), ApiError("X")),
        (problem(400, "X", reason("API_KEY_INVALID")), ApiError("X", "API_KEY_INVALID")),
        (problem(400, ROW, reason(ROW)), ApiError()),
        (
            problem(400, "X", {"@type": "BadRequest", "fieldViolations": [{"field": "a.b[0].c"}]}),
            ApiError("X", field="a.b[0].c"),
        ),
        (problem(400, "X", {"@type": "BadRequest", "fieldViolations": [{"field": ROW}, 3]}), ApiError("X")),
        (problem(429, "X", {"@type": "QuotaFailure", "violations": None}, {"@type": "Help"}), ApiError("X")),
    ],
)  # fmt: skip
def test_what_errors_say(document: object, error: ApiError) -> None:
    assert read_error(document) == error


def refused(status: int, kind: str, word: str = "", after_s: float | None = None) -> AttemptFailure:
    verdicts = {
        "rate_limited": ("rate_limited", rate_limited(after_s)),
        "transient": (f"http_{status}", Retry("transient", after_s)),
        "no": ("refused", NO_RETRY),
        "doubtful": (f"http_{status}", DOUBTFUL),
    }
    name, retry = verdicts[kind]
    return AttemptFailure(name, f"HTTP {status}{word and f' ({word})'}", retry)


EXHAUSTED = "RESOURCE_EXHAUSTED"


def test_a_redirect_does_not_take_the_key_along() -> None:
    async def check() -> None:
        async with responding(http(200, generated())) as elsewhere:
            await outcome_of(http(307, b"", {"Location": f"{elsewhere.base}/x"}))
            assert elsewhere.asked == []

    run(check())


def test_a_connection_that_ends_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone, the SDK waits some seconds and tries again by itself."""

    async def never(delay: float) -> None:
        raise AssertionError(f"waits {delay} s")

    async def check() -> None:
        async with responding(None) as server:
            model = chat(server.base)
            with monkeypatch.context() as patch:
                patch.setattr("google.genai._api_client.asyncio.sleep", never)
                await model.complete([ask()])
            assert len(server.asked) == 1
            await model.aclose()

    run(check())


def test_a_server_that_is_not_there() -> None:
    async def check() -> None:
        model = chat(NOWHERE)
        with pytest.raises(
            ModelError, match=f"^gemini:{MODEL}: {NOWHERE}: nobody answers there; is the server"
        ):
            await model.complete([ask()])
        model._client.proven = True
        assert await model.complete([ask()]) == [
            AttemptFailure("unreachable", "nobody answers there", TRANSIENT)
        ]
        await model.aclose()

    run(check())


@pytest.mark.parametrize(
    ("fault", "name", "retry"),
    [
        ("error_500", "http_500", "transient"),
        ("error_503", "rate_limited", "rate_limited"),
        ("disconnect", "disconnected", "transient"),
        ("reset", "disconnected", "transient"),
        ("truncated", "disconnected", "transient"),
        ("malformed", "malformed", "doubtful"),
        ("empty", "malformed", "doubtful"),
        ("prompt_blocked", "blocked", "no"),
        ("drip", None, None),
        ("length", None, None),
        ("content_filter", None, None),
    ],
)
def test_faults_of_a_server(fault: str, name: str | None, retry: str | None) -> None:
    async def check() -> None:
        behaviour = Behaviour().changed({"faults": {fault: 1.0}, "drip_interval_s": 0.0, "drip_bytes": 64})
        async with serving(behaviour) as server:
            model = chat(server.url)
            for _ in range(2):
                (outcome,) = await model.complete([ask()])
                if name is None:
                    assert isinstance(outcome, Answer)
                    finish = {"length": FinishReason.LENGTH, "content_filter": FinishReason.BLOCKED}
                    assert outcome.finish_reason is finish.get(fault, FinishReason.STOP)
                else:
                    assert isinstance(outcome, AttemptFailure)
                    assert (outcome.reason, outcome.retry.kind) == (name, retry)
            await model.aclose()

    run(check())


def test_a_rate_limit_says_when_to_come_back() -> None:
    async def check() -> None:
        async with serving(Behaviour(requests_per_minute=60)) as server:
            model = chat(server.url)
            outcomes = [(await model.complete([ask()]))[0] for _ in range(2)]
            assert isinstance(outcomes[0], Answer)
            assert isinstance(outcomes[1], AttemptFailure)
            assert outcomes[1].retry.kind == "rate_limited"
            assert 0 < (outcomes[1].retry.after_s or 0) <= 1
            await model.aclose()

    run(check())


# --- credentials ----------------------------------------------------------------------------------


def test_the_key_and_the_row_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        caplog.set_level(logging.DEBUG)
        async with responding(http(200, generated())) as server:
            model, vectors = chat(server.base), embedder(server.base)
            shown = [repr(model), str(model), model.name, repr(vectors), vectors.name, repr(access(NOWHERE))]
            shown += [repr(model._client), repr(await model.complete([ask()]))]
            for response in (
                http(401, problem(401, KEY, reason(KEY))),
                http(400, problem(400, "INVALID_ARGUMENT")),
                http(400, b"{" + ROW.encode()),
                http(404, f"{ROW} {KEY}".encode(), {"Content-Type": "text/plain"}),
                http(200, f"{{{ROW} {KEY}".encode()),
                http(302),
                b"SSH\r\n\r\n",
                None,
            ):
                for proven in (False, True):
                    server.script = lambda asked, response=response: response
                    for ask_it, client in (
                        (model.complete([ask()]), model._client),
                        (vectors.embed([ROW, "b"]), vectors._client),
                    ):
                        client.proven = proven
                        try:
                            shown.append(repr(await ask_it))
                        except ModelError as exc:
                            at: BaseException | None = exc
                            while at is not None:
                                shown += [repr(at), str(at)]
                                at = at.__cause__ or at.__context__
            assert all(asked.headers["x-goog-api-key"] == KEY for asked in server.asked)
            assert not [text for text in shown if KEY in text or ROW in text]
            assert KEY not in caplog.text
            assert ROW not in caplog.text
            await model.aclose()
            await vectors.aclose()

    run(check())


def test_a_server_without_a_key_gets_none_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with responding(http(200, generated())) as server:
            model = GeminiChat("m", Access(server.base.removesuffix("/v1")))
            await model.complete([ask()])
            assert server.asked[0].headers["x-goog-api-key"] == "none"
            await model.aclose()
        assert caplog.records == [], "the SDK says which of two keys it would take, and that is not so here"

    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    run(check())


def test_vertex_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        model = GeminiChat("m", Access(vertex=True, key_hint="log in"))
        with pytest.raises(
            ModelError, match=r"^gemini:m: no way to vertex was found in the environment; log in$"
        ):
            await model.complete([ask()])
        await model.aclose()

    for variable in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    run(check())


def test_vertex_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Express mode: where requests go, without sending one."""
    sent: list[tuple[str, Mapping[str, str]]] = []

    async def request(self: Any, method: str, url: str, **options: Any) -> None:
        sent.append((url, options["headers"]))
        raise auth_errors.TransportError("no network here")

    async def check() -> None:
        model = GeminiChat("gemini-3.8-flash", Access(vertex=True, api_key=KEY, key_hint="log in"))
        with pytest.raises(ModelError, match="Google Cloud gives no access token; log in"):
            await model.complete([ask()])
        model._client.proven = True
        expected = AttemptFailure("no_token", "Google Cloud gave no access token", TRANSIENT)
        assert await model.complete([ask()]) == [expected]
        await model.aclose()
        url, headers = sent[0]
        assert url == (
            "https://aiplatform.googleapis.com/v1beta1/publishers/google/models/gemini-3.8-flash:generateContent"
        )
        assert headers["x-goog-api-key"] == KEY

    monkeypatch.setattr("aiohttp.ClientSession.request", request)
    run(check())


# --- the client -----------------------------------------------------------------------------------


def test_it_belongs_to_one_loop_at_a_time() -> None:
    model = chat(NOWHERE)

    async def once() -> None:
        async with serving() as server:
            model._client._access = access(server.url)
            assert isinstance((await model.complete([ask()]))[0], Answer)

    async def elsewhere() -> None:
        await asyncio.to_thread(asyncio.run, once())

    async def check() -> None:
        await once()
        with pytest.raises(RuntimeError, match="in use on another event loop"):
            await elsewhere()
        await model.aclose()
        await model.aclose()

    asyncio.run(once())
    asyncio.run(check())


def test_an_answer_of_the_sdk_that_is_an_error_of_no_kind() -> None:
    """Statuses that are no errors are errors of the SDK's all the same."""

    async def check() -> None:
        client = GeminiClient("gemini:m", access(NOWHERE))
        client.proven = True

        async def ask(models: Any) -> str:
            raise errors.APIError(204, {})

        assert await client.call(ask) == refused(204, "doubtful")
        await client.aclose()

    run(check())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("STOP"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["candidates", "content", "parts", "text", "finishReason", "usageMetadata", "promptTokenCount",
             "error", "code", "status", "details", "@type", "embeddings", "values", "promptFeedback",
             "blockReason", "safetyRatings", "retryDelay", "violations"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
BODIES = (
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(
        lambda value: json.dumps({"candidates": [{"content": value}], "usageMetadata": value}).encode()
    )
    | JSON.map(lambda value: json.dumps({"candidates": [value], "promptFeedback": value}).encode())
    | JSON.map(lambda value: json.dumps({"embeddings": [{"values": [1, 2]}, value]}).encode())
    | JSON.map(lambda value: json.dumps({"error": {"status": "X", "details": [value]}}).encode())
)
STATUSES = st.sampled_from([200, 200, 200, 201, 302, 400, 401, 404, 413, 429, 500, 503, 599])


def test_no_body_breaks_it() -> None:
    @given(STATUSES, BODIES, st.booleans())
    @settings(max_examples=80)
    def body(status: int, body: bytes, proven: bool) -> None:
        loop.run_until_complete(check(status, body, proven))

    async def check(status: int, body: bytes, proven: bool) -> None:
        server.script = lambda asked: http(status, body)
        for client in (model._client, vectors._client):
            client.proven = proven
        vectors._dim = None
        outcomes: list[ChatOutcome | EmbedOutcome] = []
        said = ""
        try:
            outcomes += await model.complete([ask()])
            outcomes += await vectors.embed([ROW, "another"])
            assert len(outcomes) == 3
        except ModelError as exc:
            said = str(exc)
        assert ROW not in said
        assert "\n" not in said
        for outcome in outcomes:
            assert isinstance(outcome, Answer | Embedding | AttemptFailure)
            if isinstance(outcome, AttemptFailure):
                assert ROW not in outcome.detail
                assert outcome.reason
            elif isinstance(outcome, Embedding):
                assert math.isclose(float(np.linalg.norm(outcome.vector)), 1, rel_tol=1e-5)

    # one loop and one client for all examples: the SDK's takes a tenth of a second to open
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        served = responding(None)
        server = loop.run_until_complete(served.__aenter__())
        model, vectors = chat(server.base), embedder(server.base)
        body()
        loop.run_until_complete(model.aclose())
        loop.run_until_complete(vectors.aclose())
        loop.run_until_complete(served.__aexit__(None, None, None))


# --- embeddings -----------------------------------------------------------------------------------------


def vectors_of(*given: object, tokens: int | None = 40) -> bytes:
    usage = {} if tokens is None else {"usageMetadata": {"promptTokenCount": tokens}}
    return http(200, {"embeddings": [{"values": one} for one in given], **usage})


async def embedded(response: bytes, *texts: str, **options: Any) -> Sequence[EmbedOutcome]:
    async with responding(response) as server:
        model = embedder(server.base, **options)
        try:
            return await model.embed(texts)
        finally:
            await model.aclose()


def test_what_is_sent_for_embeddings() -> None:
    async def check() -> None:
        async with responding(vectors_of([1.0], [2.0])) as server:
            model = embedder(server.base)
            await model.embed(["one", "tw\ud800o"])
            (asked,) = server.asked
            assert asked.path == "/v1beta/models/gemini-embedding-001:batchEmbedContents"
            expected = {
                "model": "models/gemini-embedding-001",
                "taskType": "CLUSTERING",
                "outputDimensionality": 768,
            }
            assert asked.json == {
                "requests": [
                    {**expected, "content": {"parts": [{"text": text}], "role": "user"}}
                    for text in ("one", "tw\ufffdo")
                ]
            }
            await model.aclose()

    run(check())


def test_later_models_read_the_task_in_the_text() -> None:
    async def check() -> None:
        async with responding(vectors_of([1.0], [2.0])) as server:
            model = embedder(server.base, "gemini-embedding-2", 64)
            await model.embed(["one", "two"])
            sent = server.asked[0].json["requests"]
            assert [one["content"]["parts"] for one in sent] == [
                [{"text": "task: clustering | query: one"}],
                [{"text": "task: clustering | query: two"}],
            ]
            assert [one["outputDimensionality"] for one in sent] == [64, 64]
            assert not any("taskType" in one for one in sent)
            await model.aclose()

    run(check())
    assert clustering_input("text-embedding-005", "x") == "x"


def test_vectors_leave_with_unit_norm() -> None:
    async def check() -> None:
        outcomes = await embedded(vectors_of([3.0, 4.0], [0, -2], tokens=None), "one", "two")
        assert [outcome.vector.tolist() for outcome in outcomes if isinstance(outcome, Embedding)] == [
            pytest.approx([0.6, 0.8]),
            [0.0, -1.0],
        ]
        assert all(isinstance(one, Embedding) and one.usage.estimated for one in outcomes)
        assert all(isinstance(one, Embedding) and one.vector.dtype == np.float32 for one in outcomes)

    run(check())


def test_nothing_to_embed() -> None:
    assert asyncio.run(embedded(vectors_of())) == []


@pytest.mark.parametrize("response", [vectors_of([1.0]), vectors_of([1.0], [1.0], [1.0]), vectors_of()])
def test_vectors_that_do_not_match_the_texts_are_none(response: bytes) -> None:
    async def check() -> None:
        outcomes = await embedded(response, "one", "two")
        failures = [one for one in outcomes if isinstance(one, AttemptFailure)]
        assert [(one.reason, one.retry) for one in failures] == [("malformed", DOUBTFUL)] * 2
        assert sum(one.billed.input_tokens for one in failures if one.billed) == 40

    run(check())


@pytest.mark.parametrize("bad", [[0.0, 0.0], [], None, [1e999, 1.0]])
def test_a_vector_without_direction_is_refused_and_the_others_kept(bad: object) -> None:
    async def check() -> None:
        good, failed = await embedded(vectors_of([1e-200, 1e-200], bad), "one", "two")
        assert isinstance(good, Embedding)
        assert failed == AttemptFailure(
            "malformed", "not a vector of finite numbers other than 0", DOUBTFUL, Usage(20)
        )

    run(check())


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"null", b"17", b"{}", b'{"embeddings":[{"values":["x"]}]}', b'{"embeddings":3}']
)
def test_bodies_without_vectors(body: bytes) -> None:
    async def check() -> None:
        for outcome in await embedded(http(200, body), "one", "two"):
            assert isinstance(outcome, AttemptFailure)
            assert (outcome.reason, outcome.retry, outcome.unknown_bill) == ("malformed", DOUBTFUL, True)

    run(check())


def test_a_length_that_changes_is_an_error() -> None:
    async def check() -> None:
        async with responding(vectors_of([1.0, 2.0])) as server:
            model = embedder(server.base)
            await model.embed(["one"])
            server.script = lambda asked: vectors_of([1.0, 2.0, 3.0])
            with pytest.raises(ModelError, match="vectors of 3 numbers now, of 2 before"):
                await model.embed(["two"])
            await model.aclose()

    run(check())


def test_a_batch_that_is_refused_is_sent_in_parts() -> None:
    def script(asked: Asked) -> bytes:
        texts = [one["content"]["parts"][0]["text"] for one in asked.json["requests"]]
        if len(texts) > 3 or "bad" in texts:
            return http(400, problem(400, "INVALID_ARGUMENT"))
        return vectors_of(*([float(len(text)), 1.0] for text in texts))

    async def check() -> None:
        async with responding(script) as server:
            model = embedder(server.base)
            outcomes = await model.embed(["x" * n for n in range(1, 8)] + ["bad"] + ["x" * 9])
            slopes = [one.vector[0] / one.vector[1] for one in outcomes if isinstance(one, Embedding)]
            assert slopes == pytest.approx([1, 2, 3, 4, 5, 6, 7, 9])
            assert outcomes[7] == refused(400, "no", "INVALID_ARGUMENT")
            await model.aclose()

    run(check())


def test_embedding_errors_have_the_same_verdicts() -> None:
    async def check() -> None:
        for outcome in await embedded(http(429, problem(429, EXHAUSTED, delay("3s"))), "one", "two"):
            assert outcome == refused(429, "rate_limited", EXHAUSTED, 3.0)
        with pytest.raises(ModelError, match="there is no such model"):
            await embedded(http(404), "one")
        with pytest.raises(ModelError, match="the quota of the day is used up"):
            await embedded(http(429, problem(429, EXHAUSTED, quota(PER_DAY))), "one")

    run(check())


# --- the whole pipeline -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pipeline_reaches_the_same_prompt_behind_a_server(tmp_path: Path) -> None:
    run(compiles_to_the_same_prompt(tmp_path, "gemini:{role}@{url}"))
