"""What becomes of an attempt: an answer, another try, or a failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic

from engine.errors import ModelError
from engine.events import Attempted, ConcurrencyChanged
from engine.ports import FREE, Reservation
from engine.scheduler.endpoint import QuestionT, ReplyT
from engine.scheduler.job import NO_USAGE, Job
from engine.scheduler.probation import Probation
from engine.types import AttemptFailure, Failure, Usage

if TYPE_CHECKING:
    from engine.scheduler.dispatcher import Dispatcher
    from engine.scheduler.stream import Stream


class Judge(Generic[QuestionT, ReplyT]):
    """Settles what attempts were billed and acts on the verdicts of the adapter."""

    def __init__(self, stream: Stream[QuestionT, ReplyT], dispatcher: Dispatcher[QuestionT, ReplyT]) -> None:
        self._stream = stream
        self._lane = stream.lane
        self._dispatcher = dispatcher
        self._clock = stream.scheduler.clock
        self._policy = stream.scheduler.policy
        self._probation: Probation[QuestionT, ReplyT] = Probation(self._lane.name, self._policy.same_failures)

    def judge(
        self,
        batch: Sequence[Job[QuestionT, ReplyT]],
        outcomes: Sequence[ReplyT | AttemptFailure],
        in_flight: int,
    ) -> None:
        """Keep what is final, send the rest again later; `in_flight` were at the model, these included.

        Raises `ModelError` when it is not worth going on.
        """
        lane = self._lane
        finished: list[Job[QuestionT, ReplyT]] = []
        hopeless: ModelError | None = None
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, AttemptFailure):
                try:
                    self._fail(job, outcome, in_flight)
                except ModelError as exc:
                    hopeless = exc
                    continue
                if job.outcome is not None:
                    finished.append(job)
                continue
            self.charge(job, outcome.usage)
            job.outcome = outcome
            finished.append(job)
            lane.pause.answered()
            lane.retries_left.answered()
            if not lane.congestion.settled:
                now = self._clock.monotonic()
                before = lane.congestion.limit
                lane.congestion.answered(now, now - job.sent_at, in_flight)
                if lane.congestion.limit > before:  # else the worker that has it now is the one to go on
                    self._dispatcher.wake.set()
        kept = self._probation.filter(finished)
        self._stream.committer.add(kept, more_to_come=self._dispatcher.in_flight > 0)
        if hopeless is not None:
            raise hopeless

    def release(self) -> None:
        """Nothing more is in flight: what was held back is kept now."""
        self._stream.committer.add(self._probation.release(), more_to_come=False)

    def charge(self, job: Job[QuestionT, ReplyT], usage: Usage | None) -> None:
        """Settle one attempt; None: its bill is unknown, so it counts with the most it can be."""
        lane = self._lane
        price = lane.model.price
        used = None
        if usage is None:
            job.charge(NO_USAGE, lane.model.most_cost_usd(job.request))
        else:
            tokens = usage.input_tokens + usage.output_tokens
            cost = 0.0 if price is FREE else price.cost_usd(usage)
            job.charge(usage, cost)
            lane.tokens += tokens
            if job.need is not None:
                used = Reservation(tokens, cost)
        if job.need is not None:
            if usage is not None and lane.limiter.counts_tokens:
                lane.sizes.learn(job.size, usage)
            lane.limiter.settle(job.need, used)
            job.need = None

    def _fail(self, job: Job[QuestionT, ReplyT], failed: AttemptFailure, in_flight: int) -> None:
        """Settle a failed attempt; the job has an outcome afterwards, or is sent again."""
        self.charge(job, None if failed.unknown_bill else failed.billed or NO_USAGE)
        if failed.retry.kind == "rate_limited":
            delay = self._refused(job, failed.retry.after_s, in_flight)
        else:
            self._lane.congestion.failed(self._clock.monotonic())
            delay = self._delay_s(job, failed)
        self._stream.scheduler.emit(
            Attempted(self._stream.stage, self._lane.name, job.request.id, job.attempts, failed.reason, delay)
        )
        if delay is None:
            tries = f" (after {job.attempts} attempts)" if job.attempts > 1 else ""
            job.outcome = Failure(job.request.id, failed.reason, failed.detail + tries)
        else:
            self._stream.totals.retries += 1
            self._dispatcher.again(job, delay)

    def _delay_s(self, job: Job[QuestionT, ReplyT], failed: AttemptFailure) -> float | None:
        """When to try again; None: never."""
        job.same_failures = job.same_failures + 1 if job.last_reason == failed.reason else 1
        job.last_reason = failed.reason
        if failed.retry.kind == "doubtful" and job.same_failures >= self._policy.believed_after:
            return None
        elapsed = self._clock.monotonic() - job.first_sent_at
        delay = self._policy.delay_s(job.attempts, elapsed, failed.retry, self._stream.scheduler.rng)
        self._lane.retries_left.widen(self._policy.max_attempts * self._lane.congestion.limit)
        if delay is not None and not self._lane.retries_left.take():
            raise ModelError(
                f"{self._lane.name} fails too often: {self._lane.retries_left.spent} attempts had to be "
                f"repeated (the last one: {failed.reason}{failed.detail and ': ' + failed.detail}); put that "
                "right and run the same command again (what is answered is saved)"
            )
        return delay

    def _refused(self, job: Job[QuestionT, ReplyT], after_s: float | None, in_flight: int) -> float | None:
        """The provider asks everyone to wait: when to try again; None: it has asked too long."""
        lane = self._lane
        limit = self._policy.max_rate_limited_s
        if (after_s or 0.0) > limit:
            raise ModelError(
                f"{lane.name} asks to wait {after_s:.0f} s before the next request, "
                f"longer than {limit:.0f} s; run the same command again then (what is answered is saved)"
            )
        job.attempts -= 1
        new_episode = lane.pause.extend(job.sent_at, after_s)
        pause = lane.pause.remaining_s()
        now = self._clock.monotonic()
        if lane.congestion.refused(now, pause, in_flight, sent_at=job.sent_at, new_episode=new_episode):
            self._stream.scheduler.emit(
                ConcurrencyChanged(self._stream.stage, lane.name, lane.congestion.limit, pause)
            )
        delay = lane.pause.remaining_s()
        job.rate_limited_s += delay
        return delay if job.rate_limited_s <= limit else None
