"""What a behaviour may be, and that chance does not hang on the order of arrival."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fake_server import FAULTS, Behaviour, body_key, read_behaviour
from bench.fake_server.counting import Counts, busiest
from bench.fake_server.faults import draw, draw_fault, draw_latency_s


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latency_ms": 3}, "did you mean latency_s"),
        ({"faults": {"error_501": 0.1}}, "faults.error_501"),
        ({"faults": {"hang": 1.5}}, "faults.hang"),
        ({"faults": {"hang": 0.6, "drip": 0.6}}, "more than 1"),
        ({"faults": {"hang": 0.1}, "count_keys": False}, "count_keys"),
        ({"latency_s": -1}, "latency_s"),
        ({"latency_s": "1"}, "latency_s"),
        ({"latency_s": float("nan")}, "latency_s"),
        ({"latency": "gamma"}, "latency"),
        ({"latency_spread": 0.5}, "constant"),
        ({"latency": "uniform", "latency_spread": 1.5}, "past"),
        ({"permanent_status": 500}, "permanent_status"),
        ({"permanent_marker": "x"}, "permanent_status"),
        ({"overload_status": 500}, "overload_status"),
        ({"thinking_tokens": 9}, "thinking_tokens"),
        ({"cached_tokens": 601}, "cached_tokens"),
        ({"answers": "local"}, "local_fit"),
        ([], "JSON object"),
    ],
)
def test_what_cannot_be_used_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_behaviour(fields)


def test_a_behaviour_goes_through_json() -> None:
    one = Behaviour(
        faults={"hang": 0.5}, latency="lognormal", latency_s=1, latency_spread=0.5, cached_tokens=None
    )
    assert read_behaviour(one.to_json()) == one
    assert one.changed({"faults": {}, "seed": 3}) == read_behaviour(
        {**one.to_json(), "faults": {}, "seed": 3}
    )
    with pytest.raises(ValueError, match="seed"):
        one.changed({"sead": 3})


def test_a_draw_depends_on_what_is_asked_alone() -> None:
    behaviour = Behaviour(seed=5, faults={"error_500": 0.2, "hang": 0.1, "drip": 0.3})
    turns = [(body_key(b"%d" % n), turn) for n in range(200) for turn in (1, 2, 3)]
    first = {key: draw_fault(behaviour, *key) for key in turns}
    random.Random(1).shuffle(turns)
    other_order = Behaviour(seed=5, faults={"drip": 0.3, "hang": 0.1, "error_500": 0.2})
    assert first == {key: draw_fault(other_order, *key) for key in first}
    assert [draw_fault(behaviour, *key) for key in turns] == [first[key] for key in turns]
    another_seed = behaviour.changed({"seed": 6})
    assert [draw_fault(another_seed, *key) for key in turns] != [first[key] for key in turns]


def test_faults_come_in_their_shares() -> None:
    shares = dict.fromkeys(FAULTS, 0.05)
    behaviour = Behaviour(faults=shares)
    n = 20_000
    drawn = Counter(draw_fault(behaviour, body_key(b"%d" % i), 1) for i in range(n))
    for name in FAULTS:
        assert drawn[name] / n == pytest.approx(0.05, abs=0.01)
    assert all(
        draw_fault(Behaviour(faults={"hang": 1}), body_key(b"%d" % i), 1) == "hang" for i in range(100)
    )


@given(st.integers(), st.binary(max_size=9), st.integers(1, 9))
def test_a_draw_lies_inside_the_interval(seed: int, body: bytes, turn: int) -> None:
    assert 0 < draw(seed, body_key(body), turn, "x") < 1


def test_latencies() -> None:
    def seconds(**fields: Any) -> list[float]:
        behaviour = Behaviour(latency_s=0.2, **fields)
        return [draw_latency_s(behaviour, body_key(b"%d" % n), 1, 10) for n in range(4000)]

    assert set(seconds()) == {0.2}
    assert seconds(latency_per_token_s=0.01) == pytest.approx([0.3] * 4000)
    uniform = seconds(latency="uniform", latency_spread=0.5)
    assert min(uniform) >= 0.1
    assert max(uniform) <= 0.3
    assert np.mean(uniform) == pytest.approx(0.2, rel=0.02)
    lognormal = seconds(latency="lognormal", latency_spread=0.6)
    assert np.median(lognormal) == pytest.approx(0.2, rel=0.05)
    assert np.std(np.log(lognormal)) == pytest.approx(0.6, rel=0.05)


@given(st.lists(st.integers(0, 40)).map(sorted), st.integers(1, 20))
def test_the_busiest_window(times: list[int], window_s: int) -> None:
    expected = max((sum(end - window_s < time <= end for time in times) for end in times), default=0)
    assert busiest(np.array(times, dtype=np.float64), window_s) == expected


def test_counts_of_nothing() -> None:
    document = Counts().to_json(keys=True)
    assert document["requests"] == 0
    assert document["keys"] == {}
    assert document["arrivals"]["per_100ms"] == []


def test_arrivals_are_told_per_100ms() -> None:
    counts = Counts()
    for now in (5.0, 5.01, 5.09, 5.35, 65.2):
        counts.arrived(now)
    arrivals = counts.to_json()["arrivals"]
    assert arrivals["per_100ms"][:4] == [3, 0, 0, 1]
    assert (arrivals["most_in_100ms"], arrivals["most_in_60s"]) == (3, 4)
    assert (arrivals["first_s"], arrivals["last_s"]) == (5.0, 65.2)
