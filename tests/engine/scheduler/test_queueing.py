"""Servers that queue instead of refusing: their batch is full, their queue short, whoever else asks them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import lru_cache
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ModelError
from engine.events import ConcurrencyChanged
from engine.ports import Gauged, ServerLoad
from engine.scheduler import Lane, Limits, Scheduler
from engine.scheduler.congestion import Congestion
from engine.scheduler.queueing import Queueing
from engine.types import Answer, AttemptFailure, ChatOutcome, Failure, Request, rate_limited
from tests.support.closed_loop import Course, Fixed, drive
from tests.support.fakes import Listener, ScriptedModel, request
from tests.support.queueing_servers import OtherClient, Shape, SimulatedServers, Tells
from tests.support.virtual_time import run_virtual

CAP = 256
FIXED = (8, 16, 32, 64, 128, 256)

# --- the number --------------------------------------------------------------------------------------

answers = st.tuples(st.just("answered"), st.floats(0.0, 30.0), st.integers(1, 300))
refusals = st.tuples(st.just("refused"), st.floats(0.0, 60.0), st.integers(1, 300))
failures = st.tuples(st.just("failed"), st.just(0.0), st.just(1))
looks = st.tuples(st.just("loaded"), st.floats(0.0, 1.0), st.integers(0, 5000))
steps = st.lists(
    st.tuples(st.floats(0.0, 5.0), st.one_of(answers, answers, answers, looks, refusals, failures)),
    max_size=300,
)


@given(cap=st.integers(1, 300), start=st.integers(1, 400), steps=steps, times=st.integers(1, 40))
def test_whatever_happens_the_number_stays_between_one_and_the_cap(
    cap: int, start: int, steps: list[tuple[float, tuple[str, float, int]]], times: int
) -> None:
    control = Queueing(cap, start=start)
    assert control.limit == min(start, cap)
    now = 1000.0
    for gap, (what, seconds, number) in steps:
        now += gap
        if what == "answered":
            for _ in range(times):
                control.answered(now, seconds, min(number, control.limit))
        elif what == "loaded":
            control.loaded(ServerLoad(1 + number % 3, number, number // 2, seconds, number // 7))
        elif what == "failed":
            before = control.limit
            control.failed(now)
            assert control.limit == before
        else:
            before = control.limit
            control.refused(now, seconds, number, sent_at=now)
            now += seconds
            assert control.limit <= max(before, control.cap)
        assert 1 <= control.limit <= cap


def drawn(seed: int) -> tuple[Shape, ...]:
    """One or two servers, of any batch, speed and front end."""
    rng = random.Random(seed)
    step_s = 10.0 ** rng.uniform(-2.0, -1.2)
    shape = Shape(
        max_running=rng.choice((16, 32, 64, 128)),
        step_s=step_s,
        sequence_s=step_s * 10.0 ** rng.uniform(-2.5, -1.0),
        prefill_s=step_s * 10.0 ** rng.uniform(-2.0, -1.0),
        prefills=rng.choice((8, 32, 128)),
        output=rng.choice((2, 4, 8)),
        front_s=rng.choice((0.0, 0.0, 0.002, 0.01)),
        transit_s=rng.choice((0.001, 0.005, 0.02)),
    )
    return (shape,) * rng.choice((1, 1, 2))


def fixed(shapes: tuple[Shape, ...], number: int) -> Course:
    async def run() -> Course:
        return await drive(SimulatedServers(*shapes), Fixed(number), until=20.0, after=5.0)

    return run_virtual(run())


@lru_cache
def closed_loops(seed: int) -> tuple[float, Course]:
    """The best rate of fixed numbers, and how the smallest went that nearly reaches it."""
    loops = [fixed(drawn(seed), number) for number in FIXED]
    best = max(loop.per_s for loop in loops)
    return best, next(loop for loop in loops if loop.per_s >= 0.97 * best)


def found(shapes: tuple[Shape, ...], start: int, tells: Tells = "all") -> Course:
    async def run() -> Course:
        servers = SimulatedServers(*shapes, tells=tells)
        course = await drive(servers, Queueing(CAP, start=start), until=90.0, after=60.0)
        assert servers.peak <= CAP
        return course

    return run_virtual(run())


DRAWN = [seed if seed < 4 else pytest.param(seed, marks=pytest.mark.slow) for seed in range(30)]


@pytest.mark.parametrize("start", [1, 16, 256])
@pytest.mark.parametrize("seed", DRAWN)
def test_after_a_minute_it_is_as_good_as_the_best_fixed_number(seed: int, start: int) -> None:
    """And the queue is about as short as with the smallest that is as good."""
    best, knee = closed_loops(seed)
    course = found(drawn(seed), start)
    assert course.per_s >= 0.95 * best
    assert course.waiting <= 0.5 * course.running + max(knee.waiting, 8.0 * len(drawn(seed)))


@pytest.mark.parametrize("start", [1, 256])
@pytest.mark.parametrize("seed", DRAWN)
def test_the_rate_alone_is_enough(seed: int, start: int) -> None:
    best, _ = closed_loops(seed)
    assert found(drawn(seed), start, "nothing").per_s >= 0.94 * best


@pytest.mark.parametrize("tells", ["all", "nothing"])
def test_a_queue_that_nobody_sees_is_shortened_too(tells: Tells) -> None:
    """In front of the engine: 100 a second go through there, with eight in flight as well as with 256."""
    course = found((Shape(step_s=0.01, prefill_s=0.0, output=2, front_s=0.01),), 256, tells)
    assert course.per_s >= 95.0
    assert course.limits[-1] <= 32


# --- loads that change -------------------------------------------------------------------------------

SERVER = Shape(max_running=32, step_s=0.04, sequence_s=0.0005, prefill_s=0.001, output=4)


def rates(servers: SimulatedServers, times: list[tuple[float, int]], since: float, until: float) -> float:
    """Answers a second in that time, from what was noted."""
    noted = dict(times)
    return (noted[until] - noted[since]) / (until - since)


@pytest.mark.parametrize("tells", ["all", "nothing"])
def test_a_server_dies_and_comes_back(tells: Tells) -> None:
    async def run() -> None:
        servers = SimulatedServers(SERVER, SERVER, tells=tells)
        noted: list[tuple[float, int]] = []

        def on_time(seconds: float) -> None:
            noted.append((seconds, servers.answered))
            if seconds == 60.0:
                servers.servers[0].die()
            if seconds == 120.0:
                servers.servers[0].come_back()

        course = await drive(servers, Queueing(CAP), until=180.0, after=150.0, on_time=on_time)
        both, one, again = (rates(servers, noted, t - 25.0, t) for t in (60.0, 120.0, 179.5))
        assert one >= 0.45 * both
        assert again >= 0.95 * both
        assert tells == "nothing" or course.waiting <= 0.25 * course.running + 16

    run_virtual(run())


def test_another_client_comes_and_goes() -> None:
    """Ours takes no more for that, and no less; and the batch is full when the other has gone."""

    async def run() -> None:
        shape = Shape(max_running=64, step_s=0.04, sequence_s=0.0005, prefill_s=0.001, output=4)
        servers = SimulatedServers(shape)
        other = OtherClient(servers, at_once=32)
        noted: list[tuple[float, int]] = []

        def on_time(seconds: float) -> None:
            noted.append((seconds, servers.answered))
            if seconds == 40.0:
                other.start()
            if seconds == 100.0:
                other.stop()

        course = await drive(servers, Queueing(CAP), until=160.0, after=130.0, on_time=on_time)
        before, again = (rates(servers, noted, t - 20.0, t) for t in (40.0, 159.5))
        beside = rates(servers, noted, 70.0, 100.0)
        assert beside >= 0.45 * before
        assert median(course.limits[140:200]) <= 1.2 * median(course.limits[60:80])
        assert again >= 0.95 * before

    run_virtual(run())


def test_it_does_not_crowd_out_others() -> None:
    """Where what waits is theirs, more of ours would only be taken from them."""

    async def run() -> None:
        servers = SimulatedServers(SERVER)
        OtherClient(servers, at_once=200).start()
        course = await drive(servers, Queueing(CAP), until=60.0, after=30.0)
        assert median(course.limits) <= 24
        assert max(course.limits) <= 64

    run_virtual(run())


def test_what_has_failed_is_tried_again_and_ever_more_rarely() -> None:
    """Another client may have left."""

    async def run() -> None:
        course = await drive(SimulatedServers(SERVER), Queueing(CAP), until=200.0, after=60.0)
        late = course.limits[-120:]
        kept = median(late)
        assert 0.6 <= late.count(kept) / len(late) < 1.0
        assert max(late) > 1.3 * kept

    run_virtual(run())


def test_memory_that_is_too_small_for_the_batch_is_not_overrun() -> None:
    shape = Shape(max_running=128, step_s=0.003, sequence_s=0.0001, output=60, prompt=30, memory=2000)

    async def run(control: Queueing | Fixed) -> tuple[float, float]:
        servers = SimulatedServers(shape)
        counted: list[tuple[int, int]] = []
        course = await drive(
            servers,
            control,
            until=90.0,
            after=60.0,
            on_time=lambda _: counted.append((servers.servers[0].preemptions, servers.answered)),
        )
        (before, asked), (after, answered) = counted[120], counted[-1]
        return course.per_s, (after - before) / (answered - asked)

    best = max(run_virtual(run(Fixed(number)))[0] for number in (16, 24, 32, 64))
    _, overrun = run_virtual(run(Fixed(64)))
    for start in (16, 64):
        per_s, preempted = run_virtual(run(Queueing(CAP, start=start)))
        assert per_s >= 0.93 * best
        assert preempted <= 0.5 * overrun


def test_a_number_that_rows_do_not_fill_is_not_raised() -> None:
    control = Queueing(CAP)
    for i in range(2000):
        control.answered(0.1 * i, 0.1, in_flight=3)
        assert control.limit == 16


def test_a_refusal_cuts_it_and_it_comes_back() -> None:
    control = Queueing(64, start=32)
    now = 0.0
    for _ in range(2000):
        now += 0.01
        control.answered(now, 0.01 * control.limit, control.limit)
    before = control.limit
    assert control.refused(now, 1.0, before, sent_at=now - 0.1)
    assert control.limit <= 0.5 * before
    now += 1.0
    for _ in range(4000):
        now += 0.01
        control.answered(now, 0.01 * control.limit, control.limit)
    assert control.limit >= 0.9 * min(before, 16)


# --- through the scheduler ---------------------------------------------------------------------------


async def ask(lane: Lane[Request, Answer], seconds: float, prefix: str = "r") -> int:
    """Ask for so long; how many were answered. All of them have to be, each once."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    asked = 0

    def rows() -> Iterator[Request]:
        nonlocal asked
        while loop.time() < ends:
            yield request(f"{prefix}{asked}")
            asked += 1

    seen = set()
    async with lane.stream(rows(), stage="s") as results:
        async for result in results:
            assert isinstance(result.outcome, Answer)
            seen.add(result.id)
    assert len(seen) == asked
    return asked


