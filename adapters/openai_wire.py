"""OpenAI's JSON: how requests are encoded, and what usage and errors in responses mean.

Fields: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from adapters.http import HttpClient, Reply
from engine.errors import ModelError
from engine.types import NO_RETRY, AttemptFailure, FloatVector, Usage

_NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_BLOCKED = {"content_filter", "content_policy_violation"}
_TOO_LONG = {"context_length_exceeded", "string_above_max_length"}
_INVALID = {"invalid_request_error", "BadRequestError"}
_ABOUT_THE_REQUEST = (400, 413, 422)

# what OpenAI's strict mode takes: https://platform.openai.com/docs/guides/structured-outputs
_STRICT_KEYWORDS = {
    "$defs",
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "description",
    "enum",
    "items",
    "properties",
    "required",
    "title",
    "type",
}
_CHOICE = "label"


# --- requests -------------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """Compact JSON. What UTF-8 cannot hold, lone surrogates, becomes U+FFFD: no server could read it."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return orjson.dumps(_mended(value))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_mended(key): _mended(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mended(one) for one in value]
    return value


def response_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The option that asks for JSON of this schema; strict where OpenAI's strict mode takes the schema."""
    asked = {"name": name, "schema": schema, "strict": takes_strict(schema)}
    return {"type": "json_schema", "json_schema": asked}


def takes_strict(schema: object) -> bool:
    """Whether every object of a schema is closed, with all its properties required, in known keywords."""
    if not isinstance(schema, Mapping) or schema.keys() - _STRICT_KEYWORDS:
        return False
    properties = schema.get("properties", {})
    closed = schema.get("additionalProperties") is False and set(schema.get("required", ())) == set(
        properties
    )
    if not closed and (properties or schema.get("type") == "object"):
        return False
    parts = [*properties.values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", ())]
    if "items" in schema:
        parts.append(schema["items"])
    return all(map(takes_strict, parts))


def choice_schema(choices: Sequence[str]) -> dict[str, Any]:
    """A schema whose answer names one of `choices`; `read_choice` takes it out again."""
    return {
        "type": "object",
        "properties": {_CHOICE: {"type": "string", "enum": list(choices)}},
        "required": [_CHOICE],
        "additionalProperties": False,
    }


def read_choice(text: str) -> str:
    """What an answer to `choice_schema` names; an answer in any other form as it is."""
    try:
        named = orjson.loads(text)[_CHOICE]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return text
    return named if isinstance(named, str) else text


# --- usage ----------------------------------------------------------------------------------------


def read_usage(given: object) -> Usage | None:
    """Tokens as billed, None where a response does not tell them."""
    if not isinstance(given, dict):
        return None
    prompt = _count(given.get("prompt_tokens"))
    if prompt is None:
        return None
    completion = _count(given.get("completion_tokens")) or 0
    # some providers leave thinking out of completion_tokens and bill it all the same: it is in the total
    output = max(completion, (_count(given.get("total_tokens")) or 0) - prompt)
    thinking = output - completion
    if isinstance(details := given.get("completion_tokens_details"), dict):
        thinking = min(max(_count(details.get("reasoning_tokens")) or 0, thinking), output)
    cached = None
    if isinstance(details := given.get("prompt_tokens_details"), dict):
        cached = _count(details.get("cached_tokens"))
    return Usage(prompt, output, thinking, None if cached is None else min(cached, prompt))


def _count(number: object) -> int | None:
    return number if type(number) is int and number >= 0 else None


# --- vectors --------------------------------------------------------------------------------------


def read_unit_vector(given: object, cut: int | None = None) -> FloatVector | None:
    """A vector (dim,), the first `cut` numbers of it, scaled to unit norm; None where it has no direction.

    `given` is base64 of little-endian float32, or numbers.
    """
    try:
        if isinstance(given, str):
            vector = np.frombuffer(base64.b64decode(given, validate=True), "<f4").astype(np.float64)
        else:
            vector = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if vector.ndim != 1 or not len(vector):
        return None
    vector = vector[:cut]
    largest = np.abs(vector).max()
    if not 0 < largest < np.inf:  # NaN is neither
        return None
    vector = vector / largest  # so that squares neither overflow nor vanish
    unit: FloatVector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


# --- errors ---------------------------------------------------------------------------------------

_WORD = re.compile(r"[A-Za-z][A-Za-z_.]{0,63}")  # without digits, so that no key passes for one


@dataclass(frozen=True, slots=True)
class ApiError:
    """The structured part of an error, "" where it is not given: never the message, which may quote a row.

    `status` is the code where it is an HTTP status.
    """

    code: str = ""
    kind: str = ""
    param: str = ""
    status: int | None = None

    @property
    def word(self) -> str:
        """What tells most."""
        return self.code or self.param or self.kind


def read_error(document: object) -> ApiError | None:
    """The error in a JSON document, in OpenAI's form or vLLM's older one; None where there is none."""
    if not isinstance(document, dict):
        return None
    error = document if document.get("object") == "error" else document.get("error")
    if not isinstance(error, dict):
        return None
    code = error.get("code")
    status = code if type(code) is int and 400 <= code < 600 else None
    return ApiError(_word(code), _word(error.get("type")), _word(error.get("param")), status)


def read_body_error(body: bytes) -> ApiError | None:
    """`read_error` of a body that need not be JSON."""
    try:
        return read_error(orjson.loads(body))
    except orjson.JSONDecodeError:
        return None


def _word(given: object) -> str:
    return given if isinstance(given, str) and _WORD.fullmatch(given) else ""


def refusal(client: HttpClient, reply: Reply, error: ApiError | None) -> AttemptFailure:
    """What a response means that is no answer, told apart by status and structured code alone.

    Raises `ModelError` as `HttpClient.refusal` does, and for an account without quota.
    """
    if error is None:
        return client.refusal(reply)
    if _NO_QUOTA & {error.code, error.kind}:
        raise ModelError(
            f"{client.what}: the account has no quota left ({error.word}): pay in or raise its limit, and "
            "run the same command again (what is answered is saved)"
        )
    if reply.status in _ABOUT_THE_REQUEST and error.code != "model_not_found":
        detail = f"HTTP {reply.status}{error.word and f' ({error.word})'}"
        if error.code in _BLOCKED:
            return AttemptFailure("blocked", detail, NO_RETRY)
        if error.code in _TOO_LONG or error.param == "input_tokens":  # as vLLM puts it
            return AttemptFailure("too_long", detail, NO_RETRY)
        if error.kind in _INVALID:
            return AttemptFailure("refused", detail, NO_RETRY)
    return client.refusal(reply, error.word, no_model=error.code == "model_not_found")
