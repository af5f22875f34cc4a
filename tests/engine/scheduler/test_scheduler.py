"""The scheduler's contracts, each on its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

from engine.errors import BudgetError, InterruptedRunError, ModelError, RunError
from engine.events import StageProgress
from engine.ports import Price
from engine.scheduler import Budget, Lane, Limits, RetryPolicy, Scheduler
from engine.types import (
    NO_RETRY,
    TRANSIENT,
    Answer,
    AttemptFailure,
    ChatOutcome,
    Embedding,
    EmbedRequest,
    Failure,
    Request,
    Result,
    Usage,
    rate_limited,
)
from tests.contracts.limiter import busiest_minute
from tests.support.fakes import (
    InMemoryJournal,
    Listener,
    MemoryStore,
    ScriptedEmbedder,
    ScriptedModel,
    echo,
    request,
    requests,
)
from tests.support.virtual_time import run_virtual


async def collect(lane: Lane[Request, Answer], asked: Any, stage: str = "stage") -> list[Result[Answer]]:
    async with lane.stream(asked, stage=stage) as results:
        return [result async for result in results]


async def collect_into(seen: list[Result[Answer]], lane: Lane[Request, Answer], asked: Any) -> None:
    """Like `collect`, but what came before an error is there."""
    async with lane.stream(asked, stage="stage") as results:
        async for result in results:
            seen.append(result)  # noqa: PERF401


def slow(text: str, attempt: int) -> float:
    return 0.2


# --- results -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 7, 512])
@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize("n", [0, 1, 1000])
def test_every_request_gets_its_own_answer(max_batch: int, journal: bool, n: int) -> None:
    async def check() -> None:
        model = ScriptedModel(max_batch=max_batch)
        scheduler = Scheduler(InMemoryJournal() if journal else None)
        results = await collect(scheduler.chat(model), requests(n))
        assert sorted((r.id, r.outcome.text) for r in results if isinstance(r.outcome, Answer)) == sorted(
            (f"r{i}", f"answer to r{i}") for i in range(n)
        )
        assert {r.source for r in results} <= {"sent"}
        assert scheduler.totals.sent == n
        assert scheduler.totals.input_tokens == scheduler.totals.output_tokens == 5 * n

    run_virtual(check())


def test_embeddings_come_back_whole_from_model_and_cache() -> None:
    async def check() -> None:
        store = MemoryStore()
        embedder = ScriptedEmbedder(refuse=frozenset({"text 3"}))
        asked = [EmbedRequest(f"e{i}", f"text {i}") for i in range(10)]
        for expected in ("sent", "cached"):
            lane = Scheduler(InMemoryJournal(store)).embed(embedder)
            async with lane.stream(asked, stage="embedding") as results:
                found = {r.id: r async for r in results}
            for i in range(10):
                outcome = found[f"e{i}"].outcome
                if i == 3:
                    assert outcome == Failure("e3", "refused", "this text cannot be embedded")
                else:
                    assert isinstance(outcome, Embedding)
                    assert found[f"e{i}"].source == expected
                    assert outcome.vector.dtype == "float32"
                    assert outcome.vector.tobytes() == embedder.vector(f"text {i}").tobytes()
        assert len(embedder.seen) == 10

    run_virtual(check())


def test_batches_fill_up() -> None:
    async def check() -> None:
        model = ScriptedModel(max_batch=512, latency_s=slow)
        await collect(Scheduler(None).chat(model), requests(2048))
        assert model.batches == [512] * 4

    run_virtual(check())


def test_a_slow_source_holds_nothing_back() -> None:
    async def slowly() -> AsyncIterator[Request]:
        for item in requests(5):
            yield item
            await asyncio.sleep(10)

    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        model = ScriptedModel(max_batch=100)
        async with Scheduler(InMemoryJournal()).chat(model).stream(slowly(), stage="s") as results:
            arrived = [loop.time() - began async for _ in results]
        assert arrived == pytest.approx([0, 10, 20, 30, 40], abs=0.1)

    run_virtual(check())


def test_a_source_may_depend_on_earlier_results() -> None:
    async def check() -> None:
        more: asyncio.Queue[Request | None] = asyncio.Queue()

        async def source() -> AsyncIterator[Request]:
            while (item := await more.get()) is not None:
                yield item

        def fail(text: str, attempt: int) -> ChatOutcome:
            return AttemptFailure("malformed")

        more.put_nowait(request("r0"))
        seen = 0
        async with (
            Scheduler(InMemoryJournal()).chat(ScriptedModel(fail)).stream(source(), stage="s") as results
        ):
            async for _ in results:
                seen += 1
                more.put_nowait(request(f"r{seen}") if seen < 15 else None)
        assert seen == 15

    run_virtual(check())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failing_source_loses_nothing_that_came_before(asynchronous: bool) -> None:
    def source() -> Iterator[Request]:
        yield from requests(30)
        raise RunError("row 31 is unreadable")

    async def asynchronously() -> AsyncIterator[Request]:
        for item in source():
            yield item

    async def check() -> None:
        seen: list[Result[Answer]] = []
        lane = Scheduler(InMemoryJournal()).chat(ScriptedModel(latency_s=slow))
        with pytest.raises(RunError, match="row 31"):
            await collect_into(seen, lane, asynchronously() if asynchronous else source())
        assert len(seen) == 30

    run_virtual(check())


# --- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_batch", "concurrency"), [(1, 1), (1, 10), (4, 10), (100, 30), (100, 150)])
def test_concurrency_counts_requests(max_batch: int, concurrency: int) -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=slow, max_batch=max_batch)
        lane = Scheduler(InMemoryJournal()).chat(model, Limits(concurrency=concurrency))
        await collect(lane, requests(400))
        assert model.peak == concurrency

    run_virtual(check())


def test_streams_of_one_lane_share_its_slots() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=slow)
        lane = Scheduler(InMemoryJournal()).chat(model, Limits(concurrency=8, requests_per_minute=6000))
        async with asyncio.TaskGroup() as group:
            for s in range(3):
                group.create_task(collect(lane, [request(f"s{s}-{i}") for i in range(50)]))
        assert model.peak == 8
        assert len(model.sends) == 150

    run_virtual(check())


@pytest.mark.parametrize("max_batch", [1, 16])
def test_requests_per_minute_hold_across_streams_and_retries(max_batch: int) -> None:
    def flaky(text: str, attempt: int) -> ChatOutcome:
        return AttemptFailure("server", "", TRANSIENT) if attempt < 2 else echo(text, attempt)

    async def check() -> None:
        model = ScriptedModel(flaky, latency_s=slow, max_batch=max_batch)
        lane = Scheduler(InMemoryJournal()).chat(model, Limits(requests_per_minute=300))
        for s in range(2):
            await collect(lane, [request(f"s{s}-{i}") for i in range(200)])
        times = [time for time, _ in model.sends]
        assert len(times) == 800
        assert busiest_minute(times) <= 300
        assert times[-1] - times[0] < 170

    run_virtual(check())


def test_tokens_per_minute_hold_by_real_usage() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=slow)  # 10 tokens each, about 27 as estimated
        lane = Scheduler(None).chat(model, Limits(tokens_per_minute=2000))
        await collect(lane, requests(1200))
        times = [time for time, _ in model.sends]
        assert busiest_minute(times) * 10 <= 2000
        assert times[-1] - times[0] < 410  # the first 64 went by the rule of thumb

    run_virtual(check())


def test_memory_is_constant_in_the_number_of_requests() -> None:
    async def check() -> None:
        pulled = 0

        def source() -> Iterator[Request]:
            nonlocal pulled
            for pulled in range(1, 5001):
                yield request(f"r{pulled}" if pulled % 3 else "r-equal")

        scheduler = Scheduler(InMemoryJournal(), max_uncommitted=32)
        lane = scheduler.chat(ScriptedModel(latency_s=slow), Limits(concurrency=16))
        taken = 0
        async with lane.stream(source(), stage="s") as results:
            async for _ in results:
                taken += 1
                assert pulled - taken <= 16 + 32 + 2 * 256 + 256
                assert len(scheduler.jobs) <= 16 + 32 + 2 * 256 + 256
                if taken == 100:
                    await asyncio.sleep(100)  # a consumer that falls behind stops the source
        assert taken == 5000

    run_virtual(check())


# --- the journal -------------------------------------------------------------------------------------


def test_nothing_is_handed_out_or_counted_before_it_is_on_disk() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=lambda text, attempt: int(text[1:]) % 7 / 100)
        journal = InMemoryJournal(commit_s=0.03)
        on_disk = 0

        def listen(event: object) -> None:
            if isinstance(event, StageProgress):
                assert event.done <= len(journal.store.answers)

        lane = Scheduler(journal, max_uncommitted=20, emit=listen).chat(model, Limits(concurrency=10))

        def bounded(asked: Request) -> None:
            open_now = len(model.attempts) - len(journal.store.answers)
            assert open_now <= 30

        model.on_send = bounded
        asked = {item.id: item for item in requests(500)}
        async with lane.stream(asked.values(), stage="s") as results:
            async for result in results:
                on_disk += 1
                assert journal.knows(asked[result.id].digest(model.name))
        assert on_disk == 500
        assert len(journal.commits) < 250, "commits are grouped"

    run_virtual(check())


def test_waiting_retries_count_as_open() -> None:
    def down(text: str, attempt: int) -> ChatOutcome:
        return AttemptFailure("server", "", TRANSIENT) if attempt < 4 else echo(text, attempt)

    async def check() -> None:
        model = ScriptedModel(down)
        journal = InMemoryJournal(commit_s=0.01)
        lane = Scheduler(journal, max_uncommitted=5, policy=RetryPolicy(retry_share=5.0)).chat(
            model, Limits(concurrency=4)
        )

        def bounded(asked: Request) -> None:
            assert len(model.attempts) - len(journal.store.answers) <= 9

        model.on_send = bounded
        results = await collect(lane, requests(100))
        assert len(results) == 100

    run_virtual(check())


def test_equal_requests_are_sent_once() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=slow)
        scheduler = Scheduler(InMemoryJournal())
        lane = scheduler.chat(model)
        asked = [request(f"r{i}", f"text {i % 10}") for i in range(1000)]
        results = await collect(lane, asked)
        assert sorted(r.id for r in results) == sorted(a.id for a in asked)
        assert all(
            isinstance(r.outcome, Answer) and r.outcome.text == f"answer to text {int(r.id[1:]) % 10}"
            for r in results
        )
        assert set(model.attempts.values()) == {1}
        assert len(model.sends) == 10
        assert {r.source for r in results} <= {"sent", "shared", "cached"}
        assert scheduler.totals.sent == 10
        assert scheduler.totals.cached == 990

    run_virtual(check())


def test_equal_failures_carry_the_id_of_their_own_request() -> None:
    def fail(text: str, attempt: int) -> ChatOutcome:
        return AttemptFailure("malformed", "no JSON")

    async def check() -> None:
        store = MemoryStore()
        asked = [request(f"r{i}", "same") for i in range(5)]
        for sources in ({"sent", "shared"}, {"journal", "shared"}):
            scheduler = Scheduler(InMemoryJournal(store))
            results = await collect(scheduler.chat(ScriptedModel(fail)), asked)
            assert sorted((r.id, r.outcome) for r in results) == [
                (f"r{i}", Failure(f"r{i}", "malformed", "no JSON")) for i in range(5)
            ]
            assert {r.source for r in results} == sources
            assert scheduler.totals.failed == 5

    run_virtual(check())


def test_equal_requests_of_two_streams_are_sent_once_even_if_one_is_left() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=lambda text, attempt: 1.0)
        scheduler = Scheduler(InMemoryJournal(lookup_s=0.01))
        lane, other = scheduler.chat(model), scheduler.chat(model)

        async def leave_early() -> None:
            async with lane.stream(requests(5), stage="a"):
                await asyncio.sleep(0.5)

        async def stay() -> list[Result[Answer]]:
            await asyncio.sleep(0.1)
            return await collect(other, [request(f"other {i}", f"r{i}") for i in range(5)], "b")

        async with asyncio.TaskGroup() as group:
            group.create_task(leave_early())
            staying = group.create_task(stay())
            together = group.create_task(stay())
        for task in (staying, together):
            assert sorted(r.id for r in task.result()) == [f"other {i}" for i in range(5)]
        assert set(model.attempts.values()) == {2}, (
            "once for the stream that left, once for the two that stayed"
        )
        assert scheduler.jobs == {}

    run_virtual(check())


def test_a_journal_that_fails_stops_the_job_with_its_error() -> None:
    async def check() -> None:
        journal = InMemoryJournal()
        lane = Scheduler(journal).chat(ScriptedModel(latency_s=slow), Limits(concurrency=5))
        asyncio.get_running_loop().call_later(0.9, setattr, journal, "broken", RunError("disk full"))
        seen: list[Result[Answer]] = []
        with pytest.raises(RunError, match="disk full"):
            await collect_into(seen, lane, requests(100))
        assert 0 < len(seen) == len(journal.store.answers)
        assert lane.in_flight == lane.open == 0

    run_virtual(check())


# --- retries -----------------------------------------------------------------------------------------


def test_transient_failures_are_repeated_without_holding_a_slot() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return (
            AttemptFailure("server", "500", TRANSIENT)
            if text == "r0" and attempt < 3
            else echo(text, attempt)
        )

    async def check() -> None:
        loop = asyncio.get_running_loop()
        model = ScriptedModel(script, latency_s=lambda text, attempt: 0.01)
        scheduler = Scheduler(InMemoryJournal(), policy=RetryPolicy(base_delay_s=20.0))
        lane = scheduler.chat(model, Limits(concurrency=1))
        order, times = [], []
        async with lane.stream(requests(50), stage="s") as results:
            async for result in results:
                order.append(result.id)
                times.append(loop.time())
        assert order[-1] == "r0", "the others did not wait for it"
        assert times[-2] - times[0] < 1
        assert scheduler.totals.retries == 2

    run_virtual(check())


def test_retries_end_in_a_failure_that_says_so() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        if text == "r1":
            return AttemptFailure("server", "500", TRANSIENT, billed=Usage(10, 1))
        if text == "r2":
            return AttemptFailure("blocked", "safety", NO_RETRY)
        return echo(text, attempt)

    async def check() -> None:
        model = ScriptedModel(script, price=Price(1e6, 1e6))
        scheduler = Scheduler(InMemoryJournal())
        results = {r.id: r for r in await collect(scheduler.chat(model), requests(4))}
        assert results["r1"].outcome == Failure("r1", "server", "500 (after 6 attempts)")
        assert results["r2"].outcome == Failure("r2", "blocked", "safety")
        assert model.attempts == {"r0": 1, "r1": 6, "r2": 1, "r3": 1}
        totals = scheduler.totals
        assert (totals.sent, totals.failed, totals.retries) == (4, 2, 5)
        assert totals.cost_usd == pytest.approx(2 * 10 + 6 * 11)

    run_virtual(check())


def test_an_attempt_has_a_deadline_and_an_unknown_bill() -> None:
    async def check() -> None:
        model = ScriptedModel(
            latency_s=lambda text, attempt: 1e6 if attempt == 1 else 0.1, price=Price(0, 1e6)
        )
        budget = Budget(1000.0)
        scheduler = Scheduler(InMemoryJournal(), policy=RetryPolicy(attempt_deadline_s=60.0), budget=budget)
        (result,) = await collect(scheduler.chat(model), requests(1))
        assert isinstance(result.outcome, Answer)
        assert model.attempts == {"r0": 2}
        assert budget.spent_usd == pytest.approx(10 + 5), "the timeout counts with all its 10 output tokens"
        assert scheduler.totals.cost_usd == pytest.approx(15)

    run_virtual(check())


@pytest.mark.parametrize(("limit", "policy", "expected"), [(5.0, 60.0, 5.0), (None, 60.0, 60.0)])
def test_a_lanes_own_deadline_goes_before_the_policys(
    limit: float | None, policy: float, expected: float
) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        scheduler = Scheduler(None, policy=RetryPolicy(attempt_deadline_s=policy, max_attempts=1))
        lane = scheduler.chat(ScriptedModel(latency_s=lambda text, attempt: 1e4), Limits(timeout_s=limit))
        (result,) = await collect(lane, requests(1))
        assert result.outcome == Failure("r0", "timeout", f"no answer within {expected:g} s")
        assert loop.time() - began == pytest.approx(expected, abs=0.01)

    run_virtual(check())


def test_a_batch_in_process_takes_as_long_as_it_takes() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=lambda text, attempt: 1e4, max_batch=10)
        lane = Scheduler(None).chat(model, Limits(timeout_s=5.0))
        assert all(isinstance(r.outcome, Answer) for r in await collect(lane, requests(10)))

    run_virtual(check())


def test_queueing_never_counts_against_the_deadline() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=lambda text, attempt: 9.0)
        scheduler = Scheduler(None, policy=RetryPolicy(attempt_deadline_s=10.0))
        lane = scheduler.chat(model, Limits(concurrency=2, requests_per_minute=2))
        results = await collect(lane, requests(10))
        assert all(isinstance(r.outcome, Answer) for r in results)
        assert scheduler.totals.retries == 0

    run_virtual(check())


@pytest.mark.parametrize("requests_per_minute", [None, 600])
def test_a_rate_limit_pauses_everyone(requests_per_minute: int | None) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()

        def script(text: str, attempt: int) -> ChatOutcome:
            if not 1 < loop.time() - began < 2:
                return echo(text, attempt)
            refused.append(loop.time())
            return AttemptFailure("rate_limited", "429", rate_limited(30.0))

        refused: list[float] = []
        model = ScriptedModel(script, latency_s=lambda text, attempt: 0.13)
        scheduler = Scheduler(InMemoryJournal())
        results = await collect(scheduler.chat(model, Limits(8, requests_per_minute)), requests(100))
        assert all(isinstance(r.outcome, Answer) for r in results)
        assert not [time for time, _ in model.sends if refused[0] < time < refused[0] + 30.0]
        assert scheduler.totals.retries == len(refused) <= 8

    run_virtual(check())


def test_a_rate_limit_burns_no_attempt() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        if attempt <= 5:
            return AttemptFailure("rate_limited", "429", rate_limited(1.0))
        return AttemptFailure("server", "500", TRANSIENT) if attempt == 6 else echo(text, attempt)

    async def check() -> None:
        scheduler = Scheduler(InMemoryJournal(), policy=RetryPolicy(max_attempts=2))
        (result,) = await collect(scheduler.chat(ScriptedModel(script)), requests(1))
        assert isinstance(result.outcome, Answer)

    run_virtual(check())


def test_rate_limits_without_end_are_given_up() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return AttemptFailure("rate_limited", "429", rate_limited(100.0))

    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        (result,) = await collect(Scheduler(InMemoryJournal()).chat(ScriptedModel(script)), requests(1))
        assert isinstance(result.outcome, Failure)
        assert result.outcome.reason == "rate_limited"
        assert loop.time() - began == pytest.approx(900, abs=1)

    run_virtual(check())


def test_a_pause_longer_than_that_stops_the_job() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return AttemptFailure("quota", "", rate_limited(86400.0)) if text == "r9" else echo(text, attempt)

    async def check() -> None:
        journal = InMemoryJournal()
        lane = Scheduler(journal).chat(ScriptedModel(script, max_batch=20))
        with pytest.raises(ModelError, match="asks to wait 86400 s"):
            await collect(lane, requests(20))
        assert len(journal.store.answers) == 19

    run_virtual(check())


@pytest.mark.parametrize("max_batch", [1, 64])
def test_a_job_that_cannot_work_stops_and_remembers_nothing(max_batch: int) -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return AttemptFailure("auth", "401: no such key", NO_RETRY)

    async def check() -> None:
        journal = InMemoryJournal()
        model = ScriptedModel(script, max_batch=max_batch)
        lane = Scheduler(journal).chat(model, Limits(concurrency=4 if max_batch == 1 else None))
        with pytest.raises(ModelError, match=r"first \d+ requests all failed the same way: auth: 401"):
            await collect(lane, requests(500))
        assert journal.store.failures == {}
        assert max_batch > 1 or len(model.sends) <= 24

    run_virtual(check())


def test_different_failures_do_not_stop_a_job() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return AttemptFailure("blocked" if int(text[1:]) % 2 else "malformed")

    async def check() -> None:
        results = await collect(Scheduler(InMemoryJournal()).chat(ScriptedModel(script)), requests(100))
        assert len(results) == 100

    run_virtual(check())


# --- the cap on cost ---------------------------------------------------------------------------------


def test_a_model_without_a_price_is_refused_under_a_cap() -> None:
    async def check() -> None:
        scheduler = Scheduler(None, budget=Budget(1.0))
        with pytest.raises(BudgetError, match="price of scripted is unknown"):
            scheduler.chat(ScriptedModel(price=None))
        Scheduler(None).chat(ScriptedModel(price=None))

    run_virtual(check())


@pytest.mark.parametrize("max_batch", [1, 32])
def test_the_cap_is_never_passed_and_what_was_answered_is_kept(max_batch: int) -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=slow, price=Price(1.0, 10.0), max_batch=max_batch)
        journal = InMemoryJournal()
        budget = Budget(0.005)
        scheduler = Scheduler(journal, budget=budget)
        seen: list[Result[Answer]] = []
        with pytest.raises(BudgetError, match="cap of"):
            await collect_into(seen, scheduler.chat(model), requests(1000))
        assert model.cost_usd <= 0.005
        assert model.cost_usd > 0.0048, "no more is held back than the next request needs"
        assert len(seen) == len(journal.store.answers) == len(model.billed)
        assert scheduler.totals.cost_usd == pytest.approx(model.cost_usd) == pytest.approx(budget.spent_usd)
        assert budget.reserved_usd == 0

    run_virtual(check())


# --- stopping and leaving ----------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(concurrency=8), Limits(concurrency=8, tokens_per_minute=200)])
def test_stopping_sends_nothing_more_and_keeps_what_is_in_flight(limits: Limits) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        model = ScriptedModel(latency_s=lambda text, attempt: 0.5)
        journal = InMemoryJournal(commit_s=0.01)
        scheduler = Scheduler(journal)
        lane = scheduler.chat(model, limits)
        loop.call_later(2.1, scheduler.request_stop)
        began = loop.time()
        seen: list[Result[Answer]] = []
        with pytest.raises(InterruptedRunError, match="run the same command again"):
            await collect_into(seen, lane, requests(1000))
        assert loop.time() - began < 3
        assert all(time <= began + 2.1 for time, _ in model.sends)
        assert len(seen) == len(model.sends) == len(journal.store.answers) == scheduler.totals.sent
        with pytest.raises(InterruptedRunError):
            await collect(lane, requests(5))
        assert len(seen) == len(model.sends)

    run_virtual(check())


def test_stopping_when_all_is_answered_changes_nothing() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=slow)
        scheduler = Scheduler(InMemoryJournal())
        asyncio.get_running_loop().call_later(0.1, scheduler.request_stop)
        assert len(await collect(scheduler.chat(model), requests(10))) == 10

    run_virtual(check())


def test_leaving_early_keeps_what_has_finished_and_frees_the_rest() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=lambda text, attempt: 0.1 + int(text[1:]) % 5, price=Price(0, 1e6))
        journal = InMemoryJournal(commit_s=0.5)
        budget = Budget(1e9)
        scheduler = Scheduler(journal, budget=budget)
        lane = scheduler.chat(model, Limits(concurrency=20))
        async with lane.stream(requests(1000), stage="s") as results:
            async for _ in results:
                break
        assert len(journal.store.answers) == len(model.billed), "what had finished was saved"
        assert lane.in_flight == lane.open == model.in_flight == 0
        assert scheduler.jobs == {}
        assert budget.reserved_usd == 0
        cancelled = len(model.sends) - len(model.billed)
        assert budget.spent_usd == pytest.approx(5 * len(model.billed) + 10 * cancelled)
        assert scheduler.totals.cost_usd == pytest.approx(budget.spent_usd)
        assert len(await collect(lane, requests(50))) == 50

    run_virtual(check())


def test_errors_of_the_consumer_come_out_as_they_are() -> None:
    async def fail() -> None:
        lane = Scheduler(None).chat(ScriptedModel())
        async with lane.stream(requests(10), stage="s") as results:
            async for _ in results:
                raise ZeroDivisionError

    async def check() -> None:
        with pytest.raises(ZeroDivisionError):
            await fail()

    run_virtual(check())


@pytest.mark.parametrize("error", [ModelError("no such host"), ZeroDivisionError()])
def test_errors_of_the_model_come_out_as_they_are(error: Exception) -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        if text == "r40":
            raise error
        return echo(text, attempt)

    async def check() -> None:
        lane = Scheduler(InMemoryJournal()).chat(ScriptedModel(script), Limits(concurrency=8))
        with pytest.raises(type(error)) as caught:
            await collect(lane, requests(100))
        assert caught.value is error
        assert lane.in_flight == lane.open == 0

    run_virtual(check())


def test_a_model_that_loses_an_outcome_is_found_out() -> None:
    class Careless(ScriptedModel):
        async def complete(self, requests: Any) -> Any:
            return (await super().complete(requests))[1:]

    async def check() -> None:
        with pytest.raises(ModelError, match="0 outcomes for 1 requests"):
            await collect(Scheduler(None).chat(Careless()), requests(3))

    run_virtual(check())


# --- events and totals -------------------------------------------------------------------------------


def test_progress_is_told_ten_times_a_second_at_most_and_at_the_end() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return AttemptFailure("malformed") if text == "r7" else echo(text, attempt)

    async def check() -> None:
        listener = Listener()
        model = ScriptedModel(script, latency_s=lambda text, attempt: 0.01)
        scheduler = Scheduler(InMemoryJournal(), emit=listener)
        lane = scheduler.chat(model, Limits(concurrency=2))
        await collect(lane, requests(400), "one")
        await collect(lane, requests(500), "two")
        assert listener.stages == ["started one", "finished one", "started two", "finished two"]
        first = [event for event in listener.progress if event.stage == "one"]
        assert 10 <= len(first) <= 22
        assert first == sorted(first, key=lambda event: event.done)
        assert (first[-1].done, first[-1].failed, first[-1].sent, first[-1].in_flight) == (400, 1, 400, 0)
        last = listener.progress[-1]
        assert (last.done, last.failed, last.cached, last.sent) == (500, 1, 400, 100)
        assert scheduler.stage_totals["two"].sent == 100
        assert (scheduler.totals.sent, scheduler.totals.cached, scheduler.totals.failed) == (500, 400, 2)

    run_virtual(check())


def test_results_can_be_taken_from_any_iterable() -> None:
    async def check() -> None:
        lane = Scheduler(None).chat(ScriptedModel())
        kinds: list[Iterable[Request]] = [requests(3), tuple(requests(3)), iter(requests(3)), {}.values()]
        assert [len(await collect(lane, kind)) for kind in kinds] == [3, 3, 3, 0]

    run_virtual(check())
