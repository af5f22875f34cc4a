"""What errors in OpenAI's JSON mean. Nothing is read from their messages, which may quote a row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from adapters.http import HttpClient, Reply
from engine.errors import ModelError
from engine.types import NO_RETRY, AttemptFailure

_NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_BLOCKED = {"content_filter", "content_policy_violation"}
_TOO_LONG = {"context_length_exceeded", "string_above_max_length"}
_TOO_LONG_FIELDS = {"input_tokens", "input_text"}  # as vLLM puts it: counted, and not even worth counting
_INVALID = {"invalid_request_error", "BadRequestError"}
_ABOUT_THE_REQUEST = (400, 413, 422)
_UNSUPPORTED = ("unsupported_value", "unsupported_parameter")
_WORD = re.compile(r"[A-Za-z][A-Za-z_.]{0,63}")  # without digits, so that no key passes for one


@dataclass(frozen=True, slots=True)
class ApiError:
    """The structured part of an error, "" where it is not given: never the message, which may quote a row.

    `status` is the code where it is an HTTP status. `fields` are all fields of the request that it is about.
    """

    code: str = ""
    kind: str = ""
    param: str = ""
    status: int | None = None
    fields: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """What tells most."""
        return self.code or self.param or self.kind

    @property
    def takes_no_temperature(self) -> bool:
        """Whether the model refuses that parameter, as models that think do."""
        return self.param == "temperature" and self.code in _UNSUPPORTED


def read_error(document: object) -> ApiError | None:
    """The error in a JSON document; None where there is none.

    Read are OpenAI's form, vLLM's older one, and the list that FastAPI gives of what it finds in a body.
    """
    if not isinstance(document, dict):
        return None
    for holder in (document, document.get("message")):
        if isinstance(holder, dict) and isinstance(found := holder.get("detail"), list):
            return _found_in_body(found)
    error = document if document.get("object") == "error" else document.get("error")
    if not isinstance(error, dict):
        return None
    code, param = error.get("code"), _word(error.get("param"))
    status = code if type(code) is int and 400 <= code < 600 else None
    return ApiError(_word(code), _word(error.get("type")), param, status, (param,) if param else ())


def _found_in_body(found: list[Any]) -> ApiError:
    """Fields that are not known, where there are any, else the first that is not valid."""
    pairs = [(_word(one.get("type")), one.get("loc")) for one in found if isinstance(one, dict)]
    named = [(code, _word(where[1])) for code, where in pairs if isinstance(where, list) and len(where) > 1]
    unknown = [field for code, field in named if code == "extra_forbidden"]
    if unknown:
        return ApiError("extra_forbidden", "", unknown[0], None, tuple(unknown))
    code, field = named[0] if named else ("", "")
    return ApiError(code, "", field, None, (field,) if field else ())


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
    return about_the_request(reply.status, error) or client.refusal(
        reply, error.word, no_model=error.code == "model_not_found"
    )


def about_the_request(status: int, error: ApiError) -> AttemptFailure | None:
    """What an error means that lies in the request itself, so that asking again is useless; else None."""
    if status in _ABOUT_THE_REQUEST and error.code != "model_not_found":
        detail = f"HTTP {status}{error.word and f' ({error.word})'}"
        if error.code in _BLOCKED:
            return AttemptFailure("blocked", detail, NO_RETRY)
        if error.code in _TOO_LONG or error.param in _TOO_LONG_FIELDS:
            return AttemptFailure("too_long", detail, NO_RETRY)
        if error.kind in _INVALID:
            return AttemptFailure("refused", detail, NO_RETRY)
    return None
