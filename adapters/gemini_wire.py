"""Gemini's JSON: what is asked for, and what answers, usage and errors in responses mean.

Fields: https://ai.google.dev/api/generate-content; Vertex AI's are the same. Errors are google.rpc.Status
with details: https://github.com/googleapis/googleapis, google/rpc/error_details.proto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from adapters.gemini_models import takes_temperature, thinking_room
from engine.config import Thinking
from engine.tokens import estimate_tokens, request_tokens
from engine.types import (
    DOUBTFUL,
    NO_RETRY,
    Answer,
    AttemptFailure,
    ChatOutcome,
    FinishReason,
    Request,
    Usage,
)

# What is to be moderated must reach the model: the filters that can be turned off are.
_UNFILTERED = [
    {"category": f"HARM_CATEGORY_{harm}", "threshold": "OFF"}
    for harm in ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
]


def safe(text: str) -> str:
    """The text without what UTF-8 cannot hold: lone surrogates become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# --- requests -------------------------------------------------------------------------------------


def request_frame(model: str, request: Request, thinking: Thinking | None) -> dict[str, Any]:
    """The body of a request without its contents: the same for every row.

    `maxOutputTokens` holds `thinking_room` on top, so that thinking does not use up the answer.
    """
    options: dict[str, Any] = {"maxOutputTokens": request.max_output_tokens + thinking_room(model, thinking)}
    if takes_temperature(model):
        options["temperature"] = request.temperature
    if request.temperature > 0:
        options["seed"] = request.index  # tells repeated draws apart
    if isinstance(thinking, int):
        options["thinkingConfig"] = {"thinkingBudget": thinking}
    elif thinking is not None:
        options["thinkingConfig"] = {"thinkingLevel": thinking.upper()}
    if request.schema is not None:
        options["responseMimeType"] = "application/json"
        options["responseJsonSchema"] = _ordered(request.schema.json_schema)
    elif request.choices:
        options["responseMimeType"] = "text/x.enum"
        options["responseSchema"] = {"type": "STRING", "enum": [safe(choice) for choice in request.choices]}
    body: dict[str, Any] = {"generationConfig": options, "safetySettings": _UNFILTERED}
    system = [
        {"text": safe(message.content)}
        for message in request.messages
        if message.role == "system" and message.content
    ]
    if system:
        body["systemInstruction"] = {"parts": system}
    return body


def _ordered(schema: Any) -> Any:
    """A JSON schema with the order of its properties in words: on the wire an object has none."""
    if isinstance(schema, list | tuple):
        return [_ordered(one) for one in schema]
    if isinstance(schema, str):
        return safe(schema)
    if not isinstance(schema, Mapping):
        return schema
    ordered = {safe(key): _ordered(value) for key, value in schema.items()}
    properties = ordered.get("properties")
    # a property may itself be called "properties": it is then a schema, and has a type
    if isinstance(properties, dict) and ordered.get("type") == "object":
        ordered["propertyOrdering"] = list(properties)
    return ordered


# --- answers --------------------------------------------------------------------------------------

_FINISH = {
    "STOP": FinishReason.STOP,
    None: FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "CONTINUATION": FinishReason.LENGTH,  # the rest would be a request of its own
    "SAFETY": FinishReason.BLOCKED,
    "RECITATION": FinishReason.BLOCKED,
    "BLOCKLIST": FinishReason.BLOCKED,
    "PROHIBITED_CONTENT": FinishReason.BLOCKED,
    "SPII": FinishReason.BLOCKED,
    "ESCALATION": FinishReason.BLOCKED,
}
_WORD = re.compile(r"[A-Z][A-Z_]{0,63}")  # without digits and small letters, so that no key passes for one
_FIELD = re.compile(r"(?=.{1,80}$)[A-Za-z_]+(?:\[\d{1,4}\])?(?:\.[A-Za-z_]+(?:\[\d{1,4}\])?)*")


def word(given: object) -> str:
    """A constant of Google's, "" for anything else: text of a server may quote a row."""
    return given if isinstance(given, str) and _WORD.fullmatch(given) else ""


