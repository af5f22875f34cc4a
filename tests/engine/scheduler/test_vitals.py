"""What is told while a job runs: a heartbeat, rates, who is the bottleneck, how late the loop is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from engine.events import Bottleneck, LaneVitals, StageProgress, ignore_events
from engine.ports import Price
from engine.scheduler import Budget, Limits, RetryPolicy, Scheduler
from engine.scheduler.vitals import Heartbeat, Rates, bottleneck
from engine.types import (
    TRANSIENT,
    Answer,
    AttemptFailure,
    ChatOutcome,
    EmbedRequest,
    Request,
    rate_limited,
)
from tests.support.fakes import (
    InMemoryJournal,
    Listener,
    ScriptedEmbedder,
    ScriptedModel,
    echo,
    request,
    requests,
)
from tests.support.virtual_time import run_virtual, virtual_loop

# --- the heartbeat -----------------------------------------------------------------------------------


def test_the_heart_beats_more_rarely_when_nothing_goes_on() -> None:
    async def check() -> None:
        loop = virtual_loop()
        began = loop.time()
        beats: list[float] = []

        def beat() -> bool:
            beats.append(loop.time() - began)
            return beats[-1] < 2.0

        heart = Heartbeat(beat)
        heart.start()
        heart.start()  # once is enough
        await asyncio.sleep(60.0)
        assert beats[:19] == pytest.approx([0.1 * (i + 1) for i in range(19)])
        gaps = [b - a for a, b in itertools.pairwise(beats[20:])]
        assert gaps == sorted(gaps)
        assert gaps[-1] == pytest.approx(5.0)
        heart.stop()
        heart.stop()
        n = len(beats)
        await asyncio.sleep(60.0)
        assert len(beats) == n
        heart.start()
        await asyncio.sleep(0.15)
        assert len(beats) == n + 1, "quick again after a new start"
        heart.stop()

    run_virtual(check())


def test_a_beat_may_stop_the_heart() -> None:
    async def check() -> None:
        beats = 0

        def beat() -> bool:
            nonlocal beats
            beats += 1
            heart.stop()
            return True

        heart = Heartbeat(beat)
        heart.start()
        await asyncio.sleep(10.0)
        assert beats == 1

    run_virtual(check())


def test_the_lateness_of_the_loop_and_its_cpu_are_measured() -> None:
    async def check() -> None:
        loop = virtual_loop()
        heart = Heartbeat(lambda: True)
        assert heart.lag_s == 0.0
        heart.start()
        await asyncio.sleep(1.05)
        assert heart.lag_s < 1e-6
        assert heart.cpu_share == pytest.approx(0.0, abs=1e-6)
        loop.burn(0.35)  # from 1.05 to 1.4: the beat of 1.1 is 0.3 late
        await asyncio.sleep(0.01)
        assert heart.lag_s == pytest.approx(0.3, abs=1e-6)
        assert heart.cpu_share == pytest.approx(0.35 / 0.4)
        await asyncio.sleep(100.0)
        assert heart.lag_s < 1e-6, "and one late beat is forgotten"
        heart.stop()

    run_virtual(check())


# --- rates and the bottleneck ------------------------------------------------------------------------


def test_rates_are_those_of_the_last_seconds() -> None:
    rates = Rates(seconds=5.0)
    rates.mark(0.0, 0, 0, "source")
    assert rates.requests_per_s == rates.tokens_per_minute == 0.0
    for i in range(1, 101):  # ten seconds at 30 requests a second
        rates.mark(i / 10, 3 * i, 60 * i, "server")
    assert rates.requests_per_s == pytest.approx(30.0)
    assert rates.tokens_per_minute == pytest.approx(36_000.0)
    for i in range(101, 161):  # and six at none
        rates.mark(i / 10, 300, 6000, "pause")
    assert rates.requests_per_s == 0.0
    assert rates.bottleneck == "pause"


@pytest.mark.parametrize(
    ("waits_for", "cpu_share", "named"),
    [
        ("server", 0.2, "server"),
        ("server", 0.95, "client"),
        ("source", 0.95, "client"),
        ("disk", 0.95, "client"),
        ("limit", 0.95, "limit"),  # on purpose: more CPU would change nothing
        ("pause", 0.95, "pause"),
        ("cost", 0.95, "cost"),
    ],
)
def test_a_busy_core_is_the_bottleneck_unless_the_wait_is_on_purpose(
    waits_for: Bottleneck, cpu_share: float, named: Bottleneck
) -> None:
    assert bottleneck(waits_for, cpu_share) == named


async def watch(
    scheduler: Scheduler,
    model: ScriptedModel,
    limits: Limits | None = None,
    source: object = None,
    *,
    seconds: float = 20.0,
    take: bool = True,
) -> list[LaneVitals]:
    """What was told of the lane after the first five seconds, of so many."""
    loop = virtual_loop()
    began = loop.time()
    told: list[LaneVitals] = []

    def listen(event: object) -> None:
        if isinstance(event, StageProgress) and event.lane is not None and loop.time() - began > 5.0:
            told.append(event.lane)

    scheduler.emit = listen
    lane = scheduler.chat(model, limits or Limits())
    async with lane.stream(source or requests(20_000), stage="s") as results:  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(seconds):
                if take:
                    async for _ in results:
                        pass
                await asyncio.sleep(seconds)
        except TimeoutError:
            pass
        scheduler.emit = ignore_events
    return told


def named_in(told: Sequence[LaneVitals]) -> set[str]:
    assert told
    return {vitals.bottleneck for vitals in told}


def tenth(text: str, attempt: int) -> float:
    return 0.1


def test_the_bottleneck_is_the_server() -> None:
    async def check() -> None:
        told = await watch(Scheduler(None), ScriptedModel(latency_s=tenth), Limits(4))
        assert named_in(told) == {"server"}
        assert told[-1].in_flight == told[-1].concurrency == 4
        assert told[-1].requests_per_s == pytest.approx(40, rel=0.05)
        assert told[-1].tokens_per_minute == pytest.approx(24_000, rel=0.05)

    run_virtual(check())


@pytest.mark.parametrize("limits", [Limits(64, requests_per_minute=300), Limits(64, tokens_per_minute=3000)])
def test_the_bottleneck_is_the_limit(limits: Limits) -> None:
    async def check() -> None:
        told = await watch(Scheduler(None), ScriptedModel(latency_s=tenth), limits)
        assert named_in(told) == {"limit"}
        assert told[-1].requests_per_minute_limit == limits.requests_per_minute
        assert told[-1].tokens_per_minute_limit == limits.tokens_per_minute

    run_virtual(check())


def test_the_bottleneck_is_the_source() -> None:
    async def slowly() -> AsyncIterator[Request]:
        for item in requests(1000):
            await asyncio.sleep(0.5)
            yield item

    async def check() -> None:
        told = await watch(Scheduler(None), ScriptedModel(latency_s=tenth), source=slowly())
        assert named_in(told) == {"source"}

    run_virtual(check())


def test_the_bottleneck_is_a_pause() -> None:
    async def check() -> None:
        loop = virtual_loop()
        began = loop.time()

        def script(text: str, attempt: int) -> ChatOutcome:
            if 3.0 < loop.time() - began < 4.0:
                return AttemptFailure("rate_limited", "429", rate_limited(60.0))
            return echo(text, attempt)

        told = await watch(Scheduler(None), ScriptedModel(script, latency_s=tenth), Limits(8), seconds=50.0)
        assert told[-1].bottleneck == "pause"
        assert told[-1].in_flight == 0
        assert told[-1].requests_per_s == 0.0

    run_virtual(check())


def test_the_bottleneck_is_the_cap_on_cost() -> None:
    """The next request could pass the cap, unless those in flight turn out cheaper than they may be."""

    async def check() -> None:
        budget = Budget(1.0)
        model = ScriptedModel(latency_s=lambda text, attempt: 30.0, price=Price(0.0, 1e4))
        told = await watch(Scheduler(None, budget=budget), model, Limits(64))
        assert named_in(told) == {"cost"}
        assert told[-1].cap_usd == 1.0
        assert told[-1].in_flight == 10 + 1, "and the one whose slot is taken already"

    run_virtual(check())


def test_the_bottleneck_is_the_disk() -> None:
    async def check() -> None:
        scheduler = Scheduler(InMemoryJournal(commit_s=4.0), max_uncommitted=4)
        model = ScriptedModel(latency_s=lambda text, attempt: 0.001)
        told = await watch(scheduler, model, Limits(8))
        assert named_in(told) == {"disk"}

    run_virtual(check())


def test_the_bottleneck_is_the_client_that_takes_no_results() -> None:
    async def check() -> None:
        told = await watch(Scheduler(None), ScriptedModel(latency_s=tenth), Limits(8), take=False)
        assert told[-1].bottleneck == "client"

    run_virtual(check())


def test_the_bottleneck_is_a_client_that_computes_all_the_time() -> None:
    async def check() -> None:
        loop = virtual_loop()

        def script(text: str, attempt: int) -> ChatOutcome:
            loop.burn(0.05)
            return echo(text, attempt)

        model = ScriptedModel(script, latency_s=lambda text, attempt: 0.01)
        told = await watch(Scheduler(None), model, Limits(8))
        assert named_in(told) == {"client"}
        assert told[-1].cpu_share > 0.9
        assert told[-1].loop_lag_s > 0.02

    run_virtual(check())


# --- what the events say -----------------------------------------------------------------------------


def test_progress_is_told_while_nothing_finishes() -> None:
    async def check() -> None:
        listener = Listener()
        model = ScriptedModel(latency_s=lambda text, attempt: 200.0)
        async with Scheduler(None, emit=listener).chat(model).stream(requests(3), stage="s") as results:
            assert len([r async for r in results]) == 3
        waiting = [event for event in listener.progress if event.done == 0 and event.in_flight == 3]
        assert 40 <= len(waiting) <= 60, "every five seconds in the end"
        assert listener.progress[-1].done == 3

    run_virtual(check())


def test_nothing_is_told_after_the_end() -> None:
    async def check() -> None:
        listener = Listener()
        scheduler = Scheduler(None, emit=listener)
        async with scheduler.chat(ScriptedModel(latency_s=tenth)).stream(requests(30), stage="s") as results:
            async for _ in results:
                pass
        n = len(listener.events)
        await asyncio.sleep(100.0)
        assert len(listener.events) == n

    run_virtual(check())


def _chat(scheduler: Scheduler, model: ScriptedModel) -> object:
    asked = [request(f"r{i}", f"SECRET row {i}") for i in range(200)]
    return scheduler.chat(model, Limits(8)).stream(asked, stage="chat")


def _embed(scheduler: Scheduler, model: ScriptedModel) -> object:
    asked = [EmbedRequest(f"e{i}", f"SECRET row {i}") for i in range(50)]
    embedder = ScriptedEmbedder(refuse=frozenset({"SECRET row 7"}))
    return scheduler.embed(embedder).stream(asked, stage="embedding")


@pytest.mark.parametrize("opened", [_chat, _embed])
def test_no_event_carries_row_text(opened: Callable[[Scheduler, ScriptedModel], object]) -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        number = int(text.rsplit(maxsplit=1)[-1])
        if number % 50 == 1 and attempt == 1:
            return AttemptFailure("rate_limited", f"429 for {text}", rate_limited(1.0))
        if number % 10 == 2:
            return AttemptFailure("server", f"500 for {text}", TRANSIENT)
        return Answer(f"an answer to {text}") if number % 10 != 3 else AttemptFailure("malformed", text)

    async def check() -> None:
        listener = Listener()
        scheduler = Scheduler(InMemoryJournal(), emit=listener, policy=RetryPolicy(max_attempts=2))
        async with opened(scheduler, ScriptedModel(script, latency_s=tenth)) as results:  # type: ignore[attr-defined]
            assert len([r async for r in results]) in (200, 50)
        kinds = {type(event).__name__ for event in listener.events}
        assert kinds >= {"StageStarted", "StageProgress", "Attempted", "StageFinished"}
        assert "SECRET" not in repr(listener.events)

    run_virtual(check())
