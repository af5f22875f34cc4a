"""C1 to C5 as properties: whatever the latencies, failures, limits and moments of death."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BudgetError, InterruptedRunError, ModelError
from engine.events import StageProgress
from engine.ports import Price, Record
from engine.scheduler import Budget, Limits, RetryPolicy, Scheduler
from engine.types import (
    NO_RETRY,
    TRANSIENT,
    Answer,
    AttemptFailure,
    ChatOutcome,
    Failure,
    Request,
    Result,
    Usage,
    rate_limited,
)
from tests.contracts.limiter import busiest_minute
from tests.support.fakes import InMemoryJournal, Listener, MemoryStore, ScriptedModel, request
from tests.support.virtual_time import run_virtual


@dataclass(frozen=True)
class World:
    """A model with its whims, limits, and requests of which some are equal."""

    seed: int
    n: int
    distinct: int
    max_batch: int
    concurrency: int
    max_uncommitted: int
    trouble: float
    latency_s: float
    commit_s: float
    lookup_s: float
    requests_per_minute: int | None
    tokens_per_minute: int | None
    asynchronous: bool

    def draw(self, *what: object) -> float:
        return random.Random(f"{self.seed} {what}").random()

    def script(self, text: str, attempt: int) -> ChatOutcome:
        usage = Usage(1 + int(4 * self.draw("in", text)), 1 + int(9 * self.draw("out", text, attempt)))
        if self.draw("trouble", text, attempt) >= self.trouble:
            return Answer(f"answer to {text}", usage)
        kind = self.draw("kind", text, attempt)
        if kind < 0.5:
            return AttemptFailure("server", "500", TRANSIENT, billed=usage if kind < 0.2 else None)
        if kind < 0.7:
            return AttemptFailure("rate_limited", "429", rate_limited(None if kind < 0.6 else 3.0))
        return AttemptFailure("blocked" if kind < 0.85 else "malformed", "", NO_RETRY, billed=usage)

    def latency(self, text: str, attempt: int) -> float:
        hang = 1000.0 if self.draw("hang", text, attempt) < self.trouble / 10 else 1.0
        return self.latency_s * self.draw("latency", text, attempt) * hang

    def model(self) -> ScriptedModel:
        return ScriptedModel(self.script, self.latency, max_batch=self.max_batch, price=Price(1e4, 1e5))

    def limits(self) -> Limits:
        return Limits(self.concurrency, self.requests_per_minute, self.tokens_per_minute)

    def requests(self) -> list[Request]:
        return [request(f"r{i}", f"t{int(self.draw('text', i) * self.distinct)}") for i in range(self.n)]

    def source(self) -> list[Request] | AsyncIterator[Request]:
        async def slowly() -> AsyncIterator[Request]:
            for i, item in enumerate(self.requests()):
                if self.draw("pause", i) < 0.05:
                    await asyncio.sleep(self.latency_s)
                yield item

        return slowly() if self.asynchronous else self.requests()

    def policy(self) -> RetryPolicy:
        return RetryPolicy(max_attempts=4, attempt_deadline_s=20.0, same_failures=0)


worlds = st.builds(
    World,
    seed=st.integers(0, 10_000),
    n=st.integers(0, 120),
    distinct=st.sampled_from([1, 20, 10_000]),
    max_batch=st.sampled_from([1, 1, 5, 64]),
    concurrency=st.integers(1, 20),
    max_uncommitted=st.sampled_from([0, 1, 10, 256]),
    trouble=st.sampled_from([0.0, 0.2, 0.7]),
    latency_s=st.sampled_from([0.0, 0.1, 2.0]),
    commit_s=st.sampled_from([0.0, 0.01, 0.4]),
    lookup_s=st.sampled_from([0.0, 0.05]),
    requests_per_minute=st.sampled_from([None, None, 90, 1000]),
    tokens_per_minute=st.sampled_from([None, None, 2000]),
    asynchronous=st.booleans(),
)


@dataclass
class Watch:
    """Looks on while a world runs, and checks what has to hold at every moment."""

    world: World
    model: ScriptedModel
    journal: InMemoryJournal
    results: list[Result[Answer]] = field(default_factory=list)
    started_with: frozenset[bytes] = frozenset()

    def __post_init__(self) -> None:
        self.started_with = self.known()
        self.model.on_send = self.look

    def known(self) -> frozenset[bytes]:
        store = self.journal.store
        return frozenset(store.answers) | {key for run, key in store.failures if run == self.journal.run_id}

    def digest(self, asked: Request) -> bytes:
        return asked.digest(self.model.name)

    def look(self, asked: Request) -> None:
        key = self.digest(asked)
        assert key not in self.known(), "never paid for twice (C3)"
        sent = {self.digest(request("x", text)) for text in self.model.attempts}
        still_open = len(sent - self.known())
        assert still_open <= self.world.concurrency + self.world.max_uncommitted, "C2"

    async def run(self, scheduler: Scheduler) -> None:
        lane = scheduler.chat(self.model, self.world.limits())
        asked = {item.id: item for item in self.world.requests()}
        try:
            async with lane.stream(self.world.source(), stage="s", total=self.world.n) as results:
                async for result in results:
                    assert self.digest(asked[result.id]) in self.known(), "not yielded before its commit (C2)"
                    self.results.append(result)
        finally:
            assert lane.in_flight == lane.open == self.model.in_flight == 0
            assert scheduler.jobs == {}
            assert scheduler.budget is None or scheduler.budget.reserved_usd == 0

    def check_limits(self) -> None:
        assert self.model.peak <= self.world.concurrency
        times = [time for time, _ in self.model.sends]
        if self.world.requests_per_minute:
            assert busiest_minute(times) <= self.world.requests_per_minute

    def check_complete(self) -> None:
        asked = self.world.requests()
        assert sorted(r.id for r in self.results) == sorted(a.id for a in asked), (
            "none lost, none doubled (C1)"
        )
        text = {a.id: a.messages[0].content for a in asked}
        for result in self.results:
            if isinstance(result.outcome, Answer):
                assert result.outcome.text == f"answer to {text[result.id]}"
            else:
                assert result.outcome.id == result.id
                assert result.outcome.reason in ("server", "rate_limited", "blocked", "malformed", "timeout")


@settings(max_examples=70, deadline=None)
@given(world=worlds)
def test_every_request_has_one_result_within_all_limits(world: World) -> None:
    async def check() -> None:
        watch = Watch(world, world.model(), InMemoryJournal(commit_s=world.commit_s, lookup_s=world.lookup_s))
        listener = Listener()
        scheduler = Scheduler(
            watch.journal, max_uncommitted=world.max_uncommitted, emit=listener, policy=world.policy()
        )
        await watch.run(scheduler)
        watch.check_complete()
        watch.check_limits()
        totals = scheduler.totals
        assert totals.sent + totals.cached == world.n
        assert totals.sent == len(watch.model.attempts)
        assert totals.failed == sum(isinstance(r.outcome, Failure) for r in watch.results)
        assert totals.sent + totals.retries == len(watch.model.sends)
        last = listener.progress[-1]
        assert (last.done, last.failed, last.in_flight) == (world.n, totals.failed, 0)

    run_virtual(check())


@settings(max_examples=50, deadline=None)
@given(world=worlds, after_s=st.floats(0.0, 8.0), how=st.sampled_from(["cancel", "stop", "leave"]))
def test_however_it_ends_it_can_go_on(world: World, after_s: float, how: str) -> None:
    """Cancelled, stopped or left at any moment: nothing finished is lost, the rest is sent exactly once."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        store = MemoryStore()
        first = Watch(world, world.model(), InMemoryJournal(store, commit_s=world.commit_s))
        scheduler = Scheduler(first.journal, max_uncommitted=world.max_uncommitted, policy=world.policy())
        if how == "stop":
            loop.call_later(after_s, scheduler.request_stop)
        try:
            async with asyncio.timeout(after_s if how == "cancel" else None):
                if how == "leave":
                    lane = scheduler.chat(first.model, world.limits())
                    async with lane.stream(world.source(), stage="s"):
                        await asyncio.sleep(after_s)
                else:
                    await first.run(scheduler)
        except (TimeoutError, InterruptedRunError):
            pass
        answered = sum(isinstance(o, Answer) for o in [r.outcome for r in first.results])
        assert len({r.id for r in first.results}) == len(first.results)
        assert answered == 0 or store.answers
        if how == "stop":
            in_store = len(store.answers) + len(store.failures)
            assert scheduler.totals.sent == in_store

        second = Watch(world, world.model(), InMemoryJournal(store, commit_s=world.commit_s))
        await second.run(
            Scheduler(second.journal, max_uncommitted=world.max_uncommitted, policy=world.policy())
        )
        second.check_complete()
        assert not second.started_with & {second.digest(request("x", text)) for text in second.model.attempts}

    run_virtual(check())


