"""Models behind a server that speaks OpenAI's API: api.openai.com, vLLM and many others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import orjson

from adapters.addresses import OPENAI_HOST, RemoteAddress
from adapters.http import HttpClient, Reply
from adapters.openai_wire import (
    choice_schema,
    encode,
    read_body_error,
    read_choice,
    read_error,
    read_unit_vector,
    read_usage,
    refusal,
    response_format,
)
from engine.errors import ModelError
from engine.ports import Price, Within
from engine.tokens import estimate_tokens, request_tokens, shared_out
from engine.types import (
    DOUBTFUL,
    TRANSIENT,
    Answer,
    AnswerSchema,
    AttemptFailure,
    ChatOutcome,
    Embedding,
    EmbedOutcome,
    FinishReason,
    Message,
    Request,
    Usage,
)

DEFAULT_MAX_INPUT_TOKENS = 32_000
_KEY_HINT = "name the environment variable that holds the key in api_key_env"

_FINISH = {
    "stop": FinishReason.STOP,
    "eos_token": FinishReason.STOP,  # these two are text-generation-inference's
    "stop_sequence": FinishReason.STOP,
    None: FinishReason.STOP,  # some servers tell no reason
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.BLOCKED,
}
_UNSUPPORTED = ("unsupported_value", "unsupported_parameter")
# Tokens of {"label":""}, at most. They are not in the caller's limit, nor in what a cap on cost sets aside;
# that counts a token for each byte of input, though, and so several times more than these.
_AROUND_A_CHOICE = 16

# Trained so that a vector's beginning is a vector (Matryoshka), by their own documentation.
_MATRYOSHKA = (
    "embeddinggemma",
    "gemini-embedding",
    "jina-embeddings-v3",
    "jina-embeddings-v4",
    "mxbai-embed-large-v1",
    "nomic-embed-text-v1.5",
    "qwen3-embedding",
    "text-embedding-3-",
)


class OpenAICompatibleChat:
    """A `ChatModel` that posts to `/chat/completions`, one request at a time.

    A schema is asked for as `response_format`, choices as `structured_outputs.choice` (vLLM) or, at
    api.openai.com, as an answer `{"label": …}` that is unpacked again; a server that knows neither answers in
    free text. Where a server says that its model takes no temperature, none is sent from then on. `name`
    holds the first server only: replicas give the same answers.

    An answer that was cut or held back (a refusal too) is an `Answer` with that finish reason. Tokens are
    estimated where a response does not tell them.
    """

    max_batch = 1

    def __init__(
        self,
        address: RemoteAddress,
        *,
        api_key: str | None = None,
        key_hint: str = _KEY_HINT,
        price: Price | None = None,
        max_input_tokens: int | None = None,
    ) -> None:
        """`api_key` goes to every server of the address; `key_hint` is what an error says about a key that is
        refused; `price` None: unknown."""
        self.name = f"openai:{address.name}@{address.urls[0]}"
        self.price = price
        self.max_input_tokens = max_input_tokens or DEFAULT_MAX_INPUT_TOKENS
        self._model = address.name
        self._at_openai = OPENAI_HOST in address.hosts
        self._takes_temperature = True
        self._client = _client(address, "chat/completions", api_key, key_hint)
        self._frame = lru_cache(maxsize=64)(self._frame_of)

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        """See `engine.ports.ChatModel`."""
        return [await self._ask(request) for request in requests]

    async def aclose(self) -> None:
        """Close the connections. Calling it twice is harmless."""
        await self._client.aclose()

    async def _ask(self, request: Request) -> ChatOutcome:
        with_temperature = self._takes_temperature
        temperature = request.temperature if with_temperature else None
        seed = request.index if request.temperature > 0 else None
        head, tail = self._frame(
            request.messages[:-1],
            request.max_output_tokens,
            request.schema,
            request.choices,
            (temperature, seed),
        )
        last = b",".join(map(_message, request.messages[-1:]))
        reply = await self._client.post(head + last + tail)
        if isinstance(reply, AttemptFailure):
            return reply
        if reply.status == 200:
            return self._read(request, reply)
        error = read_body_error(reply.body)
        if with_temperature and error and error.param == "temperature" and error.code in _UNSUPPORTED:
            self._takes_temperature = False
            return AttemptFailure("no_temperature", "the model takes no temperature", TRANSIENT)
        return refusal(self._client, reply, error)

    def _frame_of(
        self,
        first_messages: tuple[Message, ...],
        max_output_tokens: int,
        schema: AnswerSchema | None,
        choices: tuple[str, ...],
        sampling: tuple[float | None, int | None],
    ) -> tuple[bytes, bytes]:
        """What stands before and after the last message: the same for every row, so it is encoded once."""
        # both OpenAI and vLLM call max_tokens deprecated, and OpenAI refuses it for models that think
        options: dict[str, Any] = {"max_completion_tokens": max_output_tokens}
        temperature, seed = sampling
        if temperature is not None:
            options["temperature"] = temperature
        if seed is not None:
            options["seed"] = seed  # tells repeated draws apart
        if schema is not None:
            options["response_format"] = response_format(schema.name, schema.json_schema)
        elif choices and self._at_openai:
            options["response_format"] = response_format("choice", choice_schema(choices))
            options["max_completion_tokens"] += _AROUND_A_CHOICE
        elif choices:
            options["structured_outputs"] = {"choice": choices}
        first = b"".join(_message(message) + b"," for message in first_messages)
        head = b'{"model":' + encode(self._model) + b',"messages":[' + first
        return head, b"]," + encode(options)[1:]

    def _read(self, request: Request, reply: Reply) -> ChatOutcome:
        """The outcome in a response with status 200."""
        try:
            document = orjson.loads(reply.body)
        except orjson.JSONDecodeError:
            return self._client.unreadable(reply, "the response is not JSON")
        try:
            choice = document["choices"][0]
            message = choice["message"]
            text, refused = message.get("content"), message.get("refusal")
            finish = _FINISH.get(choice.get("finish_reason"))
        except (AttributeError, LookupError, TypeError):
            return _no_answer(self._client, reply, document)
        reply.server.proven = True
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
        if request.choices and self._at_openai:
            text = read_choice(text)
        return Answer(text, usage, finish)


class OpenAICompatibleEmbedder:
    """An `Embedder` that posts up to 256 texts at once to `/embeddings`.

    (OpenAI takes 2,048 texts and 300,000 tokens.) A batch that is refused for what is in it is sent again in
    halves, down to the text that is at fault. Vectors come as base64 where the server knows that, else as
    numbers.

    `dimensions` shortens the vectors of models that are documented to be cut (Matryoshka): api.openai.com is
    asked to, elsewhere the beginning is taken here, as servers may refuse the parameter. Vectors of any other
    model, and shorter ones, stay as they are. All are scaled to unit norm.
    """

    max_batch = 256
    within: Within = "all"

    def __init__(
        self,
        address: RemoteAddress,
        *,
        dimensions: int,
        api_key: str | None = None,
        key_hint: str = _KEY_HINT,
        price: Price | None = None,
    ) -> None:
        """The parameters of `OpenAICompatibleChat`, and how long the vectors are to be."""
        self.name = f"openai:{address.name}@{address.urls[0]}#{dimensions}"
        self.price = price
        known_to_be_cut = address.name.rpartition("/")[2].lower().startswith(_MATRYOSHKA)
        self._cut = dimensions if known_to_be_cut else None
        self._dim: int | None = None
        self._options: dict[str, Any] = {"model": address.name, "encoding_format": "base64"}
        if known_to_be_cut and OPENAI_HOST in address.hosts:
            self._options["dimensions"] = dimensions
        self._client = _client(address, "embeddings", api_key, key_hint)

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]:
        """See `engine.ports.Embedder`. Raises `ModelError` too where vectors change their length."""
        if not texts:
            return []
        reply = await self._client.post(encode({**self._options, "input": texts}))
        if isinstance(reply, AttemptFailure):
            return [reply] * len(texts)
        if reply.status == 200:
            return self._read(texts, reply)
        failure = refusal(self._client, reply, read_body_error(reply.body))
        if reply.status in (400, 413, 422) and len(texts) > 1:
            half = len(texts) // 2
            return [*await self.embed(texts[:half]), *await self.embed(texts[half:])]
        return [failure] * len(texts)

    async def aclose(self) -> None:
        """Close the connections. Calling it twice is harmless."""
        await self._client.aclose()

    def _read(self, texts: Sequence[str], reply: Reply) -> Sequence[EmbedOutcome]:
        try:
            document = orjson.loads(reply.body)
        except orjson.JSONDecodeError:
            return [self._client.unreadable(reply, "the response is not JSON")] * len(texts)
        try:
            data = document["data"]
            given = {item.get("index", place): item["embedding"] for place, item in enumerate(data)}
        except (AttributeError, LookupError, TypeError):
            return [_no_answer(self._client, reply, document)] * len(texts)
        reply.server.proven = True
        usages = _shares(texts, read_usage(document.get("usage")))
        if len(data) != len(texts) or given.keys() != set(range(len(texts))):
            detail = f"{len(data)} vectors for {len(texts)} texts, or not numbered from 0"
            return [AttemptFailure("malformed", detail, DOUBTFUL, usage) for usage in usages]
        return [self._outcome(given[place], usage) for place, usage in enumerate(usages)]

    def _outcome(self, given: object, usage: Usage) -> EmbedOutcome:
        vector = read_unit_vector(given, self._cut)
        if vector is None:
            return AttemptFailure("malformed", "not a vector of finite numbers other than 0", DOUBTFUL, usage)
        if self._dim is None:
            self._dim = len(vector)
        elif self._dim != len(vector):
            raise ModelError(
                f"{self.name}: gives vectors of {len(vector)} numbers now, of {self._dim} before: is there "
                "another model behind the address, or behind one of its servers?"
            )
        return Embedding(vector, usage)


def _client(address: RemoteAddress, path: str, api_key: str | None, key_hint: str) -> HttpClient:
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    return HttpClient(f"openai:{address.name}", address.urls, path, headers=headers, key_hint=key_hint)


def _message(message: Message) -> bytes:
    return b'{"role":"' + message.role.encode() + b'","content":' + encode(message.content) + b"}"


def _no_answer(client: HttpClient, reply: Reply, document: object) -> AttemptFailure:
    """A 200 without choices or vectors: gateways hand on the errors of their own providers so."""
    error = read_error(document)
    if error is not None:
        return refusal(client, replace(reply, status=error.status or 400), error)
    usage = read_usage(document.get("usage")) if isinstance(document, dict) else None
    return AttemptFailure(
        "malformed", "the response holds no answer", DOUBTFUL, usage, unknown_bill=usage is None
    )


def _shares(texts: Sequence[str], usage: Usage | None) -> list[Usage]:
    """The usage of each text of a batch, by length; they add up to that of the batch."""
    if usage is None:
        return [Usage(estimate_tokens(text), estimated=True) for text in texts]
    return [Usage(tokens) for tokens in shared_out(usage.input_tokens, texts)]
