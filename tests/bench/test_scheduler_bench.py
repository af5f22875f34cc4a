"""The benchmark of the scheduler, small: what it shows of faults and kills has to hold at any size."""

from __future__ import annotations

import pytest

from bench.scheduler import (
    measure_cached,
    measure_faults,
    measure_gemini,
    measure_kills,
    measure_latency,
    measure_limits,
    measure_speed,
)

pytestmark = pytest.mark.slow


def test_faults_of_the_server_lose_and_double_nothing() -> None:
    # a busy machine holds the server up for seconds, and an answer later than the deadline is asked for again
    clean, faulty = measure_faults(2_000, deadline_s=30.0)
    assert clean["answers"] == faulty["answers"] == 2_000
    assert faulty["failures"] == faulty["twice"] == 0
    assert faulty["retries"] > 100


def test_killed_at_any_moment_the_output_is_that_of_an_uninterrupted_run() -> None:
    (row,) = measure_kills(4_000, 6)
    assert row["kills"] > 0
    assert row["equal"]
    assert row["lost"] == 0
    assert row["repeated"] <= row["bound"]


def test_every_client_gets_every_answer() -> None:
    # a client that misses one raises
    rows = measure_speed(1_000, 1)
    assert {"bare aiohttp + orjson loop", "pld", "pld, tuned"} <= {row["name"] for row in rows}
    assert all(row["requests"] == 1_000 for row in rows if row["name"].startswith(("bare", "pld")))
    assert {row["runs"] for row in measure_cached(1_000, 1)} == {1}
    assert all(row["requests"] == 2_560 for row in measure_latency(1.0, 1))
    assert [row["requests"] for row in measure_gemini(100, 1)] == [100] * 4


def test_no_request_is_lost_under_limits_known_or_hidden() -> None:
    rows = measure_limits(5.0)
    assert [row["lost"] for row in rows] == [0] * len(rows)
    assert all(row["most_in_60s"] <= 12_000 for row in rows)
