"""How near the number in flight that `pld classify` finds comes to the best fixed one."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from adapters.addresses import RemoteAddress
from adapters.vllm import VllmChat
from bench.student.timed import TimedChat
from engine.bulk import classify
from engine.errors import InterruptedRunError, ModelError
from engine.events import Event, StageProgress
from engine.prompt import CompiledPrompt
from engine.scheduler import Limits
from engine.stopping import StopSignal
from engine.student import StudentPrompt
from engine.types import Answer

FIXED = (8, 16, 32, 64, 128, 256)
STARTS = (1, 256)
_SETTLING_S = 3.0
_ENOUGH = 0.95  # of the best fixed rate: the number counts as found
_SPARE = 2.0  # rows in the file, to those that the best loop would get through


class Job(NamedTuple):
    """Who is asked what: `texts`, all different, have no end."""

    address: RemoteAddress
    prompt: CompiledPrompt
    texts: Iterator[str]


async def measure_concurrency(
    job: Job,
    *,
    fixed: Sequence[int] = FIXED,
    starts: Sequence[int] = STARTS,
    repeats: int = 3,
    window_s: float = 10.0,
    reach_s: float = 60.0,
) -> list[dict[str, Any]]:
    """A row for each number kept in flight by a bare closed loop, and for each number that a bulk job starts
    from: files in, Parquet parts out, as `pld classify` does it.

    Loops and starts take turns, so that a slower machine is slower for all. A rate is the median over the
    repeats of that over `window_s` seconds: of a loop after three, of a job after `reach_s`. `ratio` is to
    the loop with the best median, `reached_s` from when on the job's rate over `window_s` was 95% of that
    (None: it never was, in one of the repeats), and `concurrency` the number it used at the end. A job goes
    no higher than the largest of `fixed`. Raises `ModelError` where a request is not answered.
    """
    loops: dict[int, list[float]] = {number: [] for number in fixed}
    found: dict[int, list[_Found]] = {start: [] for start in starts}
    for _ in range(repeats):
        for number, rates in loops.items():
            rates.append(await _closed_loop(job, number, window_s))
        rows = round(_SPARE * max(rates[-1] for rates in loops.values()) * (reach_s + window_s))
        for start, runs in found.items():
            limits = Limits(concurrency=max(fixed), start=start)
            runs.append(await _found(job, limits, rows + max(fixed), reach_s, window_s))
    medians = {number: statistics.median(rates) for number, rates in loops.items()}
    best = max(medians.values())
    result: list[dict[str, Any]] = [
        {"name": "closed loop", "in_flight": number, **_spread(rates)} for number, rates in loops.items()
    ]
    for start, runs in found.items():
        rates = [run.rate for run in runs]
        reached = [run.reached_s(_ENOUGH * best) for run in runs]
        result.append(
            {
                "name": "pld classify",
                "start": start,
                **_spread(rates),
                "ratio": round(statistics.median(rates) / best, 3),
                "reached_s": None if None in reached else max(filter(None, reached), default=0.0),
                "concurrency": statistics.median(run.concurrency for run in runs),
            }
        )
    return result


def _spread(rates: Sequence[float]) -> dict[str, float]:
    return {
        "requests_per_s": round(statistics.median(rates), 2),
        "requests_per_s_min": round(min(rates), 2),
        "requests_per_s_max": round(max(rates), 2),
    }


async def _closed_loop(job: Job, number: int, window_s: float) -> float:
    """Answers a second with so many requests in flight and nothing around them."""
    prompt, model = StudentPrompt(job.prompt), VllmChat(job.address)
    began = time.perf_counter() + _SETTLING_S
    ends = began + window_s
    answered = 0

    async def ask() -> None:
        nonlocal answered
        while time.perf_counter() < ends:
            (outcome,) = await model.complete([prompt.request("r", next(job.texts))])
            if not isinstance(outcome, Answer):
                raise ModelError(f"a request was not answered: {outcome.reason}: {outcome.detail}")
            answered += began <= time.perf_counter() < ends

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(ask())
    finally:
        await model.aclose()
    return answered / window_s


class _Found(NamedTuple):
    """What a bulk job came to: when answers came, in seconds since its call, and the number in use at the
    end.
    """

    answered_s: list[float]
    concurrency: float
    reach_s: float
    window_s: float

    @property
    def rate(self) -> float:
        """Answers a second once there was time to find the number."""
        return self._rate(self.reach_s)

    def reached_s(self, enough: float) -> float | None:
        """The first second from which the rate was so high; None: never."""
        last = self.answered_s[-1] if self.answered_s else 0.0
        seconds = range(int(last - self.window_s) + 1)
        return next((float(s) for s in seconds if self._rate(s) >= enough), None)

    def _rate(self, since_s: float) -> float:
        return sum(since_s <= at < since_s + self.window_s for at in self.answered_s) / self.window_s


async def _found(job: Job, limits: Limits, rows: int, reach_s: float, window_s: float) -> _Found:
    """A bulk job over a file of `rows` rows, stopped after `reach_s` + `window_s` seconds."""
    numbers: list[int] = []
    failed = 0

    def listen(event: Event) -> None:
        nonlocal failed
        if isinstance(event, StageProgress) and event.lane:
            failed = event.failed
            if time.perf_counter() >= began + reach_s:
                numbers.append(event.lane.concurrency)

    stop = StopSignal()
    model = TimedChat(job.address)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.ndjson"
        with file.open("wb") as lines:
            lines.writelines(orjson.dumps({"text": text}) + b"\n" for text in islice(job.texts, rows))
        began = time.perf_counter()
        asyncio.get_running_loop().call_later(reach_s + window_s, stop.request)
        try:
            with contextlib.suppress(InterruptedRunError):
                out = Path(folder) / "out"
                await classify(job.prompt, model, file, out, limits=limits, emit=listen, stop=stop)
                raise ModelError(f"all of {rows} rows were done before the time was up")
        finally:
            await model.aclose()
    if failed:
        raise ModelError(f"{failed} rows were not answered")
    answered_s = [at - began for at in model.answered_s]
    return _Found(answered_s, statistics.median(numbers or [0]), reach_s, window_s)
