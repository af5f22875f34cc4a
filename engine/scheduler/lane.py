"""One model under its limits, for as long as the run lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic

from engine.events import Bottleneck, LaneVitals
from engine.ports import Reservation
from engine.scheduler.congestion import Congestion
from engine.scheduler.deadlines import Deadlines
from engine.scheduler.endpoint import Endpoint, QuestionT, ReplyT
from engine.scheduler.job import Job
from engine.scheduler.limits import Limits, RateLimiter
from engine.scheduler.queueing import Queueing
from engine.scheduler.retry import Pause, RetryBudget
from engine.scheduler.sizes import Sizes
from engine.scheduler.stream import Stream
from engine.scheduler.vitals import Rates, bottleneck

if TYPE_CHECKING:
    from engine.scheduler.scheduler import Scheduler

_DEFAULT_CONCURRENCY = 64
_LEAST_RETRIES = 100
_LOOK_S = 0.5
_LOOK_TIMEOUT_S = 2.0


class Lane(Generic[QuestionT, ReplyT]):
    """Requests to one model. Streams on one lane share its limits, its pauses and its slots.

    `in_flight` counts requests at the model; `open` those sent whose outcome is not yet on disk (C2).
    """

    def __init__(self, scheduler: Scheduler, endpoint: Endpoint[QuestionT, ReplyT], limits: Limits) -> None:
        self.scheduler = scheduler
        self.model = endpoint
        gauged = endpoint.gauged
        most = _DEFAULT_CONCURRENCY if gauged is None else gauged.most_in_flight
        self.concurrency = limits.concurrency or max(most, endpoint.max_batch)
        if endpoint.max_batch == 1 or limits.concurrency is None:
            self.workers = self.concurrency if endpoint.max_batch == 1 else 1
        else:
            self.workers = -(-self.concurrency // endpoint.max_batch)
        self.batch = min(endpoint.max_batch, -(-self.concurrency // self.workers))
        self.congestion: Congestion | Queueing
        if gauged is not None:
            self.congestion = Queueing(self.concurrency, start=limits.start)
        else:
            # an in-process model is as fast as its CPU: there is nothing to find out
            adaptive = endpoint.max_batch == 1
            self.congestion = Congestion(self.concurrency, adaptive=adaptive, start=limits.start)
        self._watching = asyncio.Lock()
        deadline = limits.timeout_s or scheduler.policy.attempt_deadline_s
        self.deadlines = Deadlines(deadline) if deadline and endpoint.max_batch == 1 else None
        self.limits = limits
        self.limiter = RateLimiter(limits, scheduler.clock, model=endpoint.name, budget=scheduler.budget)
        self.gate = asyncio.Lock()  # one dispatcher at a time waits for the limiter
        self.pause = Pause(scheduler.policy, scheduler.clock)
        self.max_open = self.concurrency + scheduler.max_uncommitted
        # more of them once more slots than these are in use: a cap may be far above what is ever in flight
        slots = self.concurrency if gauged is None else min(self.concurrency, _DEFAULT_CONCURRENCY)
        first_round = scheduler.policy.max_attempts * slots
        self.retries_left = RetryBudget(scheduler.policy.retry_share, max(_LEAST_RETRIES, first_round))
        self.sizes = Sizes()
        self.rates = Rates()
        self.attempts = 0
        self.tokens = 0
        self.in_flight = 0
        self.open = 0
        self.streams: set[Stream[QuestionT, ReplyT]] = set()

    @property
    def name(self) -> str:
        """The model's name, as it stands in every cache key."""
        return self.model.name

    @asynccontextmanager
    async def stream(
        self,
        requests: Iterable[QuestionT] | AsyncIterable[QuestionT],
        *,
        stage: str,
        total: int | None = None,
        ordered: bool = False,
    ) -> AsyncIterator[Stream[QuestionT, ReplyT]]:
        """Ask all `requests`; iterate over what comes back, in the order of completion, or of `requests`.

        Every request gets exactly one `Result`, after its outcome is on disk. Memory does not grow with the
        number of requests: they are pulled as results are taken (with `ordered`, a request that takes long
        holds back the results behind it, and once the window is full no more are pulled).

        Leaving the block early cancels what is in flight and keeps what has finished. Iterating raises what
        ended the stream, once the results up to then are taken: `BudgetError`, `ModelError`,
        `InterruptedRunError`, or what `requests` itself raised.
        """
        stream = Stream(self, requests, stage, total, ordered=ordered)
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            runner = group.create_task(stream.run())
            try:
                yield stream
            except Exception as exc:  # noqa: BLE001 - raised below: the task group would wrap it
                failure = exc
            finally:
                runner.cancel()
        stream.report_end(failed=failure is not None)
        if failure is not None:
            raise failure

    async def watch(self) -> None:
        """Look at the model's servers now and then, where they say how busy they are; to be cancelled.

        One task of the lane does, whatever the number of its streams.
        """
        gauged, congestion, clock = self.model.gauged, self.congestion, self.scheduler.clock
        if gauged is None or not isinstance(congestion, Queueing):
            return
        async with self._watching:
            while True:
                await clock.sleep(_LOOK_S)
                if self.in_flight:
                    try:
                        async with asyncio.timeout(_LOOK_TIMEOUT_S):
                            load = await gauged.load()
                    except TimeoutError:
                        load = None
                    congestion.loaded(load)

    def need(self, job: Job[QuestionT, ReplyT]) -> Reservation:
        """What the limiter has to set aside for one attempt at a request."""
        tokens = 0
        if self.limiter.counts_tokens:
            job.size = job.size or self.model.characters(job.request)
            tokens = (
                self.sizes.tokens(job.size, self.model.max_output_tokens(job.request))
                if self.sizes.known
                else self.model.estimated_tokens(job.request)
            )
        return Reservation(
            tokens=tokens,
            cost_usd=self.model.most_cost_usd(job.request) if self.limiter.counts_cost else 0.0,
        )

    def vitals(self, now: float, waits_for: Bottleneck) -> LaneVitals:
        """How the model is being asked just now."""
        heartbeat = self.scheduler.heartbeat
        budget = self.scheduler.budget
        self.rates.mark(now, self.attempts, self.tokens, waits_for)
        return LaneVitals(
            model=self.name,
            in_flight=self.in_flight,
            concurrency=self.congestion.limit,
            requests_per_s=self.rates.requests_per_s,
            requests_per_minute_limit=self.limits.requests_per_minute,
            tokens_per_minute=self.rates.tokens_per_minute,
            tokens_per_minute_limit=self.limits.tokens_per_minute,
            spent_usd=0.0 if budget is None else budget.spent_usd,
            cap_usd=None if budget is None else budget.max_cost_usd,
            bottleneck=bottleneck(self.rates.bottleneck, heartbeat.cpu_share),
            loop_lag_s=heartbeat.lag_s,
            cpu_share=heartbeat.cpu_share,
        )

    def admit(self, job: Job[QuestionT, ReplyT]) -> None:
        """Count a job as sent and not yet on disk."""
        if not job.open:
            job.open = True
            self.open += 1

    def forget(self, job: Job[QuestionT, ReplyT]) -> None:
        """The opposite of `admit`."""
        if job.open:
            job.open = False
            self.open -= 1

    def wake(self) -> None:
        """Something has changed that a dispatcher of this lane may be waiting for."""
        for stream in self.streams:
            stream.dispatcher.wake.set()
