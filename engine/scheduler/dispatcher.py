"""Decides what goes next, sends it, and judges what comes back."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic

from engine.errors import ModelError
from engine.ports import Reservation
from engine.scheduler.endpoint import QuestionT, ReplyT
from engine.scheduler.job import Job
from engine.scheduler.probation import Probation
from engine.types import TRANSIENT, AttemptFailure, Failure, Usage

if TYPE_CHECKING:
    from engine.scheduler.stream import Stream

_NOTHING = Reservation(0, 0.0)
_TIMEOUT = "timeout"
_TICK_S = 1e-6  # so that no timer ends a rounding error before what it waits for


class Dispatcher(Generic[QuestionT, ReplyT]):
    """One coroutine decides (it alone waits for the limiter), a fixed set of workers sends.

    A request that is to be tried again waits in a heap by due time and occupies no worker. It stays open,
    that is, it counts against the bound on what was sent and is not on disk (C2).
    """

    def __init__(self, stream: Stream[QuestionT, ReplyT]) -> None:
        self._stream = stream
        self._lane = stream.lane
        self._clock = stream.scheduler.clock
        self._policy = stream.scheduler.policy
        self._ready: deque[Job[QuestionT, ReplyT]] = deque()
        self._retries: list[tuple[float, int, Job[QuestionT, ReplyT]]] = []
        self._turn = 0  # keeps retries with one due time in order
        self._due: float | None = None  # when to look again though nothing else has happened
        self._orders: asyncio.Queue[list[Job[QuestionT, ReplyT]] | None] = asyncio.Queue()
        self._free_workers = stream.lane.workers
        self._probation: Probation[QuestionT, ReplyT] = Probation(self._lane.name, self._policy.same_failures)
        self.in_flight = 0
        self.wake = asyncio.Event()

    def enqueue(self, jobs: Sequence[Job[QuestionT, ReplyT]]) -> None:
        """Requests that have to be sent."""
        self._ready.extend(jobs)
        self.wake.set()

    # --- deciding -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until the feeder has ended and everything pulled is answered."""
        feeder = self._stream.feeder
        while True:
            self.wake.clear()
            batch = self._take()
            if batch:
                await self._send(batch)
                continue
            if (feeder.exhausted or feeder.error) and not feeder.busy and self._stream.answered:
                return
            if self.in_flight == 0 and not self._retries:
                self._release()
            await self._wait()

    async def finish(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Let the workers end what they have in hand, and go."""
        for _ in workers:
            self._orders.put_nowait(None)
        await asyncio.wait(workers)
        self._release()

    def _take(self) -> list[Job[QuestionT, ReplyT]]:
        """What may be sent now, its slots claimed: retries that are due, then new requests."""
        lane = self._lane
        self._due = None
        room = min(lane.batch, lane.concurrency - lane.in_flight)
        if room <= 0 or self._free_workers == 0:
            return []
        now = self._clock.monotonic()
        if lane.pause.until > now:
            self._due = lane.pause.until
            return []
        batch: list[Job[QuestionT, ReplyT]] = []
        while self._retries and self._retries[0][0] <= now and len(batch) < room:
            batch.append(heapq.heappop(self._retries)[2])
        new = min(room - len(batch), lane.max_open - lane.open)
        if len(self._ready) >= new or batch or not self._stream.feeder.busy:  # else: let the batch fill up
            for _ in range(min(new, len(self._ready))):
                lane.admit(self._ready[0])
                batch.append(self._ready.popleft())
        if self._retries:
            self._due = self._retries[0][0]
        lane.in_flight += len(batch)
        self.in_flight += len(batch)
        return batch

    async def _wait(self) -> None:
        """Until something changes, a retry is due or a pause ends."""
        delay = None if self._due is None else self._due - self._clock.monotonic() + _TICK_S
        try:
            async with asyncio.timeout(delay):
                await self.wake.wait()
        except TimeoutError:
            pass

    async def _send(self, batch: list[Job[QuestionT, ReplyT]]) -> None:
        """Hand the batch to a worker: all of it, or as much as the limits let go at once."""
        lane = self._lane
        admitted = len(batch)
        if not lane.limiter.unlimited:
            admitted = 0
            try:
                async with lane.gate:
                    for job in batch:
                        need = lane.need(job.request)
                        if admitted and not lane.limiter.open_now(need):
                            break
                        await lane.limiter.reserve(need)
                        job.need = need
                        admitted += 1
                if lane.pause.remaining_s() > 0:  # refused meanwhile
                    self._put_back(batch)
                    return
            except BaseException:
                self._put_back(batch)
                raise
            self._put_back(batch[admitted:])
        now = self._clock.monotonic()
        for job in batch[:admitted]:
            job.attempts += 1
            job.sent_at = now
            if not job.sent:
                job.sent = True
                job.first_sent_at = now
        self._free_workers -= 1
        self._orders.put_nowait(batch[:admitted])

    def _put_back(self, jobs: Sequence[Job[QuestionT, ReplyT]]) -> None:
        """Undo `_take`, and the reservation where there is one."""
        self._leave(len(jobs))
        for job in reversed(jobs):
            if job.need is not None:
                self._lane.limiter.settle(job.need, _NOTHING)
                job.need = None
            if job.sent:
                self._again(job, 0.0)
            else:
                self._lane.forget(job)
                self._ready.appendleft(job)

    def _again(self, job: Job[QuestionT, ReplyT], delay_s: float) -> None:
        self._turn += 1
        heapq.heappush(self._retries, (self._clock.monotonic() + delay_s, self._turn, job))

    def _leave(self, n: int) -> None:
        self._lane.in_flight -= n
        self.in_flight -= n

    def _release(self) -> None:
        self._stream.committer.add(self._probation.release(), more_to_come=False)

    def abandon(self) -> None:
        """Take back what no worker has taken up."""
        while not self._orders.empty():
            batch = self._orders.get_nowait()
            for job in batch or ():
                if job.need is not None:
                    self._lane.limiter.settle(job.need, _NOTHING)
                    job.need = None
            self._leave(len(batch or ()))

    # --- sending ------------------------------------------------------------------------------------

    async def work(self) -> None:
        """One worker: ask the model, judge its outcomes, until told to go."""
        while (batch := await self._orders.get()) is not None:
            try:
                outcomes = await self._ask(batch)
            except BaseException:
                for job in batch:
                    self._charge(job, None)  # sent, and nobody will ever know what it cost
                self._leave(len(batch))
                raise
            self._free_workers += 1
            self._leave(len(batch))
            self._judge(batch, outcomes)
            self._lane.wake()

    async def _ask(self, batch: Sequence[Job[QuestionT, ReplyT]]) -> Sequence[ReplyT | AttemptFailure]:
        endpoint = self._lane.model
        deadline = self._policy.attempt_deadline_s if endpoint.max_batch == 1 else None
        attempt = asyncio.timeout(deadline)
        try:
            async with attempt:
                outcomes = await endpoint.call([job.request for job in batch])
        except TimeoutError:
            if not attempt.expired():
                raise
            late = AttemptFailure(_TIMEOUT, f"no answer within {deadline:g} s", TRANSIENT)
            return [late] * len(batch)
        if len(outcomes) != len(batch):
            raise ModelError(f"{endpoint.name} gave {len(outcomes)} outcomes for {len(batch)} requests")
        return outcomes

    # --- judging ------------------------------------------------------------------------------------

    def _judge(
        self, batch: Sequence[Job[QuestionT, ReplyT]], outcomes: Sequence[ReplyT | AttemptFailure]
    ) -> None:
        finished: list[Job[QuestionT, ReplyT]] = []
        hopeless: ModelError | None = None
        for job, outcome in zip(batch, outcomes, strict=True):
            if not isinstance(outcome, AttemptFailure):
                self._charge(job, outcome.usage)
                job.outcome = outcome
                finished.append(job)
                self._lane.pause.answered()
                continue
            unknown = outcome.reason == _TIMEOUT and outcome.billed is None
            self._charge(job, None if unknown else outcome.billed or Usage())
            try:
                delay = self._delay_s(job, outcome)
            except ModelError as exc:
                hopeless = exc
                continue
            if delay is None:
                tries = f" (after {job.attempts} attempts)" if job.attempts > 1 else ""
                job.outcome = Failure(job.request.id, outcome.reason, outcome.detail + tries)
                finished.append(job)
            else:
                self._stream.totals.retries += 1
                self._again(job, delay)
        self._stream.committer.add(self._probation.filter(finished), more_to_come=self.in_flight > 0)
        if hopeless is not None:
            raise hopeless

    def _delay_s(self, job: Job[QuestionT, ReplyT], failed: AttemptFailure) -> float | None:
        """When to try again; None: never."""
        if failed.retry.kind != "rate_limited":
            elapsed = self._clock.monotonic() - job.first_sent_at
            return self._policy.delay_s(job.attempts, elapsed, failed.retry, self._stream.scheduler.rng)
        limit = self._policy.max_rate_limited_s
        if (failed.retry.after_s or 0.0) > limit:
            raise ModelError(
                f"{self._lane.name} asks to wait {failed.retry.after_s:.0f} s before the next request, "
                f"longer than {limit:.0f} s; run the same command again then (what is answered is saved)"
            )
        job.attempts -= 1
        self._lane.pause.extend(job.sent_at, failed.retry.after_s)
        delay = self._lane.pause.remaining_s()
        job.rate_limited_s += delay
        return delay if job.rate_limited_s <= limit else None

    def _charge(self, job: Job[QuestionT, ReplyT], usage: Usage | None) -> None:
        """Settle one attempt; None: its bill is unknown, so it counts with the most it can be."""
        endpoint = self._lane.model
        if usage is None:
            job.charge(Usage(), endpoint.most_cost_usd(job.request))
        else:
            job.charge(usage, endpoint.price.cost_usd(usage))
        if job.need is not None:
            cost = 0.0 if usage is None else endpoint.price.cost_usd(usage)
            used = None if usage is None else Reservation(usage.input_tokens + usage.output_tokens, cost)
            self._lane.limiter.settle(job.need, used)
            job.need = None
