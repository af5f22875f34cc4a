"""Chat models and embedders behind one face, so that the scheduler knows neither."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from engine.ports import FREE, ChatModel, Embedder, Gauged, Price, Remarking
from engine.scheduler.codec import decode_answer, decode_embedding, encode_answer, encode_embedding
from engine.tokens import billed_texts, estimate_tokens, input_tokens, most_tokens
from engine.types import Answer, AttemptFailure, Embedding, EmbedRequest, Request, Usage


class Question(Protocol):
    """A request of any kind."""

    @property
    def id(self) -> str: ...

    def digest(self, model: str) -> bytes: ...


class Reply(Protocol):
    """A usable answer of any kind."""

    @property
    def usage(self) -> Usage: ...


QuestionT = TypeVar("QuestionT", bound=Question)
ReplyT = TypeVar("ReplyT", bound=Reply)


class Endpoint(ABC, Generic[QuestionT, ReplyT]):
    """One model, its price and its way of keeping answers.

    `call` gives one outcome per request, in order. `max_input_tokens` is what a request may hold; of an
    embedder that is not known, so it is no limit.
    """

    def __init__(
        self,
        call: Callable[[Sequence[QuestionT]], Awaitable[Sequence[ReplyT | AttemptFailure]]],
        *,
        name: str,
        max_batch: int,
        price: Price | None,
        max_input_tokens: int,
    ) -> None:
        self.call = call
        self.name = name
        self.max_batch = max_batch
        self.max_input_tokens = max_input_tokens
        self.price = FREE if price is None else price

    @property
    def remarks(self) -> Sequence[str]:
        """What the model has to say of its answers so far."""
        return ()

    @property
    def gauged(self) -> Gauged | None:
        """The model itself, where its servers say how busy they are."""
        return None

    @abstractmethod
    def encode(self, answer: ReplyT) -> bytes: ...

    @abstractmethod
    def decode(self, payload: bytes) -> ReplyT: ...

    @abstractmethod
    def _input(self, request: QuestionT) -> Iterable[str]:
        """Every text of the request that is billed as input."""

    @abstractmethod
    def max_output_tokens(self, request: QuestionT) -> int:
        """The most tokens an answer may have."""

    @abstractmethod
    def characters(self, request: QuestionT) -> int:
        """How long its input is; what all requests of a stage share may be left out."""

    def estimated_tokens(self, request: QuestionT) -> int:
        """About what the request counts against tokens per minute, with its output in full."""
        return input_tokens(self._input(request), estimate_tokens) + self.max_output_tokens(request)

    def most_cost_usd(self, request: QuestionT) -> float:
        """The most that the request can be billed: no tokenizer makes more of the input than its bytes."""
        if self.price == FREE:
            return 0.0
        usage = Usage(input_tokens(self._input(request), most_tokens), self.max_output_tokens(request))
        return self.price.cost_usd(usage)


class ChatEndpoint(Endpoint[Request, Answer]):
    """A `ChatModel`."""

    def __init__(self, model: ChatModel) -> None:
        super().__init__(
            model.complete,
            name=model.name,
            max_batch=model.max_batch,
            price=model.price,
            max_input_tokens=model.max_input_tokens,
        )
        self._remarking = model if isinstance(model, Remarking) else None
        # in process, the batch is the model's own affair
        self._gauged = model if isinstance(model, Gauged) and model.max_batch == 1 else None

    @property
    def remarks(self) -> Sequence[str]:
        """See `engine.ports.Remarking`."""
        return () if self._remarking is None else self._remarking.remarks

    @property
    def gauged(self) -> Gauged | None:
        """See `engine.ports.Gauged`."""
        return self._gauged

    def encode(self, answer: Answer) -> bytes:
        return encode_answer(answer)

    def decode(self, payload: bytes) -> Answer:
        return decode_answer(payload)

    def characters(self, request: Request) -> int:
        """The messages' length."""
        return sum([len(message.content) for message in request.messages])

    def _input(self, request: Request) -> Iterable[str]:
        return billed_texts(request)

    def max_output_tokens(self, request: Request) -> int:
        """The request's own bound, and what the model may think beside it."""
        return request.max_output_tokens + self.price.thinking_tokens


class EmbedEndpoint(Endpoint[EmbedRequest, Embedding]):
    """An `Embedder`."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(
            self._embed,
            name=embedder.name,
            max_batch=embedder.max_batch,
            price=embedder.price,
            max_input_tokens=sys.maxsize,
        )
        self._embedder = embedder

    async def _embed(self, requests: Sequence[EmbedRequest]) -> Sequence[Embedding | AttemptFailure]:
        return await self._embedder.embed([request.text for request in requests])

    def encode(self, answer: Embedding) -> bytes:
        return encode_embedding(answer)

    def decode(self, payload: bytes) -> Embedding:
        return decode_embedding(payload)

    def characters(self, request: EmbedRequest) -> int:
        """The text's length."""
        return len(request.text)

    def _input(self, request: EmbedRequest) -> Iterable[str]:
        yield request.text

    def max_output_tokens(self, request: EmbedRequest) -> int:  # noqa: ARG002
        """Embedders write nothing."""
        return 0