class DyingJournal(InMemoryJournal):
    """Keeps what it is given until the process dies; then nothing reaches the disk any more."""

    dead = False

    async def commit(self, records: Sequence[Record]) -> None:
        await asyncio.sleep(self.commit_s)
        if self.dead:
            raise ConnectionAbortedError
        for record in records:
            side = self.store.answers if record.payload is not None else self.store.failures
            side[record.key if record.payload is not None else (self.run_id, record.key)] = record  # type: ignore[index]


@settings(max_examples=50, deadline=None)
@given(world=worlds, after_s=st.floats(0.0, 8.0))
def test_a_crash_repeats_only_what_was_not_on_disk(world: World, after_s: float) -> None:
    """As after `kill -9`: what was counted is there, few are paid for twice (C2 says how many)."""

    async def check() -> None:
        store = MemoryStore()
        journal = DyingJournal(store, commit_s=world.commit_s)
        first = Watch(world, world.model(), journal)
        counted = 0
        on_disk_then: list[int] = []

        def listen(event: object) -> None:
            nonlocal counted
            if isinstance(event, StageProgress) and not journal.dead:
                counted = event.sent

        def die() -> None:
            journal.dead = True
            on_disk_then.append(len(store.answers) + len(store.failures))
            raise_in.cancel()

        scheduler = Scheduler(
            journal, max_uncommitted=world.max_uncommitted, policy=world.policy(), emit=listen
        )
        raise_in = asyncio.ensure_future(first.run(scheduler))
        timer = asyncio.get_running_loop().call_later(after_s, die)
        await asyncio.wait([raise_in])
        timer.cancel()
        if not raise_in.cancelled():
            raise_in.exception()
        if on_disk_then:
            assert len(store.answers) + len(store.failures) == on_disk_then[0]
            assert counted <= on_disk_then[0]

        sent_before = set(first.model.attempts)
        second = Watch(world, world.model(), InMemoryJournal(store))
        await second.run(
            Scheduler(second.journal, max_uncommitted=world.max_uncommitted, policy=world.policy())
        )
        second.check_complete()
        repeated = sent_before & set(second.model.attempts)
        assert len(repeated) <= world.concurrency + world.max_uncommitted

    run_virtual(check())


