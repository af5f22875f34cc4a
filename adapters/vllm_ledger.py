"""What vLLM's prefix cache was worth: counted with every answer, made into a receipt at the end.

How a model keeps it: `await begin(servers, base, request)` once for each server, before its first request (a
probe is the place); `asked` when a request is sent; `answered` for every answer; `receipt` whenever it is
wanted. Without `begin`, what only the servers' own counters tell is unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import nlargest
from typing import Protocol

from adapters.vllm_causes import Findings, warnings_of
from adapters.vllm_servers import ServerCounters, ServerFacts
from engine.ports import CacheReceipt
from engine.types import Message, Request, Usage

MOST_PREFIXES = 256
MOST_MEASURED = 16
_SAMPLE_CHARACTERS = 32_768
_OTHERS = 1.05  # how much more than ours servers may have counted before others must be using them too


class Servers(Protocol):
    """Who is asked when a receipt is made: see `adapters.vllm_servers.VllmServers`."""

    @property
    def fullest(self) -> float: ...

    async def facts(self, base: str) -> ServerFacts: ...

    async def counters(self, base: str) -> ServerCounters | None: ...

    async def token_ids(self, base: str, messages: Sequence[Message]) -> list[int] | None: ...


@dataclass(slots=True)
class _Prefix:
    """The requests with one beginning. `common` is how the last messages of all of them begin; the requests
    `first` and `other` differ right behind it."""

    first: tuple[Message, ...]
    common: str
    other: tuple[Message, ...] | None = None
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    untold: int = 0
    bases: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Start:
    """How the first request was rendered before it was sent."""

    base: str
    messages: tuple[Message, ...]
    token_ids: list[int] | None


class CacheLedger:
    """The answers of one model object, by prefix: everything ahead of a request's last message.

    Memory does not grow with the number of requests: beginnings of two requests are kept for each of at most
    256 prefixes, and where there are more, those with the fewest requests become one sum (one that comes back
    then counts as another). Texts leave it only for the servers that have answered them. One event loop at a
    time uses it; calls take under a microsecond.
    """

    def __init__(self) -> None:
        self._prefixes: dict[bytes, _Prefix] = {}
        self._folded = _Prefix((), "")
        self._folded_count = 0
        self._began: float | None = None
        self._ended = 0.0
        self._counters: dict[str, ServerCounters] = {}
        self._start: _Start | None = None

    async def begin(self, servers: Servers, base: str, request: Request) -> None:
        """Note what the server has counted before its first request, and how it renders that one."""
        counters = await servers.counters(base)
        if counters is not None:
            self._counters.setdefault(base, counters)
        if self._start is None:
            messages = _sample(request)
            self._start = _Start(base, messages, None)  # others may begin while this one waits
            self._start = _Start(base, messages, await servers.token_ids(base, messages))

    def asked(self, now: float) -> None:
        """A request is sent for the first time; `now` in seconds of a clock that does not go back."""
        if self._began is None:
            self._began = now

    def answered(self, prefix: bytes, base: str, request: Request, usage: Usage, now: float) -> None:
        """A request was answered by the server at `base`. `prefix` is a hash of the messages ahead of the
        last one, and of nothing that the server's cache does not see."""
        record = self._prefixes.get(prefix)
        if record is None:
            record = self._opened(prefix, request)
        elif not request.messages[-1].content.startswith(record.common):
            record.other = _sample(request)
            record.common = record.common[: _alike(record.common, record.other[-1].content)]
        record.requests += 1
        record.prompt_tokens += usage.input_tokens
        if usage.cached_tokens is None:
            record.untold += 1
        else:
            record.cached_tokens += usage.cached_tokens
        if base not in record.bases:
            record.bases.add(base)
        self._ended = now

    async def receipt(self, servers: Servers) -> CacheReceipt | None:
        """What the cache was worth so far; None where nothing was answered.

        `expected_tokens` counts the 16 prefixes that were asked with most, and no others.
        """
        records = list(self._prefixes.values())
        total = _sum([*records, self._folded])
        if not total.requests:
            return None
        async with asyncio.TaskGroup() as group:
            facts_of = {base: group.create_task(servers.facts(base)) for base in sorted(total.bases)}
            counts_of = {base: group.create_task(servers.counters(base)) for base in facts_of}
        facts = {base: task.result() for base, task in facts_of.items()}
        counters = {base: now for base, task in counts_of.items() if (now := task.result()) is not None}
        since = {
            base: now.since(self._counters[base]) for base, now in counters.items() if base in self._counters
        }
        most_used = nlargest(MOST_MEASURED, records, key=lambda one: one.requests)
        measures = [await _measure(record, facts, counters.keys(), servers) for record in most_used]
        expected = [one.expected_tokens for one in measures if one.expected_tokens is not None]
        cached, metered = _cached_tokens(total, since)
        receipt = CacheReceipt(
            requests=total.requests,
            servers=_replicas(total, facts),
            prefixes=len(records) + self._folded_count,
            prompt_tokens=total.prompt_tokens,
            cached_tokens=cached,
            expected_tokens=sum(expected) if expected else None,
            shared_tokens=measures[0].shared_tokens,
            block_tokens=measures[0].block_tokens,
            requests_per_s=self._rate(total.requests),
            first_token_s=_first_token_s(total.requests, since),
        )
        found = Findings(
            receipt,
            facts,
            rendered_otherwise=await self._rendered_otherwise(servers),
            preemptions=round(sum(one.preemptions for one in since.values())),
            fullest=servers.fullest,
            untold=total.untold,
            metered=metered,
        )
        return replace(receipt, warnings=warnings_of(found))

    # --- counting ---------------------------------------------------------------------------------

    def _opened(self, prefix: bytes, request: Request) -> _Prefix:
        if len(self._prefixes) >= MOST_PREFIXES:
            self._fold()
        first = _sample(request)
        record = self._prefixes[prefix] = _Prefix(first, first[-1].content)
        return record

    def _fold(self) -> None:
        """Make one sum of the half with the fewest requests."""
        by_use = sorted(self._prefixes.items(), key=lambda item: item[1].requests)
        gone = by_use[: len(by_use) // 2]
        self._folded = _sum([self._folded, *(record for _, record in gone)])
        self._folded_count += len(gone)
        for prefix, _ in gone:
            del self._prefixes[prefix]

    def _rate(self, requests: int) -> float:
        seconds = 0.0 if self._began is None else self._ended - self._began
        return requests / seconds if seconds > 0 else 0.0

    async def _rendered_otherwise(self, servers: Servers) -> bool:
        """Whether the first request's messages make another prompt now."""
        start = self._start
        if start is None or start.token_ids is None:
            return False
        now = await servers.token_ids(start.base, start.messages)
        return now is not None and now != start.token_ids


@dataclass(frozen=True, slots=True)
class _Measure:
    """One prefix in tokens; None where no server tells."""

    shared_tokens: int | None
    block_tokens: int | None
    expected_tokens: int | None


async def _measure(
    record: _Prefix, facts: Mapping[str, ServerFacts], alive: Collection[str], servers: Servers
) -> _Measure:
    block = next((unit for base in sorted(record.bases) if (unit := facts[base].block_size)), None)
    shared = None
    for base in sorted(record.bases, key=lambda base: (base not in alive, base))[:2]:
        shared = await _shared_tokens(record, base, servers)
        if shared is not None:
            break
    if shared is None or block is None:
        return _Measure(shared, block, None)
    repeated = max(0, record.requests - _replicas(record, facts))
    return _Measure(shared, block, repeated * (shared // block * block))


async def _shared_tokens(record: _Prefix, base: str, servers: Servers) -> int | None:
    """How many tokens all requests of a prefix begin with; the last of a prompt is always computed."""
    first = await servers.token_ids(base, record.first)
    if first is None or record.other is None:
        return None if first is None else max(0, len(first) - 1)
    other = await servers.token_ids(base, record.other)
    if other is None:
        return None
    return min(_alike(first, other), len(first) - 1, len(other) - 1)


def _alike(one: Sequence[object], other: Sequence[object]) -> int:
    """How long the beginning is that they have in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _replicas(record: _Prefix, facts: Mapping[str, ServerFacts]) -> int:
    """How many caches have seen the requests: each engine has one of its own."""
    return sum(facts[base].engines for base in record.bases)


def _cached_tokens(total: _Prefix, since: Mapping[str, ServerCounters]) -> tuple[int | None, bool]:
    """The tokens from the cache, and whether the servers' counters say so and not the answers."""
    if not total.untold:
        return total.cached_tokens, False
    looked_up = sum(one.cache_queries for one in since.values())
    known = since.keys() >= total.bases and looked_up >= total.prompt_tokens / _OTHERS
    if not known or looked_up > total.prompt_tokens * _OTHERS:
        return None, False
    return round(sum(one.cache_hits for one in since.values())), True


def _first_token_s(requests: int, since: Mapping[str, ServerCounters]) -> float | None:
    """The mean over the servers' answers; None where too many of them were others'."""
    first_tokens = sum(one.first_tokens for one in since.values())
    if not 0 < first_tokens <= requests * _OTHERS + len(since):
        return None
    return sum(one.first_token_s for one in since.values()) / first_tokens


def _sum(records: Sequence[_Prefix]) -> _Prefix:
    """Their figures; without texts."""
    return _Prefix(
        (),
        "",
        requests=sum(one.requests for one in records),
        prompt_tokens=sum(one.prompt_tokens for one in records),
        cached_tokens=sum(one.cached_tokens for one in records),
        untold=sum(one.untold for one in records),
        bases=set().union(*(one.bases for one in records)),
    )


def _sample(request: Request) -> tuple[Message, ...]:
    """The messages, the last of them up to where it no longer matters what it says."""
    *before, last = request.messages
    if len(last.content) <= _SAMPLE_CHARACTERS:
        return request.messages
    return (*before, Message(last.role, last.content[:_SAMPLE_CHARACTERS]))