@pytest.mark.parametrize("tells", ["all", "nothing", "hanging"])
@pytest.mark.parametrize("start", [1, 256])
def test_a_stream_asks_as_many_as_is_best(tells: Tells, start: int) -> None:
    best = max(fixed((SERVER,), number).per_s for number in FIXED)

    async def run() -> None:
        servers = SimulatedServers(SERVER, tells=tells)
        assert isinstance(servers, Gauged)
        lane = Scheduler(None).chat(servers, Limits(start=start))
        assert (lane.concurrency, lane.congestion.limit) == (servers.most_in_flight, start)
        await ask(lane, 40.0)
        before = servers.answered
        await ask(lane, 20.0, "more")
        assert servers.answered - before >= 0.95 * 20.0 * best
        assert servers.peak <= servers.most_in_flight
        assert 20 <= servers.asked_load <= 160

    run_virtual(run())


def test_the_users_number_is_the_most() -> None:
    async def run() -> None:
        servers = SimulatedServers(SERVER)
        lane = Scheduler(None).chat(servers, Limits(concurrency=12))
        await ask(lane, 20.0)
        assert servers.peak == 12

    run_virtual(run())


def test_streams_of_one_lane_look_at_the_servers_once() -> None:
    async def run() -> None:
        servers = SimulatedServers(SERVER)
        lane = Scheduler(None).chat(servers)
        async with asyncio.TaskGroup() as group:
            for number, seconds in enumerate((5.0, 10.0, 20.0)):
                group.create_task(ask(lane, seconds, f"{number}."))
        assert 40 <= servers.asked_load <= 80

    run_virtual(run())


