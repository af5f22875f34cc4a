"""How many requests a model takes at once is found out, from refusals alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.events import ConcurrencyChanged
from engine.scheduler import Lane, Limits, Scheduler
from engine.scheduler.congestion import Congestion
from engine.types import TRANSIENT, Answer, AttemptFailure, ChatOutcome, Failure, Request, rate_limited
from tests.support.fakes import Listener, ScriptedModel, StrictServer, echo, request, requests
from tests.support.virtual_time import run_virtual

# --- the controller ----------------------------------------------------------------------------------

answers = st.tuples(st.just("answered"), st.floats(0.0, 30.0), st.integers(1, 300))
refusals = st.tuples(st.sampled_from(["refused", "refused late"]), st.floats(0.0, 60.0), st.integers(1, 300))
failures = st.tuples(st.just("failed"), st.just(0.0), st.just(1))
steps = st.lists(
    st.tuples(st.floats(0.0, 5.0), st.one_of(answers, answers, answers, refusals, failures)), max_size=200
)


@given(cap=st.integers(1, 300), steps=steps)
def test_whatever_happens_the_number_stays_between_one_and_the_cap(
    cap: int, steps: list[tuple[float, tuple[str, float, int]]]
) -> None:
    """And only a refusal lowers it: no answer does, and no other error."""
    congestion = Congestion(cap)
    now = 1000.0
    longest_s = 1e-4
    for gap, (what, seconds, in_flight) in steps:
        now += gap
        before = congestion.limit
        if what == "answered":
            congestion.answered(now, seconds, in_flight)
            longest_s = max(longest_s, seconds)
            assert congestion.limit >= before
        elif what == "failed":
            congestion.failed(now)
            assert congestion.limit == before
        else:
            sent_at = now - 30.0 if what == "refused late" else now
            congestion.refused(now, seconds, in_flight, sent_at=sent_at)
            assert congestion.limit <= before
            now += seconds
        assert 1 <= congestion.limit <= cap
        assert congestion.pacer.rate_per_s >= 0.001 / longest_s, "it never comes to a halt"


def test_a_model_in_process_has_all_its_slots_at_once() -> None:
    congestion = Congestion(1000, adaptive=False)
    assert congestion.limit == 1000
    assert congestion.settled


def test_slow_start_doubles_in_a_round_trip_while_its_slots_are_in_use() -> None:
    congestion = Congestion(256)
    now = 0.0
    limits = [congestion.limit]
    while not congestion.settled:
        now += 1.0
        for _ in range(limits[-1]):
            congestion.answered(now, 1.0, in_flight=limits[-1])  # all at once: nothing was sent between them
        limits.append(congestion.limit)
    assert limits == [32, 64, 128, 256]

    unused = Congestion(256)
    for i in range(1000):
        unused.answered(float(i), 1.0, in_flight=3)
    assert unused.limit == 32, "slots that nobody uses prove nothing"


def test_slow_start_begins_with_an_eighth_of_the_cap() -> None:
    assert [Congestion(cap).limit for cap in (4, 16, 64, 128, 512)] == [4, 16, 16, 16, 64]


def grown(limit_at_refusal: int = 64) -> Congestion:
    """Refused with so many in flight, after answers of 200 ms."""
    congestion = Congestion(128)
    now = 0.0
    for _ in range(1000):
        congestion.answered(now, 0.2, 1)
    while congestion.limit < limit_at_refusal:
        now += 0.2 / congestion.limit
        congestion.answered(now, 0.2, congestion.limit)
    congestion.refused(now, 1.0, limit_at_refusal, sent_at=now - 0.2)
    return congestion


def test_a_refusal_is_remembered_as_the_ceiling() -> None:
    """It comes back to just below the ceiling quickly, and passes it slowly (CUBIC's plateau)."""
    congestion = grown(64)
    assert congestion.limit == 32
    now = 100.0
    at: dict[int, int] = {}
    for step in range(800):
        now += 0.01
        congestion.answered(now, 0.2, congestion.limit)
        at[step] = congestion.limit
    assert at[200] >= 0.9 * 64
    assert at[370] <= 64 <= at[410] <= 66
    assert at[600] <= 72
    assert at[799] > at[600]


def test_a_cut_is_the_share_that_was_refused_with_those_under_way_included() -> None:
    congestion = grown(64)
    now = 100.0
    for _ in range(5000):
        now += 0.01
        congestion.answered(now, 0.2, congestion.limit)
    at_refusal = congestion.limit  # 100 a second, of which those of about two seconds count
    assert congestion.refused(now, 0.01, at_refusal, sent_at=now - 0.2)
    assert congestion.limit == pytest.approx(0.95 * at_refusal, abs=1.0)
    for _ in range(49):
        assert not congestion.refused(now, 0.01, at_refusal, sent_at=now - 0.2), "it is the same burst"
    assert congestion.limit == pytest.approx(0.8 * at_refusal, abs=1.0)


def test_pauses_that_take_much_of_the_time_cut_deeper() -> None:
    """Each costs a second after a tenth of one: what is refused is little, what is lost is nearly all."""
    congestion = grown(64)
    now = 100.0
    before = congestion.limit
    for _ in range(2):
        for _ in range(40):
            now += 0.0025
            congestion.answered(now, 0.2, congestion.limit)
        congestion.refused(now, 1.0, congestion.limit, sent_at=now - 0.01)
        now += 1.0
    assert congestion.limit <= 0.75 * before


def test_a_stall_does_not_slow_the_pace_for_longer_than_it_lasts() -> None:
    congestion = grown(64)
    now = 100.0
    for _ in range(40):
        congestion.answered(now, 1.2, congestion.limit)  # all at its end
    congestion.refused(now, 0.01, congestion.limit, sent_at=now - 0.2)
    for _ in range(200):
        now += 0.005
        congestion.answered(now, 0.2, congestion.limit)
    assert congestion.pacer.rate_per_s >= congestion.limit / 0.2


def test_other_errors_in_a_row_only_hold_it() -> None:
    congestion = grown(64)
    now = 100.0
    for _ in range(100):
        congestion.failed(now)
    held = congestion.limit
    for _ in range(50):
        now += 0.01
        congestion.answered(now, 0.2, congestion.limit)
    assert congestion.limit == held
    for _ in range(400):
        now += 0.01
        congestion.answered(now, 0.2, congestion.limit)
    assert congestion.limit > held, "and not for long"


# --- against servers that do not tell their limits ---------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """`share`: of what the server would have answered at most."""

    share: float
    sent: int
    failed: int
    limits: list[int]


async def pressing(
    server: StrictServer, seconds: float, concurrency: int = 256, per_minute: int | None = None
) -> Outcome:
    """Ask for so long as fast as the lane lets."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    listener = Listener()
    limits = Limits(concurrency=concurrency, requests_per_minute=per_minute)
    lane = Scheduler(None, emit=listener).chat(server, limits)
    asked = 0

    def rows() -> Iterator[Request]:
        nonlocal asked
        while loop.time() < began + seconds:
            yield request(f"r{asked}")
            asked += 1

    seen: set[str] = set()
    failed = 0
    async with lane.stream(rows(), stage="s") as results:
        async for result in results:
            assert result.id not in seen
            seen.add(result.id)
            failed += isinstance(result.outcome, Failure)
    assert len(seen) == asked, "no request is lost"
    possible = server.per_s if server.per_s is not None else (server.at_once or 0) / server.latency_s
    answered = sum(time <= began + seconds for time in server.answered_at)
    return Outcome(
        share=answered / seconds / possible,
        sent=lane.attempts,
        failed=failed,
        limits=[e.concurrency for e in listener.events if isinstance(e, ConcurrencyChanged)],
    )


EXACT, WHOLE, NONE = "exact", "whole seconds", None


async def against(server: StrictServer, share: float, refused: float) -> None:
    outcome = await pressing(server, 60.0)
    assert outcome.failed == 0
    assert outcome.share >= share
    assert server.refused <= refused * outcome.sent


# What a pause costs shows where its length is not told, or in whole seconds only: a server that holds a tenth
# of a second refuses now and then, and each time everyone waits for a second. With long latencies slow start
# goes far beyond the limit before the first refusal can be seen.
@pytest.mark.parametrize(
    ("per_s", "latency_s", "spread", "retry_after", "share"),
    [
        (50, 0.2, 0.3, EXACT, 0.85),
        (50, 0.002, 0.3, EXACT, 0.85),
        (50, 0.2, 0.3, WHOLE, 0.7),
        (50, 0.2, 2.0, NONE, 0.65),
        (20, 2.0, 0.3, EXACT, 0.6),
        pytest.param(200, 0.2, 0.3, EXACT, 0.9, marks=pytest.mark.slow),
        pytest.param(200, 0.2, 0.3, WHOLE, 0.75, marks=pytest.mark.slow),
        pytest.param(200, 0.002, 0.3, EXACT, 0.85, marks=pytest.mark.slow),
        pytest.param(200, 0.2, 2.0, EXACT, 0.85, marks=pytest.mark.slow),
        pytest.param(1000, 0.05, 0.3, EXACT, 0.9, marks=pytest.mark.slow),
        pytest.param(50, 0.002, 0.3, WHOLE, 0.6, marks=pytest.mark.slow),
        pytest.param(50, 1.0, 0.3, NONE, 0.6, marks=pytest.mark.slow),
    ],
)
def test_a_hidden_rate_is_reached(
    per_s: float, latency_s: float, spread: float, retry_after: object, share: float
) -> None:
    server = StrictServer(per_s=per_s, latency_s=latency_s, spread=spread, retry_after=retry_after)  # type: ignore[arg-type]
    run_virtual(against(server, share, refused=0.06))


@pytest.mark.parametrize(
    ("at_once", "latency_s", "spread", "share"),
    [
        (8, 0.2, 0.3, 0.85),
        (20, 1.0, 2.0, 0.85),
        pytest.param(1, 0.2, 0.3, 0.75, marks=pytest.mark.slow),
        pytest.param(100, 2.0, 0.3, 0.75, marks=pytest.mark.slow),
    ],
)
def test_a_hidden_limit_on_concurrency_is_reached(
    at_once: int, latency_s: float, spread: float, share: float
) -> None:
    server = StrictServer(at_once=at_once, latency_s=latency_s, spread=spread)
    run_virtual(against(server, share, refused=0.06))
    assert server.peak <= at_once


@pytest.mark.parametrize(
    ("server", "per_minute", "share"),
    [
        (StrictServer(per_s=200.0, retry_after=EXACT, stalls_per_s=2.0), 12_000, 0.85),
        (StrictServer(per_s=200.0, retry_after=EXACT, stalls_per_s=2.0), None, 0.85),
        pytest.param(
            StrictServer(per_s=200.0, retry_after=NONE, stalls_per_s=2.0), None, 0.7, marks=pytest.mark.slow
        ),
        pytest.param(StrictServer(at_once=40, stalls_per_s=2.0), None, 0.75, marks=pytest.mark.slow),
    ],
)
def test_stalls_of_the_way_to_the_server_cost_little(
    server: StrictServer, per_minute: int | None, share: float
) -> None:
    """They make bursts that nobody has sent, and a bucket that holds a tenth of a second refuses them."""

    async def check() -> None:
        outcome = await pressing(server, 30.0, per_minute=per_minute)
        assert outcome.failed == 0
        assert server.refused > 0
        assert outcome.share >= share

    run_virtual(check())


def test_a_rate_below_one_request_at_a_time_is_held_by_the_pace() -> None:
    async def check() -> None:
        server = StrictServer(per_s=1.0, latency_s=0.5, retry_after="exact")
        outcome = await pressing(server, 60.0, concurrency=64)
        assert outcome.failed == 0
        assert outcome.share >= 0.75
        assert server.refused <= 0.12 * outcome.sent

    run_virtual(check())


def test_a_server_without_limits_is_used_to_the_cap_within_some_round_trips() -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=lambda text, attempt: 1.0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        at_cap: list[float] = []

        def look(asked: Request) -> None:
            if model.in_flight == 255 and not at_cap:
                at_cap.append(loop.time() - began)

        model.on_send = look
        lane = Scheduler(None).chat(model, Limits(concurrency=256))
        await drain(lane, 3000)
        assert model.peak == 256
        assert at_cap[0] <= 5.0

    run_virtual(check())


async def drain(lane: Lane[Request, Answer], n: int) -> int:
    async with lane.stream(requests(n), stage="s") as results:
        return sum([isinstance(result.outcome, Answer) async for result in results])


def test_server_errors_never_shrink_it() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        failing = attempt == 1 and hash(text) % 4 == 0
        return AttemptFailure("server", "500", TRANSIENT) if failing else echo(text, attempt)

    async def check() -> None:
        listener = Listener()
        model = ScriptedModel(script, latency_s=lambda text, attempt: 0.3)
        lane = Scheduler(None, emit=listener).chat(model, Limits(concurrency=128))
        assert await drain(lane, 3000) == 3000
        limits = [event.lane.concurrency for event in listener.progress if event.lane is not None]
        assert limits == sorted(limits)
        assert not [event for event in listener.events if isinstance(event, ConcurrencyChanged)]
        assert model.peak >= 64

    run_virtual(check())


def test_one_episode_is_one_cut() -> None:
    """All that is in flight is refused, again and again for a while: the number falls once for each pause."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        listener = Listener()

        def script(text: str, attempt: int) -> ChatOutcome:
            if 20.0 < loop.time() - began < 20.4:
                return AttemptFailure("rate_limited", "429", rate_limited(5.0))
            return echo(text, attempt)

        model = ScriptedModel(script, latency_s=lambda text, attempt: 0.3)
        lane = Scheduler(None, emit=listener).chat(model, Limits(concurrency=64))
        assert await drain(lane, 8000) == 8000
        cuts = [event for event in listener.events if isinstance(event, ConcurrencyChanged)]
        assert [cut.concurrency for cut in cuts] == [32]
        assert cuts[0].pause_s == 5.0
        refused = model.attempts.total() - 8000
        assert refused >= 32, "they were many"
        last = listener.progress[-1].lane
        assert last is not None
        assert last.concurrency >= 60, "it has come back"

    run_virtual(check())
