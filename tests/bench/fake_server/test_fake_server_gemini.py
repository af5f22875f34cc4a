"""Gemini's wire, as Google's own client sees it."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import pytest

from bench.fake_server import body_key
from tests.bench.fake_server.client import Client, Got, against

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the client's own
    from google import genai
    from google.genai import errors, types

T = TypeVar("T")


def with_genai(use: Callable[[genai.client.AsyncClient], Awaitable[T]], **behaviour: Any) -> T:
    async def run(client: Client) -> T:
        options = types.HttpOptions(
            base_url=client.server.url,
            api_version="v1beta",
            timeout=5000,
            aiohttp_client=client.session,
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        async with genai.Client(api_key="none", http_options=options).aio as google:
            return await use(google)

    return against(run, **behaviour)


def generate(
    config: types.GenerateContentConfig | None = None, **behaviour: Any
) -> types.GenerateContentResponse:
    async def use(google: genai.client.AsyncClient) -> types.GenerateContentResponse:
        return await google.models.generate_content(model="gemini-x", contents="hi", config=config)

    return with_genai(use, **behaviour)


def refused(**behaviour: Any) -> errors.APIError:
    with pytest.raises(errors.APIError) as caught:
        generate(**behaviour)
    return caught.value


def test_an_answer() -> None:
    got = generate(text="spam", prompt_tokens=90, completion_tokens=12, thinking_tokens=5, cached_tokens=64)
    assert got.text == "spam"
    assert got.candidates is not None
    assert got.candidates[0].finish_reason == types.FinishReason.STOP
    usage = got.usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count) == (90, 7, 5)
    assert (usage.cached_content_token_count, usage.total_token_count) == (64, 102)


def test_counts_of_zero_are_not_written() -> None:
    usage = generate().usage_metadata
    assert usage is not None
    assert usage.thoughts_token_count is None
    assert usage.cached_content_token_count is None


def test_log_probabilities_where_asked() -> None:
    config = types.GenerateContentConfig(response_logprobs=True, logprobs=1)
    got = generate(config, text="spam", count_keys=False)
    assert got.candidates is not None
    result = got.candidates[0].logprobs_result
    assert result is not None
    assert result.chosen_candidates is not None
    assert [token.token for token in result.chosen_candidates] == ["spam"]
    assert result.top_candidates is not None
    assert got.candidates[0].avg_logprobs == result.chosen_candidates[0].log_probability


def test_a_cut_answer() -> None:
    got = generate(text="four words are here", faults={"length": 1.0})
    assert got.text == "four word"
    assert got.candidates is not None
    assert got.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS


def test_a_filtered_answer() -> None:
    got = generate(faults={"content_filter": 1.0})
    assert got.candidates is not None
    assert got.candidates[0].finish_reason == types.FinishReason.SAFETY
    assert got.candidates[0].content is None


def test_a_blocked_prompt() -> None:
    got = generate(faults={"prompt_blocked": 1.0})
    assert not got.candidates
    assert got.prompt_feedback is not None
    assert got.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT


@pytest.mark.parametrize(
    ("behaviour", "code", "status"),
    [
        ({"permanent_status": 400}, 400, "INVALID_ARGUMENT"),
        ({"permanent_status": 401}, 401, "UNAUTHENTICATED"),
        ({"permanent_status": 404}, 404, "NOT_FOUND"),
        ({"faults": {"error_500": 1.0}}, 500, "INTERNAL"),
        ({"faults": {"error_503": 1.0}}, 503, "UNAVAILABLE"),
    ],
)
def test_errors(behaviour: dict[str, Any], code: int, status: str) -> None:
    error = refused(**behaviour)
    assert (error.code, error.status) == (code, status)
    assert error.message


@pytest.mark.parametrize(("how", "delay"), [("integer", "60s"), ("none", None)])
def test_a_rate_limit_tells_its_quota(how: str, delay: str | None) -> None:
    async def use(google: genai.client.AsyncClient) -> errors.APIError:
        await google.models.generate_content(model="gemini-x", contents="hi")
        with pytest.raises(errors.ClientError) as caught:
            await google.models.generate_content(model="gemini-x", contents="hi")
        return caught.value

    error = with_genai(use, requests_per_minute=1, retry_after=how)
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    details = {one["@type"].rpartition(".")[2]: one for one in error.details["error"]["details"]}
    (violation,) = details["QuotaFailure"]["violations"]
    assert violation["quotaDimensions"]["model"] == "gemini-x"
    assert violation["quotaValue"] == "1"
    assert details.get("RetryInfo", {}).get("retryDelay") == delay
    assert error.response.headers.get("retry-after") is None


def test_embeddings_are_not_normalised() -> None:
    async def use(google: genai.client.AsyncClient) -> types.EmbedContentResponse:
        contents: Any = ["one", "two", "one"]
        config = types.EmbedContentConfig(output_dimensionality=16)
        return await google.models.embed_content(
            model="gemini-embedding-001", contents=contents, config=config
        )

    got = with_genai(use)
    assert got.embeddings is not None
    vectors = np.array([one.values for one in got.embeddings])
    assert vectors.shape == (3, 16)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 0.75, atol=1e-5)


def test_one_embedding() -> None:
    async def use(client: Client) -> list[Got]:
        content = {"parts": [{"text": "one"}]}
        path = "/v1beta/models/m:{}"
        return [
            await client.post(
                path.format("embedContent"), {"content": content, "outputDimensionality": 3072}
            ),
            await client.post(path.format("batchEmbedContents"), {"requests": [{"content": content}] * 101}),
            await client.post(path.format("batchEmbedContents"), {"requests": [3]}),
            await client.post(path.format("generateContent"), b"any body: canned answers read none"),
        ]

    single, many, wrong, canned = against(use)
    assert np.linalg.norm(single.document["embedding"]["values"]) == pytest.approx(1, abs=1e-5)
    assert many.document["error"]["status"] == wrong.document["error"]["status"] == "INVALID_ARGUMENT"
    assert canned.status == 200


def test_the_digest_is_the_bodys() -> None:
    async def use(client: Client) -> str:
        got = await client.post("/v1beta/models/m:generateContent", b"{}")
        text: str = got.document["candidates"][0]["content"]["parts"][0]["text"]
        return text

    assert against(use, echo="digest", text="{digest}") == body_key(b"{}").hex()