def test_servers_are_left_alone_while_nothing_is_asked() -> None:
    async def run() -> None:
        servers = SimulatedServers(SERVER)

        async def rows() -> AsyncIterator[Request]:
            yield request("first")
            await asyncio.sleep(3600.0)
            yield request("last")

        async with Scheduler(None).chat(servers).stream(rows(), stage="s") as results:
            assert [result.id async for result in results] == ["first", "last"]
        assert servers.asked_load == 0

    run_virtual(run())


def test_a_server_that_is_gone_for_a_moment_loses_no_request() -> None:
    async def run() -> None:
        servers = SimulatedServers(SERVER, SERVER)
        lane = Scheduler(None).chat(servers)
        loop = asyncio.get_running_loop()
        loop.call_later(10.0, servers.servers[0].die)
        loop.call_later(25.0, servers.servers[0].come_back)
        assert await ask(lane, 40.0) > 3000

    run_virtual(run())


def test_servers_that_are_gone_for_good_end_the_job_soon() -> None:
    """However high the cap: what may be repeated goes by what was in flight."""

    async def run() -> None:
        servers = SimulatedServers(SERVER, most_in_flight=4096)
        lane = Scheduler(None).chat(servers)
        loop = asyncio.get_running_loop()
        loop.call_later(10.0, servers.servers[0].die)
        failed = 0

        async def count_failures() -> None:
            nonlocal failed
            async with lane.stream((request(f"r{i}") for i in range(100_000)), stage="s") as results:
                async for result in results:
                    failed += isinstance(result.outcome, Failure)

        with pytest.raises(ModelError, match="fails too often"):
            await count_failures()
        assert failed <= 400

    run_virtual(run())


