"""Fakes of the ports: a scripted model and embedder, a journal in memory, a listener."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from engine.events import Event, StageFinished, StageProgress, StageStarted
from engine.ports import FREE, Price, Record, Within
from engine.types import (
    Answer,
    AttemptFailure,
    ChatOutcome,
    Embedding,
    EmbedOutcome,
    Failure,
    Message,
    Request,
    Usage,
    rate_limited,
)


def request(request_id: str, text: str | None = None, *, max_output_tokens: int = 10) -> Request:
    """A small request; its text is its id unless given."""
    return Request(request_id, (Message("user", text or request_id),), max_output_tokens)


def requests(n: int) -> list[Request]:
    return [request(f"r{i}") for i in range(n)]


def text_of(asked: Request) -> str:
    return asked.messages[-1].content


Script = Callable[[str, int], ChatOutcome]
"""(text of the request, number of the attempt from 1) -> what comes back."""


def echo(text: str, attempt: int) -> ChatOutcome:
    return Answer(f"answer to {text}", Usage(input_tokens=5, output_tokens=5))


@dataclass
class ScriptedModel:
    """A `ChatModel` that plays a script and remembers what it saw.

    `latency_s(text, attempt)` is how long a request takes (a batch takes as long as its slowest). `sends` is
    every attempt as (time, text); `peak` the most requests that were at the model at once. Where `refuse`
    names a failure, a call is refused with it at once. `bill_of_lost` is what an attempt is billed for which
    nobody has waited.
    """

    script: Script = echo
    latency_s: Callable[[str, int], float] = lambda text, attempt: 0.0
    max_batch: int = 1
    price: Price | None = FREE
    name: str = "scripted"
    max_input_tokens: int = 100_000
    attempts: Counter[str] = field(default_factory=Counter)
    sends: list[tuple[float, str]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    closed: int = 0
    billed: list[Usage] = field(default_factory=list)
    on_send: Callable[[Request], None] = lambda asked: None
    refuse: Callable[[int], AttemptFailure | None] = lambda in_flight: None
    bill_of_lost: Usage | None = None

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        now = asyncio.get_running_loop().time()
        assert len(requests) <= self.max_batch
        turns = []
        for asked in requests:
            self.attempts[text_of(asked)] += 1
            turns.append(self.attempts[text_of(asked)])
            self.sends.append((now, text_of(asked)))
            self.on_send(asked)
        self.batches.append(len(requests))
        if (refusal := self.refuse(self.in_flight)) is not None:
            return [refusal] * len(requests)
        self.in_flight += len(requests)
        self.peak = max(self.peak, self.in_flight)
        try:
            delays = [self.latency_s(text_of(a), n) for a, n in zip(requests, turns, strict=True)]
            await asyncio.sleep(max(delays, default=0.0))
            outcomes = [self.script(text_of(a), n) for a, n in zip(requests, turns, strict=True)]
        except asyncio.CancelledError:
            if self.bill_of_lost is not None:
                self.billed.extend([self.bill_of_lost] * len(requests))
            raise
        else:
            for outcome in outcomes:
                usage = outcome.billed if isinstance(outcome, AttemptFailure) else outcome.usage
                self.billed.append(usage or Usage())
            return outcomes
        finally:
            self.in_flight -= len(requests)

    async def aclose(self) -> None:
        self.closed += 1

    @property
    def cost_usd(self) -> float:
        return sum((self.price or FREE).cost_usd(usage) for usage in self.billed)


@dataclass
class StrictServer:
    """A `ChatModel` whose limits nobody has told: a bucket of `per_s` requests a second that holds a tenth of
    a second, or so many requests at once. Whatever is above them is refused at once, with the seconds that
    `retry_after` names (None: no word of how long).

    `latency_s` is the mean; with `spread` below 1 latencies are uniform within that share of it, above 1 they
    have a long tail. `stalls_per_s` times a second the way there and back stalls for 50 ms on average: what
    falls into that time arrives at its end. `answered_at` are the moments of its answers.
    """

    per_s: float | None = None
    at_once: int | None = None
    latency_s: float = 0.2
    spread: float = 0.3
    retry_after: Literal["exact", "whole seconds"] | None = None
    stalls_per_s: float = 0.0
    seed: int = 1
    max_batch: int = 1
    price: Price | None = FREE
    name: str = "strict"
    max_input_tokens: int = 100_000
    refused: int = 0
    peak: int = 0
    in_flight: int = 0
    answered_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._level = self._most = max(1.0, (self.per_s or 0.0) * 0.1)
        self._filled_at: float | None = None
        self._stalls = random.Random(self.seed)
        self._stall = (-math.inf, -math.inf)

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        await self._travel()
        if (refusal := self._refuse()) is not None:
            await asyncio.sleep(0.001)
            return [refusal] * len(requests)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(self._draw_latency())
        finally:
            self.in_flight -= 1
        await self._travel()
        self.answered_at.append(asyncio.get_running_loop().time())
        return [echo(text_of(asked), 1) for asked in requests]

    def _refuse(self) -> AttemptFailure | None:
        now = asyncio.get_running_loop().time()
        wait = 1.0
        if self.per_s is not None:
            since = 0.0 if self._filled_at is None else now - self._filled_at
            self._filled_at = now
            self._level = min(self._most, self._level + since * self.per_s)
            wait = (1.0 - self._level) / self.per_s
        if (self.per_s is None or self._level >= 1.0) and (
            self.at_once is None or self.in_flight < self.at_once
        ):
            self._level -= 1.0
            return None
        self.refused += 1
        after = {"exact": wait, "whole seconds": float(math.ceil(wait)), None: None}[self.retry_after]
        return AttemptFailure("rate_limited", "429", rate_limited(after))

    async def _travel(self) -> None:
        """Wait for the end of a stall."""
        if not self.stalls_per_s:
            return
        now = asyncio.get_running_loop().time()
        while self._stall[1] <= now:
            began = max(self._stall[1], now - 10.0) + self._stalls.expovariate(self.stalls_per_s)
            self._stall = began, began + min(0.4, 0.05 * self._stalls.lognormvariate(-0.32, 0.8))
        if self._stall[0] <= now:
            await asyncio.sleep(self._stall[1] - now + 1e-6)

    def _draw_latency(self) -> float:
        if self.spread < 1.0:
            return self.latency_s * (1.0 + self.spread * self._rng.uniform(-1.0, 1.0))
        return self.latency_s * self._rng.lognormvariate(-0.32, 0.8)  # of mean 1

    async def aclose(self) -> None:
        pass


@dataclass
class ScriptedEmbedder:
    """An `Embedder` whose vector depends on the text alone; texts in `refuse` fail."""

    dim: int = 8
    max_batch: int = 4
    price: Price | None = FREE
    name: str = "scripted-embedder"
    within: Within = "all"
    refuse: frozenset[str] = frozenset()
    seen: list[str] = field(default_factory=list)

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]:
        assert len(texts) <= self.max_batch
        await asyncio.sleep(0)
        self.seen.extend(texts)
        return [
            AttemptFailure("refused", "this text cannot be embedded")
            if text in self.refuse
            else Embedding(self.vector(text))
            for text in texts
        ]

    def vector(self, text: str) -> np.ndarray:
        draw = np.random.default_rng(list(text.encode())).standard_normal(self.dim)
        return (draw / np.linalg.norm(draw)).astype(np.float32)

    async def aclose(self) -> None:
        pass


@dataclass
class MemoryStore:
    """What runs share in memory: the answers, and every run's failures."""

    answers: dict[bytes, Record] = field(default_factory=dict)
    failures: dict[tuple[str, bytes], Record] = field(default_factory=dict)


