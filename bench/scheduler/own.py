"""This project's own client for the comparison, and what it tells of itself."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from adapters.addresses import parse_gemini, parse_openai
from adapters.openai_compatible import OpenAICompatibleChat
from bench.memory import rss_mb
from bench.scheduler.clients import until
from bench.scheduler.throttled import RequestWindow
from bench.scheduler.workload import MODEL, Task, request
from engine.events import Event, StageProgress
from engine.ports import FREE, ChatModel
from engine.scheduler import Limits, RateLimiter, RetryPolicy, Scheduler
from engine.store import ResponseStore, RunJournal
from engine.types import Failure

# So high that they never bind: what they cost is what is measured.
_NO_LIMIT_RPM = 60_000_000
_NO_LIMIT_TPM = 60_000_000_000


def openai(task: Task) -> ChatModel:
    """The adapter for OpenAI's API."""
    return OpenAICompatibleChat(parse_openai(f"openai:{MODEL}@{task.url}/v1"), price=FREE)


def gemini(task: Task) -> ChatModel:
    """The adapter for Gemini."""
    from adapters.gemini import GeminiChat  # noqa: PLC0415 - a second to load: not for the other
    from adapters.gemini_client import Access  # noqa: PLC0415 - likewise

    address = parse_gemini(f"gemini:{MODEL}@{task.url}")
    return GeminiChat(address.name, Access(address.urls[0], api_key="none"), price=FREE)


async def run_own(task: Task, model: ChatModel) -> dict[str, Any]:
    """Run the task to its end, and close the model; counts, failures by reason, retries, and memory and loop
    lag on the way."""
    limits = Limits(
        concurrency=task.concurrency,
        requests_per_minute=task.requests_per_minute or (None if task.adaptive else _NO_LIMIT_RPM),
        tokens_per_minute=task.tokens_per_minute or (None if task.adaptive else _NO_LIMIT_TPM),
        timeout_s=task.timeout_s,
    )
    watch = _Watch()
    sources: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    kept: dict[str, str] | None = {} if task.output else None
    with ResponseStore(task.folder) as store:
        scheduler = Scheduler(RunJournal(store, "bench"), emit=watch, policy=RetryPolicy(base_delay_s=0.1))
        lane = scheduler.chat(model, limits)
        if task.throttle and task.requests_per_minute:
            gate = RequestWindow(task.requests_per_minute)
            lane.limiter = RateLimiter(limits, scheduler.clock, model=lane.name, requests=gate)
        try:
            async with lane.stream(map(request, until(task)), stage="bench") as results:
                async for result in results:
                    sources[result.source] += 1
                    if isinstance(result.outcome, Failure):
                        failures[result.outcome.reason] += 1
                    elif kept is not None:
                        kept[result.id] = result.outcome.text
                    watch.done += 1
                    if watch.done % 100_000 == 0:
                        watch.memory_mb[str(watch.done)] = rss_mb()
        finally:
            await model.aclose()
    if kept is not None:
        _write(Path(task.output), kept)
    return {
        "answers": watch.done - failures.total(),
        "failures": dict(failures),
        "sources": dict(sources),
        "retries": scheduler.totals.retries,
        "memory_mb": watch.memory_mb,
        "loop_lag_ms": round(1000 * watch.lag_s, 2),
    }


def _write(path: Path, kept: dict[str, str]) -> None:
    path.write_bytes(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS))


class _Watch:
    """Keeps the worst loop lag that progress told of."""

    def __init__(self) -> None:
        self.done = 0
        self.lag_s = 0.0
        self.memory_mb: dict[str, float] = {}
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        # the first seconds open the connections
        if isinstance(event, StageProgress) and event.lane and time.monotonic() - self._began > 5.0:
            self.lag_s = max(self.lag_s, event.lane.loop_lag_s)
