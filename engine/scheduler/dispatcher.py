"""Decides what goes next and sends it."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic

from engine.errors import ModelError
from engine.events import Bottleneck
from engine.ports import Reservation
from engine.scheduler.deadlines import AttemptTimeoutError
from engine.scheduler.endpoint import QuestionT, ReplyT
from engine.scheduler.job import Job
from engine.scheduler.judge import Judge
from engine.types import TRANSIENT, AttemptFailure

if TYPE_CHECKING:
    from engine.scheduler.stream import Stream

_NOTHING = Reservation(0, 0.0)
_TICK_S = 1e-6  # so that no timer ends a rounding error before what it waits for


class Dispatcher(Generic[QuestionT, ReplyT]):
    """A fixed set of workers sends; one coroutine waits for whatever has to be waited for.

    A worker that has done takes the next request itself where it may go at once: no task switch for each
    request. Otherwise it idles, and the dispatcher, the only waiter on the limiter, gives it one later. A
    request that is to be tried again waits in a heap by due time and occupies no worker. It stays open, that
    is, it counts against the bound on what was sent and is not on disk (C2).
    """

    def __init__(self, stream: Stream[QuestionT, ReplyT]) -> None:
        self._stream = stream
        self._lane = stream.lane
        self._clock = stream.scheduler.clock
        self._ready: deque[Job[QuestionT, ReplyT]] = deque()
        self._retries: list[tuple[float, int, Job[QuestionT, ReplyT]]] = []
        self._turn = 0  # keeps retries with one due time in order
        self._due: float | None = None  # when to look again though nothing else has happened
        self._idle: list[asyncio.Future[list[Job[QuestionT, ReplyT]] | None]] = []
        self._ended = False
        self._judge = Judge(stream, self)
        self.in_flight = 0
        self.served_at = 0  # counted in the lane's attempts
        self.wake = asyncio.Event()
        self.waits_for: Bottleneck = "source"
        """What kept the last request that could not go at once."""

    def enqueue(self, jobs: Sequence[Job[QuestionT, ReplyT]]) -> None:
        """Requests that have to be sent."""
        self._ready.extend(jobs)
        self.wake.set()

    def again(self, job: Job[QuestionT, ReplyT], delay_s: float) -> None:
        """A request that has to be sent once more."""
        self._turn += 1
        heapq.heappush(self._retries, (self._clock.monotonic() + delay_s, self._turn, job))
        self.wake.set()

    # --- deciding -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until the feeder has ended and everything pulled is answered."""
        feeder = self._stream.feeder
        while True:
            self.wake.clear()
            self._due = None
            if self._idle and (batch := self._take()):
                if batch := await self._admit(batch):
                    self._start(batch)
                    self._hand_over(batch)
                continue
            if (feeder.exhausted or feeder.error) and not feeder.busy and self._stream.answered:
                return
            if self.in_flight == 0 and not self._retries:
                self._judge.release()
            if not self._idle:
                self.waits_for = "server"
            await self._wait()

    async def finish(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Let the workers end what they have in hand, and go."""
        self._ended = True
        idle, self._idle = self._idle, []
        for order in idle:
            if not order.done():
                order.set_result(None)
        await asyncio.wait(workers)
        self._judge.release()

    def _next(self) -> list[Job[QuestionT, ReplyT]] | None:
        """What a worker may send at once, if anything."""
        lane = self._lane
        if lane.batch == 1 and lane.congestion.unpaced and self._ready and not lane.gate.locked():
            now = self._clock.monotonic()
            if (
                lane.in_flight < lane.congestion.limit
                and lane.open < lane.max_open
                and lane.pause.until <= now
                and not (self._retries and self._retries[0][0] <= now)
                and not (self._ended or self._stream.stopping or len(lane.streams) > 1)
            ):
                return self._next_new(now)
        # the dispatcher is waiting for the limiter, or other streams want the slots as well
        if self._ended or self._stream.stopping or lane.gate.locked() or len(lane.streams) > 1:
            return None
        if not (batch := self._take()):
            return None
        if not lane.limiter.unlimited:
            for admitted, job in enumerate(batch):
                job.need = lane.need(job)
                if not lane.limiter.take_now(job.need):
                    job.need = None
                    self.waits_for = lane.limiter.waits_for
                    self._put_back(batch[admitted:])
                    batch = batch[:admitted]
                    break
        if batch:
            self._start(batch)
        return batch

    def _next_new(self, now: float) -> list[Job[QuestionT, ReplyT]] | None:
        """The same for one new request, where nothing but the limits can be in its way: the usual case."""
        lane = self._lane
        job = self._ready[0]
        if not lane.limiter.unlimited:
            need = lane.need(job)
            if not lane.limiter.take_now(need):
                self.waits_for = lane.limiter.waits_for
                return None
            job.need = need
        self._ready.popleft()
        lane.admit(job)
        lane.in_flight += 1
        self.in_flight += 1
        lane.attempts += 1
        job.attempts = 1
        job.sent = True
        job.first_sent_at = job.sent_at = now
        return [job]

    def _take(self) -> list[Job[QuestionT, ReplyT]]:
        """What may be sent now, its slots claimed: retries that are due, then new requests."""
        lane = self._lane
        self._due = None
        room = min(lane.batch, lane.congestion.limit - lane.in_flight)
        if room <= 0 or self._gives_way():
            self.waits_for = "server"
            return []
        now = self._clock.monotonic()
        if lane.pause.until > now:
            self.waits_for, self._due = "pause", lane.pause.until
            return []
        if (wait := lane.congestion.pacer.wait_s(now)) > 0:
            self.waits_for, self._due = "limit", now + wait
            return []
        batch: list[Job[QuestionT, ReplyT]] = []
        while self._retries and self._retries[0][0] <= now and len(batch) < room:
            batch.append(heapq.heappop(self._retries)[2])
        ready = self._ready
        new = min(room - len(batch), lane.max_open - lane.open)
        if len(ready) >= new or batch or not self._stream.feeder.busy:  # else: let the batch fill up
            for _ in range(min(new, len(ready))):
                job = ready.popleft()
                lane.admit(job)
                batch.append(job)
        if not batch:
            self.waits_for = "disk" if ready and new <= 0 else self._stream.feeder.waits_for
        if self._retries:
            self._due = self._retries[0][0]
        lane.in_flight += len(batch)
        self.in_flight += len(batch)
        return batch

    def _gives_way(self) -> bool:
        """Whether another stream of the lane is to have the next slot: one that has fewer requests at the
        model, or as many and the older last turn."""
        streams = self._lane.streams
        for other in streams if len(streams) > 1 else ():
            theirs = (other.dispatcher.in_flight, other.dispatcher.served_at)
            if theirs < (self.in_flight, self.served_at) and other.dispatcher.hungry:
                other.dispatcher.wake.set()
                return True
        return False

    @property
    def hungry(self) -> bool:
        """Whether it has something that it could send at once."""
        lane = self._lane
        due = self._retries and self._retries[0][0] <= self._clock.monotonic()
        new = self._ready and lane.open < lane.max_open
        return bool(self._idle and (due or new)) and not self._stream.stopping

    async def _admit(self, batch: list[Job[QuestionT, ReplyT]]) -> list[Job[QuestionT, ReplyT]]:
        """As much of the batch as the limits let go at once, after waiting for the first of it."""
        lane = self._lane
        if lane.limiter.unlimited:
            return batch
        admitted = 0
        try:
            async with lane.gate:
                for job in batch:
                    need = lane.need(job)
                    if not lane.limiter.take_now(need):
                        if admitted:
                            break
                        self.waits_for = lane.limiter.waits_for
                        await lane.limiter.reserve(need)
                    job.need = need
                    admitted += 1
            if lane.pause.remaining_s() > 0:  # refused meanwhile
                admitted = 0
        except BaseException:
            self._put_back(batch)
            raise
        self._put_back(batch[admitted:])
        return batch[:admitted]

    async def _wait(self) -> None:
        """Until something changes, a retry is due, or a pause or the pace lets the next request go."""
        delay = None if self._due is None else self._due - self._clock.monotonic() + _TICK_S
        try:
            async with asyncio.timeout(delay):
                await self.wake.wait()
        except TimeoutError:
            pass

    def _start(self, batch: Sequence[Job[QuestionT, ReplyT]]) -> None:
        """These go now."""
        lane = self._lane
        now = self._clock.monotonic()
        lane.attempts += len(batch)
        self.served_at = lane.attempts
        for job in batch:
            job.attempts += 1
            job.sent_at = now
            if not job.sent:
                job.sent = True
                job.first_sent_at = now
        if not lane.congestion.settled:
            for _ in batch:
                lane.congestion.pacer.take(now)

    def _hand_over(self, batch: list[Job[QuestionT, ReplyT]]) -> None:
        while self._idle:
            order = self._idle.pop()
            if not order.done():
                order.set_result(batch)
                return
        self._take_back(batch)

    def _put_back(self, jobs: Sequence[Job[QuestionT, ReplyT]]) -> None:
        """Undo `_take`, and the reservation where there is one."""
        self.leave(len(jobs))
        for job in reversed(jobs):
            if job.need is not None:
                self._lane.limiter.settle(job.need, _NOTHING)
                job.need = None
            if job.sent:
                self.again(job, 0.0)
            else:
                self._lane.forget(job)
                self._ready.appendleft(job)

    def _take_back(self, batch: Sequence[Job[QuestionT, ReplyT]]) -> None:
        """Undo `_start` for what no worker has taken up."""
        for job in batch:
            job.attempts -= 1
            job.sent = job.attempts > 0
        self._put_back(batch)

    def leave(self, n: int) -> None:
        """So many requests are no longer at the model."""
        self._lane.in_flight -= n
        self.in_flight -= n

    # --- sending ------------------------------------------------------------------------------------

    async def work(self) -> None:
        """One worker: ask the model, have its outcomes judged, until told to go."""
        lane = self._lane
        while batch := self._next() or await self._order():
            try:
                asking = lane.model.call([job.request for job in batch])
                outcomes = await (asking if lane.deadlines is None else lane.deadlines.run(asking))
                _check_number(lane.name, len(batch), len(outcomes))
            except AttemptTimeoutError as late:
                outcomes = [AttemptFailure("timeout", str(late), TRANSIENT, unknown_bill=True)] * len(batch)
            except BaseException:
                self._ended = True  # or other workers would go on until the task group hears of it
                for job in batch:
                    self._judge.charge(job, None)  # sent, and nobody will ever know what it cost
                self.leave(len(batch))
                raise
            in_flight = lane.in_flight
            self.leave(len(batch))
            self._judge.judge(batch, outcomes, in_flight)
            if len(lane.streams) > 1:
                lane.wake()

    async def _order(self) -> list[Job[QuestionT, ReplyT]] | None:
        """Wait for the dispatcher to hand a batch over; None: there will be none."""
        if self._ended:
            return None
        order: asyncio.Future[list[Job[QuestionT, ReplyT]] | None]
        order = asyncio.get_running_loop().create_future()
        self._idle.append(order)
        self.wake.set()
        try:
            return await order
        except asyncio.CancelledError:
            if order.done() and not order.cancelled() and (batch := order.result()):
                self._take_back(batch)
            raise


def _check_number(model: str, requests: int, outcomes: int) -> None:
    if outcomes != requests:
        raise ModelError(f"{model} gave {outcomes} outcomes for {requests} requests")
