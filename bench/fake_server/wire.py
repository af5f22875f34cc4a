"""What the two providers' wires have in common: a call read from JSON, and how to answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import orjson

from bench.fake_server.limits import Refusal, Standing
from engine.types import Answer, AnswerSchema, FloatVector, Request, Usage

T = TypeVar("T")

_PHASES = ("extraction", "synthesis", "general", "resolution")


class CallError(Exception):
    """The provider would refuse this call: bad JSON, a missing field, an unknown model."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat request. `top_logprobs` is how many alternatives to each token are asked for, None where no
    log-probabilities are. `choice_field`: the choice is to stand in a JSON object, in this field."""

    model: str
    request: Request
    top_logprobs: int | None = None
    choice_field: str | None = None


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """Texts to embed. `single` and `base64` are how the wire wants the vectors back."""

    model: str
    texts: tuple[str, ...]
    dimensions: int | None = None
    single: bool = False
    base64: bool = False


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as the wire puts it."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Wire(Protocol):
    """One provider's JSON. Stateless."""

    content_type: str

    def read_chat(self, model: str, body: bytes) -> ChatCall:
        """Raises `CallError`. `model` is the one in the path, where it stands there."""

    def read_embed(self, model: str, body: bytes) -> EmbedCall:
        """Raises `CallError`."""

    def chat(self, model: str, answer: Answer, ident: str, top_logprobs: int | None = None) -> bytes:
        """A 200's body. A blocked answer is one that the filter held back."""

    def embeddings(self, call: EmbedCall, vectors: Sequence[FloatVector], usage: Usage) -> bytes:
        """A 200's body, for vectors of shape (dim,)."""

    def prompt_blocked(self, model: str, ident: str, usage: Usage) -> tuple[int, bytes]:
        """Status and body where the filter held the prompt back."""

    def error(self, status: int, message: str = "", param: str | None = None) -> ErrorAnswer:
        """An error; without a message, the provider's usual words for this status."""

    def bad_key(self) -> ErrorAnswer:
        """The error for a request without the right key."""

    def rate_limited(self, model: str, refusal: Refusal, retry_after: str | None) -> ErrorAnswer:
        """A 429 for a rate limit; `retry_after` in seconds, None where it is not told."""

    def rate_headers(self, standings: Sequence[Standing]) -> list[tuple[str, str]]:
        """Headers that tell how the limits stand."""


def read_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises `CallError`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise CallError(400, "We could not parse the JSON body of your request.") from exc
    if not isinstance(document, dict):
        raise CallError(400, "The body of the request has to be a JSON object.")
    return document


def take(
    document: Mapping[str, Any], name: str, kind: type[T] | tuple[type[T], ...], default: T, where: str = ""
) -> T:
    """A field that may be absent or null. Raises `CallError` where it is of another kind."""
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        path = f"{where}.{name}" if where else name
        raise CallError(400, f"Invalid type for '{path}'.", path)
    return value


def chat_schema(
    name: str, json_schema: Mapping[str, Any]
) -> tuple[AnswerSchema | None, tuple[str, ...], str | None]:
    """Schema, choices and choice field of an asked-for JSON answer.

    An object of one field with an `enum` is a choice in disguise.
    """
    properties = json_schema.get("properties")
    if isinstance(properties, dict) and len(properties) == 1:
        ((field, rule),) = properties.items()
        if isinstance(rule, dict) and isinstance(rule.get("enum"), list):
            return None, strings(rule["enum"], f"{field}.enum"), field
    return AnswerSchema(name, json_schema), (), None


def phase_of(schema: AnswerSchema) -> str:
    """The phase that a schema is for, by the name that its wire left it."""
    name = schema.name.lower()
    return next((phase for phase in _PHASES if phase in name), name)


def strings(values: object, where: str) -> tuple[str, ...]:
    """A list of strings. Raises `CallError`."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CallError(400, f"'{where}' has to be a list of strings.", where)
    return tuple(values)


def token_logprobs(answer: Answer, top: int) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """Tokens of an answer, each with its natural-log probability and its `top` likeliest alternatives.

    A label is one token here, with the other labels for alternatives; any other text is cut into tokens of
    four characters that the model was all but sure of.
    """
    scores = answer.label_logprobs
    if scores and answer.text in scores:
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        return [(answer.text, scores[answer.text], ranked[:top])]
    pieces = [answer.text[i : i + 4] for i in range(0, len(answer.text), 4)]
    return [(piece, -0.001, [(piece, -0.001)][:top]) for piece in pieces]
