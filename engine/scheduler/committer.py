"""Group commit: outcomes are kept together, then handed out (C2)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic

from engine.ports import Journal
from engine.scheduler.endpoint import QuestionT, ReplyT
from engine.scheduler.job import Job
from engine.scheduler.shielded import finish

if TYPE_CHECKING:
    from engine.scheduler.stream import Stream

_MAX_WAIT_S = 0.05
_ENOUGH = 128


class Committer(Generic[QuestionT, ReplyT]):
    """Gathers finished jobs and commits them: at once when nothing else is in flight, else when there are
    enough or the oldest has waited for 50 ms. (A sync per outcome costs four times the CPU.)"""

    def __init__(self, stream: Stream[QuestionT, ReplyT]) -> None:
        self._stream = stream
        self._finished: list[Job[QuestionT, ReplyT]] = []
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._enough = max(1, min(_ENOUGH, stream.scheduler.max_uncommitted // 2))
        self._sealed = False
        self._broken = False

    def add(self, jobs: Sequence[Job[QuestionT, ReplyT]], *, more_to_come: bool) -> None:
        """Take finished jobs over; `more_to_come`: others are in flight and may join the group."""
        if self._stream.scheduler.journal is None:
            if jobs:
                self._hand_out(jobs)
            return
        self._finished.extend(jobs)
        if self._finished:
            self._wake.set()
            if not more_to_come or len(self._finished) >= self._enough:
                self._urgent.set()

    def seal(self) -> None:
        """Nothing more will come."""
        self._sealed = True
        self._wake.set()
        self._urgent.set()

    async def run(self) -> None:
        """Commit until sealed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._finished:
                await self._gather()
                await self.save_the_rest()
            if self._sealed:
                return

    async def save_the_rest(self) -> None:
        """Commit what has finished, whatever is cancelled meanwhile."""
        if self._finished and not self._broken and self._stream.scheduler.journal is not None:
            jobs, self._finished = self._finished, []
            await finish(self._keep(self._stream.scheduler.journal, jobs))

    async def _gather(self) -> None:
        try:
            async with asyncio.timeout(_MAX_WAIT_S):
                await self._urgent.wait()
        except TimeoutError:
            pass
        if not self._sealed:
            self._urgent.clear()

    async def _keep(self, journal: Journal, jobs: Sequence[Job[QuestionT, ReplyT]]) -> None:
        stream = self._stream
        try:
            await journal.commit([job.record(stream.stage, stream.lane.model) for job in jobs])
        except BaseException:
            self._broken = True  # and so it will be for the rest
            raise
        self._hand_out(jobs)

    def _hand_out(self, jobs: Sequence[Job[QuestionT, ReplyT]]) -> None:
        stream = self._stream
        totals = stream.totals
        for job in jobs:
            totals.input_tokens += job.usage.input_tokens
            totals.output_tokens += job.usage.output_tokens
            totals.cost_usd += job.cost_usd
            stream.lane.forget(job)
            if job.outcome is not None:
                stream.deliver(job, job.outcome, "sent")
        stream.lane.wake()
