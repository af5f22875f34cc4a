"""Models behind a server that speaks OpenAI's API: api.openai.com, vLLM and many others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import orjson

from adapters.addresses import OPENAI_HOST, RemoteAddress
from adapters.http import HttpClient, Reply, Server
from adapters.openai_dialect import Dialect
from adapters.openai_errors import read_body_error, read_error, refusal
from adapters.openai_models import may_be_cut, thinking_room
from adapters.openai_wire import (
    Form,
    chat_frame,
    encode,
    message_json,
    read_chat,
    read_usage,
    tells_thoughts,
)
from adapters.vectors import read_unit_vector
from engine.config import ThinkingLevel
from engine.errors import ModelError
from engine.ports import FREE, Price, Within
from engine.tokens import estimate_tokens, shared_out
from engine.types import (
    DOUBTFUL,
    AnswerSchema,
    AttemptFailure,
    ChatOutcome,
    Embedding,
    EmbedOutcome,
    Message,
    Request,
    Usage,
)

DEFAULT_MAX_INPUT_TOKENS = 32_000
KEY_HINT = "name the environment variable that holds the key in api_key_env"


class OpenAICompatibleChat:
    """A `ChatModel` that posts to `/chat/completions`, one request at a time.

    A schema is asked for as `response_format`, choices as `structured_outputs.choice` (vLLM) or, at
    api.openai.com, as an answer `{"label": …}` that is unpacked again, with the log-probabilities of their
    tokens. What a server refuses or ignores is put in another way or left out: see `Dialect`. `name` holds
    the first server only: replicas give the same answers.

    With `thinking` a model thinks as long as that level means to it (`reasoning_effort`). Thinking counts
    into the limit of output tokens: what it may take is added to each request's own limit, and stands in
    `price` as `thinking_tokens`. Models that think are not asked for log-probabilities.

    An answer that was cut or held back (a refusal too) is an `Answer` with that finish reason. Tokens are
    estimated where a response does not tell them.
    """

    max_batch = 1

    def __init__(
        self,
        address: RemoteAddress,
        *,
        thinking: ThinkingLevel | None = None,
        api_key: str | None = None,
        key_hint: str = KEY_HINT,
        price: Price | None = None,
        max_input_tokens: int | None = None,
        scheme: str = "openai",
        cache_salt: str | None = None,
    ) -> None:
        """`thinking` None: as much as the model does by itself; `price` None: unknown.

        `api_key` goes to every server of the address; `key_hint` is what an error says about a key that is
        refused. `scheme` begins the name. `cache_salt` goes with every request to servers that take it.
        """
        self.name = f"{scheme}:{address.name}@{address.urls[0]}"
        if thinking is not None:
            self.name += f"#thinking={thinking}"
        room = thinking_room(address.name, thinking)
        if price is not None and price != FREE:
            price = replace(price, thinking_tokens=room)
        self.price = price
        self.max_input_tokens = max_input_tokens or DEFAULT_MAX_INPUT_TOKENS
        self._model = address.name
        form = Form(
            choices="json_schema" if OPENAI_HOST in address.hosts else "structured_outputs",
            logprobs=not room,
            effort=thinking,
            thinking_tokens=room,
            cache_salt=cache_salt,
        )
        self._dialect = Dialect(f"{scheme}:{address.name}", form)
        self._client = _client(address, "chat/completions", api_key, key_hint, scheme)
        self._frame = lru_cache(maxsize=64)(self._frame_of)

    @property
    def remarks(self) -> tuple[str, ...]:
        """See `engine.ports.Remarking`: what the servers were found not to do."""
        return tuple(self._dialect.remarks)

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        """See `engine.ports.ChatModel`."""
        return [await self._ask(request) for request in requests]

    async def aclose(self) -> None:
        """Close the connections. Calling it twice is harmless."""
        await self._client.aclose()

    async def _ask(self, request: Request) -> ChatOutcome:
        return await self._send(request)

    async def _send(self, request: Request, server: Server | None = None) -> ChatOutcome:
        """One attempt, at that server or else at the one with the least in flight."""
        form = self._dialect.form
        head, tail = self._frame(
            request.messages[:-1],
            request.max_output_tokens,
            request.schema,
            request.choices,
            (request.temperature, request.index if request.temperature > 0 else None, form),
        )
        last = b",".join(map(message_json, request.messages[-1:]))
        reply = await self._client.post(head + last + tail, server)
        if isinstance(reply, AttemptFailure):
            return reply
        if reply.status == 200:
            return self._read(request, reply, form)
        error = read_body_error(reply.body)
        refused = self._dialect.refused(form, request, error, reply.status)
        return refused or refusal(self._client, reply, error)

    def _frame_of(
        self,
        first_messages: tuple[Message, ...],
        max_output_tokens: int,
        schema: AnswerSchema | None,
        choices: tuple[str, ...],
        how: tuple[float, int | None, Form],
    ) -> tuple[bytes, bytes]:
        temperature, seed, form = how
        return chat_frame(
            self._model,
            first_messages,
            max_output_tokens=max_output_tokens,
            schema=schema,
            choices=choices,
            temperature=temperature,
            seed=seed,
            form=form,
        )

    def _read(self, request: Request, reply: Reply, form: Form) -> ChatOutcome:
        """The outcome in a response with status 200."""
        try:
            document = orjson.loads(reply.body)
        except orjson.JSONDecodeError:
            return self._client.unreadable(reply, "the response is not JSON")
        outcome = read_chat(request, document, form)
        if outcome is None:
            return _no_answer(self._client, reply, document)
        reply.server.proven = True
        if isinstance(outcome, AttemptFailure):
            return outcome
        thought = outcome.usage.thinking_tokens > 0 or tells_thoughts(document)
        return self._dialect.answered(form, request, outcome, thought=thought)


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
        key_hint: str = KEY_HINT,
        price: Price | None = None,
    ) -> None:
        """The parameters of `OpenAICompatibleChat`, and how long the vectors are to be."""
        self.name = f"openai:{address.name}@{address.urls[0]}#{dimensions}"
        self.price = price
        cut = may_be_cut(address.name)
        self._cut = dimensions if cut else None
        self._dim: int | None = None
        self._options: dict[str, Any] = {"model": address.name, "encoding_format": "base64"}
        if cut and OPENAI_HOST in address.hosts:
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


def _client(
    address: RemoteAddress, path: str, api_key: str | None, key_hint: str, scheme: str = "openai"
) -> HttpClient:
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    return HttpClient(f"{scheme}:{address.name}", address.urls, path, headers=headers, key_hint=key_hint)


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
