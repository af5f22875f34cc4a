"""A `BatchModel` in memory: a counter where jobs are handed over and answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.ports import FREE, Price, Submission
from engine.types import NO_RETRY, Answer, AttemptFailure, ChatOutcome, Request


@dataclass
class Job:
    keys: list[bytes]
    done: bool = False


@dataclass
class Counter:
    """What outlives a process: the jobs, and everything that came back, per request.

    `at_once` answers a job as soon as it is handed over.
    """

    jobs: list[Job] = field(default_factory=list)
    replies: dict[bytes, list[ChatOutcome]] = field(default_factory=dict)
    at_once: Mapping[bytes, ChatOutcome] | None = None

    def deliver(self, replies: Mapping[bytes, ChatOutcome]) -> None:
        """Every job under way is done, with these replies to what is in it."""
        for job in self.jobs:
            if not job.done:
                job.done = True
                for key in job.keys:
                    if key in replies:
                        self.replies.setdefault(key, []).append(replies[key])

    def jobs_of(self, key: bytes) -> list[int]:
        return [number for number, job in enumerate(self.jobs) if key in job.keys]

    @property
    def under_way(self) -> set[bytes]:
        return {key for job in self.jobs if not job.done for key in job.keys}


@dataclass
class InMemoryBatch:
    """A `BatchModel` over a counter. After three jobs without a usable answer a request is given up."""

    counter: Counter = field(default_factory=Counter)
    name: str = "batch"
    max_input_tokens: int = 100_000
    price: Price | None = FREE
    remarks: list[str] = field(default_factory=list)
    collected: list[int] = field(default_factory=list)

    async def submit(self, requests: Sequence[Request]) -> Submission:
        counter = self.counter
        jobs: set[int] = set()
        fresh: list[bytes] = []
        before = 0
        for request in requests:
            key = request.digest(self.name)
            mine = counter.jobs_of(key)
            if key in counter.under_way:
                jobs.add(mine[-1])
                before += len(mine) > 1
            elif self._answer(key) is not None:
                jobs.update(mine[-1:])
            else:
                fresh.append(key)
                before += bool(mine)
        if fresh:
            jobs.add(len(counter.jobs))
            counter.jobs.append(Job(fresh))
            if counter.at_once is not None:
                counter.deliver(counter.at_once)
        return Submission([f"job-{number}" for number in sorted(jobs)], before, "wait for the jobs")

    async def poll(self, job: str) -> Literal["pending", "done", "failed"]:
        for number, one in enumerate(self.counter.jobs):
            if job == f"job-{number}":
                return "done" if one.done else "pending"
        return "failed"

    async def collect(self, requests: Sequence[Request]) -> Mapping[bytes, ChatOutcome]:
        self.collected.append(len(requests))
        found: dict[bytes, ChatOutcome] = {}
        for request in requests:
            key = request.digest(self.name)
            replies = self.counter.replies.get(key, [])
            failures = [one for one in replies if isinstance(one, AttemptFailure)]
            final = [one for one in failures if one.retry.kind == "no"]
            if (answer := self._answer(key)) is not None:
                found[key] = answer
            elif final:
                found[key] = final[0]
            elif len(self.counter.jobs_of(key)) >= 3 and key not in self.counter.under_way:
                found[key] = AttemptFailure("unanswered", "3 jobs brought no usable answer", NO_RETRY)
            elif failures:
                found[key] = failures[-1]
        return found

    async def aclose(self) -> None:
        pass

    def _answer(self, key: bytes) -> Answer | None:
        return next((one for one in self.counter.replies.get(key, []) if isinstance(one, Answer)), None)
