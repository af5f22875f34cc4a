"""A model behind vLLM servers: constrained answers, a prompt that stays in their caches, several replicas."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from adapters.addresses import RemoteAddress
from adapters.openai_compatible import KEY_HINT, OpenAICompatibleChat
from adapters.openai_wire import message_json
from adapters.vllm_ledger import CacheLedger
from adapters.vllm_length import Fitted, Length, Room
from adapters.vllm_replicas import Replica, Replicas
from adapters.vllm_servers import VllmServers
from engine.config import ThinkingLevel, TooLong
from engine.errors import ModelError
from engine.ports import CacheReceipt, Price, ServerLoad
from engine.tokens import most_tokens
from engine.types import Answer, AttemptFailure, ChatOutcome, Message, Request, Usage

MOST_IN_FLIGHT = 1024
"""Requests in flight at one server, at most: vLLM's own batches end there."""

_ODD = ("qxv-7", "zjw-9")  # nobody answers that unless held to it
_PROBE = Request("probe", (Message("user", "Answer."),), max(map(most_tokens, _ODD)) + 2, choices=_ODD)
_PROBES = 8  # more than there are ways to put a request
_LEARNING = ("put_otherwise", "unconstrained")  # the next attempt is put in another way
_PASSING = ("transient", "rate_limited")
_WARM = 0.5  # of a prefix: only whole blocks of it are cached, and its length is an estimate


class _Prefix(NamedTuple):
    """Everything ahead of a request's last message: a hash of it, and its size in bytes."""

    digest: bytes
    size: int


