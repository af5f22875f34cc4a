"""Requests, tokens and dollars per minute (C4)."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BudgetError
from engine.ports import Limiter, Reservation
from engine.scheduler import Budget, Limits, RateLimiter, RetryPolicy, SystemClock
from engine.scheduler.limits import RequestPace
from engine.scheduler.retry import Pause
from engine.types import NO_RETRY, TRANSIENT, Retry
from tests.contracts.limiter import LimiterContract, busiest_minute
from tests.support.virtual_time import run_virtual


class TestRequestsPerMinute(LimiterContract):
    per_minute = 97

    def limiter(self) -> Limiter:
        return RateLimiter(Limits(requests_per_minute=97), SystemClock(), model="m")


class TestTokensPerMinute(LimiterContract):
    per_minute = 200

    def limiter(self) -> Limiter:
        return RateLimiter(Limits(tokens_per_minute=20_000), SystemClock(), model="m")


class TestBothLimitsAndABudget(LimiterContract):
    per_minute = 100

    def limiter(self) -> Limiter:
        limits = Limits(requests_per_minute=600, tokens_per_minute=10_000)
        return RateLimiter(limits, SystemClock(), model="m", budget=Budget(1.0))


@settings(max_examples=40, deadline=None)
@given(per_minute=st.integers(1, 3_000), late=st.lists(st.floats(0, 0.2), max_size=50))
def test_a_late_timer_is_made_up_and_no_minute_holds_too_many(per_minute: int, late: list[float]) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        pace = RequestPace(per_minute, SystemClock())
        times: list[float] = []
        lates = itertools.cycle([0.0, *late])
        end = loop.time() + 180
        while loop.time() < end:
            if (wait := pace.wait_s()) > 0:
                # no later than the pace may run ahead
                await asyncio.sleep(wait + min(next(lates), 0.04))
            else:
                pace.take()
                times.append(loop.time())
        assert busiest_minute(times) <= per_minute
        assert len(times) >= 0.98 * 3 * per_minute - 1

    run_virtual(check())


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    per_minute=st.integers(500, 50_000),
    sizes=st.lists(st.integers(1, 50), min_size=5, max_size=60),
)
def test_tokens_stay_within_the_error_of_the_estimate(
    data: st.DataObject, per_minute: int, sizes: list[int]
) -> None:
    """Requests that use up to a tenth more or less than estimated, settled within 30 seconds."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(Limits(tokens_per_minute=per_minute), SystemClock(), model="m")
        sent: list[tuple[float, float]] = []
        under_way: list[tuple[float, Reservation, int]] = []
        for size in sizes * 5:
            need = Reservation(10 * size, 0.0)
            await limiter.reserve(need)
            used = data.draw(st.integers(9 * size, 11 * size))
            sent.append((loop.time(), used))
            under_way.append((loop.time() + data.draw(st.floats(0, 30)), need, used))
            for entry in [e for e in under_way if e[0] <= loop.time()]:
                under_way.remove(entry)
                limiter.settle(entry[1], Reservation(entry[2], 0.0))
        times, used_tokens = zip(*sent, strict=True)
        # a bucket lets one request go that is larger than itself
        most = 1.2 * per_minute + 11 * max(sizes)
        assert busiest_minute(list(times), list(used_tokens)) <= most

    run_virtual(check())


def test_tokens_above_the_estimate_are_repaid() -> None:
    async def check() -> float:
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(Limits(tokens_per_minute=600), SystemClock(), model="m")
        began = loop.time()
        need = Reservation(10, 0.0)
        await limiter.reserve(need)
        limiter.settle(need, Reservation(610, 0.0))  # 600 more than was set aside
        await limiter.reserve(Reservation(10, 0.0))
        return loop.time() - began

    assert 55 <= run_virtual(check()) <= 62


def test_a_request_larger_than_the_limit_goes_alone() -> None:
    async def check() -> list[float]:
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(Limits(tokens_per_minute=600), SystemClock(), model="m")
        times = []
        for _ in range(3):
            await limiter.reserve(Reservation(5_000, 0.0))
            times.append(loop.time())
        return times

    first, second, third = run_virtual(check())
    assert second - first >= 60
    assert third - second >= 60


def test_limits_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="concurrency must be 1 or more"):
        Limits(concurrency=0)


needs = st.lists(st.tuples(st.integers(0, 400), st.floats(0.0, 3.0), st.booleans()), min_size=1, max_size=80)


