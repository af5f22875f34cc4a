"""Pulls requests, looks them up, and puts what nobody has answered into the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic

from engine.events import Bottleneck
from engine.ports import Journal
from engine.scheduler.endpoint import QuestionT, ReplyT
from engine.scheduler.job import Job
from engine.scheduler.shielded import finish
from engine.types import Failure

if TYPE_CHECKING:
    from engine.scheduler.stream import Stream


class Feeder(Generic[QuestionT, ReplyT]):
    """The only one that touches the caller's iterable.

    An error of the iterable ends the feeding and is kept in `error`: what was pulled before it is still
    answered. `busy` says that more is about to come (so that a batch may wait for it); `blocked` that the
    window is full; `exhausted` that the iterable has ended.
    """

    def __init__(
        self, stream: Stream[QuestionT, ReplyT], source: Iterable[QuestionT] | AsyncIterable[QuestionT]
    ) -> None:
        self._stream = stream
        self._source = source
        self._room = asyncio.Event()
        self.error: Exception | None = None
        self.busy = True
        self.blocked = False
        self.exhausted = False

    @property
    def waits_for(self) -> Bottleneck:
        """Why nothing is ready to be sent."""
        if self.exhausted:
            return "server"
        return "client" if self.blocked else "source"

    async def run(self) -> None:
        """Feed until the iterable ends."""
        try:
            if isinstance(self._source, AsyncIterable):
                await self._run_async(self._source)
            else:
                await self._run_sync(iter(self._source))
        finally:
            self._idle()

    def look_for_room(self) -> None:
        """Results were taken: go on where a whole chunk fits."""
        stream = self._stream
        if stream.pulled - stream.taken + stream.chunk <= stream.window:
            self.blocked = False
            self._room.set()

    async def _run_sync(self, source: Iterator[QuestionT]) -> None:
        while not (self.exhausted or self.error):
            await self._wait_for_room()
            await self._admit(self._pull(source))
            await asyncio.sleep(0)  # rendering requests is work of its own: let the others go on

    def _pull(self, source: Iterator[QuestionT]) -> list[QuestionT]:
        chunk: list[QuestionT] = []
        try:
            while len(chunk) < self._stream.chunk:
                chunk.append(next(source))
        except StopIteration:
            self.exhausted = True
        except Exception as exc:  # noqa: BLE001 - raised to the consumer after what came before it
            self.error = exc
        return chunk

    async def _run_async(self, source: AsyncIterable[QuestionT]) -> None:
        # a slow source must not hold back what it has already given: one task waits for it, one admits
        pulled: asyncio.Queue[QuestionT | None] = asyncio.Queue(self._stream.chunk)
        async with asyncio.TaskGroup() as group:
            pulling = group.create_task(self._pull_async(source, pulled))
            more = True
            while more:
                if pulled.empty():
                    self._idle()
                chunk = []
                request = await pulled.get()
                self.busy = True
                while request is not None:
                    chunk.append(request)
                    if len(chunk) == self._stream.chunk or pulled.empty():
                        break
                    request = pulled.get_nowait()
                more = request is not None
                await self._wait_for_room()
                await self._admit(chunk)
        # only now: told earlier, the dispatcher could end with a chunk still in hand
        self.error = pulling.result()
        self.exhausted = self.error is None

    async def _pull_async(
        self, source: AsyncIterable[QuestionT], pulled: asyncio.Queue[QuestionT | None]
    ) -> Exception | None:
        """Returns the error of the iterable, None where it has ended."""
        error: Exception | None = None
        iterator = aiter(source)
        try:
            async for request in iterator:
                await pulled.put(request)
        except Exception as exc:  # noqa: BLE001 - raised to the consumer after what came before it
            error = exc
        finally:
            if (close := getattr(iterator, "aclose", None)) is not None:
                await close()
        await pulled.put(None)
        return error

    async def _wait_for_room(self) -> None:
        self.blocked = True
        self.look_for_room()
        if self.blocked:
            self._idle()
            self._room.clear()
            await self._room.wait()
            self.busy = True

    async def _admit(self, chunk: Sequence[QuestionT]) -> None:
        """Claim the keys, then look them up: an equal request that comes meanwhile finds the claim (C3)."""
        stream = self._stream
        jobs = stream.scheduler.jobs
        model = stream.lane.name
        fresh: list[Job[QuestionT, ReplyT]] = []
        for number, request in enumerate(chunk, stream.pulled):
            key = request.digest(model)
            if (job := jobs.get(key)) is not None:
                job.waiting.append((stream, request, number))
            else:
                jobs[key] = job = Job(key, request, stream, number)
                fresh.append(job)
        stream.pulled += len(chunk)
        if stream.scheduler.journal is None:
            stream.dispatcher.enqueue(fresh)
        elif fresh:
            await finish(self._look_up(stream.scheduler.journal, fresh))

    async def _look_up(self, journal: Journal, jobs: Sequence[Job[QuestionT, ReplyT]]) -> None:
        stream = self._stream
        found = await journal.lookup([job.key for job in jobs])
        missing: list[Job[QuestionT, ReplyT]] = []
        for job in jobs:
            known = found.get(job.key)
            if known is None:
                missing.append(job)
            elif isinstance(known, Failure):
                stream.deliver(job, known, "journal")
            else:
                stream.deliver(job, stream.lane.model.decode(known), "cached")
        stream.dispatcher.enqueue(missing)

    def _idle(self) -> None:
        self.busy = False
        self._stream.dispatcher.wake.set()
