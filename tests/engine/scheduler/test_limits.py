"""Requests, tokens and dollars per minute (C4)."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BudgetError
from engine.ports import Limiter, Reservation
from engine.scheduler import Budget, Limits, RateLimiter, RetryPolicy, SystemClock
from engine.scheduler.limits import RequestWindow, TokenBucket
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


@given(per_minute=st.integers(1, 100_000))
def test_a_request_window_never_adds_up_to_more_than_the_minute(per_minute: int) -> None:
    window = RequestWindow(per_minute)
    periods = 60.0 / window.period
    assert abs(periods - round(periods)) < 1e-6
    assert per_minute * 0.5 < window.rate_limit * round(periods) <= per_minute
    assert window.rate_limit * round(periods) > per_minute * 0.98 or per_minute < 1200


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    per_minute=st.integers(50, 5_000),
    sizes=st.lists(st.integers(1, 50), min_size=5, max_size=60),
)
def test_tokens_as_estimated_never_pass_the_limit(
    data: st.DataObject, per_minute: int, sizes: list[int]
) -> None:
    """Requests that turn out no larger than estimated, settled at any later time."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        bucket = TokenBucket(per_minute, SystemClock())
        sent: list[tuple[float, int]] = []
        under_way: list[tuple[float, Reservation, int]] = []
        for size in sizes * 5:
            need = Reservation(size, 0.0)
            while (wait := bucket.wait_s(size)) > 0:  # noqa: ASYNC110 - as the bucket says
                await asyncio.sleep(wait)
            bucket.take(need)
            used = data.draw(st.integers(0, size))
            sent.append((loop.time(), used))
            under_way.append((loop.time() + data.draw(st.floats(0, 100)), need, used))
            for entry in [e for e in under_way if e[0] <= loop.time()]:
                under_way.remove(entry)
                bucket.settle(entry[1], entry[2])
        times, used_tokens = zip(*sent, strict=True)
        assert busiest_minute(list(times), list(used_tokens)) <= per_minute

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
        for expected in (1.0, 2.0, 4.0):
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
        assert pause.remaining_s() == pytest.approx(1.0)

    run_virtual(check())
