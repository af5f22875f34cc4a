"""The adapter for servers that speak OpenAI's API: the contracts, the wire, and every verdict."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import openai_compatible
from adapters.addresses import OPENAI_URL, RemoteAddress
from adapters.openai_compatible import OpenAICompatibleChat, OpenAICompatibleEmbedder
from adapters.openai_wire import message_json, read_chat, read_choice, takes_strict
from bench.fake_server import Behaviour, serving
from engine.distillation.answers import ExtractionAnswer, ResolutionAnswer, schema_of
from engine.errors import ModelError
from engine.ports import FREE, ChatModel, Embedder, Price
from engine.types import (
    DOUBTFUL,
    Answer,
    AnswerSchema,
    AttemptFailure,
    ChatOutcome,
    Embedding,
    EmbedOutcome,
    FinishReason,
    Message,
    Request,
    Usage,
    rate_limited,
)
from tests.adapters.openai_server import KEY, ROW, Server, completion, error, listed
from tests.adapters.responding import Asked, http, responding
from tests.contracts.chat_model import ChatModelContract
from tests.contracts.embedder import EmbedderContract
from tests.support.served import compiles_to_the_same_prompt

REFUSED = Behaviour(permanent_status=400, permanent_marker=ROW)


def chat(base: str, **options: Any) -> OpenAICompatibleChat:
    return OpenAICompatibleChat(RemoteAddress("m", (base,)), api_key=KEY, **options)


def embedder(base: str, name: str = "e", dimensions: int = 768) -> OpenAICompatibleEmbedder:
    return OpenAICompatibleEmbedder(RemoteAddress(name, (base,)), dimensions=dimensions, api_key=KEY)


def ask(text: str = ROW, **fields: Any) -> Request:
    messages = (Message("system", "Decide."), Message("user", text))
    return Request("r1", messages, fields.pop("max_output_tokens", 64), **fields)


def run(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(check)


async def outcome_of(
    response: bytes | None, *, proven: bool = True, request: Request | None = None
) -> ChatOutcome:
    """What becomes of one response; `proven`: the server has answered before."""
    async with responding(http(200, completion())) as server:
        model = chat(server.base)
        if proven:
            await model.complete([ask("first")])
        server.script = lambda asked: response
        try:
            (outcome,) = await model.complete([request or ask()])
        finally:
            await model.aclose()
    return outcome


async def body_of(request: Request, model: OpenAICompatibleChat | None = None) -> dict[str, Any]:
    """The body that is sent for a request."""
    async with responding(http(200, completion())) as server:
        model = chat(server.base)
        await model.complete([request])
        await model.aclose()
    body: dict[str, Any] = server.asked[0].json
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
        assert chat("http://127.0.0.1:1/v1").name == chat("http://127.0.0.1:1/v1").name


class TestEmbedder(EmbedderContract):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Embedder]:
        async with serving(REFUSED) as server:
            model = embedder(f"{server.url}/v1")
            yield model
            await model.aclose()

    def texts(self) -> list[str]:
        return ["one", "two", "three", "four", "five"]

    def bad_text(self) -> str:
        return ROW

    def test_two_instances_have_one_name(self) -> None:
        assert embedder("http://127.0.0.1:1/v1").name == embedder("http://127.0.0.1:1/v1").name


def test_names_hold_what_changes_answers() -> None:
    first, second = "http://a:1/v1", "http://b:2/v1"
    assert OpenAICompatibleChat(RemoteAddress("x/y", (first, second))).name == f"openai:x/y@{first}"
    assert embedder(first, dimensions=64).name == f"openai:e@{first}#64"
    assert (
        OpenAICompatibleChat(RemoteAddress("m", (OPENAI_URL,))).name == "openai:m@https://api.openai.com/v1"
    )


def test_limits_and_price() -> None:
    model = chat("http://a/v1", price=Price(1, 2), max_input_tokens=5)
    assert (model.max_batch, model.max_input_tokens, model.price) == (1, 5, Price(1, 2))
    assert (chat("http://a/v1").max_input_tokens, chat("http://a/v1").price) == (32_000, None)


# --- chat: what is sent -----------------------------------------------------------------------------


def test_a_plain_request() -> None:
    async def check() -> None:
        assert await body_of(ask("hello")) == {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Decide."},
                {"role": "user", "content": "hello"},
            ],
            "max_completion_tokens": 64,
            "temperature": 0.0,
        }

    run(check())


def test_a_draw_has_its_temperature_and_seed() -> None:
    async def check() -> None:
        body = await body_of(ask(temperature=0.7, index=3))
        assert (body["temperature"], body["seed"]) == (0.7, 3)

    run(check())


def test_choices_are_asked_for_as_vllm_does() -> None:
    async def check() -> None:
        body = await body_of(ask(choices=("spam", "none")))
        assert body["structured_outputs"] == {"choice": ["spam", "none"]}
        assert "response_format" not in body

    run(check())


def test_a_schema_is_a_response_format() -> None:
    async def check() -> None:
        schema = schema_of(ExtractionAnswer, ["a", "b"])
        asked = (await body_of(ask(schema=schema)))["response_format"]
        assert asked["type"] == "json_schema"
        assert asked["json_schema"] == {"name": "extraction", "schema": schema.json_schema, "strict": True}
        loose = AnswerSchema("loose", {"type": "object", "properties": {"a": {"type": "string"}}})
        assert (await body_of(ask(schema=loose)))["response_format"]["json_schema"]["strict"] is False

    run(check())


def test_choices_at_openai_are_a_schema_that_is_unpacked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        answers = iter(['{"label":"spam"}', "spam", '{"label":"sp'])
        ends = iter(["stop", "stop", "length"])
        async with responding(lambda asked: http(200, completion(next(answers), next(ends)))) as server:
            model = chat(server.base)
            got = [(await model.complete([ask(choices=("spam", "none"))]))[0] for _ in range(3)]
            assert [one.text for one in got if isinstance(one, Answer)] == ["spam", "spam", '{"label":"sp']
            await model.aclose()
        body = server.asked[0].json
        assert body["response_format"]["json_schema"]["strict"] is True
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        assert properties == {"label": {"type": "string", "enum": ["spam", "none"]}}
        assert body["max_completion_tokens"] > 64, "the braces need room too"
        assert "structured_outputs" not in body

    monkeypatch.setattr(openai_compatible, "OPENAI_HOST", "127.0.0.1")
    run(check())


def test_the_probabilities_of_labels_are_asked_for_and_told() -> None:
    async def check() -> None:
        script = Server()
        async with responding(script) as server:
            model = chat(server.base)
            (answer,) = await model.complete([ask(choices=("a", "b", "c"))])
            await model.complete([ask()])
            await model.aclose()
        assert (script.asked[0]["logprobs"], script.asked[0]["top_logprobs"]) == (True, 20)
        assert "logprobs" not in script.asked[1], "nobody needs them without choices"
        assert isinstance(answer, Answer)
        assert answer.label_logprobs is not None
        told = {label: math.exp(value) for label, value in answer.label_logprobs.items()}
        rest = dict.fromkeys(set("abc") - {answer.text}, 0.125)
        assert told == pytest.approx({answer.text: 0.75, **rest})

    run(check())


def test_an_answer_that_is_cut_or_no_label_tells_no_probabilities() -> None:
    shares = listed({"a": 0.75, "b": 0.25}, "a")
    for text, finish in (("a", "length"), ("x", "stop")):
        document = completion(text, finish)
        document["choices"][0]["logprobs"] = shares
        outcome = read_chat(ask(choices=("a", "b")), document)
        assert isinstance(outcome, Answer)
        assert outcome.label_logprobs is None


@pytest.mark.parametrize("odd", [None, 3, {}, {"content": None}, {"content": [{"token": 3}]}])
def test_probabilities_that_are_none_spoil_no_answer(odd: object) -> None:
    document = completion("a")
    document["choices"][0]["logprobs"] = odd
    assert read_chat(ask(choices=("a", "b")), document) == Answer("a", TOLD)


# --- chat: thinking -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "thinking", "room"),
    [
        ("m", None, 0),
        ("m", "low", 4096),
        ("Qwen/Qwen3-8B", "high", 24_576),
        ("o3-mini", None, 8192),
        ("openai/gpt-5-nano", None, 8192),
        ("openai/gpt-oss-20b", None, 8192),
        ("gpt-5", "minimal", 1024),
        ("gpt-5-chat-latest", None, 0),
        ("gpt-5.1", None, 0),
        ("gpt-4.1-mini", None, 0),
        ("o3d", None, 0),
    ],
)
def test_thinking_has_room_beside_the_answer(name: str, thinking: Any, room: int) -> None:
    async def check() -> None:
        script = Server()
        async with responding(script) as server:
            address = RemoteAddress(name, (server.base,))
            model = OpenAICompatibleChat(address, thinking=thinking, price=Price(1, 2))
            await model.complete([ask(choices=("a", "b"))])
            await model.aclose()
        (body,) = script.asked
        assert body["max_completion_tokens"] == 64 + room
        assert body.get("reasoning_effort") == thinking
        assert ("logprobs" in body) is (room == 0), "each token of a thought would come with 20 others"
        assert model.price == Price(1, 2, thinking_tokens=room)
        assert model.name.endswith(f"#thinking={thinking}") is (thinking is not None)

    run(check())


def test_thinking_costs_nothing_where_nobody_is_billed() -> None:
    address = RemoteAddress("m", ("http://a:1/v1",))
    assert OpenAICompatibleChat(address, thinking="low", price=FREE).price == FREE
    assert OpenAICompatibleChat(address, thinking="low").price is None


@given(st.lists(st.text(st.characters(), max_size=50), min_size=1, max_size=3))
@settings(max_examples=50)
def test_any_text_gives_valid_json(texts: list[str]) -> None:
    model = chat("http://127.0.0.1:1/v1")
    messages = tuple(Message("user", text) for text in texts)
    head, tail = model._frame_of(messages[:-1], 9, None, ("a\ud800", "b"), (0.0, None, model._dialect.form))
    body = json.loads(head + message_json(messages[-1]) + tail)
    mended = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    assert [message["content"] for message in body["messages"]] == mended
    assert body["structured_outputs"] == {"choice": ["a\ufffd", "b"]}
    # and no strict reader stumbles over it
    assert orjson.loads(head + message_json(messages[-1]) + tail) == body


def test_the_long_prefix_is_encoded_once() -> None:
    async def check() -> None:
        model = chat("http://127.0.0.1:1/v1")
        system = Message("system", "long " * 1000)
        for row in range(100):
            request = Request(f"r{row}", (system, Message("user", f"row {row}")), 9, choices=("a", "b"))
            model._frame(request.messages[:-1], 9, None, request.choices, (0.0, None, model._dialect.form))
        assert model._frame.cache_info().misses == 1

    run(check())


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (schema_of(ResolutionAnswer).json_schema, True),
        ({"type": "object"}, False),
        ({"type": "object", "properties": {}, "required": [], "additionalProperties": False}, True),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "required": ["a"],
                "additionalProperties": False,
            },
            False,
        ),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, False),
        ({"type": "array", "items": {"type": "object", "properties": {"a": {"type": "null"}}}}, False),
        ({"type": "string", "minLength": 3}, False),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer", "default": 3}}}, False),
        (True, False),
    ],
)
def test_strict_is_asked_for_only_where_the_schema_allows_it(schema: object, strict: bool) -> None:
    assert takes_strict(schema) is strict


@given(st.text())
def test_any_text_can_stand_for_a_choice(text: str) -> None:
    assert read_choice(text) == text or json.loads(text)["label"] == read_choice(text)


# --- chat: what comes back ---------------------------------------------------------------------------

TOLD = Usage(12, 3)
NO_ANSWER = AttemptFailure("malformed", "the response holds no answer", DOUBTFUL, unknown_bill=True)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (completion(), Answer("spam", TOLD)),
        (completion(finish=None), Answer("spam", TOLD)),
        (completion(finish="eos_token"), Answer("spam", TOLD)),
        (completion("sp", "length"), Answer("sp", TOLD, FinishReason.LENGTH)),
        (completion(None, "length"), Answer("", TOLD, FinishReason.LENGTH)),
        (completion("", "content_filter"), Answer("", TOLD, FinishReason.BLOCKED)),
        (completion(None, refusal="I cannot"), Answer("", TOLD, FinishReason.BLOCKED)),
        (completion(""), AttemptFailure("empty", "the answer has no text", DOUBTFUL, TOLD)),
        (completion(None), AttemptFailure("empty", "the answer has no text", DOUBTFUL, TOLD)),
        (completion([{"type": "text"}]), AttemptFailure("empty", "the answer has no text", DOUBTFUL, TOLD)),
        (
            completion(finish="abort"),
            AttemptFailure("malformed", "the answer ended for an unknown reason", DOUBTFUL, TOLD),
        ),
        (
            {"choices": []},
            NO_ANSWER,
        ),
        (
            {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}},
            AttemptFailure("malformed", "the response holds no answer", DOUBTFUL, Usage(5)),
        ),
        (
            completion(finish=["stop"]),
            AttemptFailure("malformed", "the response holds no answer", DOUBTFUL, TOLD),
        ),
        (
            {"choices": "abc"},
            NO_ANSWER,
        ),
        ({}, NO_ANSWER),
        (
            {"error": None, "choices": None},
            NO_ANSWER,
        ),
    ],
)
def test_responses(document: Mapping[str, Any], expected: ChatOutcome) -> None:
    async def check() -> None:
        assert await outcome_of(http(200, document)) == expected

    run(check())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"17", b'"choices"', b"\xff\xfe", b'{"choices":[{"me']
)
def test_bodies_that_are_no_answer(body: bytes) -> None:
    async def check() -> None:
        outcome = await outcome_of(http(200, body))
        assert isinstance(outcome, AttemptFailure)
        assert (outcome.reason, outcome.retry, outcome.billed) == ("malformed", DOUBTFUL, None)

    run(check())


NINE_AND_FOUR = {"prompt_tokens": 9, "completion_tokens": 4}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({**NINE_AND_FOUR, "total_tokens": 13}, Usage(9, 4)),
        (
            {
                **NINE_AND_FOUR,
                "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 8},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(9, 4, 3, 8),
        ),
        ({**NINE_AND_FOUR, "prompt_tokens_details": None}, Usage(9, 4)),
        ({**NINE_AND_FOUR, "prompt_tokens_details": {"cached_tokens": None}}, Usage(9, 4)),
        ({**NINE_AND_FOUR, "prompt_tokens_details": {"cached_tokens": 0}}, Usage(9, 4, 0, 0)),
        # thinking that is left out of completion_tokens is in the total, and billed
        ({**NINE_AND_FOUR, "total_tokens": 33}, Usage(9, 24, 20)),
        # what cannot be is cut to what can
        ({**NINE_AND_FOUR, "prompt_tokens_details": {"cached_tokens": 99}}, Usage(9, 4, 0, 9)),
        ({**NINE_AND_FOUR, "completion_tokens_details": {"reasoning_tokens": 99}}, Usage(9, 4, 4)),
        ({"prompt_tokens": 9, "completion_tokens": -4, "total_tokens": "x"}, Usage(9)),
    ],
)  # fmt: skip
def test_usage(given: dict[str, Any], expected: Usage) -> None:
    async def check() -> None:
        outcome = await outcome_of(http(200, completion(usage=given)))
        assert isinstance(outcome, Answer)
        assert outcome.usage == expected

    run(check())


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": None}, [], {"prompt_tokens": True}])
def test_usage_that_is_not_told_is_estimated(usage: object) -> None:
    async def check() -> None:
        outcome = await outcome_of(http(200, {**completion("two words"), "usage": usage}))
        assert isinstance(outcome, Answer)
        assert outcome.usage.estimated
        assert (outcome.usage.input_tokens > 5, outcome.usage.output_tokens) == (True, 2)

    run(check())


# --- chat: a server with faults --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason", "retry"),
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
def test_faults_of_a_server(fault: str, reason: str | None, retry: str | None) -> None:
    async def check() -> None:
        behaviour = Behaviour().changed({"faults": {fault: 1.0}, "drip_interval_s": 0.0, "drip_bytes": 64})
        async with serving(behaviour) as server:
            model = chat(f"{server.url}/v1")
            for _ in range(2):
                (outcome,) = await model.complete([ask()])
                if reason is None:
                    assert isinstance(outcome, Answer)
                    finish = {"length": FinishReason.LENGTH, "content_filter": FinishReason.BLOCKED}
                    assert outcome.finish_reason is finish.get(fault, FinishReason.STOP)
                else:
                    assert isinstance(outcome, AttemptFailure)
                    assert (outcome.reason, outcome.retry.kind) == (reason, retry)
            await model.aclose()

    run(check())


def test_the_pipeline_reaches_the_same_prompt_behind_a_server(tmp_path: Path) -> None:
    run(compiles_to_the_same_prompt(tmp_path, "openai:{role}@{url}/v1"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "message", "content", "refusal", "finish_reason", "usage", "prompt_tokens", "error",
             "code", "type", "param", "data", "embedding", "index", "completion_tokens", "total_tokens",
             "object"]
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
        lambda value: json.dumps({"choices": [{"message": {"content": "x"}}], "usage": value}).encode()
    )
    | JSON.map(lambda value: json.dumps({"data": [{"embedding": [1, 2]}], "usage": value}).encode())
    | JSON.map(lambda value: json.dumps({"data": [{"embedding": value}, value]}).encode())
)
STATUSES = st.sampled_from([200, 200, 200, 201, 302, 400, 401, 404, 413, 422, 429, 500, 503, 599])


@given(STATUSES, BODIES, st.booleans())
@settings(max_examples=120)
def test_no_body_breaks_it(status: int, body: bytes, proven: bool) -> None:
    async def check() -> None:
        async with responding(http(status, body)) as server:
            model, vectors = chat(server.base), embedder(server.base)
            for client in (model._client, vectors._client):
                client._servers[0].proven = proven
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
            await model.aclose()
            await vectors.aclose()

    run(check())


def test_the_key_is_shown_nowhere() -> None:
    async def check() -> None:
        async with responding(http(200, completion())) as server:
            model, vectors = chat(server.base), embedder(server.base)
            shown = [repr(model), str(model), model.name, repr(vectors), vectors.name]
            shown += [repr(await model.complete([ask()]))]
            for response in (
                http(401, error(KEY, KEY, KEY)),
                http(400, error(KEY)),
                http(302),
                b"SSH\r\n\r\n",
                None,
            ):
                for proven in (False, True):
                    server.script = lambda asked, response=response: response
                    model._client._servers[0].proven = proven
                    try:
                        shown.append(repr(await model.complete([ask()])))
                    except ModelError as exc:
                        at: BaseException | None = exc
                        while at is not None:
                            shown += [repr(at), str(at)]
                            at = at.__cause__ or at.__context__
            assert all(asked.headers["authorization"] == f"Bearer {KEY}" for asked in server.asked)
            assert not [text for text in shown if KEY in text]
            await model.aclose()
            await vectors.aclose()

    run(check())


def test_without_a_key_none_is_sent() -> None:
    async def check() -> None:
        async with responding(http(200, completion())) as server:
            model = OpenAICompatibleChat(RemoteAddress("m", (server.base,)))
            await model.complete([ask()])
            assert "authorization" not in server.asked[0].headers
            await model.aclose()

    run(check())


# --- embeddings -----------------------------------------------------------------------------------------


def vectors_of(*given: object, tokens: int | None = 40, index: Sequence[object] = ()) -> bytes:
    data = [
        {"object": "embedding", "index": index[place] if index else place, "embedding": one}
        for place, one in enumerate(given)
    ]
    usage = None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens}
    return http(200, {"object": "list", "data": data, "model": "e", "usage": usage})


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


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
            model = embedder(server.base, "Qwen/Qwen3-Embedding-0.6B")
            await model.embed(["one", "tw\ud800o"])
            (asked,) = server.asked
            assert asked.path == "/v1/embeddings"
            assert asked.json == {
                "model": "Qwen/Qwen3-Embedding-0.6B",
                "encoding_format": "base64",
                "input": ["one", "tw\ufffdo"],
            }
            await model.aclose()

    run(check())


@pytest.mark.parametrize(
    ("name", "asked"), [("text-embedding-3-small", 64), ("text-embedding-ada-002", None)]
)
def test_openai_is_asked_for_shorter_vectors(
    name: str, asked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with responding(vectors_of([1.0])) as server:
            model = embedder(server.base, name, 64)
            await model.embed(["one"])
            assert server.asked[0].json.get("dimensions") == asked
            await model.aclose()

    monkeypatch.setattr(openai_compatible, "OPENAI_HOST", "127.0.0.1")
    run(check())


@pytest.mark.parametrize("form", [list, lambda numbers: packed(*numbers)])
def test_vectors_come_as_numbers_or_base64_and_leave_with_unit_norm(form: Any) -> None:
    async def check() -> None:
        outcomes = await embedded(vectors_of(form([3.0, 4.0]), form([0.0, -2.0]), tokens=None), "one", "two")
        assert [outcome.vector.tolist() for outcome in outcomes if isinstance(outcome, Embedding)] == [
            pytest.approx([0.6, 0.8]),
            [0.0, -1.0],
        ]
        assert all(isinstance(one, Embedding) and one.usage.estimated for one in outcomes)

    run(check())


@pytest.mark.parametrize(
    ("name", "expected"), [("Qwen/Qwen3-Embedding-8B", [0.6, 0.8]), ("bge-m3", [3 / 13, 4 / 13, 12 / 13])]
)
def test_only_models_that_may_be_cut_are_cut(name: str, expected: list[float]) -> None:
    async def check() -> None:
        (outcome,) = await embedded(vectors_of([3.0, 4.0, 12.0]), "one", name=name, dimensions=2)
        assert isinstance(outcome, Embedding)
        assert outcome.vector.dtype == np.float32
        assert outcome.vector.tolist() == pytest.approx(expected)

    run(check())


def test_vectors_are_put_in_order_by_their_index() -> None:
    async def check() -> None:
        outcomes = await embedded(vectors_of([0.0, 1.0], [1.0, 0.0], index=[1, 0]), "one", "two")
        assert [one.vector.tolist() for one in outcomes if isinstance(one, Embedding)] == [[1, 0], [0, 1]]

    run(check())


@pytest.mark.parametrize(
    "response",
    [
        vectors_of([1.0]),
        vectors_of([1.0], [1.0], [1.0]),
        vectors_of([1.0], [1.0], index=[0, 0]),
        vectors_of([1.0], [1.0], [1.0], index=[0, 0, 1]),
        vectors_of([1.0], [1.0], index=[1, 2]),
        vectors_of([1.0], [1.0], index=[0, "1"]),
    ],
)
def test_vectors_that_do_not_match_the_texts_are_none(response: bytes) -> None:
    async def check() -> None:
        outcomes = await embedded(response, "one", "two")
        assert len(outcomes) == 2
        for outcome in outcomes:
            assert isinstance(outcome, AttemptFailure)
            assert (outcome.reason, outcome.retry) == ("malformed", DOUBTFUL)
        assert (
            sum(one.billed.input_tokens for one in outcomes if isinstance(one, AttemptFailure) and one.billed)
            == 40
        )

    run(check())


@pytest.mark.parametrize(
    "bad",
    [
        [0.0, 0.0],
        [1.0, None],
        [1.0, "x"],
        [],
        [[1.0, 2.0]],
        None,
        {},
        "not base64!",
        base64.b64encode(b"abc").decode(),
        packed(1.0, float("nan")),
        packed(1.0, float("inf")),
        "",
    ],
)
def test_a_vector_without_direction_is_refused_and_the_others_kept(bad: object) -> None:
    async def check() -> None:
        good, failed = await embedded(vectors_of([1e-200, 1e-200], bad), "one", "two")
        assert isinstance(good, Embedding)
        assert isinstance(failed, AttemptFailure)
        assert (failed.reason, failed.retry) == ("malformed", DOUBTFUL)
        assert failed.billed == Usage(20)

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


def test_a_batch_that_is_too_large_is_sent_in_parts() -> None:
    def script(asked: Asked) -> bytes:
        texts = asked.json["input"]
        return http(413) if len(texts) > 3 else vectors_of(*([float(len(text)), 1.0] for text in texts))

    async def check() -> None:
        async with responding(script) as server:
            model = embedder(server.base)
            texts = ["x" * n for n in range(1, 11)]
            outcomes = await model.embed(texts)
            slopes = [one.vector[0] / one.vector[1] for one in outcomes if isinstance(one, Embedding)]
            assert slopes == pytest.approx(range(1, 11))
            await model.aclose()

    run(check())


@given(st.integers(0, 2**63), st.lists(st.text(max_size=30), min_size=1, max_size=20))
def test_the_usage_of_a_batch_is_shared_out_whole(tokens: int, texts: list[str]) -> None:
    shares = openai_compatible._shares(texts, Usage(tokens))
    assert len(shares) == len(texts)
    assert sum(share.input_tokens for share in shares) == tokens
    assert all(share.input_tokens >= 0 for share in shares)


def test_embedding_errors_have_the_same_verdicts() -> None:
    async def check() -> None:
        for outcome in await embedded(http(429, b"", {"Retry-After": "3"}), "one", "two"):
            assert outcome == AttemptFailure("rate_limited", "HTTP 429", rate_limited(3.0))
        for outcome in await embedded(http(200, b"{"), "one", "two"):
            assert isinstance(outcome, AttemptFailure)
            assert outcome.retry == DOUBTFUL
        with pytest.raises(ModelError, match="there is no such model"):
            await embedded(http(404), "one")
        with pytest.raises(ModelError, match="answers with a web page"):
            await embedded(http(200, b"<html>"), "one")
        with pytest.raises(ModelError, match="no quota left"):
            await embedded(http(429, error("insufficient_quota")), "one")

    run(check())
