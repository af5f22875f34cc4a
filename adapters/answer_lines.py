"""OpenAI's batch format, line by line: requests as they are written, answers as they come back.

https://platform.openai.com/docs/guides/batch. `vllm run-batch` writes answers in the same form, with the
error of a request in more than one place.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from adapters.openai_errors import ApiError, about_the_request, read_error
from adapters.openai_wire import chat_frame, message_json, read_chat
from engine.types import TRANSIENT, AttemptFailure, ChatOutcome, Request

KEY_BYTES = 32


class RequestLines:
    """Renders requests as lines. `model` is the name in their bodies, None: there is none.

    Choices are asked for as a schema: every server that takes batch files understands that.
    """

    def __init__(self, model: str | None, *, with_temperature: bool) -> None:
        self._model = model
        self._with_temperature = with_temperature
        self._frame = lru_cache(maxsize=64)(chat_frame)

    def __call__(self, key: bytes, request: Request) -> bytes:
        """One line, its end included; its `custom_id` is `key` in hexadecimal."""
        head, tail = self._frame(
            self._model,
            request.messages[:-1],
            max_output_tokens=request.max_output_tokens,
            schema=request.schema,
            choices=request.choices,
            temperature=request.temperature if self._with_temperature else None,
            seed=request.index if request.temperature > 0 else None,
        )
        last = b",".join(map(message_json, request.messages[-1:]))
        return b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":%b%b%b}\n' % (
            key.hex().encode(),
            head,
            last,
            tail,
        )


def load_line(line: bytes) -> dict[str, Any] | None:
    """A line with an id; None for anything else."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    named = isinstance(document, dict) and isinstance(document.get("custom_id"), str)
    return document if named else None


def key_of(document: dict[str, Any]) -> bytes | None:
    """The key that a line's id is; None where the id cannot be one of ours."""
    try:
        key = bytes.fromhex(document["custom_id"])
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None


def read_line(request: Request, document: dict[str, Any]) -> ChatOutcome:
    """The outcome that a line of answers holds for its request.

    What lies in the request itself is not worth another try, anything else that is no answer is.
    """
    status, body, error = _taken_apart(document)
    if status == 200 and (outcome := read_chat(request, body)) is not None:
        return outcome
    if error is not None:
        if error.takes_no_temperature:
            return AttemptFailure("no_temperature", "the model takes no temperature", TRANSIENT)
        # gateways hand on the errors of their own providers with status 200
        failed = error.status or (400 if status == 200 else status)
        if (final := about_the_request(failed, error)) is not None:
            return final
    if status == 200:
        return AttemptFailure("malformed", "the response holds no answer", TRANSIENT)
    word = error.word if error is not None else ""
    if status == 0:
        return AttemptFailure("no_response", f"an error{word and f' ({word})'}", TRANSIENT)
    return AttemptFailure(f"http_{status}", f"HTTP {status}{word and f' ({word})'}", TRANSIENT)


def refuses_temperature(document: dict[str, Any]) -> bool:
    """Whether a line of answers says that the model takes no temperature."""
    _, _, error = _taken_apart(document)
    return error is not None and error.takes_no_temperature


def _taken_apart(document: dict[str, Any]) -> tuple[int, Any, ApiError | None]:
    """Status (0: there was no response), body, and the error in whichever place it stands."""
    response, error = document.get("response"), document.get("error")
    status, body = 0, None
    if isinstance(response, dict):
        given = response.get("status_code")
        status, body = given if type(given) is int else 200, response.get("body")
    return status, body, read_error(body) or read_error(error) or read_error({"error": error})
