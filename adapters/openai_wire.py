"""OpenAI's JSON: how requests are encoded, and what answers and usage in responses mean.

Fields: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import orjson

from adapters.openai_logprobs import read_label_logprobs
from engine.tokens import estimate_tokens, request_tokens
from engine.types import (
    DOUBTFUL,
    Answer,
    AnswerSchema,
    AttemptFailure,
    ChatOutcome,
    FinishReason,
    Message,
    Request,
    Usage,
)

_FINISH = {
    "stop": FinishReason.STOP,
    "eos_token": FinishReason.STOP,  # these two are text-generation-inference's
    "stop_sequence": FinishReason.STOP,
    None: FinishReason.STOP,  # some servers tell no reason
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.BLOCKED,
}

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
# Tokens of {"label":""}, at most. They are not in the caller's limit, nor in what a cap on cost sets aside;
# that counts a token for each byte of input, though, and so several times more than these.
_AROUND_A_CHOICE = 16


# --- requests -------------------------------------------------------------------------------------

ChoicesAs: TypeAlias = Literal["structured_outputs", "json_schema", "guided_choice", "text"]
SchemaAs: TypeAlias = Literal["json_schema", "json_object", "text"]
TOP_LOGPROBS = 20
"""How many alternatives to each token are asked for: the most that OpenAI and vLLM give by default."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a request is put: which of the API's optional fields a server is sent, and in which words.

    `choices`: as vLLM's `structured_outputs.choice`, as a JSON schema for an answer `{"label": …}`, as older
    vLLM's `guided_choice`, or not at all; likewise `schema`. `bound` is the field for the most tokens of an
    answer; `thinking_tokens` are added to it, as thinking counts into it. `effort` is `reasoning_effort`.
    `cache_salt` keeps what vLLM remembers of prompts apart from what it remembers for others.
    """

    choices: ChoicesAs = "json_schema"
    schema: SchemaAs = "json_schema"
    temperature: bool = True
    seed: bool = True
    logprobs: bool = False
    bound: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    effort: str | None = None
    thinking_tokens: int = 0
    cache_salt: str | None = None

    def most_output_tokens(self, max_output_tokens: int, choices: Sequence[str]) -> int:
        """The bound that is sent for a request with its own bound and choices."""
        around = _AROUND_A_CHOICE if choices and self.choices == "json_schema" else 0
        return max_output_tokens + self.thinking_tokens + around


PLAIN = Form()
"""What every server of the API is documented to take."""


def encode(value: Any) -> bytes:
    """Compact JSON. What UTF-8 cannot hold, lone surrogates, becomes U+FFFD: no server could read it."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return orjson.dumps(mended(value))


def mended(value: Any) -> Any:
    """A JSON value with U+FFFD for every lone surrogate in it; pairs of them become what they stand for."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {mended(key): mended(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [mended(one) for one in value]
    return value


def message_json(message: Message) -> bytes:
    """A message as it stands in a request."""
    return b'{"role":"' + message.role.encode() + b'","content":' + encode(message.content) + b"}"


def chat_frame(
    model: str | None,
    first_messages: tuple[Message, ...],
    *,
    max_output_tokens: int,
    schema: AnswerSchema | None,
    choices: tuple[str, ...],
    temperature: float | None,
    seed: int | None,
    form: Form = PLAIN,
) -> tuple[bytes, bytes]:
    """What stands before and after the last message of a chat request: the same for every row.

    None leaves `model`, `temperature` or `seed` out.
    """
    # both OpenAI and vLLM call max_tokens deprecated, and OpenAI refuses it for models that think
    options: dict[str, Any] = {form.bound: form.most_output_tokens(max_output_tokens, choices)}
    if temperature is not None and form.temperature:
        options["temperature"] = temperature
    if seed is not None and form.seed:
        options["seed"] = seed  # tells repeated draws apart
    if form.effort is not None:
        options["reasoning_effort"] = form.effort
    if form.cache_salt is not None:
        options["cache_salt"] = form.cache_salt
    if schema is not None:
        options |= _schema_options(schema, form.schema)
    elif choices:
        options |= _choice_options(choices, form.choices)
        if form.logprobs:
            options |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    named = b"" if model is None else b'"model":' + encode(model) + b","
    first = b"".join(message_json(message) + b"," for message in first_messages)
    return b"{" + named + b'"messages":[' + first, b"]," + encode(options)[1:]


def _schema_options(schema: AnswerSchema, form: SchemaAs) -> dict[str, Any]:
    if form == "json_schema":
        return {"response_format": response_format(schema.name, schema.json_schema)}
    return {"response_format": {"type": "json_object"}} if form == "json_object" else {}


def _choice_options(choices: Sequence[str], form: ChoicesAs) -> dict[str, Any]:
    match form:
        case "structured_outputs":
            return {"structured_outputs": {"choice": choices}}
        case "json_schema":
            return {"response_format": response_format("choice", choice_schema(choices))}
        case "guided_choice":
            return {"guided_choice": choices}
        case "text":
            return {}


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


# --- answers --------------------------------------------------------------------------------------


def read_chat(request: Request, document: Any, form: Form = PLAIN) -> ChatOutcome | None:
    """The outcome in a chat completion that was asked for in `form`; None where it holds no answer.

    An answer that was cut or held back (a refusal too) is an `Answer` with that finish reason. Tokens are
    estimated where the document does not tell them.
    """
    try:
        choice = document["choices"][0]
        message = choice["message"]
        text, refused = message.get("content"), message.get("refusal")
        finish = _FINISH.get(choice.get("finish_reason"))
    except (AttributeError, LookupError, TypeError):
        return None
    if not isinstance(text, str):
        text = ""
    usage = read_usage(document.get("usage")) or Usage(
        request_tokens(request), estimate_tokens(text), estimated=True
    )
    if finish is None:
        return AttemptFailure("malformed", "the answer ended for an unknown reason", DOUBTFUL, usage)
    if refused:
        return Answer("", usage, FinishReason.BLOCKED)
    if not text and finish is FinishReason.STOP:
        return AttemptFailure("empty", "the answer has no text", DOUBTFUL, usage)
    answer = Answer(text, usage, finish)
    return _chosen(request, choice, answer, form) if request.choices else answer


def _chosen(request: Request, choice: Mapping[str, Any], answer: Answer, form: Form) -> Answer:
    """An answer to choices: the one it names, verbatim, with what its tokens tell of the others."""
    text = read_choice(answer.text) if form.choices == "json_schema" else answer.text
    label = text.strip()
    if label not in request.choices:
        return replace(answer, text=text)
    if answer.finish_reason is not FinishReason.STOP:
        return replace(answer, text=label)
    field = None if text is answer.text else _CHOICE
    logprobs = read_label_logprobs(_tokens(choice), answer.text, label, request.choices, field=field)
    return replace(answer, text=label, label_logprobs=logprobs)


def tells_thoughts(document: Any) -> bool:
    """Whether a chat completion holds the thinking ahead of its answer, as vLLM's and others' do."""
    message = document["choices"][0]["message"]
    return bool(message.get("reasoning") or message.get("reasoning_content"))


def _tokens(choice: Mapping[str, Any]) -> object:
    """The tokens of an answer with their log-probabilities, None where they are not told."""
    logprobs = choice.get("logprobs")
    return logprobs.get("content") if isinstance(logprobs, dict) else None


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
