"""Gemini's JSON (the Developer API, v1beta): https://ai.google.dev/api/generate-content, /api/embeddings.

Errors are google.rpc.Status with details: https://github.com/googleapis/googleapis, google/rpc/error_details.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from bench.fake_server.limits import Refusal, Standing
from bench.fake_server.wire import (
    CallError,
    ChatCall,
    EmbedCall,
    ErrorAnswer,
    chat_schema,
    read_object,
    strings,
    take,
    token_logprobs,
)
from engine.types import Answer, AnswerSchema, FinishReason, FloatVector, Message, Request, Usage

_MAX_INPUTS = 100
_MAX_TOP_LOGPROBS = 20
_DEFAULT_MAX_TOKENS = 65_536
_FULL_DIMENSIONS = 3072
_SHORT_NORM = np.float32(0.75)
_FINISH = {FinishReason.STOP: "STOP", FinishReason.LENGTH: "MAX_TOKENS", FinishReason.BLOCKED: "SAFETY"}
_ERRORS = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    404: ("NOT_FOUND", "models/unknown is not found for API version v1beta."),
    429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    500: ("INTERNAL", "An internal error has occurred. Please retry."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
}
_RPC = "type.googleapis.com/google.rpc."


class GeminiWire:
    content_type = "application/json; charset=UTF-8"

    def read_chat(self, model: str, body: bytes) -> ChatCall:
        document = read_object(body)
        config = take(document, "generationConfig", dict, {})
        where = "generationConfig"
        messages = [Message("system", text) for text in _system(document)]
        contents = document.get("contents")
        if not isinstance(contents, list) or not contents:
            raise CallError(400, "* GenerateContentRequest.contents: contents is not specified")
        for number, content in enumerate(contents):
            role = content.get("role", "user") if isinstance(content, dict) else None
            if role not in ("user", "model"):
                raise CallError(400, "Please use a valid role: user, model.")
            text = _parts(content, f"contents[{number}]")
            messages.append(Message("assistant" if role == "model" else "user", text))
        schema, choices, choice_field = _asked_schema(config)
        request = Request(
            id="",
            messages=tuple(messages),
            max_output_tokens=take(config, "maxOutputTokens", int, _DEFAULT_MAX_TOKENS, where),
            schema=schema,
            choices=choices,
            temperature=float(take(config, "temperature", (int, float), 1.0, where)),
        )
        top = None
        if take(config, "responseLogprobs", bool, False, where):
            top = take(config, "logprobs", int, 0, where)
            if not 0 <= top <= _MAX_TOP_LOGPROBS:
                raise CallError(400, f"logprobs has to be between 0 and {_MAX_TOP_LOGPROBS}.")
        return ChatCall(model, request, top, choice_field)

    def read_embed(self, model: str, body: bytes) -> EmbedCall:
        document = read_object(body)
        single = "requests" not in document
        calls = [document] if single else document["requests"]
        if not isinstance(calls, list) or not 1 <= len(calls) <= _MAX_INPUTS:
            raise CallError(400, f"* BatchEmbedContentsRequest.requests: takes 1 to {_MAX_INPUTS} requests")
        texts, dimensions = [], set()
        for number, call in enumerate(calls):
            where = f"requests[{number}]"
            if not isinstance(call, dict):
                raise CallError(400, f"* {where}: not an object")
            texts.append(_parts(call.get("content"), f"{where}.content"))
            dimensions.add(take(call, "outputDimensionality", int, 0, where))
        if len(dimensions) > 1 or min(dimensions) < 0:
            raise CallError(400, "All requests of a batch have to ask for the same outputDimensionality.")
        return EmbedCall(model, tuple(texts), dimensions.pop() or None, single=single)

    def chat(self, model: str, answer: Answer, ident: str, top_logprobs: int | None = None) -> bytes:
        candidate: dict[str, Any] = {"finishReason": _FINISH[answer.finish_reason], "index": 0}
        if answer.finish_reason is not FinishReason.BLOCKED:
            parts = {"parts": [{"text": answer.text}]} if answer.text else {}
            candidate = {"content": {**parts, "role": "model"}, **candidate}
        if top_logprobs is not None and answer.text:
            candidate |= _logprobs(answer, top_logprobs)
        return orjson.dumps(
            {
                "candidates": [candidate],
                "usageMetadata": _usage(answer.usage),
                "modelVersion": model,
                "responseId": ident,
            }
        )

    def embeddings(self, call: EmbedCall, vectors: Sequence[FloatVector], usage: Usage) -> bytes:  # noqa: ARG002
        # as gemini-embedding-001 does it: vectors shorter than the full size are not normalised
        values = [
            {"values": vector if len(vector) == _FULL_DIMENSIONS else vector * _SHORT_NORM}
            for vector in vectors
        ]
        document = {"embedding": values[0]} if call.single else {"embeddings": values}
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)

    def prompt_blocked(self, model: str, ident: str, usage: Usage) -> tuple[int, bytes]:
        prompt_only = Usage(usage.input_tokens, cached_tokens=usage.cached_tokens)
        return 200, orjson.dumps(
            {
                "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
                "usageMetadata": _usage(prompt_only),
                "modelVersion": model,
                "responseId": ident,
            }
        )

    def error(self, status: int, message: str = "", param: str | None = None) -> ErrorAnswer:
        details = []
        if param:
            details = [
                {"@type": f"{_RPC}BadRequest", "fieldViolations": [{"field": param, "description": message}]}
            ]
        return ErrorAnswer(status, _error(status, message, details))

    def bad_key(self) -> ErrorAnswer:
        detail = {
            "@type": f"{_RPC}ErrorInfo",
            "reason": "API_KEY_INVALID",
            "domain": "googleapis.com",
            "metadata": {"service": "generativelanguage.googleapis.com"},
        }
        return ErrorAnswer(400, _error(400, "API key not valid. Please pass a valid API key.", [detail]))

    def rate_limited(self, model: str, refusal: Refusal, retry_after: str | None) -> ErrorAnswer:
        metric, quota = (
            ("generate_content_requests", "GenerateRequestsPerMinutePerProjectPerModel")
            if refusal.name == "requests"
            else ("generate_content_input_token_count", "GenerateContentInputTokensPerModelPerMinute")
        )
        metric, limit = f"generativelanguage.googleapis.com/{metric}", f"{refusal.per_minute:.0f}"
        violation = {
            "quotaMetric": metric,
            "quotaId": quota,
            "quotaDimensions": {"location": "global", "model": model},
            "quotaValue": limit,
        }
        details: list[dict[str, Any]] = [{"@type": f"{_RPC}QuotaFailure", "violations": [violation]}]
        message = f"You exceeded your current quota.\n* Quota exceeded for metric: {metric}, limit: {limit}"
        if retry_after:
            message += f"\nPlease retry in {retry_after}s."
            details.append({"@type": f"{_RPC}RetryInfo", "retryDelay": f"{retry_after}s"})
        return ErrorAnswer(429, _error(429, message, details))

    def rate_headers(self, standings: Sequence[Standing]) -> list[tuple[str, str]]:  # noqa: ARG002
        return []  # Gemini tells nothing in headers, a Retry-After neither


def _system(document: Mapping[str, Any]) -> list[str]:
    given = document.get("systemInstruction")
    return [] if given is None else [_parts(given, "systemInstruction")]


def _parts(content: object, where: str) -> str:
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts
    ):
        raise CallError(400, f"* {where}.parts: has to be a list of text parts", where)
    return "".join(part["text"] for part in parts)


def _asked_schema(
    config: Mapping[str, Any],
) -> tuple[AnswerSchema | None, tuple[str, ...], str | None]:
    where = "generationConfig"
    given = take(config, "responseJsonSchema", dict, {}, where) or take(
        config, "responseSchema", dict, {}, where
    )
    if not given:
        return None, (), None
    if take(config, "responseMimeType", str, "", where) == "text/x.enum":
        return None, strings(given.get("enum"), "responseSchema.enum"), None
    return chat_schema(take(given, "title", str, "answer", f"{where}.responseSchema"), given)


def _usage(usage: Usage) -> dict[str, Any]:
    # fields of proto3: what is zero is not written
    counts = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens - usage.thinking_tokens,
        "totalTokenCount": usage.input_tokens + usage.output_tokens,
        "thoughtsTokenCount": usage.thinking_tokens,
        "cachedContentTokenCount": usage.cached_tokens or 0,
    }
    return {name: count for name, count in counts.items() if count}


def _logprobs(answer: Answer, top: int) -> dict[str, Any]:
    tokens = token_logprobs(answer, top)
    total = sum(value for _, value, _ in tokens)
    return {
        "avgLogprobs": total / len(tokens),
        "logprobsResult": {
            "topCandidates": [
                {"candidates": [_token(token, value) for token, value in others]} for _, _, others in tokens
            ],
            "chosenCandidates": [_token(token, value) for token, value, _ in tokens],
            "logProbabilitySum": total,
        },
    }


def _token(token: str, value: float) -> dict[str, Any]:
    return {"token": token, "logProbability": value}


def _error(status: int, message: str, details: list[dict[str, Any]]) -> bytes:
    name, usual = _ERRORS[status]
    error: dict[str, Any] = {"code": status, "message": message or usual, "status": name}
    if details:
        error["details"] = details
    return orjson.dumps({"error": error})
