"""The scheduler of one run: what its lanes share."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from engine.errors import BudgetError
from engine.events import EventSink, Notice, ignore_events
from engine.ports import FREE, BatchModel, ChatModel, Clock, Embedder, Journal, Price
from engine.scheduler.batch import BatchLane
from engine.scheduler.budget import Budget
from engine.scheduler.clock import SystemClock
from engine.scheduler.endpoint import ChatEndpoint, EmbedEndpoint
from engine.scheduler.job import Job
from engine.scheduler.lane import Lane
from engine.scheduler.limits import Limits
from engine.scheduler.retry import RetryPolicy
from engine.scheduler.totals import Totals
from engine.scheduler.vitals import Heartbeat
from engine.types import Answer, Embedding, EmbedRequest, Request


class Pass(Protocol):
    """A stream of any kind of lane, as far as the scheduler sees it."""

    stage: str
    totals: Totals

    @property
    def attempts(self) -> int:
        """How often the lane has asked its model so far."""

    def stop(self) -> None: ...

    def progress(self) -> None: ...


class Scheduler:
    """Requests in, outcomes out. Belongs to one event loop.

    - `journal`: where outcomes are looked up and kept; None: nothing is kept.
    - `budget`: the cap on cost of all lanes together; a model without a known price is then refused.
    - `max_uncommitted`: how many outcomes may wait for the journal beyond those in flight (C2).
    - `seed`: of the jitter in backoffs.
    """

    def __init__(
        self,
        journal: Journal | None,
        *,
        clock: Clock | None = None,
        emit: EventSink = ignore_events,
        budget: Budget | None = None,
        max_uncommitted: int = 256,
        seed: int = 0,
        policy: RetryPolicy | None = None,
    ) -> None:
        if max_uncommitted < 0:
            raise ValueError(f"max_uncommitted must be 0 or more, not {max_uncommitted}")
        self.journal = journal
        self.clock: Clock = clock or SystemClock()
        self.emit = emit
        self.budget = budget
        self.max_uncommitted = max_uncommitted
        self.rng = random.Random(seed)
        self.policy = policy or RetryPolicy()
        self.stopping = False
        self.jobs: dict[bytes, Job[Any, Any]] = {}  # every request under way, by its key (C3)
        self.heartbeat = Heartbeat(self._beat)
        self._streams: set[Pass] = set()
        self._seen = 0
        self._told: set[str] = set()
        self._stages: dict[str, Totals] = {}

    def chat(self, model: ChatModel, limits: Limits = Limits()) -> Lane[Request, Answer]:  # noqa: B008 - frozen
        """A lane to `model`. Create it once: limits hold per lane. Raises `BudgetError` without a price."""
        self._check_price(model.name, model.price)
        return Lane(self, ChatEndpoint(model), limits)

    def embed(self, embedder: Embedder, limits: Limits = Limits()) -> Lane[EmbedRequest, Embedding]:  # noqa: B008
        """A lane to `embedder`, under the same rules."""
        self._check_price(embedder.name, embedder.price)
        return Lane(self, EmbedEndpoint(embedder), limits)

    def batch(self, model: BatchModel, *, retry_failed: bool = False) -> BatchLane:
        """A lane to a model that answers hours later; `retry_failed` hands over again what it has given up.

        Raises `BudgetError` under a cap on cost for a model that bills: its jobs outlive the run that they
        would be counted in.
        """
        self._check_price(model.name, model.price)
        if self.budget is not None and model.price != FREE:
            raise BudgetError(
                f"{model.name}: the cap of ${self.budget.max_cost_usd:g} cannot be kept over batch jobs; run "
                "without a cap"
            )
        return BatchLane(self, model, retry_failed=retry_failed)

    def request_stop(self) -> None:
        """Send nothing more; what is in flight finishes and is kept, and streams raise `InterruptedRunError`.

        To be called on the event loop's thread; calling it again changes nothing.
        """
        self.stopping = True
        for stream in self._streams:
            stream.stop()

    @property
    def stage_totals(self) -> Mapping[str, Totals]:
        """The totals of each stage so far."""
        stages = {name: Totals() for name in self._stages}
        for name, totals in self._stages.items():
            stages[name].add(totals)
        for stream in self._streams:
            stages.setdefault(stream.stage, Totals()).add(stream.totals)
        return stages

    @property
    def totals(self) -> Totals:
        """The totals of all stages so far."""
        totals = Totals()
        for stage in self.stage_totals.values():
            totals.add(stage)
        return totals

    def tell(self, remarks: Iterable[str]) -> None:
        """Hand on what a model has to say, each line once."""
        for remark in remarks:
            if remark not in self._told:
                self._told.add(remark)
                self.emit(Notice(remark, warning=True))

    def opened(self, stream: Pass) -> None:
        """A stream has begun."""
        self._streams.add(stream)
        self.heartbeat.start()

    def closed(self, stream: Pass) -> None:
        """A stream has ended; its totals are final."""
        if stream in self._streams:
            self._streams.remove(stream)
            self._stages.setdefault(stream.stage, Totals()).add(stream.totals)
        if not self._streams:
            self.heartbeat.stop()

    def _beat(self) -> bool:
        """Tell how far everything is; whether anything has happened since the last time."""
        for stream in self._streams:
            stream.progress()
        seen = sum(stream.totals.done + stream.attempts for stream in self._streams)
        alive, self._seen = seen != self._seen, seen
        return alive

    def _check_price(self, name: str, price: Price | None) -> None:
        if self.budget is not None and price is None:
            raise BudgetError(
                f"the price of {name} is unknown, so the cap of ${self.budget.max_cost_usd:g} cannot be "
                'kept; add [prices."NAME"] with input = … and output = … (US dollars per million tokens) to '
                "the configuration, choose another model, or run without a cap"
            )
