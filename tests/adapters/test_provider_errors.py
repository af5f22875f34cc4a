"""Every documented error of the providers, and what becomes of it: one table.

https://platform.openai.com/docs/guides/error-codes, https://ai.google.dev/gemini-api/docs/troubleshooting,
and what vLLM, FastAPI and gateways say in their place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest

from adapters.addresses import RemoteAddress
from adapters.gemini import GeminiChat
from adapters.gemini_client import Access
from adapters.openai_compatible import OpenAICompatibleChat
from engine.errors import ModelError
from engine.ports import ChatModel
from engine.types import (
    DOUBTFUL,
    NO_RETRY,
    TRANSIENT,
    Answer,
    AttemptFailure,
    ChatOutcome,
    FinishReason,
    Message,
    Request,
    Retry,
    Usage,
    rate_limited,
)
from tests.adapters import gemini_server, openai_server
from tests.adapters.gemini_server import PER_DAY, PER_MINUTE, delay, generated, problem, quota, reason
from tests.adapters.openai_server import completion, error, forbidden
from tests.adapters.responding import http, responding

ROW = openai_server.ROW
HTML = b"\n<!doctype html><title>502 Bad Gateway</title>"
INVALID = "invalid_request_error"
ARGUMENT = "INVALID_ARGUMENT"
EXHAUSTED = "RESOURCE_EXHAUSTED"
TOLD = Usage(12, 3)
BAD_FIELD = {"@type": "BadRequest", "fieldViolations": [{"field": "contents"}]}
SAFETY = [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "HIGH", "blocked": True}]

Expected = ChatOutcome | str
"""An outcome, or the words of a `ModelError`."""


@dataclass(frozen=True)
class Case:
    """A response, what it means from a server that has answered before, and from one that has not (None: the
    same)."""

    provider: Literal["openai", "gemini"]
    name: str
    response: bytes | None
    later: Expected
    first: Expected | None = None


def case(
    provider: Literal["openai", "gemini"],
    name: str,
    status: int,
    body: bytes | Mapping[str, Any],
    later: Expected,
    first: Expected | None = None,
    **headers: str,
) -> Case:
    named = {key.replace("_", "-").title(): value for key, value in headers.items()}
    return Case(provider, name, http(status, body, named), later, first)


openai = partial(case, "openai")
gemini = partial(case, "gemini")


def no(reason: str, detail: str) -> AttemptFailure:
    return AttemptFailure(reason, detail, NO_RETRY)


def doubtful(status: int, word: str = "") -> AttemptFailure:
    return AttemptFailure(f"http_{status}", said(status, word), DOUBTFUL)


def transient(status: int, word: str = "", after_s: float | None = None) -> AttemptFailure:
    return AttemptFailure(f"http_{status}", said(status, word), Retry("transient", after_s))


def wait(status: int, word: str = "", after_s: float | None = None) -> AttemptFailure:
    return AttemptFailure("rate_limited", said(status, word), rate_limited(after_s))


def said(status: int, word: str) -> str:
    return f"HTTP {status}{word and f' ({word})'}"


def malformed(detail: str, billed: Usage | None = None) -> AttemptFailure:
    return AttemptFailure("malformed", detail, DOUBTFUL, billed, unknown_bill=billed is None)


def gone(when: str) -> AttemptFailure:
    return AttemptFailure(
        "disconnected", f"the connection ended before the response {when}", TRANSIENT, unknown_bill=True
    )


def blocked(text: str, usage: Usage) -> Answer:
    return Answer(text, usage, FinishReason.BLOCKED)


TOO_LONG = error("context_length_exceeded", INVALID, "messages")
VLLM_TOO_LONG = error(400, "BadRequestError", "input_tokens")
LIMIT = error("rate_limit_exceeded", "tokens")
LIMITED = "rate_limit_exceeded"
GEMINI_TOLD = gemini_server.USAGE

TABLE = [
    # --- OpenAI and what speaks its protocol: the request -----------------------------------------
    openai("400 invalid", 400, error(None, INVALID, "messages"), no("refused", "HTTP 400 (messages)")),
    openai("400 invalid, vLLM", 400, error(400, "BadRequestError"),
           no("refused", "HTTP 400 (BadRequestError)")),
    openai("400 too long", 400, TOO_LONG, no("too_long", "HTTP 400 (context_length_exceeded)")),
    openai("400 too long, vLLM", 400, VLLM_TOO_LONG, no("too_long", "HTTP 400 (input_tokens)")),
    openai("400 too long, older vLLM", 400, {"object": "error", **VLLM_TOO_LONG["error"]},
           no("too_long", "HTTP 400 (input_tokens)")),
    openai("400 content policy", 400, error("content_policy_violation", INVALID),
           no("blocked", "HTTP 400 (content_policy_violation)")),
    openai("400 content filter, Azure", 400, error("content_filter", None, "prompt"),
           no("blocked", "HTTP 400 (content_filter)")),
    openai("422 invalid", 422, error("bad", INVALID), no("refused", "HTTP 422 (bad)")),
    openai("422 of FastAPI", 422, {"detail": [{"type": "string_type", "loc": ["body", "messages", 0]}]},
           doubtful(422, "string_type")),
    openai("422 of FastAPI, a field", 422, forbidden("messages"), doubtful(422, "extra_forbidden")),
    openai("400 without structure", 400, error(), doubtful(400)),
    openai("400 without an error", 400, {"detail": ROW}, doubtful(400)),
    openai("400 with a text for an error", 400, {"error": ROW}, doubtful(400)),
    openai("400 with text for codes", 400, error(ROW, openai_server.KEY, "two words"), doubtful(400)),
    openai("413", 413, b"", doubtful(413)),
    openai("413, an HTML page", 413, HTML, doubtful(413)),
    # --- the account, the model, the address
    openai("401", 401, error("invalid_api_key", INVALID), doubtful(401, "invalid_api_key"),
           r"HTTP 401 \(invalid_api_key\): it does not accept the key; check K$"),
    openai("403", 403, b"", doubtful(403), "HTTP 403: it does not accept the key; check K$"),
    openai("404 model", 404, error("model_not_found", INVALID), doubtful(404, "model_not_found"),
           r"HTTP 404 \(model_not_found\): there is no such model or no such path"),
    openai("404 model, vLLM", 404, error(404, "NotFoundError", "model"), doubtful(404, "model"),
           r"HTTP 404 \(model\): there is no such model"),
    openai("403 model", 403, error("model_not_found", INVALID), doubtful(403, "model_not_found"),
           "there is no such model"),
    openai("400 model", 400, error("model_not_found", INVALID), doubtful(400, "model_not_found"),
           "there is no such model"),
    openai("404 path", 404, {"detail": "Not Found"}, doubtful(404),
           "HTTP 404: there is no such model or no such path; .* usually ends in /v1$"),
    openai("402", 402, b"", "HTTP 402: the account has nothing left to spend; pay in"),
    openai("307", 307, b"", doubtful(307), "HTTP 307, no data: write the address of the API itself"),
    # --- rate limits
    openai("429", 429, LIMIT, wait(429, LIMITED)),
    openai("429 with a delay", 429, LIMIT, wait(429, LIMITED, 7.0), retry_after="7"),
    openai("429 with milliseconds", 429, LIMIT, wait(429, LIMITED, 0.12), retry_after_ms="120",
           retry_after="1"),
    openai("429 with a reset", 429, LIMIT, wait(429, LIMITED, 360.0), x_ratelimit_reset_tokens="6m0s",
           x_ratelimit_reset_requests="1s", x_ratelimit_remaining_tokens="0"),
    openai("429 without a body", 429, b"", wait(429)),
    openai("429 quota", 429, error("insufficient_quota", "insufficient_quota"),
           r"the account has no quota left \(insufficient_quota\): pay in"),
    openai("429 quota, by its type", 429, error(None, "insufficient_quota"), "the account has no quota left"),
    openai("429 of a gateway as 200", 200, error(429), wait(429)),
    # --- the server
    openai("408", 408, b"", transient(408)),
    openai("500", 500, error(None, "server_error"), transient(500, "server_error")),
    openai("502", 502, HTML, transient(502)),
    openai("502 of a gateway as 200", 200, error(502, "upstream"), transient(502, "upstream")),
    openai("503", 503, b"busy", wait(503)),
    openai("503 with a delay", 503, b"busy", wait(503, "", 2.0), retry_after="2"),
    openai("503 with a reset that is no delay", 503, b"busy", wait(503), x_ratelimit_reset_tokens="9s"),
    openai("504", 504, b"", transient(504)),
    openai("529", 529, error(None, "overloaded_error"), transient(529, "overloaded_error", 3.0),
           retry_after="3"),
    # --- answers
    openai("blocked answer", 200, completion("", "content_filter"), blocked("", TOLD)),
    openai("refusal", 200, completion(None, refusal="I cannot"), blocked("", TOLD)),
    openai("max tokens", 200, completion("sp", "length"), Answer("sp", TOLD, FinishReason.LENGTH)),
    openai("max tokens in thinking", 200, completion(None, "length"), Answer("", TOLD, FinishReason.LENGTH)),
    openai("empty answer", 200, completion(""),
           AttemptFailure("empty", "the answer has no text", DOUBTFUL, TOLD)),
    openai("unknown end", 200, completion(finish="abort"),
           AttemptFailure("malformed", "the answer ended for an unknown reason", DOUBTFUL, TOLD)),
    openai("empty choices", 200, {"choices": []}, malformed("the response holds no answer")),
    openai("empty choices, billed", 200, {"choices": [], "usage": {"prompt_tokens": 5}},
           malformed("the response holds no answer", Usage(5))),
    openai("too long as 200", 200, error("context_length_exceeded"),
           no("too_long", "HTTP 400 (context_length_exceeded)")),
    openai("an error as 200", 200, error("odd"), doubtful(400, "odd")),
    openai("no JSON", 200, b"{", malformed("the response is not JSON")),
    openai("an empty body", 200, b"", malformed("the response is not JSON")),
    openai("HTML page", 200, HTML, malformed("the response is not JSON"),
           "answers with a web page: write the address of the API itself"),
    Case("openai", "nothing", None, gone("began")),
    Case("openai", "half an answer", http(200, completion())[:-9], gone("did")),
    # --- Gemini: the request ------------------------------------------------------------------------
    gemini("400 invalid", 400, problem(400, ARGUMENT), no("refused", "HTTP 400 (INVALID_ARGUMENT)")),
    gemini("400 invalid field", 400, problem(400, ARGUMENT, BAD_FIELD),
           no("refused", "HTTP 400 (INVALID_ARGUMENT: contents)")),
    gemini("413", 413, b"", doubtful(413)),
    # --- the account, the model, the address
    gemini("400 key", 400, problem(400, ARGUMENT, reason("API_KEY_INVALID")),
           doubtful(400, "API_KEY_INVALID"),
           r"HTTP 400 \(API_KEY_INVALID\): it does not accept the key; check K$"),
    gemini("400 not available", 400, problem(400, "FAILED_PRECONDITION"),
           doubtful(400, "FAILED_PRECONDITION"),
           "it is not available to this account; check its billing"),
    gemini("401", 401, problem(401, "UNAUTHENTICATED"), doubtful(401, "UNAUTHENTICATED"),
           "it does not accept the key"),
    gemini("403", 403, problem(403, "PERMISSION_DENIED"), doubtful(403, "PERMISSION_DENIED"),
           "it does not accept the key"),
    gemini("403 not enabled", 403, problem(403, "PERMISSION_DENIED", reason("SERVICE_DISABLED")),
           doubtful(403, "SERVICE_DISABLED"), r"HTTP 403 \(SERVICE_DISABLED\)"),
    gemini("404 model", 404, problem(404, "NOT_FOUND"), doubtful(404, "NOT_FOUND"),
           r"HTTP 404 \(NOT_FOUND\): there is no such model"),
    gemini("404 path", 404, b"", doubtful(404), "HTTP 404: there is no such model, .* the address"),
    gemini("402", 402, b"", "the account has nothing left to spend"),
    gemini("302", 302, b"", doubtful(302), "HTTP 302, no data: check the address", location="http://127.0.0.1:1/"),
    # --- rate limits
    gemini("429", 429, problem(429, EXHAUSTED, quota(PER_MINUTE)), wait(429, EXHAUSTED)),
    gemini("429 with a delay", 429, problem(429, EXHAUSTED, quota(PER_MINUTE), delay("7s")),
           wait(429, EXHAUSTED, 7.0)),
    gemini("429 with a header", 429, b"", wait(429, "", 3.0), retry_after="3"),
    gemini("429 with both", 429, problem(429, EXHAUSTED, delay("7s")), wait(429, EXHAUSTED, 7.0),
           retry_after="3"),
    gemini("429, an HTML page", 429, HTML, wait(429), content_type="text/html"),
    gemini("429 quota of the day", 429, problem(429, EXHAUSTED, quota(PER_MINUTE, PER_DAY), delay("9s")),
           "the quota of the day is used up; run the same command again tomorrow"),
    # --- the server
    gemini("408", 408, problem(408), transient(408)),
    gemini("500", 500, problem(500, "INTERNAL"), transient(500, "INTERNAL")),
    gemini("502", 502, HTML, transient(502), content_type="text/html"),
    gemini("503", 503, problem(503, "UNAVAILABLE"), wait(503, "UNAVAILABLE")),
    gemini("504", 504, problem(504, "DEADLINE_EXCEEDED"), transient(504, "DEADLINE_EXCEEDED")),
    gemini("529", 529, b"", transient(529)),
    # --- answers
    gemini("blocked prompt", 200,
           {"promptFeedback": {"blockReason": "SAFETY", "safetyRatings": SAFETY}, "candidates": []},
           no("blocked", "the prompt was held back: SAFETY (HARM_CATEGORY_HARASSMENT)")),
    gemini("blocked prompt, billed", 200,
           {"promptFeedback": {"blockReason": "OTHER"}, "usageMetadata": {"promptTokenCount": 9}},
           AttemptFailure("blocked", "the prompt was held back: OTHER", NO_RETRY, Usage(9, 0, 0, 0))),
    gemini("blocked answer", 200, generated(None, "SAFETY", safetyRatings=SAFETY),
           blocked("SAFETY (HARM_CATEGORY_HARASSMENT)", GEMINI_TOLD)),
    gemini("recitation", 200, generated(None, "RECITATION"), blocked("RECITATION", GEMINI_TOLD)),
    gemini("max tokens", 200, generated("sp", "MAX_TOKENS"),
           Answer("sp", GEMINI_TOLD, FinishReason.LENGTH)),
    gemini("max tokens in thinking", 200, generated(content={"role": "model"}, finish="MAX_TOKENS"),
           Answer("", GEMINI_TOLD, FinishReason.LENGTH)),
    gemini("empty answer", 200, generated(""),
           AttemptFailure("empty", "the answer has no text", DOUBTFUL, GEMINI_TOLD)),
    gemini("unknown end", 200, generated(finish="OTHER"),
           AttemptFailure("malformed", "the answer ended by OTHER", DOUBTFUL, GEMINI_TOLD)),
    gemini("empty candidates", 200, {"candidates": []}, malformed("the response holds no answer")),
    gemini("empty candidates, billed", 200, {"candidates": [], "usageMetadata": {"promptTokenCount": 5}},
           malformed("the response holds no answer", Usage(5, 0, 0, 0))),
    gemini("no JSON", 200, b"{", malformed("the response is not JSON")),
    gemini("an empty body", 200, b"", malformed("the response is not JSON")),
    gemini("no text", 200, b"\xff\xfe{", malformed("the response cannot be read")),
    gemini("HTML page", 200, HTML, malformed("the response is not JSON"),
           "answers with a web page: check the address"),
    Case("gemini", "nothing", None, gone("began")),
    Case("gemini", "half an answer", http(200, generated())[:-9], gone("did")),
]  # fmt: skip


def opened(provider: str, base: str) -> ChatModel:
    if provider == "openai":
        return OpenAICompatibleChat(
            RemoteAddress("m", (base,)), api_key=openai_server.KEY, key_hint="check K"
        )
    url = base.removesuffix("/v1")
    return GeminiChat("gemini-2.5-flash", Access(url, api_key=gemini_server.KEY, key_hint="check K"))


async def outcome_of(case: Case, *, answered: bool) -> ChatOutcome:
    """What becomes of the response; `answered`: the server has answered before."""
    good = completion() if case.provider == "openai" else generated()
    async with responding(http(200, good)) as server:
        model = opened(case.provider, server.base)
        request = Request("r1", (Message("user", ROW),), 64)
        try:
            if answered:
                await model.complete([request])
            server.script = lambda asked: case.response
            (outcome,) = await model.complete([request])
        finally:
            await model.aclose()
    return outcome


@pytest.mark.parametrize("answered", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case.provider}-{case.name}")
def test_what_becomes_of_it(case: Case, answered: bool) -> None:
    expected = case.later if answered or case.first is None else case.first
    if not isinstance(expected, str):
        assert asyncio.run(outcome_of(case, answered=answered)) == expected
        return
    with pytest.raises(ModelError, match=expected) as caught:
        asyncio.run(outcome_of(case, answered=answered))
    line = str(caught.value)
    assert line.startswith(f"{case.provider}:")
    assert "\n" not in line
    assert ROW not in line
    assert openai_server.KEY not in line
    assert gemini_server.KEY not in line


def test_no_case_stands_there_twice() -> None:
    names = [(case.provider, case.name) for case in TABLE]
    assert len(set(names)) == len(names)