@settings(max_examples=50)
@given(
    requests_per_minute=st.none() | st.integers(1, 2000),
    tokens_per_minute=st.none() | st.integers(200, 50_000),
    steps=needs,
)
def test_take_now_is_reserve_without_the_wait(
    requests_per_minute: int | None, tokens_per_minute: int | None, steps: list[tuple[int, float, bool]]
) -> None:
    """It says yes exactly where `reserve` would return at once, and what it takes counts alike."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        limits = Limits(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
        budget = Budget(1e6)
        limiter = RateLimiter(limits, SystemClock(), model="m", budget=budget)
        sent: list[float] = []
        for tokens, gap, wait in steps:
            await asyncio.sleep(gap)
            need = Reservation(tokens, 0.5)
            asked_at = loop.time()
            at_once = limiter.take_now(need)
            if not at_once:
                assert limiter.waits_for == "limit"
                if not wait:
                    continue
                await limiter.reserve(need)
                assert loop.time() > asked_at
            sent.append(loop.time())
        assert budget.reserved_usd == pytest.approx(0.5 * len(sent)), "a refusal sets nothing aside"
        if requests_per_minute and sent:
            assert busiest_minute(sent) <= requests_per_minute

    run_virtual(check())


def test_take_now_says_what_is_closed() -> None:
    async def check() -> None:
        budget = Budget(1.0)
        limiter = RateLimiter(Limits(requests_per_minute=60), SystemClock(), model="m", budget=budget)
        assert limiter.take_now(Reservation(0, 0.6))
        assert not limiter.take_now(Reservation(0, 0.1))
        assert limiter.waits_for == "limit"
        assert not limiter.take_now(Reservation(0, 0.6))
        assert limiter.waits_for == "cost"
        limiter.settle(Reservation(0, 0.6), Reservation(0, 0.1))
        await asyncio.sleep(1.1)
        assert limiter.take_now(Reservation(0, 0.6))
        assert budget.spent_usd == pytest.approx(0.1)

    run_virtual(check())


def test_an_attempt_has_a_deadline_above_zero() -> None:
    with pytest.raises(ValueError, match="timeout_s must be above 0"):
        Limits(timeout_s=0.0)


# --- the cap on cost ---------------------------------------------------------------------------------


def test_a_budget_waits_for_what_is_under_way_and_then_refuses() -> None:
    async def check() -> None:
        budget = Budget(1.0)
        await budget.reserve(0.6, "m")
        waiting = asyncio.ensure_future(budget.reserve(0.6, "m"))
        await asyncio.sleep(1)
        assert not waiting.done()
        budget.settle(0.6, 0.1)
        await waiting
        budget.settle(0.6, None)  # unknown: in full
        assert budget.spent_usd == pytest.approx(0.7)
        with pytest.raises(BudgetError, match=r"cap of \$1 could be passed: \$0\.7000 is spent"):
            await budget.reserve(0.4, "m")
        await budget.reserve(0.0, "free")
        await budget.reserve(0.3, "m")

    run_virtual(check())


def test_a_budget_counts_without_drift() -> None:
    async def check() -> None:
        budget = Budget(0.1 * 3)
        for _ in range(3000):
            await budget.reserve(0.0001, "m")
            budget.settle(0.0001, 0.0001)
        assert budget.reserved_usd == 0
        with pytest.raises(BudgetError):
            await budget.reserve(0.0001, "m")

    run_virtual(check())


@pytest.mark.parametrize("cap", [-1.0, float("inf"), float("nan")])
def test_a_cap_has_to_be_a_number_of_dollars(cap: float) -> None:
    with pytest.raises(ValueError, match="cap on cost"):
        Budget(cap)


# --- retries and pauses ------------------------------------------------------------------------------


@given(attempts=st.integers(1, 10_000), seed=st.integers(0, 99), after=st.none() | st.floats(0, 20))
def test_backoff_stays_within_its_bounds(attempts: int, seed: int, after: float | None) -> None:
    policy = RetryPolicy(max_attempts=20_000)
    delay = policy.delay_s(attempts, 0.0, Retry("transient", after), random.Random(seed))
    assert delay is not None
    assert (
        (after or 0.0) <= delay <= max(after or 0.0, min(policy.max_delay_s, 0.5 * 2.0 ** min(attempts, 60)))
    )
    assert policy.delay_s(attempts, policy.max_total_s + 1, TRANSIENT, random.Random(seed)) is None
    assert policy.delay_s(attempts, 0.0, NO_RETRY, random.Random(seed)) is None


def test_pauses_double_per_episode_and_not_per_refusal() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        pause = Pause(RetryPolicy(), SystemClock())
        for expected in (0.5, 1.0, 2.0):
            sent_at = loop.time()
            await asyncio.sleep(0.1)
            for _ in range(5):  # five refusals of one episode
                pause.extend(sent_at, None)
            assert pause.remaining_s() == pytest.approx(expected)
            await asyncio.sleep(expected + 0.1)
        pause.extend(loop.time(), 30.0)
        pause.extend(loop.time() - 50.0, 40.0)
        assert pause.remaining_s() == pytest.approx(40.0)
        await asyncio.sleep(41)
        pause.answered()
        pause.extend(loop.time(), None)
        assert pause.remaining_s() == pytest.approx(0.5)

    run_virtual(check())