@settings(max_examples=50, deadline=None)
@given(world=worlds, cap=st.floats(0.0, 30.0), lanes=st.integers(1, 2))
def test_the_cap_on_cost_holds(world: World, cap: float, lanes: int) -> None:
    """What the model bills never passes the cap, lanes together; a hang counts with all it can cost."""

    async def check() -> None:
        budget = Budget(cap)
        scheduler = Scheduler(
            InMemoryJournal(commit_s=world.commit_s),
            max_uncommitted=world.max_uncommitted,
            policy=world.policy(),
            budget=budget,
        )
        models = [world.model() for _ in range(lanes)]
        for i, model in enumerate(models):
            model.name = f"model {i}"
        done = []

        async def one(model: ScriptedModel) -> None:
            async with scheduler.chat(model, world.limits()).stream(
                world.source(), stage=model.name
            ) as results:
                async for result in results:
                    done.append(result)
                    assert sum(m.cost_usd for m in models) <= cap

        outcomes = await asyncio.gather(*map(one, models), return_exceptions=True)
        for outcome in outcomes:
            assert outcome is None or isinstance(outcome, BudgetError | ModelError)
        assert sum(model.cost_usd for model in models) <= budget.spent_usd + 1e-9
        assert budget.spent_usd <= cap
        assert budget.reserved_usd == 0
        assert scheduler.totals.cost_usd == pytest.approx(budget.spent_usd)
        if all(outcome is None for outcome in outcomes):
            assert len(done) == lanes * world.n

    run_virtual(check())


@settings(max_examples=30, deadline=None)
@given(world=worlds, streams=st.integers(2, 3))
def test_streams_at_once_share_everything(world: World, streams: int) -> None:
    """Equal requests of several streams are sent once, and limits hold over all of them."""

    async def check() -> None:
        model = world.model()
        scheduler = Scheduler(
            InMemoryJournal(commit_s=world.commit_s, lookup_s=world.lookup_s),
            max_uncommitted=world.max_uncommitted,
            policy=world.policy(),
        )
        lane = scheduler.chat(model, world.limits())
        seen: list[list[Result[Answer]]] = [[] for _ in range(streams)]

        async def one(i: int) -> None:
            async with lane.stream(world.source(), stage=f"s{i}") as results:
                async for result in results:
                    seen[i].append(result)

        async with asyncio.TaskGroup() as group:
            for i in range(streams):
                group.create_task(one(i))
        for results in seen:
            assert sorted(r.id for r in results) == sorted(a.id for a in world.requests())
        assert scheduler.totals.sent == len(model.attempts)
        assert model.peak <= world.concurrency
        if world.requests_per_minute:
            assert busiest_minute([time for time, _ in model.sends]) <= world.requests_per_minute

    run_virtual(check())
