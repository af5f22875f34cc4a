"""Google's Gemini models, over its own SDK: the Gemini API with a key, or Vertex AI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from google.genai import types

from adapters.gemini_client import Access, GeminiClient
from adapters.gemini_models import clustering_input, takes_task_type, thinking_room
from adapters.gemini_wire import read_response, request_frame, safe
from adapters.vectors import read_unit_vector
from engine.config import Thinking
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


def _no_member(config: object, name: object) -> bool:  # noqa: ARG001
    return False


# Before it takes an attribute, the SDK looks for each field with `in`, which on a pydantic model walks
# through all its fields and finds none. To say so at once saves a fifth of the CPU and more. (By `type`, as
# mypy cannot follow the fields of the SDK's class into a subclass.)
_Config: type[types.GenerateContentConfig] = type(
    "_Config", (types.GenerateContentConfig,), {"__contains__": _no_member, "__module__": __name__}
)


class GeminiChat:
    """A `ChatModel` that posts to `:generateContent`, one request at a time.

    A schema is asked for as JSON of that schema, its properties in their order; choices as `text/x.enum`.
    The filters that can be turned off are off, so that what is to be moderated reaches the model. Gemini
    counts thinking into the limit of output tokens: what `thinking` may take is added to each request's own
    limit, and stands in `price` as `thinking_tokens`. No temperature is sent to models that ignore it.

    An answer that was cut or held back is an `Answer` with that finish reason; the text of one that was held
    back is the reason. A prompt that was held back is a `blocked` failure.
    """

    max_batch = 1

    def __init__(
        self,
        model: str,
        access: Access,
        *,
        thinking: Thinking | None = None,
        price: Price | None = None,
        max_input_tokens: int | None = None,
    ) -> None:
        """`thinking` None: as much as the model does by itself; `price` None: unknown."""
        self.name = f"gemini:{model}@{access.place}"
        if thinking is not None:
            self.name += f"#thinking={thinking}"
        if price is not None and price != FREE:
            price = replace(price, thinking_tokens=thinking_room(model, thinking))
        self.price = price
        self.max_input_tokens = max_input_tokens or DEFAULT_MAX_INPUT_TOKENS
        self._model = model
        self._thinking: Thinking | None = thinking
        self._client = GeminiClient(f"gemini:{model}", access)
        self._config = lru_cache(maxsize=64)(self._config_of)

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        """See `engine.ports.ChatModel`."""
        return [await self._ask(request) for request in requests]

    async def aclose(self) -> None:
        """Close the connections. Calling it twice is harmless."""
        await self._client.aclose()

    async def _ask(self, request: Request) -> ChatOutcome:
        config = self._config(
            tuple([message for message in request.messages if message.role == "system"]),
            request.max_output_tokens,
            request.schema,
            request.choices,
            (request.temperature, request.index if request.temperature > 0 else 0),
        )
        contents = _contents(request)
        reply = await self._client.call(
            lambda models: models.generate_content(model=self._model, contents=contents, config=config)
        )
        if isinstance(reply, AttemptFailure):
            if reply.reason == "refused" and self._thinking is not None and not self._client.proven:
                doubt = f"; does the model take thinking = {self._thinking!r}?"
                return replace(reply, detail=reply.detail + doubt)
            return reply
        response = reply.sdk_http_response
        body = (response and response.body) or ""
        outcome = read_response(body, request)
        if not isinstance(outcome, AttemptFailure) or outcome.billed is not None:
            self._client.proven = True
        elif body.lstrip()[:1] == "<":
            self._client.check_page()
        return outcome

    def _config_of(
        self,
        system: tuple[Message, ...],
        max_output_tokens: int,
        schema: AnswerSchema | None,
        choices: tuple[str, ...],
        sampling: tuple[float, int],
    ) -> types.GenerateContentConfig:
        """All of a request but its contents: the same for every row, so it is made once."""
        temperature, index = sampling
        request = Request("", system, max_output_tokens, schema, choices, temperature, index)
        return _Config(
            http_options=types.HttpOptions(extra_body=request_frame(self._model, request, self._thinking)),
            should_return_http_response=True,  # pydantic takes longer over an answer than the server's JSON
            automatic_continuation=False,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        )


class GeminiEmbedder:
    """An `Embedder` that posts up to 100 texts at once to `:batchEmbedContents`, to be clustered.

    A batch that is refused for what is in it is sent again in halves, down to the text that is at fault. The
    model shortens its vectors to `dimensions`; they are scaled to unit norm here.
    """

    max_batch = 100
    within: Within = "all"

    def __init__(self, model: str, access: Access, *, dimensions: int, price: Price | None = None) -> None:
        """`dimensions` is how long the vectors are to be; `price` None: unknown."""
        self.name = f"gemini:{model}@{access.place}#{dimensions}"
        self.price = price
        self._model = model
        self._config = types.EmbedContentConfig(
            task_type="CLUSTERING" if takes_task_type(model) else None, output_dimensionality=dimensions
        )
        self._dim: int | None = None
        self._client = GeminiClient(f"gemini:{model}", access)

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]:
        """See `engine.ports.Embedder`. Raises `ModelError` too where vectors change their length."""
        if not texts:
            return []
        inputs = [clustering_input(self._model, safe(text)) for text in texts]
        # one Content each: some models make one vector of a list of texts
        contents = [_content("user", text) for text in inputs]
        reply = await self._client.call(
            lambda models: models.embed_content(model=self._model, contents=contents, config=self._config)
        )
        if not isinstance(reply, AttemptFailure):
            return self._read(inputs, reply)
        if reply.reason in ("refused", "http_413") and len(texts) > 1:
            half = len(texts) // 2
            return [*await self.embed(texts[:half]), *await self.embed(texts[half:])]
        return [reply] * len(texts)

    async def aclose(self) -> None:
        """Close the connections. Calling it twice is harmless."""
        await self._client.aclose()

    def _read(self, inputs: Sequence[str], reply: types.EmbedContentResponse) -> Sequence[EmbedOutcome]:
        told = None if reply.usage_metadata is None else reply.usage_metadata.prompt_token_count
        if told is None:
            usages = [Usage(estimate_tokens(text), estimated=True) for text in inputs]
        else:
            usages = [Usage(tokens) for tokens in shared_out(max(0, told), inputs)]
        vectors = reply.embeddings or []
        if not vectors and told is None:
            failure = AttemptFailure("malformed", "the response holds no answer", DOUBTFUL, unknown_bill=True)
            return [failure] * len(inputs)
        self._client.proven = True
        if len(vectors) != len(inputs):
            detail = f"{len(vectors)} vectors for {len(inputs)} texts"
            return [AttemptFailure("malformed", detail, DOUBTFUL, usage) for usage in usages]
        return [self._outcome(one.values, usage) for one, usage in zip(vectors, usages, strict=True)]

    def _outcome(self, given: object, usage: Usage) -> EmbedOutcome:
        vector = read_unit_vector(given)
        if vector is None:
            return AttemptFailure("malformed", "not a vector of finite numbers other than 0", DOUBTFUL, usage)
        if self._dim is None:
            self._dim = len(vector)
        elif self._dim != len(vector):
            raise ModelError(
                f"{self.name}: gives vectors of {len(vector)} numbers now, of {self._dim} before: is there "
                "another model behind the address?"
            )
        return Embedding(vector, usage)


def _contents(request: Request) -> str | list[types.ContentDict]:
    """The messages but the system's. One of the user's goes as text: the SDK is quickest with that."""
    messages = [message for message in request.messages if message.role != "system"]
    if len(messages) == 1 and messages[0].role == "user":
        return safe(messages[0].content)
    return [
        _content("model" if message.role == "assistant" else "user", safe(message.content))
        for message in messages
        if message.content  # Gemini takes no empty text, and an earlier answer may have had none
    ]


def _content(role: str, text: str) -> types.ContentDict:
    # as a dict: the SDK is twice as quick with it as with its own Content
    return {"role": role, "parts": [{"text": text}]}