class VllmChat(OpenAICompatibleChat):
    """A `ChatModel` for vLLM's API: an `OpenAICompatibleChat` that knows what the servers do.

    - A server is probed before its first request, and when it was away: it has to serve the model, and is
      asked for an answer that nobody gives unless held to it: what it ignores is known ahead of all rows.
    - The first requests with a prefix to a server go alone (`WarmUp`), so that the others find it cached; a
      salt of this object's own keeps strangers from finding out by time what it was asked.
    - See `Replicas` for which server a request goes to, and what becomes of one that dies; `Length` for
      requests that are too long for the context.

    `name` ends in `#cut` where the middle of what is too long is left out.
    """

    def __init__(
        self,
        address: RemoteAddress,
        *,
        thinking: ThinkingLevel | None = None,
        too_long: TooLong = "fail",
        api_key: str | None = None,
        key_hint: str = KEY_HINT,
        price: Price | None = None,
        max_input_tokens: int | None = None,
    ) -> None:
        """The parameters of `OpenAICompatibleChat`, and the policy for what is too long."""
        super().__init__(
            address,
            thinking=thinking,
            api_key=api_key,
            key_hint=key_hint,
            price=price,
            max_input_tokens=max_input_tokens,
            scheme="vllm",
            cache_salt=secrets.token_hex(16),
        )
        if too_long == "cut":
            self.name += "#cut"
        self._servers = VllmServers(address, api_key=api_key)
        self._ledger = CacheLedger()
        self._replicas = Replicas(self._client.servers, self._probe)
        self._length = Length(self._servers, too_long)
        self._prefix = lru_cache(maxsize=64)(_prefix_of)
        self._cuts = False

    @property
    def remarks(self) -> tuple[str, ...]:
        """See `engine.ports.Remarking`: what the servers were found not to do, and that rows are cut."""
        cut = (
            f"vllm:{self._model}: rows that are too long for its context lose their middle (too_long); "
            "how many do is among the job's figures"
        )
        return (*super().remarks, *self._replicas.remarks, *([cut] if self._cuts else ()))

    @property
    def most_in_flight(self) -> int:
        """See `engine.ports.Gauged`."""
        return MOST_IN_FLIGHT * len(self._client.servers)

    async def load(self) -> ServerLoad | None:
        """See `engine.ports.Gauged`."""
        return await self._servers.load()

    async def receipt(self) -> CacheReceipt | None:
        """See `engine.ports.Receipting`."""
        return await self._ledger.receipt(self._servers)

    async def aclose(self) -> None:
        """Close the connections. Calling it twice is harmless."""
        await self._replicas.aclose()
        await super().aclose()
        await self._servers.aclose()

    # --- a request --------------------------------------------------------------------------------

    async def _ask(self, request: Request) -> ChatOutcome:
        prefix = self._prefix(request.messages[:-1])
        while True:
            replica = await self._replicas.take(request, prefix.digest)
            if isinstance(replica, AttemptFailure):
                return replica
            try:
                outcome = await self._fitted(request, prefix, replica)
            finally:
                self._replicas.give_back(replica, prefix.digest)
            if outcome is not None:
                return outcome

    async def _fitted(self, request: Request, prefix: _Prefix, replica: Replica) -> ChatOutcome | None:
        """What becomes of a request at that server, whatever its length; None: it went away meanwhile."""
        answer_tokens = self._dialect.form.most_output_tokens(request.max_output_tokens, request.choices)
        room = Room(replica.base, replica.context, answer_tokens)
        fitted = await self._length.checked(request, room)
        if isinstance(fitted, AttemptFailure):
            return fitted
        outcome = await self._in_turn(fitted, prefix, replica)
        if not isinstance(outcome, AttemptFailure) or outcome.reason != "too_long":
            return outcome
        if fitted.cut_characters:  # it was told how much fits, and does not keep to it
            return outcome
        shorter = await self._length.refused(request, room)
        if isinstance(shorter, Fitted) and shorter.cut_characters:
            return await self._in_turn(shorter, prefix, replica)
        return shorter if isinstance(shorter, AttemptFailure) else outcome

    async def _in_turn(self, fitted: Fitted, prefix: _Prefix, replica: Replica) -> ChatOutcome | None:
        """Send a request when its prefix has been warmed up; None: the server went away meanwhile."""
        warm_up = replica.warm_up(prefix.digest)
        alone = not warm_up.over and bool(prefix.size) and await warm_up.turn()
        warm: bool | None = None
        try:
            if not replica.ready:
                return None
            outcome = await self._sent(fitted, prefix, replica)
            if isinstance(outcome, Answer):
                warm = _is_warm(outcome.usage, prefix, fitted.request)
        finally:
            if alone:
                warm_up.give_back(warm)
        return outcome

    async def _sent(self, fitted: Fitted, prefix: _Prefix, replica: Replica) -> ChatOutcome:
        request = fitted.request
        self._ledger.asked(time.monotonic())
        answers = replica.answers
        try:
            outcome = await self._send(request, replica.server)
        except asyncio.CancelledError:
            if replica.answers == answers:  # it has answered nobody since, and may hang
                self._replicas.told(replica, alive=False)
            raise
        busy = isinstance(outcome, AttemptFailure) and outcome.retry.kind == "rate_limited"
        self._replicas.told(replica, alive=_shows_life(outcome), busy=busy)
        if isinstance(outcome, Answer):
            now = time.monotonic()
            self._ledger.answered(prefix.digest, replica.base, request, outcome.usage, now)
            if fitted.cut_characters:
                self._cuts = True
                return replace(outcome, cut_characters=fitted.cut_characters)
        elif outcome.reason == "unreachable":
            self._replicas.away(replica)
        return outcome

    # --- a server ---------------------------------------------------------------------------------

    async def _probe(self, replica: Replica, request: Request) -> AttemptFailure | None:
        """See `adapters.vllm_replicas.Probe`. `request` is the one that waits for it."""
        base = replica.base
        try:
            outcome = await self._send(_PROBE, replica.server)
            for _ in range(_PROBES):
                if isinstance(outcome, Answer) or outcome.reason not in _LEARNING:
                    break
                outcome = await self._send(_PROBE, replica.server)
        except ModelError:
            await self._check_served(base)
            raise
        if isinstance(outcome, AttemptFailure):
            if outcome.retry.kind in _PASSING:
                return outcome
            await self._check_served(base)
        _, facts = await asyncio.gather(
            self._ledger.begin(self._servers, base, request), self._servers.facts(base, anew=True)
        )
        replica.context = facts.max_model_len
        return None

    async def _check_served(self, base: str) -> None:
        """Raise `ModelError` where a server that has refused the model says what it serves instead."""
        served = await self._servers.served_models(base)
        if served and self._model not in served:
            there = ", ".join(f"{name!r}" for name in served[:5])
            raise ModelError(
                f"vllm:{self._model}: {base} does not serve it, but {there}; write vllm:{served[0]}@{base}"
            ) from None


def _prefix_of(messages: tuple[Message, ...]) -> _Prefix:
    text = b",".join(map(message_json, messages))
    return _Prefix(hashlib.sha256(text).digest(), len(text))


def _shows_life(outcome: ChatOutcome) -> bool:
    """Whether it is an answer, or a failure of the request and not of the server."""
    return isinstance(outcome, Answer) or outcome.retry.kind == "no" or outcome.reason in _LEARNING


def _is_warm(usage: Usage, prefix: _Prefix, request: Request) -> bool:
    """Whether an answer shows that its prefix was cached, as far as that can be told."""
    if usage.cached_tokens is None:
        return True
    last = len(request.messages[-1].content)
    return usage.cached_tokens >= _WARM * usage.input_tokens * prefix.size / (prefix.size + last)
