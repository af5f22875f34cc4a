"""Lanes to models that answer hours later: what is known goes on, what is missing is handed over.

A pass over such a lane looks every request up in the journal, then at the model for an answer that has come
since, and keeps what it finds there before handing it out. Requests that nobody has answered are collected;
once there are no more, they go to the model together, and `AwaitingAnswers` ends the pass. Running again
replays it from the journal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from engine.errors import AwaitingAnswers, InterruptedRunError
from engine.events import StageFinished, StageStarted
from engine.ports import BatchModel, Record
from engine.scheduler.codec import decode_answer, encode_answer
from engine.scheduler.job import NO_USAGE, Source
from engine.scheduler.shielded import finish
from engine.scheduler.totals import Totals
from engine.types import Answer, AttemptFailure, Failure, Request, Result

if TYPE_CHECKING:
    from engine.scheduler.scheduler import Scheduler

_CHUNK = 256


class ChatLane(Protocol):
    """What a stage asks, whatever kind of model stands behind it: `Lane[Request, Answer]` or `BatchLane`."""

    @property
    def name(self) -> str:
        """The model's name, as it stands in every cache key."""

    def stream(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        stage: str,
        total: int | None = None,
        ordered: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[Result[Answer]]]:
        """The results of all `requests`; see `Lane.stream`."""


class BatchLane:
    """Requests to one `BatchModel`.

    With `retry_failed` a request that the model has given up is handed over once more.
    """

    def __init__(self, scheduler: Scheduler, model: BatchModel, *, retry_failed: bool = False) -> None:
        self.scheduler = scheduler
        self.model = model
        self.retry_failed = retry_failed

    @property
    def name(self) -> str:
        """The model's name, as it stands in every cache key."""
        return self.model.name

    @asynccontextmanager
    async def stream(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        stage: str,
        total: int | None = None,
        ordered: bool = False,  # noqa: ARG002 - results never come in another order
    ) -> AsyncIterator[BatchStream]:
        """Ask all `requests`; iterate over what is answered, in their order.

        Once everything that is answered has been handed out, iterating raises `AwaitingAnswers` where
        requests are left: they have then been handed over durably. Results are on disk before they are
        handed out. Memory grows with the requests that have no answer, as they go out together; with others
        it does not.

        Iterating also raises `ModelError`, `InterruptedRunError` (nothing is handed over then), or what
        `requests` itself raised.
        """
        async with aclosing(_chunks(requests)) as chunks:
            stream = BatchStream(self, chunks, stage, total)
            self.scheduler.opened(stream)
            finished = False
            try:
                yield stream
                finished = True
            finally:
                self.scheduler.closed(stream)
                stream.report_end(failed=not finished)


