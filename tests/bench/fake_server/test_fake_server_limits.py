"""The buckets: strict, continuous, and honest about when to come back."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fake_server import Behaviour
from bench.fake_server.holdups import Watch
from bench.fake_server.limits import Limits, Refusal, told_seconds
from bench.fake_server.protocol import HttpRequest, parse_head
from bench.fake_server.replies import Reply
from bench.fake_server.service import Service


def limits(**fields: float) -> Limits:
    return Limits(Behaviour(**fields))  # type: ignore[arg-type]


def test_a_client_on_the_very_rate_is_never_refused() -> None:
    strict = limits(requests_per_minute=600, limit_burst_s=0)
    assert all(strict.admit(number * 0.1, 1) is None for number in range(1000))


def test_the_next_request_is_refused_until_its_time() -> None:
    strict = limits(requests_per_minute=600, limit_burst_s=0)
    assert strict.admit(0.0, 1) is None
    refusal = strict.admit(0.04, 1)
    assert isinstance(refusal, Refusal)
    assert refusal.name == "requests"
    assert refusal.wait_s == pytest.approx(0.06)
    assert strict.admit(0.04 + refusal.wait_s - 1e-6, 1) is not None
    assert strict.admit(0.04 + refusal.wait_s, 1) is None


def test_depth_is_seconds_of_the_rate() -> None:
    deep = limits(requests_per_minute=600, limit_burst_s=2)
    assert [deep.admit(0.0, 1) is None for _ in range(21)] == [True] * 20 + [False]


def test_tokens_hold_ten_mean_requests() -> None:
    strict = limits(tokens_per_minute=6000, limit_burst_s=0.1)
    admitted = [strict.admit(0.0, 50) is None for _ in range(12)]
    assert admitted == [True] * 10 + [False] * 2
    assert strict.admit(0.0, 50) == Refusal("tokens", 6000, pytest.approx(0.5))


def test_settling_is_debt() -> None:
    strict = limits(tokens_per_minute=6000, limit_burst_s=1)
    assert strict.admit(0.0, 10) is None
    strict.settle(0.0, 200)
    refusal = strict.admit(0.0, 10)
    assert refusal is not None
    assert refusal.wait_s == pytest.approx(1.2)


def test_more_than_the_depth_passes_a_full_bucket() -> None:
    strict = limits(tokens_per_minute=600, limit_burst_s=0)
    for number in range(100):
        strict.admit(number * 1000.0, 1)
    assert strict.admit(1e6, 5000) is None
    refusal = strict.admit(1e6, 1)
    assert refusal is not None
    assert refusal.wait_s > 400


def test_a_refused_request_takes_nothing() -> None:
    strict = limits(requests_per_minute=60, tokens_per_minute=60_000, limit_burst_s=0)
    assert strict.admit(0.0, 100) is None
    for _ in range(50):
        assert strict.admit(0.5, 100) is not None
    assert strict.admit(1.0, 100) is None


def test_standings() -> None:
    strict = limits(requests_per_minute=600, tokens_per_minute=60_000, limit_burst_s=1)
    for _ in range(4):
        strict.admit(0.0, 20)
    requests, tokens = strict.standings(0.1)
    assert (requests.name, requests.per_minute, requests.remaining) == ("requests", 600, 7)
    assert requests.reset_s == pytest.approx(0.3)
    assert (tokens.remaining, tokens.reset_s) == (1000, 0.0)


@given(
    st.floats(1, 1e5),
    st.floats(0, 5),
    st.lists(st.floats(0, 0.5), min_size=2, max_size=60),
    st.floats(0, 3),
)
def test_no_window_holds_more_than_depth_and_refill(
    per_minute: float, burst_s: float, gaps: list[float], window_s: float
) -> None:
    strict, rate = limits(requests_per_minute=per_minute, limit_burst_s=burst_s), per_minute / 60
    now, passed = 0.0, []
    for gap in gaps:
        now += gap
        refusal = strict.admit(now, 1)
        if refusal is None:
            passed.append(now)
        else:
            assert refusal.wait_s > 0
    depth = max(1.0, rate * burst_s)
    for start in passed:
        inside = sum(start <= time <= start + window_s for time in passed)
        assert inside <= depth + rate * window_s + 1e-6 * (1 + depth)


def test_a_wait_is_never_told_too_short() -> None:
    assert told_seconds(0.0604, "fractional") == "0.061"
    assert told_seconds(0.0604, "integer") == "1"
    assert told_seconds(3.0, "integer") == "3"
    assert told_seconds(3.0, "none") is None


def test_an_answer_is_settled_at_what_it_was() -> None:
    service = Service(Behaviour(tokens_per_minute=6000, limit_burst_s=20), clock=lambda: 5.0)
    body = orjson.dumps({"input": "x" * 40, "padding": "y" * 400})
    head = parse_head(b"POST /v1/embeddings HTTP/1.1\r\nHost: a")
    reply = service.accept(HttpRequest(head, body))
    assert isinstance(reply, Reply)
    assert b"x-ratelimit-remaining-tokens: 1989\r\nx-ratelimit-reset-tokens: 110ms\r\n" in reply.data


def test_what_came_while_the_server_was_held_up_counts_as_spread_over_that_time() -> None:
    strict = limits(requests_per_minute=6000, limit_burst_s=0.1)  # 100 a second, a bucket of 10
    assert all(strict.admit(1.0, 1) is None for _ in range(10)), "the bucket is empty"
    read_at_once = [strict.admit(1.3, 1, held_s=0.3) is None for _ in range(41)]
    assert read_at_once == [True] * 30 + [False] * 11
    assert strict.admit(1.3, 1) is not None
    assert strict.admit(1.31, 1) is None
    without = limits(requests_per_minute=6000, limit_burst_s=0.1)
    assert sum(without.admit(1.3, 1) is None for _ in range(41)) == 10


def test_an_idle_bucket_holds_no_more_for_a_hold_up_than_came_in_it() -> None:
    strict = limits(requests_per_minute=6000, limit_burst_s=0.1)
    assert strict.admit(1.0, 1) is None
    assert sum(strict.admit(9.0, 1, held_s=0.2) is None for _ in range(100)) == 30


def test_a_held_up_loop_is_noticed() -> None:
    async def check() -> tuple[float, float]:
        watch = Watch()
        assert watch.held_s == 0.0, "nobody watches"
        watch.start()
        await asyncio.sleep(0.01)
        time.sleep(0.1)  # noqa: ASYNC251 - the loop is not to run
        held_s = watch.held_s
        await asyncio.sleep(0.01)
        watch.stop()
        assert watch.total_s >= watch.longest_s >= held_s - 0.01
        return held_s, watch.held_s

    held_s, afterwards = asyncio.run(check())
    assert held_s >= 0.09
    assert afterwards == 0.0
