"""The generic cell rate algorithm: an even pace with a little room for lateness."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler.pacer import Pacer

gaps = st.lists(st.floats(0.0, 0.5), min_size=1, max_size=300)


@given(rate=st.floats(0.1, 5_000.0), burst_s=st.floats(0.0, 0.5), gaps=gaps)
def test_no_interval_holds_more_than_its_rate_and_the_burst(
    rate: float, burst_s: float, gaps: list[float]
) -> None:
    """Whenever somebody asks: n requests take at least (n - 1) / rate - burst."""
    pacer = Pacer(rate, burst_s)
    now = 0.0
    sent = []
    for gap in gaps:
        now += gap
        if pacer.wait_s(now) == 0.0:
            pacer.take(now)
            sent.append(now)
    for first, begin in enumerate(sent):
        for last in range(first, len(sent)):
            most = rate * (sent[last] - begin + burst_s) + 1.0
            assert last - first + 1 <= most + 1e-6 * most


@given(rate=st.floats(0.1, 5_000.0), burst_s=st.floats(0.0, 0.5), n=st.integers(1, 300))
def test_who_waits_as_told_loses_no_rate(rate: float, burst_s: float, n: int) -> None:
    pacer = Pacer(rate, burst_s)
    now = 0.0
    for _ in range(n):
        now += pacer.wait_s(now)
        pacer.take(now)
    assert now == pytest.approx(max(0.0, (n - 1) / rate - burst_s), abs=1e-6)


@given(late=st.floats(0.0, 1000.0))
def test_what_a_late_timer_missed_is_made_up_within_the_burst_only(late: float) -> None:
    pacer = Pacer(100.0, burst_s=0.05)
    pacer.take(0.0)
    at_once = 0
    while pacer.wait_s(late) == 0.0:
        pacer.take(late)
        at_once += 1
    assert at_once <= 1 + 100.0 * 0.05 + 1e-9


def test_infinity_is_no_pace() -> None:
    pacer = Pacer()
    for _ in range(1000):
        assert pacer.wait_s(7.0) == 0.0
        pacer.take(7.0)
    pacer.rate_per_s = 10.0  # from here on, without a debt for what went before
    assert pacer.wait_s(7.0) == 0.0
    pacer.take(7.0)
    assert pacer.wait_s(7.0) == pytest.approx(0.1 - 0.05)
    pacer.rate_per_s = math.inf
    assert pacer.wait_s(7.0) == 0.0