class BatchStream:
    """The results of one pass; an async iterator. Made by `BatchLane.stream`."""

    attempts = 0  # nothing is ever in flight

    def __init__(
        self, lane: BatchLane, chunks: AsyncIterator[list[Request]], stage: str, total: int | None
    ) -> None:
        self.lane = lane
        self.stage = stage
        self.totals = Totals()
        self._scheduler = lane.scheduler
        self._chunks = chunks
        self._results: deque[Result[Answer]] = deque()
        self._missing: dict[bytes, list[Request]] = {}  # equal requests together: they are one
        self._stopping = self._scheduler.stopping
        self._began_at = self._scheduler.clock.monotonic()
        self._scheduler.emit(StageStarted(stage, total))

    def __aiter__(self) -> BatchStream:
        return self

    async def __anext__(self) -> Result[Answer]:
        while not self._results:
            if self._stopping:
                raise InterruptedRunError(
                    f"stopped in {self.stage}: {self.totals.done} requests are answered and saved; "
                    "run the same command again to go on"
                )
            if chunk := await anext(self._chunks, None):
                await self._answer(chunk, retry=self.lane.retry_failed)
            elif self._missing:
                await self._hand_over()
            else:
                raise StopAsyncIteration
        return self._results.popleft()

    def stop(self) -> None:
        """Hand nothing more over."""
        self._stopping = True

    def progress(self) -> None:
        """Tell the listener how far it is."""
        self._scheduler.emit(self.totals.progress(self.stage))

    def report_end(self, *, failed: bool) -> None:
        """The last events of the stage."""
        self.progress()
        if not failed:
            t = self.totals
            self._scheduler.emit(
                StageFinished(
                    self.stage,
                    f"{t.sent} answered, {t.cached} from the cache, {t.failed} failed",
                    self._scheduler.clock.monotonic() - self._began_at,
                )
            )

    async def _answer(self, requests: Sequence[Request], *, retry: bool) -> None:
        """Hand out what is known of these requests; keep the others for later.

        A failure that this run has given up counts only as long as no answer has come. With `retry` a new one
        is not given up but asked again.
        """
        groups: dict[bytes, list[Request]] = {}
        for request in requests:
            groups.setdefault(request.digest(self.lane.name), []).append(request)
        journal = self._scheduler.journal
        known = {} if journal is None else await journal.lookup(list(groups))
        asked = [group[0] for key, group in groups.items() if not isinstance(known.get(key), bytes)]
        replies = await self.lane.model.collect(asked) if asked else {}
        self._scheduler.tell(self.lane.model.remarks)
        outcomes: dict[bytes, tuple[Answer | Failure, Source]] = {}
        records: list[Record] = []
        for key, group in groups.items():
            kept, reply = known.get(key), replies.get(key)
            if isinstance(kept, bytes):
                outcomes[key] = decode_answer(kept), "cached"
            elif isinstance(reply, Answer):
                outcomes[key] = reply, "sent"
                records.append(self._record(key, group[0], reply))
            elif kept is not None:
                outcomes[key] = kept, "journal"
            elif reply is not None and reply.retry.kind == "no" and not retry:
                failure = Failure(group[0].id, reply.reason, reply.detail)
                outcomes[key] = failure, "sent"
                records.append(self._record(key, group[0], reply, failure))
            else:
                self._missing.setdefault(key, []).extend(group)
        if records and journal is not None:
            await finish(journal.commit(records))
        self._hand_out(requests, outcomes)

    def _record(
        self, key: bytes, request: Request, reply: Answer | AttemptFailure, failure: Failure | None = None
    ) -> Record:
        """What the journal keeps; it counts as used now."""
        usage = reply.usage if isinstance(reply, Answer) else reply.billed or NO_USAGE
        cost_usd = 0.0 if self.lane.model.price is None else self.lane.model.price.cost_usd(usage)
        self.totals.input_tokens += usage.input_tokens
        self.totals.output_tokens += usage.output_tokens
        self.totals.cost_usd += cost_usd
        payload = encode_answer(reply) if isinstance(reply, Answer) else None
        return Record(key, request.id, self.stage, self.lane.name, payload, failure, usage, cost_usd)

    def _hand_out(
        self, requests: Sequence[Request], outcomes: Mapping[bytes, tuple[Answer | Failure, Source]]
    ) -> None:
        seen: set[bytes] = set()
        for request in requests:
            key = request.digest(self.lane.name)
            if key not in outcomes:
                continue
            outcome, source = outcomes[key]
            if isinstance(outcome, Failure) and outcome.id != request.id:
                outcome = replace(outcome, id=request.id)
            result = Result(request.id, outcome, "shared" if key in seen else source)
            seen.add(key)
            self.totals.count(result)
            self._results.append(result)

    async def _hand_over(self) -> None:
        """Give the model what is missing. Raises `AwaitingAnswers` unless the answers are there already."""
        model = self.lane.model
        handed = await finish(model.submit([group[0] for group in self._missing.values()]))
        self._scheduler.tell(self.lane.model.remarks)
        if any([await model.poll(job) == "pending" for job in handed.jobs]):
            n, before = len(self._missing), handed.asked_before
            told = f", {'all' if before == n else before} of them asked before in vain" if before else ""
            raise AwaitingAnswers(
                f"waiting for answers to {n} request{'' if n == 1 else 's'} of {self.stage}{told}: "
                f"{handed.to_do}, then run the same command again"
                + (" without --retry-failed" if self.lane.retry_failed else "")
            )
        missing, self._missing = self._missing, {}
        await self._answer([request for group in missing.values() for request in group], retry=False)


async def _chunks(
    requests: Iterable[Request] | AsyncIterable[Request],
) -> AsyncGenerator[list[Request], None]:
    chunk: list[Request] = []
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            chunk.append(request)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    else:
        for request in requests:
            chunk.append(request)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk
