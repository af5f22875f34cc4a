"""OpenAI's JSON, with vLLM's `structured_outputs`.

Field names and error shapes: https://platform.openai.com/docs/api-reference and /docs/guides/rate-limits.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

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

Role: TypeAlias = Literal["system", "user", "assistant"]

CREATED = 1_750_000_000
_MAX_INPUTS = 2048
_MAX_TOP_LOGPROBS = 20
_DEFAULT_MAX_TOKENS = 16_384
_ROLES: dict[object, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.BLOCKED: "content_filter",
}
_ERRORS = {
    400: ("invalid_request_error", None, "The request is not valid."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    404: (
        "invalid_request_error",
        "model_not_found",
        "The model does not exist or you have no access to it.",
    ),
    429: ("requests", "rate_limit_exceeded", "Too many requests at once. Please slow down."),
    500: ("server_error", None, "The server had an error while processing your request."),
    503: ("server_error", None, "The engine is currently overloaded, please try again later."),
}


class OpenAIWire:
    content_type = "application/json"

    def read_chat(self, model: str, body: bytes) -> ChatCall:
        document = read_object(body)
        model = take(document, "model", str, "") or model
        if not model:
            raise CallError(400, "you must provide a model parameter")
        if take(document, "stream", bool, False):
            raise CallError(400, "This server does not stream.", "stream")
        if take(document, "n", int, 1) != 1:
            raise CallError(400, "This server gives one choice.", "n")
        asked: tuple[AnswerSchema | None, tuple[str, ...], str | None] = None, (), None
        shape = take(document, "response_format", dict, {})
        if shape.get("type") == "json_schema":
            where = "response_format.json_schema"
            given = take(shape, "json_schema", dict, {}, "response_format")
            asked = chat_schema(
                take(given, "name", str, "answer", where), take(given, "schema", dict, {}, where)
            )
        structured = take(document, "structured_outputs", dict, {})
        if "choice" in structured:
            asked = None, strings(structured["choice"], "structured_outputs.choice"), None
        elif "json" in structured:
            asked = chat_schema("answer", take(structured, "json", dict, {}, "structured_outputs"))
        schema, choices, choice_field = asked
        limit = take(document, "max_completion_tokens", int, 0) or take(document, "max_tokens", int, 0)
        request = Request(
            id="",
            messages=_messages(document.get("messages")),
            max_output_tokens=limit or _DEFAULT_MAX_TOKENS,
            schema=schema,
            choices=choices,
            temperature=float(take(document, "temperature", (int, float), 1.0)),
        )
        return ChatCall(model, request, _asked_logprobs(document), choice_field)

    def read_embed(self, model: str, body: bytes) -> EmbedCall:
        document = read_object(body)
        given = document.get("input")
        texts = (given,) if isinstance(given, str) else strings(given, "input")
        if not texts or len(texts) > _MAX_INPUTS:
            raise CallError(400, f"'input' takes 1 to {_MAX_INPUTS} texts.", "input")
        encoding = take(document, "encoding_format", str, "float")
        if encoding not in ("float", "base64"):
            raise CallError(400, "'encoding_format' is float or base64.", "encoding_format")
        dimensions = take(document, "dimensions", int, 0)
        if dimensions < 0:
            raise CallError(400, "'dimensions' has to be positive.", "dimensions")
        model = take(document, "model", str, "") or model
        return EmbedCall(model, texts, dimensions or None, base64=encoding == "base64")

    def chat(self, model: str, answer: Answer, ident: str, top_logprobs: int | None = None) -> bytes:
        usage = answer.usage
        logprobs = (
            None if top_logprobs is None else {"content": _logprobs(answer, top_logprobs), "refusal": None}
        )
        return orjson.dumps(
            {
                "id": f"chatcmpl-{ident}",
                "object": "chat.completion",
                "created": CREATED,
                "model": model,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": answer.text, "refusal": None},
                        "logprobs": logprobs,
                        "finish_reason": _FINISH[answer.finish_reason],
                    }
                ],
                "usage": {
                    "prompt_tokens": usage.input_tokens,
                    "completion_tokens": usage.output_tokens,
                    "total_tokens": usage.input_tokens + usage.output_tokens,
                    "prompt_tokens_details": (
                        None if usage.cached_tokens is None else {"cached_tokens": usage.cached_tokens}
                    ),
                    "completion_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
                },
                "system_fingerprint": None,
            }
        )

    def embeddings(self, call: EmbedCall, vectors: Sequence[FloatVector], usage: Usage) -> bytes:
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if call.base64
                else vector,
            }
            for index, vector in enumerate(vectors)
        ]
        tokens = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
        return orjson.dumps(
            {"object": "list", "data": data, "model": call.model, "usage": tokens},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )

    def prompt_blocked(self, model: str, ident: str, usage: Usage) -> tuple[int, bytes]:  # noqa: ARG002
        message = "The request was rejected by the safety system."
        return 400, _error(message, "invalid_request_error", "prompt", "content_policy_violation")

    def error(self, status: int, message: str = "", param: str | None = None) -> ErrorAnswer:
        kind, code, usual = _ERRORS[status]
        return ErrorAnswer(status, _error(message or usual, kind, param, code))

    def bad_key(self) -> ErrorAnswer:
        return self.error(401)

    def rate_limited(self, model: str, refusal: Refusal, retry_after: str | None) -> ErrorAnswer:
        unit = "requests per min (RPM)" if refusal.name == "requests" else "tokens per min (TPM)"
        again = f" Please try again in {refusal.wait_s:.3f}s." if retry_after else ""
        message = (
            f"Rate limit reached for {model or 'model'} on {unit}: Limit {refusal.per_minute:.0f}.{again}"
        )
        headers = (("retry-after", retry_after),) if retry_after else ()
        return ErrorAnswer(429, _error(message, refusal.name, None, "rate_limit_exceeded"), headers)

    def rate_headers(self, standings: Sequence[Standing]) -> list[tuple[str, str]]:
        headers = []
        for one in standings:
            headers += [
                (f"x-ratelimit-limit-{one.name}", f"{one.per_minute:.0f}"),
                (f"x-ratelimit-remaining-{one.name}", str(one.remaining)),
                (f"x-ratelimit-reset-{one.name}", duration(one.reset_s)),
            ]
        return headers

    def models(self, names: Sequence[str]) -> bytes:
        """The body of GET /v1/models; `max_model_len` as vLLM tells it."""
        data = [
            {
                "id": name,
                "object": "model",
                "created": CREATED,
                "owned_by": "fake-server",
                "max_model_len": 1_000_000,
            }
            for name in names
        ]
        return orjson.dumps({"object": "list", "data": data})


def duration(seconds: float) -> str:
    """Seconds the way OpenAI's reset headers put them: `120ms`, `1.5s`, `6m0s`."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + text