class InMemoryJournal:
    """A `Journal` in memory. `commit_s` is how long a commit takes; only then is it kept."""

    def __init__(
        self,
        store: MemoryStore | None = None,
        run_id: str = "run",
        *,
        retry_failed: bool = False,
        commit_s: float = 0.0,
        lookup_s: float = 0.0,
    ) -> None:
        self.store = store or MemoryStore()
        self.run_id = run_id
        self.retry_failed = retry_failed
        self.commit_s = commit_s
        self.lookup_s = lookup_s
        self.commits: list[int] = []
        self.broken: Exception | None = None

    async def lookup(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes | Failure]:
        found: dict[bytes, bytes | Failure] = {}
        for key in keys:
            answer = self.store.answers.get(key)
            failed = self.store.failures.get((self.run_id, key))
            if answer is not None and answer.payload is not None:
                found[key] = answer.payload
            elif failed is not None and failed.failure is not None and not self.retry_failed:
                found[key] = failed.failure
        await asyncio.sleep(self.lookup_s)
        return found

    async def commit(self, records: Sequence[Record]) -> None:
        for record in records:
            if (record.payload is None) == (record.failure is None):
                raise ValueError("a record holds an answer or a failure")
        await asyncio.sleep(self.commit_s)
        if self.broken is not None:
            raise self.broken
        self.commits.append(len(records))
        for record in records:
            if record.payload is not None:
                self.store.answers.setdefault(record.key, record)
                self.store.failures.pop((self.run_id, record.key), None)
            elif record.key not in self.store.answers:
                self.store.failures[self.run_id, record.key] = record

    def knows(self, key: bytes) -> bool:
        return key in self.store.answers or (self.run_id, key) in self.store.failures


@dataclass
class Listener:
    """An event sink that keeps what it hears."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def progress(self) -> list[StageProgress]:
        return [event for event in self.events if isinstance(event, StageProgress)]

    @property
    def stages(self) -> list[str]:
        marks = {StageStarted: "started", StageFinished: "finished"}
        return [
            f"{marks[type(e)]} {e.stage}" for e in self.events if isinstance(e, StageStarted | StageFinished)
        ]
