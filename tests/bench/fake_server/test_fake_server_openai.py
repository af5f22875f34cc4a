"""OpenAI's wire, as a client sees it."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from bench.fake_server.wire_openai import duration
from tests.bench.fake_server.client import Client, Got, against, chat, http, key_of, raw


def ask(document: Any = None, path: str = "/v1/chat/completions", **behaviour: Any) -> Got:
    async def use(client: Client) -> Got:
        return await client.post(path, chat() if document is None else document)

    return against(use, **behaviour)


def test_a_chat_answer() -> None:
    got = ask(text="spam", prompt_tokens=90, completion_tokens=12, thinking_tokens=5, cached_tokens=64)
    assert got.status == 200
    assert got.headers["Content-Type"] == "application/json"
    document = got.document
    assert document["object"] == "chat.completion"
    (choice,) = document["choices"]
    assert choice["message"] == {"role": "assistant", "content": "spam", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"], choice["index"]) == ("stop", None, 0)
    assert document["usage"] == {
        "prompt_tokens": 90,
        "completion_tokens": 12,
        "total_tokens": 102,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }


def test_unknown_cached_tokens_are_null() -> None:
    assert ask(cached_tokens=None).document["usage"]["prompt_tokens_details"] is None


@pytest.mark.parametrize(
    "behaviour", [{"count_keys": False}, {}, {"echo": "digest"}, {"requests_per_minute": 9e9}]
)
def test_log_probabilities_where_asked(behaviour: dict[str, Any]) -> None:
    document = ask(chat(logprobs=True, top_logprobs=1), text="a label", **behaviour).document
    content = document["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in content).startswith("a label")
    assert all(token["logprob"] < 0 and len(token["top_logprobs"]) == 1 for token in content)
    assert content[0]["bytes"] == list(content[0]["token"].encode())
    assert ask(chat(top_logprobs=2, logprobs=False)).status == 400


def test_the_digest_is_the_bodys() -> None:
    for text, expected in (("{digest}", "{}"), ("spam", "spam {}"), ('{"of": "{digest}"}', '{{"of": "{}"}}')):
        document = chat(text)
        content = ask(document, echo="digest", text=text).document["choices"][0]["message"]["content"]
        assert content == expected.format(key_of(document))


def test_embeddings() -> None:
    document = {"model": "m", "input": ["one", "two", "one"]}
    got = ask(document, "/v1/embeddings", dimensions=5).document
    assert got["object"] == "list"
    assert [one["index"] for one in got["data"]] == [0, 1, 2]
    assert got["usage"]["prompt_tokens"] == got["usage"]["total_tokens"] > 0
    vectors = np.array([one["embedding"] for one in got["data"]], dtype=np.float32)
    assert vectors.shape == (3, 5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1])
    coded = ask({**document, "encoding_format": "base64", "dimensions": 5}, "/v1/embeddings").document
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4") for one in coded["data"]]
    np.testing.assert_array_equal(np.stack(decoded), vectors)
    assert len(ask({"input": "x", "dimensions": 7}, "/v1/embeddings").document["data"][0]["embedding"]) == 7


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        [],
        {},
        {"input": []},
        {"input": [1]},
        {"input": "a", "encoding_format": "x"},
        {"input": ["a"] * 2049},
    ],
)
def test_a_bad_embedding_request(document: Any) -> None:
    got = ask(document, "/v1/embeddings")
    assert got.status == 400
    assert got.document["error"]["type"] == "invalid_request_error"


def test_models() -> None:
    async def use(client: Client) -> Got:
        return await client.get("/v1/models")

    document = against(use).document
    assert document["object"] == "list"
    assert document["data"][0]["id"] == "fake"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "invalid_request_error", "invalid_api_key"),
        (404, "invalid_request_error", "model_not_found"),
    ],
)
def test_permanent_errors(status: int, kind: str, code: str | None) -> None:
    got = ask(permanent_status=status)
    assert got.status == status
    error = got.document["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, None)
    assert error["message"]


@pytest.mark.parametrize(("name", "status"), [("error_500", 500), ("error_503", 503)])
def test_server_errors(name: str, status: int) -> None:
    got = ask(faults={name: 1.0})
    assert got.status == status
    assert got.document["error"]["type"] == "server_error"


def test_a_marker_picks_the_requests_that_fail() -> None:
    async def use(client: Client) -> list[int]:
        return [(await client.chat(text)).status for text in ("good", "bad poison", "good")]

    assert against(use, permanent_status=400, permanent_marker="poison") == [200, 400, 200]


@pytest.mark.parametrize(("how", "expected"), [("integer", "60"), ("none", None)])
def test_a_rate_limit_tells_when_to_come_back(how: str, expected: str | None) -> None:
    async def use(client: Client) -> list[Got]:
        return [await client.chat() for _ in range(2)]

    first, second = against(use, requests_per_minute=1, retry_after=how)
    assert first.status == 200
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert second.status == 429
    assert second.headers.get("retry-after") == expected
    error = second.document["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert ("try again" in error["message"]) is (expected is not None)


def test_a_token_limit() -> None:
    async def use(client: Client) -> list[Got]:
        return [await client.chat() for _ in range(11)]

    got = against(use, tokens_per_minute=608, prompt_tokens=600, completion_tokens=8)
    assert [one.status for one in got] == [200] * 10 + [429]
    assert got[-1].document["error"]["type"] == "tokens"
    assert got[-1].headers["x-ratelimit-limit-tokens"] == "608"
    assert 0 < float(got[-1].headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (360, "6m0s"),
        (59.9999, "1m0s"),
        (3661.5, "1h1m1.5s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/v1/nothing", "POST", 404), ("/v1/chat/completions", "GET", 405)]
)
def test_wrong_addresses(path: str, method: str, status: int) -> None:
    got = raw(http({}, path, close=True, method=method))
    assert got.startswith(f"HTTP/1.1 {status} ".encode())