def test_what_refuses_in_front_of_the_servers_is_obeyed() -> None:
    """A proxy that lets twenty through at once: its 429s cut the number, and are told."""

    class Proxied(SimulatedServers):
        refused = 0

        async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
            if self.in_flight >= 20:
                self.refused += 1
                return [AttemptFailure("rate_limited", "429", rate_limited(0.5))]
            return await super().complete(requests)

    async def run() -> None:
        listener = Listener()
        servers = Proxied(SERVER)
        lane = Scheduler(None, emit=listener).chat(servers)
        asked = await ask(lane, 60.0)
        assert servers.peak <= 20
        assert 1 <= servers.refused <= 0.02 * asked
        assert [event for event in listener.events if isinstance(event, ConcurrencyChanged)]
        told = [event.lane.concurrency for event in listener.progress if event.lane]
        assert max(told) >= 20
        assert min(told[-100:]) < 25

    run_virtual(run())


def test_other_models_are_asked_as_before() -> None:
    assert isinstance(Scheduler(None).chat(ScriptedModel()).congestion, Congestion)
    batched = _InProcess(max_batch=8)
    assert isinstance(batched, Gauged)
    assert isinstance(Scheduler(None).chat(batched).congestion, Congestion)


class _InProcess(ScriptedModel):
    """What fills its batch is its own affair."""

    most_in_flight = 1024

    async def load(self) -> ServerLoad | None:
        return None
