"""What becomes of an attempt: an answer, another try, or a failure; and when a job is not worth going on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ModelError
from engine.events import Attempted
from engine.ports import Price
from engine.scheduler import Lane, Limits, RetryPolicy, Scheduler
from engine.scheduler.retry import RetryBudget
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
    Retry,
    Usage,
    rate_limited,
)
from tests.support.fakes import InMemoryJournal, Listener, ScriptedModel, echo, request, requests
from tests.support.virtual_time import run_virtual

LIMITED = AttemptFailure("rate_limited", "429", rate_limited(1.0))


def fails(reason: str, retry: Retry, detail: str = "") -> AttemptFailure:
    return AttemptFailure(reason, detail, retry)


def after(*failures: AttemptFailure) -> Callable[[str, int], ChatOutcome]:
    """These outcomes for r0, then an answer; the others are answered at once."""

    def script(text: str, attempt: int) -> ChatOutcome:
        if text == "r0" and attempt <= len(failures):
            return failures[attempt - 1]
        return echo(text, attempt)

    return script


async def collect(lane: Lane[Request, Answer], n: int = 1) -> dict[str, Result[Answer]]:
    async with lane.stream(requests(n), stage="s") as results:
        return {result.id: result async for result in results}


async def first(
    script: Callable[[str, int], ChatOutcome], policy: RetryPolicy | None = None
) -> tuple[Answer | Failure, int, list[Attempted]]:
    """What became of r0, the number of times it was sent, and what was told of it."""
    listener = Listener()
    model = ScriptedModel(script)
    lane = Scheduler(InMemoryJournal(), emit=listener, policy=policy).chat(model)
    outcome = (await collect(lane))["r0"].outcome
    told = [event for event in listener.events if isinstance(event, Attempted)]
    return outcome, model.attempts["r0"], told


# --- doubtful failures -------------------------------------------------------------------------------


def test_a_doubtful_failure_is_believed_the_third_time() -> None:
    outcome, sent, told = run_virtual(first(after(*[fails("not_found", DOUBTFUL, "404")] * 9)))
    assert outcome == Failure("r0", "not_found", "404 (after 3 attempts)")
    assert sent == 3
    assert [event.attempt for event in told] == [1, 2, 3]
    assert [event.delay_s is None for event in told] == [False, False, True]


def test_what_a_gateway_says_in_passing_is_no_failure() -> None:
    outcome, sent, _ = run_virtual(first(after(*[fails("not_found", DOUBTFUL)] * 2)))
    assert isinstance(outcome, Answer)
    assert sent == 3


def test_doubtful_failures_of_changing_reasons_are_no_proof() -> None:
    a, b = fails("not_found", DOUBTFUL), fails("forbidden", DOUBTFUL)
    outcome, sent, _ = run_virtual(first(after(a, b, a, b, a)))
    assert isinstance(outcome, Answer)
    assert sent == 6
    outcome, sent, _ = run_virtual(first(after(a, a, b, a, a, b, a)))
    assert outcome == Failure("r0", "forbidden", " (after 6 attempts)")
    assert sent == 6, "max_attempts ends it"


def test_believed_after_is_obeyed() -> None:
    for times in (1, 2, 5):
        policy = RetryPolicy(believed_after=times)
        outcome, sent, _ = run_virtual(first(after(*[fails("gone", DOUBTFUL)] * 9), policy))
        assert isinstance(outcome, Failure)
        assert sent == times


def test_a_rate_limit_between_them_changes_nothing() -> None:
    doubtful = fails("not_found", DOUBTFUL)
    outcome, sent, _ = run_virtual(first(after(doubtful, LIMITED, doubtful, LIMITED, doubtful)))
    assert outcome == Failure("r0", "not_found", " (after 3 attempts)")
    assert sent == 5


# --- other failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 6])
def test_transient_failures_are_repeated_up_to_max_attempts(most: int) -> None:
    policy = RetryPolicy(max_attempts=most)
    outcome, sent, told = run_virtual(first(after(*[fails("server", TRANSIENT, "500")] * 99), policy))
    assert outcome == Failure("r0", "server", "500" if most == 1 else f"500 (after {most} attempts)")
    assert sent == most == len(told)
    outcome, sent, _ = run_virtual(first(after(*[fails("server", TRANSIENT)] * (most - 1)), policy))
    assert isinstance(outcome, Answer)


def test_a_permanent_failure_is_not_repeated() -> None:
    outcome, sent, told = run_virtual(first(after(fails("blocked", NO_RETRY, "safety"))))
    assert outcome == Failure("r0", "blocked", "safety")
    assert sent == 1
    assert [(event.request_id, event.reason, event.delay_s) for event in told] == [("r0", "blocked", None)]


def test_a_request_is_not_repeated_for_longer_than_max_total_s() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        policy = RetryPolicy(max_attempts=1000, max_total_s=100.0, max_delay_s=10.0)
        outcome, sent, _ = await first(after(*[fails("server", TRANSIENT)] * 999), policy)
        assert isinstance(outcome, Failure)
        assert 80 < loop.time() - began <= 101
        assert sent > 10

    run_virtual(check())


def test_the_servers_own_delay_is_the_least() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome, _, told = await first(after(fails("server", Retry("transient", 42.0))))
        assert isinstance(outcome, Answer)
        assert told[0].delay_s == 42.0
        assert loop.time() - began == pytest.approx(42.0, abs=0.2)

    run_virtual(check())


def test_what_failed_attempts_were_billed_is_counted() -> None:
    cut = AttemptFailure("cut", "", TRANSIENT, billed=Usage(3, 4))
    unknown = AttemptFailure("disconnected", "", TRANSIENT, unknown_bill=True)

    async def check() -> None:
        scheduler = Scheduler(InMemoryJournal())
        lane = scheduler.chat(ScriptedModel(after(cut, fails("server", TRANSIENT)), price=Price(0.0, 1e6)))
        await collect(lane)
        assert scheduler.totals.cost_usd == pytest.approx(4 + 0 + 5)
        assert (scheduler.totals.input_tokens, scheduler.totals.output_tokens) == (8, 9)

        scheduler = Scheduler(InMemoryJournal())
        lane = scheduler.chat(ScriptedModel(after(unknown), price=Price(0.0, 1e6)))
        await collect(lane)
        assert scheduler.totals.cost_usd == pytest.approx(10 + 5), "the most that it can have been"

    run_virtual(check())


# --- rate limits -------------------------------------------------------------------------------------


def test_a_rate_limit_burns_neither_attempts_nor_the_retry_budget() -> None:
    """Hundreds of refusals, and a job that may repeat nothing at all."""

    def script(text: str, attempt: int) -> ChatOutcome:
        return LIMITED if attempt <= 2 else echo(text, attempt)

    async def check() -> None:
        scheduler = Scheduler(InMemoryJournal(), policy=RetryPolicy(max_attempts=1, retry_share=0.0))
        lane = scheduler.chat(ScriptedModel(script))
        lane.retries_left = RetryBudget(0.0, 5)
        found = await collect(lane, 300)
        assert all(isinstance(result.outcome, Answer) for result in found.values())
        assert scheduler.totals.retries == 600
        assert lane.retries_left.spent == 0

    run_virtual(check())


def test_a_wait_longer_than_the_cap_stops_the_job_and_keeps_what_is_answered() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        if text == "r50":
            return AttemptFailure("quota", "", rate_limited(901.0))
        return echo(text, attempt)

    async def check() -> None:
        journal = InMemoryJournal()
        model = ScriptedModel(script, latency_s=lambda text, attempt: 0.1)
        lane = Scheduler(journal).chat(model, Limits(concurrency=4))
        with pytest.raises(ModelError, match=r"asks to wait 901 s .* longer than 900 s"):
            await collect(lane, 200)
        assert 47 <= len(journal.store.answers) <= 56
        assert lane.in_flight == lane.open == 0

    run_virtual(check())


def test_a_wait_as_long_as_the_cap_is_waited_for() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome, sent, _ = await first(after(AttemptFailure("rate_limited", "", rate_limited(900.0))))
        assert isinstance(outcome, Answer)
        assert sent == 2
        assert loop.time() - began == pytest.approx(900.0, abs=0.2)

    run_virtual(check())


# --- the retry budget --------------------------------------------------------------------------------


def test_a_job_that_fails_too_much_stops_and_says_so() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return fails("server", TRANSIENT, "502 bad gateway") if int(text[1:]) >= 500 else echo(text, attempt)

    async def check() -> None:
        journal = InMemoryJournal()
        model = ScriptedModel(script, latency_s=lambda text, attempt: 0.05)
        lane = Scheduler(journal).chat(model, Limits(concurrency=8))
        with pytest.raises(ModelError, match=r"scripted fails too often: \d+ attempts .*: 502 bad gateway"):
            await collect(lane, 100_000)
        assert len(journal.store.answers) == 500
        assert len(model.sends) <= 500 + 2 * 4 * 100 + 8, "what 500 answers allow"
        assert lane.in_flight == lane.open == 0

    run_virtual(check())


@pytest.mark.parametrize("share_of_faults", [0.2, 0.4])
def test_a_good_job_never_notices_the_retry_budget(share_of_faults: float) -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        faulty = (int(text[1:]) * 7919 + attempt * 104_729) % 1000 < 1000 * share_of_faults
        return fails("server", TRANSIENT) if faulty else echo(text, attempt)

    async def check() -> None:
        scheduler = Scheduler(InMemoryJournal())
        model = ScriptedModel(script, latency_s=lambda text, attempt: 0.05)
        lane = scheduler.chat(model, Limits(concurrency=16))
        found = await collect(lane, 3000)
        assert len(found) == 3000
        assert lane.retries_left.spent == scheduler.totals.retries >= 0.9 * 3000 * share_of_faults

    run_virtual(check())


def test_permanent_failures_leave_the_retry_budget_alone() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return fails("blocked" if int(text[1:]) % 2 else "malformed", NO_RETRY)

    async def check() -> None:
        lane = Scheduler(InMemoryJournal()).chat(ScriptedModel(script), Limits(concurrency=4))
        assert len(await collect(lane, 2000)) == 2000
        assert lane.retries_left.spent == 0

    run_virtual(check())


@given(
    share=st.floats(0.0, 2.0),
    at_first=st.integers(0, 50),
    steps=st.lists(st.booleans(), max_size=400),
)
def test_a_retry_budget_allows_a_share_of_the_answers(share: float, at_first: int, steps: list[bool]) -> None:
    budget = RetryBudget(share, at_first)
    answers = 0
    for answered in steps:
        if answered:
            budget.answered()
            answers += 1
        else:
            before = budget.spent
            assert budget.take() == (budget.spent == before + 1)
        assert budget.spent <= at_first + share * answers + 1e-6


def test_an_outage_after_many_answers_is_noticed_as_soon_as_an_early_one() -> None:
    budget = RetryBudget(1.0, 10)
    for _ in range(1_000_000):
        budget.answered()
    taken = 0
    while budget.take():
        taken += 1
    assert taken == 40


# --- held back at the beginning ----------------------------------------------------------------------


def test_failures_held_back_are_kept_when_nothing_else_comes() -> None:
    """Fewer rows than it takes to call a job hopeless: they end as failures, and are remembered."""

    def script(text: str, attempt: int) -> ChatOutcome:
        return fails("blocked", NO_RETRY)

    async def check() -> None:
        journal = InMemoryJournal()
        found = await collect(Scheduler(journal).chat(ScriptedModel(script)), 19)
        assert all(isinstance(result.outcome, Failure) for result in found.values())
        assert len(journal.store.failures) == 19

    run_virtual(check())


def test_an_event_names_the_request_and_not_its_text() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return fails("server", TRANSIENT, text) if attempt == 1 else echo(text, attempt)

    async def check() -> None:
        listener = Listener()
        lane = Scheduler(None, emit=listener).chat(ScriptedModel(script))
        async with lane.stream([request("row-17", "a secret")], stage="s") as results:
            async for _ in results:
                pass
        (told,) = [event for event in listener.events if isinstance(event, Attempted)]
        assert (told.stage, told.model, told.request_id, told.attempt, told.reason) == (
            "s",
            "scripted",
            "row-17",
            1,
            "server",
        )
        assert "secret" not in repr(listener.events)

    run_virtual(check())
