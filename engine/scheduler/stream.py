"""One pass of requests through a lane: its parts, its results and its end.

::

    source -> Feeder -> ready -> Dispatcher -> workers -> Committer -> results -> consumer
                 `------- answered by the journal, or by an equal request ------'

Everything between source and consumer is counted in `pulled - taken` and bounded by `window` (C5).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Generic

from engine.errors import InterruptedRunError, PldError
from engine.events import StageFinished, StageStarted
from engine.scheduler.committer import Committer
from engine.scheduler.dispatcher import Dispatcher
from engine.scheduler.endpoint import QuestionT, ReplyT
from engine.scheduler.feeder import Feeder
from engine.scheduler.job import Job, Source
from engine.scheduler.totals import Totals
from engine.types import Failure, Result

if TYPE_CHECKING:
    from engine.scheduler.lane import Lane

_CHUNK = 256


class Stream(Generic[QuestionT, ReplyT]):
    """The results of one pass; an async iterator. Made by `Lane.stream`."""

    def __init__(
        self,
        lane: Lane[QuestionT, ReplyT],
        source: Iterable[QuestionT] | AsyncIterable[QuestionT],
        stage: str,
        total: int | None,
        *,
        ordered: bool = False,
    ) -> None:
        self.lane = lane
        self.scheduler = lane.scheduler
        self.stage = stage
        self.totals = Totals()
        self.chunk = max(_CHUNK, min(lane.batch, 4 * _CHUNK))
        self.window = lane.max_open + 2 * max(self.chunk, lane.batch)
        self.pulled = 0
        self.taken = 0
        self.stopping = False
        self.feeder = Feeder(self, source)
        self.dispatcher = Dispatcher(self)
        self.committer = Committer(self)
        self._sending: list[asyncio.Task[None]] = []
        self._results: deque[Result[ReplyT]] = deque()
        self._early: dict[int, Result[ReplyT]] | None = {} if ordered else None  # by their places
        self._next = 0
        self._arrived = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._began_at = self.scheduler.clock.monotonic()
        self.scheduler.emit(StageStarted(stage, total))

    # --- for the consumer ----------------------------------------------------------------------------

    def __aiter__(self) -> Stream[QuestionT, ReplyT]:
        return self

    async def __anext__(self) -> Result[ReplyT]:
        while not self._results:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        self.taken += 1
        if self.feeder.blocked:
            self.feeder.look_for_room()
        return self._results.popleft()

    # --- for the scheduler ---------------------------------------------------------------------------

    @property
    def attempts(self) -> int:
        """How often the lane has asked its model so far."""
        return self.lane.attempts

    async def run(self) -> None:
        """Work until every request is answered; what goes wrong is raised to the consumer."""
        self.scheduler.opened(self)
        self.lane.streams.add(self)
        try:
            await self._run()
            self._error = self.feeder.error
        except BaseExceptionGroup as group:
            self._error = _the_one(group)
        except Exception as exc:  # noqa: BLE001 - raised to the consumer
            self._error = exc
        finally:
            self.lane.streams.discard(self)
            if self.lane.deadlines is not None and not self.lane.streams:
                self.lane.deadlines.close()
            self._abandon()
            self.scheduler.closed(self)
            self._ended = True
            self._arrived.set()
        if self._error is None and not (self.answered and self.feeder.exhausted):
            self._error = InterruptedRunError(
                f"stopped in {self.stage}: {self.totals.done} requests are answered and saved; "
                "run the same command again to go on"
            )

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(self.dispatcher.work()) for _ in range(self.lane.workers)]
                committing = group.create_task(self.committer.run())
                watching = group.create_task(self.lane.watch())
                self._sending = [
                    group.create_task(self.feeder.run()),
                    group.create_task(self.dispatcher.run()),
                ]
                if self.scheduler.stopping:
                    self.stop()
                await asyncio.wait(self._sending)  # they end by themselves, or are cancelled by `stop`
                await self.dispatcher.finish(workers)
                self.committer.seal()
                await asyncio.wait([committing])
                watching.cancel()
        finally:
            await self.committer.save_the_rest()

    def stop(self) -> None:
        """Pull and send nothing more."""
        self.stopping = True
        for task in self._sending:
            task.cancel()

    def deliver(self, job: Job[QuestionT, ReplyT], outcome: ReplyT | Failure, source: Source) -> None:
        """Hand out what is on disk, to the request and to its equals."""
        del self.scheduler.jobs[job.key]
        self._put(job.request.id, job.number, outcome, source)
        for stream, request, number in job.waiting:
            stream._put(request.id, number, outcome, "shared")
            if stream is not self:
                stream.dispatcher.wake.set()

    def progress(self) -> None:
        """Tell the listener how far it is, and what the model has to say."""
        self.scheduler.tell(self.lane.model.remarks)
        vitals = self.lane.vitals(self.scheduler.clock.monotonic(), self.dispatcher.waits_for)
        in_flight = self.dispatcher.in_flight
        self.scheduler.emit(self.totals.progress(self.stage, in_flight=in_flight, lane=vitals))

    def report_end(self, *, failed: bool) -> None:
        """The last events of the stage."""
        self.progress()
        if failed:
            return
        t = self.totals
        self.scheduler.emit(
            StageFinished(
                self.stage,
                f"{t.sent} sent, {t.cached} from the cache, {t.failed} failed",
                self.scheduler.clock.monotonic() - self._began_at,
            )
        )

    def _put(self, request_id: str, number: int, outcome: ReplyT | Failure, source: Source) -> None:
        if isinstance(outcome, Failure) and outcome.id != request_id:
            outcome = replace(outcome, id=request_id)
        result: Result[ReplyT] = Result(request_id, outcome, source)
        self.totals.count(result)
        if self._early is None:
            self._results.append(result)
        else:
            self._early[number] = result
            while (turn := self._early.pop(self._next, None)) is not None:
                self._results.append(turn)
                self._next += 1
        if not self._arrived.is_set():
            self._arrived.set()

    def _abandon(self) -> None:
        """Let go of what has no outcome: pay for it, and give requests that others also asked to them."""
        mine = [job for job in self.scheduler.jobs.values() if job.stream is self]
        for job in mine:
            del self.scheduler.jobs[job.key]
            self.lane.forget(job)
            if job.need is not None:
                self.lane.limiter.settle(job.need, None)
            self.totals.cost_usd += job.cost_usd
            self.totals.input_tokens += job.usage.input_tokens
            self.totals.output_tokens += job.usage.output_tokens
            for stream, request, number in job.waiting:
                if stream is not self:
                    stream.adopt(job.key, request, number)
        for job in self.scheduler.jobs.values():
            job.waiting = [equal for equal in job.waiting if equal[0] is not self]
        self.lane.wake()

    def adopt(self, key: bytes, request: QuestionT, number: int) -> None:
        """Take over a request whose equal, in another stream, was given up before it had an outcome."""
        job = self.scheduler.jobs.get(key)
        if job is not None:
            job.waiting.append((self, request, number))
        else:
            self.scheduler.jobs[key] = job = Job(key, request, self, number)
            self.dispatcher.enqueue([job])

    @property
    def answered(self) -> bool:
        """Whether everything that was pulled has its result."""
        return self.pulled == self.totals.done


def _the_one(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that says something to the user, else the first."""
    leaves = list(_leaves(group))
    return next((error for error in leaves if isinstance(error, PldError)), leaves[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Sequence[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