def read_response(body: str, request: Request) -> ChatOutcome:
    """The outcome in a generateContent response with status 200.

    Of an answer that was held back, the text is the reason, such as `SAFETY (HARM_CATEGORY_HARASSMENT)`.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _no_answer("the response is not JSON", None)
    if not isinstance(document, dict):
        return _no_answer("the response holds no answer", None)
    told = read_usage(document.get("usageMetadata"))
    candidate = _first(document.get("candidates"))
    if candidate is not None:
        return _read_candidate(candidate, request, told)
    blocked = _blocked_prompt(document.get("promptFeedback"), told)
    return blocked or _no_answer("the response holds no answer", told)


def _read_candidate(candidate: dict[str, Any], request: Request, told: Usage | None) -> ChatOutcome:
    reason, text = candidate.get("finishReason"), _text(candidate.get("content"))
    finish = _FINISH.get(reason) if isinstance(reason, str | None) else None
    usage = told or Usage(request_tokens(request), estimate_tokens(text), estimated=True)
    if finish is None:
        ended = word(reason) or "an unknown reason"
        return AttemptFailure("malformed", f"the answer ended by {ended}", DOUBTFUL, usage)
    if finish is FinishReason.BLOCKED:
        return Answer(f"{reason}{_categories(candidate.get('safetyRatings'))}", usage, finish)
    if not text and finish is FinishReason.STOP:
        return AttemptFailure("empty", "the answer has no text", DOUBTFUL, usage)
    return Answer(text, usage, finish)


def _blocked_prompt(feedback: object, told: Usage | None) -> AttemptFailure | None:
    if not isinstance(feedback, dict) or not feedback.get("blockReason"):
        return None
    reason = word(feedback["blockReason"]) or "an unknown reason"
    detail = f"the prompt was held back: {reason}{_categories(feedback.get('safetyRatings'))}"
    return AttemptFailure("blocked", detail, NO_RETRY, told)


def _no_answer(detail: str, told: Usage | None) -> AttemptFailure:
    return AttemptFailure("malformed", detail, DOUBTFUL, told, unknown_bill=told is None)


def _first(given: object) -> dict[str, Any] | None:
    return given[0] if isinstance(given, list) and given and isinstance(given[0], dict) else None


def _text(content: object) -> str:
    """The text of an answer's parts, thoughts left out; "" where there are none."""
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list):
        return ""
    texts = [part.get("text") for part in parts if isinstance(part, dict) and not part.get("thought")]
    return "".join(text for text in texts if isinstance(text, str))


def _categories(ratings: object) -> str:
    """` (HARM_CATEGORY_…)`: the categories that something was held back for."""
    if not isinstance(ratings, list):
        return ""
    names = [word(one.get("category")) for one in ratings if isinstance(one, dict) and one.get("blocked")]
    shown = ", ".join(name for name in names if name)
    return f" ({shown})" if shown else ""


def read_usage(given: object) -> Usage | None:
    """Tokens as billed, None where a response does not tell them. What is not written is zero (proto3)."""
    if not isinstance(given, dict):
        return None
    prompt = _count(given, "promptTokenCount") + _count(given, "toolUsePromptTokenCount")
    thoughts = _count(given, "thoughtsTokenCount")
    output = max(_count(given, "candidatesTokenCount") + thoughts, _count(given, "totalTokenCount") - prompt)
    return Usage(prompt, output, thoughts, min(_count(given, "cachedContentTokenCount"), prompt))


def _count(given: dict[str, Any], name: str) -> int:
    number = given.get(name)
    return number if type(number) is int and number >= 0 else 0


# --- errors ---------------------------------------------------------------------------------------

_BAD_KEY = {"API_KEY_INVALID", "API_KEY_EXPIRED", "API_KEY_SERVICE_BLOCKED", "CREDENTIALS_MISSING"}


@dataclass(frozen=True, slots=True)
class ApiError:
    """The structured part of an error, never its message, which may quote a row.

    `status` and `reason` are google.rpc's words for what happened ("": not told), `field` what a bad request
    is about, `after_s` how long to wait, `per_day` whether a quota of the day is used up.
    """

    status: str = ""
    reason: str = ""
    field: str = ""
    after_s: float | None = None
    per_day: bool = False

    @property
    def word(self) -> str:
        """What tells most."""
        return self.reason or ": ".join(one for one in (self.status, self.field) if one)

    @property
    def bad_key(self) -> bool:
        """Whether the key is at fault, whatever the HTTP status."""
        return self.reason in _BAD_KEY


def read_error(document: object) -> ApiError:
    """The error in the JSON of a response that is none of ours; empty where it says nothing."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return ApiError()
    details = error.get("details")
    reason, field, after_s, per_day = "", "", None, False
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        kind = str(detail.get("@type", "")).rpartition(".")[2]
        if kind == "ErrorInfo":
            reason = word(detail.get("reason"))
        elif kind == "RetryInfo":
            after_s = _seconds(detail.get("retryDelay"))
        elif kind == "QuotaFailure":
            per_day = any("PerDay" in str(one.get("quotaId", "")) for one in _items(detail, "violations"))
        elif kind == "BadRequest":
            fields = [one.get("field") for one in _items(detail, "fieldViolations")]
            field = next((one for one in fields if isinstance(one, str) and _FIELD.fullmatch(one)), "")
    return ApiError(word(error.get("status")), reason, field, after_s, per_day)


def _items(detail: dict[str, Any], name: str) -> list[dict[str, Any]]:
    given = detail.get(name)
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def _seconds(given: object) -> float | None:
    """A google.protobuf.Duration as JSON has it: `3s`, `0.5s`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)s", given) if isinstance(given, str) else None
    return None if match is None else float(match[1])
