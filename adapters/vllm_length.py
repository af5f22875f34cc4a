"""Requests that are too long for a vLLM server: a reason with both numbers, or the middle left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from adapters.cutting import Middle, fitting
from engine.config import TooLong
from engine.types import NO_RETRY, AttemptFailure, Message, Request

_HOPELESS = 8  # characters of a message for each token of room: prose has four, hardly any text that many
_MARGIN = 8
_LEAST = 16  # tokens of a row without which it is not worth asking about
_AROUND = 64  # what a chat template puts around a conversation, where the server does not count
_AROUND_A_MESSAGE = 16


class Fitted(NamedTuple):
    """A request as it is to be sent, and how many characters of its last message were left out."""

    request: Request
    cut_characters: int = 0


class Room(NamedTuple):
    """What a server can hold: `context` tokens (None: it does not say), `answer_tokens` for the answer."""

    base: str
    context: int | None
    answer_tokens: int

    @property
    def tokens(self) -> int:
        """Those of the messages, at most."""
        return (self.context or 0) - self.answer_tokens


class Tokenizers(Protocol):
    """Who knows how many tokens messages are: see `adapters.vllm_servers.VllmServers`."""

    async def token_ids(self, base: str, messages: Sequence[Message]) -> list[int] | None: ...


class Length:
    """What becomes of requests by their length, at servers that count tokens for us (`/tokenize`).

    Only a server knows how many tokens a text is. So a request goes out as it is and is refused where it is
    too long, which costs the server little; `refused` then says what becomes of it. Only what is very long
    is counted ahead, from its beginning: it would be megabytes, sent in vain.
    """

    def __init__(self, servers: Tokenizers, policy: TooLong) -> None:
        self._servers = servers
        self._policy = policy

    async def checked(self, request: Request, room: Room) -> Fitted | AttemptFailure:
        """What to send."""
        if room.context is None:
            return Fitted(request)
        worth_asking = _HOPELESS * max(room.tokens, 1)
        if len(request.messages[-1].content) <= worth_asking:
            return Fitted(request)
        counted = await self._count(room.base, _beginning(request.messages, worth_asking))
        if counted is None:
            return Fitted(request)
        if counted > room.tokens:
            return await self._too_long(request, room, f"more than {counted:,} tokens")
        counted = await self._count(room.base, request.messages)
        if counted is None or counted <= room.tokens:
            return Fitted(request)
        return await self._too_long(request, room, f"{counted:,} tokens")

    async def refused(self, request: Request, room: Room) -> Fitted | AttemptFailure | None:
        """What becomes of a request that the server has called too long; None: nobody can say more."""
        if room.context is None:
            return None
        counted = await self._count(room.base, request.messages) if self._policy == "fail" else None
        told = "too many tokens" if counted is None else f"{counted:,} tokens"
        return await self._too_long(request, room, told)

    async def _too_long(self, request: Request, room: Room, told: str) -> Fitted | AttemptFailure:
        advice = 'too_long = "cut" leaves out the middle'
        if self._policy == "cut":
            fitted = await self._cut(request, room)
            if isinstance(fitted, Fitted):
                return fitted
            told, advice = f"{fitted:,} tokens without the row", "serve the model with a longer one"
        return AttemptFailure(
            "too_long",
            f"{told} and {room.answer_tokens:,} for the answer, where the context has {room.context:,}: "
            f"{advice}",
            NO_RETRY,
        )

    async def _cut(self, request: Request, room: Room) -> Fitted | int:
        """The request without as much of its middle as has to go; or its tokens without a row, where there
        is no room for one."""
        first, middle = request.messages[:-1], Middle.of(request.messages[-1])

        async def count(characters: int) -> int | None:
            return await self._count(room.base, (*first, middle.keeping(characters)[0]))

        frame = await count(0)
        bare = frame if frame is not None else _most_tokens((*first, middle.keeping(0)[0]))
        left = room.tokens - bare - _MARGIN
        if left < _LEAST:
            return bare
        kept = left // middle.surely  # what fits without a count
        if frame is not None:
            search = fitting(middle, left)
            try:
                guess = next(search)
                while (counted := await count(guess)) is not None:
                    guess = search.send(max(counted - bare, 0))
            except StopIteration as found:
                kept = found.value
        last, lost = middle.keeping(kept)
        return Fitted(replace(request, messages=(*first, last)), lost)

    async def _count(self, base: str, messages: Sequence[Message]) -> int | None:
        tokens = await self._servers.token_ids(base, messages)
        return None if tokens is None else len(tokens)


def _beginning(messages: Sequence[Message], characters: int) -> tuple[Message, ...]:
    *first, last = messages
    return (*first, Message(last.role, last.content[:characters]))


def _most_tokens(messages: Sequence[Message]) -> int:
    """A bound on the tokens of a conversation: no tokenizer makes more of a text than its bytes."""
    texts = [message.content.encode("utf-8", "surrogatepass") for message in messages]
    return _AROUND + sum(len(text) + _AROUND_A_MESSAGE for text in texts)