def _messages(given: object) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise CallError(400, "'messages' has to be a list with at least one message.", "messages")
    messages = []
    for number, one in enumerate(given):
        where = f"messages[{number}]"
        role = _ROLES.get(one.get("role")) if isinstance(one, dict) else None
        if role is None:
            raise CallError(400, f"'{where}.role' is one of {', '.join(map(str, _ROLES))}.", where)
        messages.append(Message(role, _content(one.get("content"), where)))
    return tuple(messages)


def _content(given: object, where: str) -> str:
    if isinstance(given, str):
        return given
    parts = given if isinstance(given, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise CallError(400, f"'{where}.content' is a text or a list of text parts.", where)
    return "".join(map(str, texts))


def _asked_logprobs(document: dict[str, Any]) -> int | None:
    top = take(document, "top_logprobs", int, 0)
    if not take(document, "logprobs", bool, False):
        if top:
            raise CallError(400, "'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
        return None
    if not 0 <= top <= _MAX_TOP_LOGPROBS:
        raise CallError(400, f"'top_logprobs' is at most {_MAX_TOP_LOGPROBS}.", "top_logprobs")
    return top


def _logprobs(answer: Answer, top: int) -> list[dict[str, Any]]:
    return [
        {**_token(token, value), "top_logprobs": [_token(other, score) for other, score in others]}
        for token, value, others in token_logprobs(answer, top)
    ]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "surrogatepass"))}


def _error(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
