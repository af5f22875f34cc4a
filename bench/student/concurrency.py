"""How near the number in flight that pld finds comes to the best fixed one."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

from engine.errors import ModelError
from engine.events import Event, StageProgress
from engine.ports import ChatModel
from engine.scheduler import Limits, Scheduler
from engine.types import Answer, ChatOutcome, Failure, Request

FIXED = (8, 16, 32, 64, 128, 256)
STARTS = (1, 256)
_SETTLING_S = 3.0
_ENOUGH = 0.95  # of the best fixed rate: the number counts as found


async def measure_concurrency(
    open_model: Callable[[], ChatModel],
    requests: Iterator[Request],
    *,
    fixed: Sequence[int] = FIXED,
    starts: Sequence[int] = STARTS,
    repeats: int = 3,
    window_s: float = 10.0,
    reach_s: float = 60.0,
) -> list[dict[str, Any]]:
    """A row for each number kept in flight by a bare closed loop, and for each number that pld starts from.

    Loops and starts take turns, so that a slower machine is slower for all. A rate is the median over the
    repeats of that over `window_s` seconds: of a loop after three, of pld after `reach_s`. `ratio` is to the
    loop with the best median, `reached_s` from when on pld's rate over `window_s` was 95% of that (None: it
    never was, in one of the repeats), and `concurrency` the number it used then. `requests` has no end. pld
    goes no higher than the largest of `fixed`. Raises `ModelError` where a request is not answered.
    """
    loops: dict[int, list[float]] = {number: [] for number in fixed}
    found: dict[int, list[_Found]] = {start: [] for start in starts}
    for _ in range(repeats):
        for number, rates in loops.items():
            rates.append(await _closed_loop(open_model(), requests, number, window_s))
        for start, runs in found.items():
            limits = Limits(concurrency=max(fixed), start=start)
            runs.append(await _found(open_model(), requests, limits, reach_s, window_s))
    medians = {number: statistics.median(rates) for number, rates in loops.items()}
    best = max(medians.values())
    rows: list[dict[str, Any]] = [
        {"name": "closed loop", "in_flight": number, **_spread(rates)} for number, rates in loops.items()
    ]
    for start, runs in found.items():
        rates = [run.rate for run in runs]
        reached = [run.reached_s(_ENOUGH * best, window_s) for run in runs]
        rows.append(
            {
                "name": "pld",
                "start": start,
                **_spread(rates),
                "ratio": round(statistics.median(rates) / best, 3),
                "reached_s": None if None in reached else max(filter(None, reached), default=0.0),
                "concurrency": statistics.median(run.concurrency for run in runs),
            }
        )
    return rows


def _spread(rates: Sequence[float]) -> dict[str, float]:
    return {
        "requests_per_s": round(statistics.median(rates), 2),
        "requests_per_s_min": round(min(rates), 2),
        "requests_per_s_max": round(max(rates), 2),
    }


async def _closed_loop(model: ChatModel, requests: Iterator[Request], number: int, window_s: float) -> float:
    """Answers a second with so many requests in flight and nothing around them."""
    began = time.monotonic() + _SETTLING_S
    ends = began + window_s
    answered = 0

    async def ask() -> None:
        nonlocal answered
        while time.monotonic() < ends:
            (outcome,) = await model.complete([next(requests)])
            _check(outcome)
            answered += began <= time.monotonic() < ends

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(ask())
    finally:
        await model.aclose()
    return answered / window_s


class _Found:
    """What a run of ours came to."""

    def __init__(self, answered_s: list[float], reach_s: float, window_s: float) -> None:
        self._answered_s = answered_s
        self.rate = self._rate(reach_s, window_s)
        self.concurrency = 0

    def reached_s(self, enough: float, window_s: float) -> float | None:
        """The first second from which the rate was so high; None: never."""
        last = self._answered_s[-1] if self._answered_s else 0.0
        seconds = range(int(last - window_s) + 1)
        return next((float(s) for s in seconds if self._rate(s, window_s) >= enough), None)

    def _rate(self, since_s: float, window_s: float) -> float:
        return sum(since_s <= at < since_s + window_s for at in self._answered_s) / window_s


async def _found(
    model: ChatModel, requests: Iterator[Request], limits: Limits, reach_s: float, window_s: float
) -> _Found:
    """A run through pld's scheduler of `reach_s` + `window_s` seconds."""
    numbers: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, StageProgress) and event.lane and time.monotonic() >= began + reach_s:
            numbers.append(event.lane.concurrency)

    began = time.monotonic()
    ends = began + reach_s + window_s
    answered_s: list[float] = []
    try:
        lane = Scheduler(None, emit=listen).chat(model, limits)
        rows = takewhile(lambda _: time.monotonic() < ends, requests)
        async with lane.stream(rows, stage="bench") as results:
            async for result in results:
                _check(result.outcome)
                answered_s.append(time.monotonic() - began)
    finally:
        await model.aclose()
    run = _Found(answered_s, reach_s, window_s)
    run.concurrency = round(statistics.median(numbers)) if numbers else lane.congestion.limit
    return run


def _check(outcome: ChatOutcome | Failure) -> None:
    if not isinstance(outcome, Answer):
        raise ModelError(f"a request was not answered: {outcome.reason}: {outcome.detail}")
