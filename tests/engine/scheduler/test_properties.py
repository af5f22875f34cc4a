"""C1 to C5 as properties: whatever the latencies, failures, limits and moments of death."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BudgetError, InterruptedRunError, ModelError
from engine.events import Attempted, StageProgress
from engine.ports import Price, Record
from engine.scheduler import Budget, Limits, RetryPolicy, Scheduler
from engine.types import (
    DOUBTFUL,
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
    ordered: bool = False
    episodes: Literal["none", "told", "untold"] = "none"
    hidden_concurrency: int | None = None

    def draw(self, *what: object) -> float:
        return random.Random(f"{self.seed} {what}").random()

    def script(self, text: str, attempt: int) -> ChatOutcome:
        usage = Usage(1 + int(4 * self.draw("in", text)), 1 + int(9 * self.draw("out", text, attempt)))
        if self.draw("trouble", text, attempt) >= self.trouble:
            return Answer(f"answer to {text}", usage)
        kind = self.draw("kind", text, attempt)
        if kind < 0.35:
            return AttemptFailure("server", "500", TRANSIENT, billed=usage if kind < 0.2 else None)
        if kind < 0.5:
            reason = "not_found" if self.draw("doubt", text, attempt) < 0.7 else "forbidden"
            return AttemptFailure(reason, "404", DOUBTFUL)
        if kind < 0.7:
            return AttemptFailure("rate_limited", "429", rate_limited(None if kind < 0.6 else 3.0))
        return AttemptFailure("blocked" if kind < 0.85 else "malformed", "", NO_RETRY, billed=usage)

    def latency(self, text: str, attempt: int) -> float:
        if self.max_batch == 1 and self.draw("hang", text, attempt) < self.trouble / 10:
            return 1e4
        return self.latency_s * self.draw("latency", text, attempt)

    def refusal(self, in_flight: int) -> AttemptFailure | None:
        """A second of every nine, for the first minutes, and whatever is above the hidden concurrency."""
        now = asyncio.get_running_loop().time() - 1000.0
        if self.episodes != "none" and now < 200.0 and (now + self.seed) % 9.0 < 1.0:
            after_s = 2.0 if self.episodes == "told" else None
            return AttemptFailure("rate_limited", "429", rate_limited(after_s))
        if self.hidden_concurrency is not None and in_flight >= self.hidden_concurrency:
            return AttemptFailure("rate_limited", "503", rate_limited())
        return None

    def model(self) -> ScriptedModel:
        return ScriptedModel(
            self.script,
            self.latency,
            max_batch=self.max_batch,
            price=Price(1e4, 1e5),
            refuse=self.refusal,
            bill_of_lost=Usage(5, 10),  # a provider may well bill what nobody has waited for
        )

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
        return RetryPolicy(max_attempts=4, attempt_deadline_s=20.0, same_failures=0, retry_share=10.0)


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
    ordered=st.booleans(),
    episodes=st.sampled_from(["none", "none", "told", "untold"]),
    hidden_concurrency=st.sampled_from([None, None, 1, 3, 10]),
)


REASONS = {"server", "not_found", "forbidden", "rate_limited", "blocked", "malformed", "timeout"}


@dataclass
class Watch:
    """Looks on while a world runs, and checks what has to hold at every moment."""

    world: World
    model: ScriptedModel
    journal: InMemoryJournal
    results: list[Result[Answer]] = field(default_factory=list)
    started_with: frozenset[bytes] = frozenset()
    open: set[bytes] = field(default_factory=set)
    refused: int = 0

    def __post_init__(self) -> None:
        self.started_with = self.known()
        self.model.on_send = self.look
        refuse = self.model.refuse

        def counting(in_flight: int) -> AttemptFailure | None:
            refusal = refuse(in_flight)
            self.refused += self.model.batches[-1] if refusal is not None else 0
            return refusal

        self.model.refuse = counting

    def known(self) -> frozenset[bytes]:
        store = self.journal.store
        return frozenset(store.answers) | {key for run, key in store.failures if run == self.journal.run_id}

    def digest(self, asked: Request) -> bytes:
        return asked.digest(self.model.name)

    def look(self, asked: Request) -> None:
        key = self.digest(asked)
        assert not self.journal.knows(key), "never paid for twice (C3)"
        self.open = {sent for sent in self.open if not self.journal.knows(sent)} | {key}
        assert len(self.open) <= self.world.concurrency + self.world.max_uncommitted, "C2"

    async def run(self, scheduler: Scheduler) -> None:
        lane = scheduler.chat(self.model, self.world.limits())
        asked = {item.id: item for item in self.world.requests()}
        try:
            async with lane.stream(
                self.world.source(), stage="s", total=self.world.n, ordered=self.world.ordered
            ) as results:
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
        found = [r.id for r in self.results]
        assert sorted(found) == sorted(a.id for a in asked), "none lost, none doubled (C1)"
        assert not self.world.ordered or found == [a.id for a in asked]
        text = {a.id: a.messages[0].content for a in asked}
        for result in self.results:
            if isinstance(result.outcome, Answer):
                assert result.outcome.text == f"answer to {text[result.id]}"
            else:
                assert result.outcome.id == result.id
                assert result.outcome.reason in REASONS


async def check_every_request(world: World) -> None:
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
    assert [event.done for event in listener.progress] == sorted(event.done for event in listener.progress)
    tried_again = [e for e in listener.events if isinstance(e, Attempted) and e.delay_s is not None]
    assert len(tried_again) == totals.retries


@settings(max_examples=200)
@given(world=worlds)
def test_every_request_has_one_result_within_all_limits(world: World) -> None:
    run_virtual(check_every_request(world))


@pytest.mark.slow
@settings(max_examples=2000)
@given(world=worlds)
def test_every_request_has_one_result_at_length(world: World) -> None:
    run_virtual(check_every_request(world))


# --- however it ends ---------------------------------------------------------------------------------

moments = st.floats(0.0, 8.0) | st.floats(0.0, 300.0)
ends = st.sampled_from(["cancel", "stop", "leave", "stop and cancel"])


async def check_it_can_go_on(world: World, after_s: float, how: str) -> None:
    loop = asyncio.get_running_loop()
    store = MemoryStore()
    first = Watch(world, world.model(), InMemoryJournal(store, commit_s=world.commit_s))
    scheduler = Scheduler(first.journal, max_uncommitted=world.max_uncommitted, policy=world.policy())
    stopping = loop.call_later(after_s, scheduler.request_stop) if how.startswith("stop") else None
    cancel_after_s = {"cancel": after_s, "stop and cancel": after_s + 0.05}.get(how)
    cut_short = False
    try:
        async with asyncio.timeout(cancel_after_s):
            if how == "leave":
                lane = scheduler.chat(first.model, world.limits())
                async with lane.stream(world.source(), stage="s", ordered=world.ordered):
                    await asyncio.sleep(after_s)
            else:
                await first.run(scheduler)
    except InterruptedRunError:
        pass
    except TimeoutError:
        cut_short = True
    if stopping is not None:
        stopping.cancel()
    found = [r.id for r in first.results]
    assert len(set(found)) == len(found)
    if world.ordered:
        assert found == [item.id for item in world.requests()[: len(found)]], "what came first, in turn"
    if how == "stop":
        assert scheduler.totals.sent == len(store.answers) + len(store.failures)
    if not cut_short and how != "leave":
        assert len(first.model.billed) == len(first.model.sends) - first.refused, "all were waited for"

    second = Watch(world, world.model(), InMemoryJournal(store, commit_s=world.commit_s))
    await second.run(Scheduler(second.journal, max_uncommitted=world.max_uncommitted, policy=world.policy()))
    second.check_complete()
    assert not second.started_with & {second.digest(request("x", text)) for text in second.model.attempts}


@settings(max_examples=150)
@given(world=worlds, after_s=moments, how=ends)
def test_however_it_ends_it_can_go_on(world: World, after_s: float, how: str) -> None:
    """Cancelled, stopped or left at any moment: nothing finished is lost, the rest is sent exactly once."""
    run_virtual(check_it_can_go_on(world, after_s, how))


@pytest.mark.slow
@settings(max_examples=1500)
@given(world=worlds, after_s=moments, how=ends)
def test_however_it_ends_at_length(world: World, after_s: float, how: str) -> None:
    run_virtual(check_it_can_go_on(world, after_s, how))


class DyingJournal(InMemoryJournal):
    """Keeps what it is given until the process dies; then nothing reaches the disk any more.

    A commit that is under way then is lost, or, with `early`, on disk although nobody was told.
    """

    dead = False

    def __init__(self, store: MemoryStore, *, commit_s: float, early: bool) -> None:
        super().__init__(store, commit_s=commit_s)
        self.early = early

    async def commit(self, records: Sequence[Record]) -> None:
        if self.dead:
            raise ConnectionAbortedError
        if self.early:
            self._write(records)
        await asyncio.sleep(self.commit_s)
        if self.dead:
            raise ConnectionAbortedError
        if not self.early:
            self._write(records)

    def _write(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.payload is not None:
                self.store.answers[record.key] = record
            else:
                self.store.failures[self.run_id, record.key] = record


async def check_a_crash(world: World, after_s: float, early: bool) -> None:
    store = MemoryStore()
    journal = DyingJournal(store, commit_s=world.commit_s, early=early)
    first = Watch(world, world.model(), journal)
    counted = handed_out = 0
    on_disk_then: list[int] = []

    def listen(event: object) -> None:
        nonlocal counted
        if isinstance(event, StageProgress) and not journal.dead:
            counted = event.sent

    def die() -> None:
        nonlocal handed_out
        journal.dead = True
        handed_out = len(first.results)
        on_disk_then.append(len(store.answers) + len(store.failures))
        running.cancel()

    scheduler = Scheduler(journal, max_uncommitted=world.max_uncommitted, policy=world.policy(), emit=listen)
    running = asyncio.ensure_future(first.run(scheduler))
    timer = asyncio.get_running_loop().call_later(after_s, die)
    await asyncio.wait([running])
    timer.cancel()
    if not running.cancelled():
        running.exception()
    if on_disk_then:
        assert len(store.answers) + len(store.failures) == on_disk_then[0]
        assert counted <= on_disk_then[0], "what progress has counted is on disk"

    sent_before = set(first.model.attempts)
    second = Watch(world, world.model(), InMemoryJournal(store))
    await second.run(Scheduler(second.journal, max_uncommitted=world.max_uncommitted, policy=world.policy()))
    second.check_complete()
    again = {r.id: r for r in second.results}
    for result in first.results[:handed_out]:
        assert again[result.id].outcome == result.outcome, "what was handed out is what the next run sees"
        assert again[result.id].source != "sent"
    repeated = sent_before & set(second.model.attempts)
    assert len(repeated) <= world.concurrency + world.max_uncommitted


@settings(max_examples=150)
@given(world=worlds, after_s=moments, early=st.booleans())
def test_a_crash_repeats_only_what_was_not_on_disk(world: World, after_s: float, early: bool) -> None:
    """As after `kill -9`: what was counted is there, few are paid for twice (C2 says how many)."""
    run_virtual(check_a_crash(world, after_s, early))


@pytest.mark.slow
@settings(max_examples=1500)
@given(world=worlds, after_s=moments, early=st.booleans())
def test_a_crash_at_length(world: World, after_s: float, early: bool) -> None:
    run_virtual(check_a_crash(world, after_s, early))


# --- several streams ---------------------------------------------------------------------------------


async def check_streams(world: World, streams: int, left_after_s: float | None) -> None:
    model = world.model()
    journal = InMemoryJournal(commit_s=world.commit_s, lookup_s=world.lookup_s)
    scheduler = Scheduler(journal, max_uncommitted=world.max_uncommitted, policy=world.policy())
    lane = scheduler.chat(model, world.limits())
    seen: list[list[Result[Answer]]] = [[] for _ in range(streams)]

    async def one(i: int) -> None:
        async with lane.stream(world.source(), stage=f"s{i}", ordered=world.ordered) as results:
            async for result in results:
                seen[i].append(result)

    async def leaves() -> None:
        if left_after_s is not None:
            async with lane.stream(world.source(), stage="left"):
                await asyncio.sleep(left_after_s)

    async with asyncio.TaskGroup() as group:
        group.create_task(leaves())
        for i in range(streams):
            group.create_task(one(i))
    asked = [item.id for item in world.requests()]
    for results in seen:
        found = [r.id for r in results]
        assert found == asked if world.ordered else sorted(found) == sorted(asked)
    if left_after_s is None:
        assert scheduler.totals.sent == len(model.attempts)
        assert scheduler.totals.sent + scheduler.totals.retries == len(model.sends)
    assert model.peak <= world.concurrency
    if world.requests_per_minute:
        assert busiest_minute([time for time, _ in model.sends]) <= world.requests_per_minute
    assert lane.in_flight == lane.open == model.in_flight == 0
    assert scheduler.jobs == {}


@settings(max_examples=100)
@given(world=worlds, streams=st.integers(1, 3), left_after_s=st.none() | moments)
def test_streams_at_once_share_everything(world: World, streams: int, left_after_s: float | None) -> None:
    """Equal requests of several streams are sent once, limits hold over all of them, and one may be left."""
    run_virtual(check_streams(world, streams, left_after_s))


@pytest.mark.slow
@settings(max_examples=1000)
@given(world=worlds, streams=st.integers(1, 3), left_after_s=st.none() | moments)
def test_streams_at_once_at_length(world: World, streams: int, left_after_s: float | None) -> None:
    run_virtual(check_streams(world, streams, left_after_s))


# --- the cap on cost ---------------------------------------------------------------------------------


async def spend(world: World, budget: Budget, lanes: int, stop_after_s: float | None = None) -> float:
    """Run the world in so many lanes under one budget; returns what the models have billed, in dollars."""
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
        lane = scheduler.chat(model, world.limits())
        async with lane.stream(world.source(), stage=model.name, ordered=world.ordered) as results:
            async for result in results:
                done.append(result)  # noqa: PERF401

    if stop_after_s is not None:
        asyncio.get_running_loop().call_later(stop_after_s, scheduler.request_stop)
    outcomes = await asyncio.gather(*map(one, models), return_exceptions=True)
    for outcome in outcomes:
        assert outcome is None or isinstance(outcome, BudgetError | ModelError | InterruptedRunError)
    if all(outcome is None for outcome in outcomes):
        assert len(done) == lanes * world.n
    assert scheduler.totals.cost_usd == pytest.approx(budget.spent_usd)
    assert budget.reserved_usd == 0
    return sum(model.cost_usd for model in models)


async def check_the_cap(world: World, cap: float, lanes: int, stop_after_s: float | None) -> None:
    budget = Budget(cap)
    billed = await spend(world, budget, lanes, stop_after_s)
    assert billed <= budget.spent_usd + 1e-9
    assert budget.spent_usd <= cap


@settings(max_examples=150)
@given(world=worlds, cap=st.floats(0.0, 30.0), lanes=st.integers(1, 3), stop_after_s=st.none() | moments)
def test_the_cap_on_cost_holds(world: World, cap: float, lanes: int, stop_after_s: float | None) -> None:
    """What the models bill never passes the cap, lanes together; a hang counts with all it can cost."""
    run_virtual(check_the_cap(world, cap, lanes, stop_after_s))


@pytest.mark.slow
@settings(max_examples=1500)
@given(world=worlds, cap=st.floats(0.0, 30.0), lanes=st.integers(1, 3), stop_after_s=st.none() | moments)
def test_the_cap_on_cost_at_length(world: World, cap: float, lanes: int, stop_after_s: float | None) -> None:
    run_virtual(check_the_cap(world, cap, lanes, stop_after_s))


class CarelessBudget(Budget):
    """Looks at what is spent before it sends, as most tools do, and sets nothing aside."""

    def take(self, cost_usd: float) -> None:
        pass

    def settle(self, reserved_usd: float, used_usd: float | None) -> None:
        super().settle(0.0, reserved_usd if used_usd is None else used_usd)


def test_without_setting_aside_the_cap_would_be_passed() -> None:
    """The property above has teeth: in the same worlds a budget that only looks spends too much."""
    passed = 0
    for seed in range(30):
        world = World(
            seed=seed,
            n=100,
            distinct=10_000,
            max_batch=1,
            concurrency=1 + seed % 20,
            max_uncommitted=10,
            trouble=0.2,
            latency_s=2.0,
            commit_s=0.01,
            lookup_s=0.0,
            requests_per_minute=None,
            tokens_per_minute=None,
            asynchronous=False,
        )
        cap = 4.0 + seed
        passed += run_virtual(spend(world, CarelessBudget(cap), 2)) > cap
        run_virtual(check_the_cap(world, cap, 2, None))
    assert passed >= 10
