"""`ordered=True`: results come in the order of the requests, and memory is bounded all the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from engine.errors import InterruptedRunError
from engine.scheduler import Limits, RetryPolicy, Scheduler
from engine.types import NO_RETRY, TRANSIENT, Answer, AttemptFailure, ChatOutcome, Failure, Request
from tests.support.fakes import InMemoryJournal, MemoryStore, ScriptedModel, echo, request, requests
from tests.support.virtual_time import run_virtual


def uneven(text: str, attempt: int) -> float:
    return random.Random(f"{text} {attempt}").random()


@pytest.mark.parametrize("max_batch", [1, 7, 512])
@pytest.mark.parametrize("journal", [True, False])
def test_results_come_in_the_order_of_the_requests(max_batch: int, journal: bool) -> None:
    async def check() -> None:
        model = ScriptedModel(latency_s=uneven, max_batch=max_batch)
        lane = Scheduler(InMemoryJournal(commit_s=0.01) if journal else None).chat(model)
        async with lane.stream(requests(1500), stage="s", ordered=True) as results:
            assert [r.id async for r in results] == [f"r{i}" for i in range(1500)]
        assert model.peak == {1: 64, 7: 7, 512: 512}[max_batch], "and they are asked side by side"

    run_virtual(check())


def test_equal_cached_and_failed_ones_keep_their_places() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        number = int(text.rsplit(maxsplit=1)[-1])
        if number % 5 == 1:
            return AttemptFailure("malformed", "", NO_RETRY)
        if number % 5 == 2 and attempt == 1:
            return AttemptFailure("server", "", TRANSIENT)
        return echo(text, attempt)

    async def check() -> None:
        store = MemoryStore()
        asked = [request(f"r{i}", f"text {random.Random(i).randrange(120)}") for i in range(600)]
        for _ in range(2):
            journal = InMemoryJournal(store, lookup_s=0.02, commit_s=0.01)
            scheduler = Scheduler(journal)
            lane = scheduler.chat(ScriptedModel(script, latency_s=uneven), Limits(concurrency=10))
            part = asked[:250] if not store.answers else asked
            async with lane.stream(part, stage="s", ordered=True) as results:
                found = [result async for result in results]
            assert [r.id for r in found] == [a.id for a in part]
            for result, item in zip(found, part, strict=True):
                text = item.messages[0].content
                if int(text.rsplit(maxsplit=1)[-1]) % 5 == 1:
                    assert result.outcome == Failure(item.id, "malformed", "")
                else:
                    assert isinstance(result.outcome, Answer)
                    assert result.outcome.text == f"answer to {text}"
        assert {r.source for r in found} == {"sent", "cached", "journal", "shared"}
        assert scheduler.jobs == {}

    run_virtual(check())


def test_memory_is_bounded_while_the_first_one_hangs() -> None:
    async def check() -> None:
        pulled = 0

        def source() -> Iterator[Request]:
            nonlocal pulled
            for i in range(20_000):
                pulled += 1
                yield request(f"r{i}", "equal" if i % 4 == 3 else None)

        def latency(text: str, attempt: int) -> float:
            return 100.0 if text == "r0" else 0.01

        scheduler = Scheduler(InMemoryJournal(), max_uncommitted=32)
        model = ScriptedModel(latency_s=latency)
        lane = scheduler.chat(model, Limits(concurrency=16))
        taken = 0
        async with lane.stream(source(), stage="s", ordered=True) as results:
            async for result in results:
                assert result.id == f"r{taken}"
                taken += 1
                assert pulled - taken <= results.window
                assert len(results._early or ()) <= results.window
                if taken == 1:
                    assert 256 <= pulled <= results.window == 16 + 32 + 2 * 256
                    assert scheduler.totals.done == pulled, "all of them are answered and wait for their turn"
                if taken == 5000:
                    break
            assert results._next - taken <= results.window

    run_virtual(check())


def test_what_was_in_turn_is_handed_out_when_the_run_is_stopped() -> None:
    async def check() -> None:
        def latency(text: str, attempt: int) -> float:
            return 1.0 if text == "r37" else 0.1

        journal = InMemoryJournal()
        scheduler = Scheduler(journal)
        model = ScriptedModel(latency_s=latency)
        asyncio.get_running_loop().call_later(0.75, scheduler.request_stop)
        seen: list[str] = []
        lane = scheduler.chat(model, Limits(concurrency=8))
        with pytest.raises(InterruptedRunError):  # noqa: PT012
            async with lane.stream(requests(1000), stage="s", ordered=True) as results:
                async for result in results:
                    seen.append(result.id)  # noqa: PERF401
        assert seen == [f"r{i}" for i in range(len(seen))]
        assert len(seen) == len(journal.store.answers) == len(model.sends) > 40, "r37 was waited for"

    run_virtual(check())


def test_a_stream_left_early_gives_its_places_to_nobody() -> None:
    """Another stream waits for equal requests of the one that is left: it takes them over, in its order."""

    async def check() -> None:
        scheduler = Scheduler(InMemoryJournal())
        lane = scheduler.chat(ScriptedModel(latency_s=lambda text, attempt: 1.0), Limits(concurrency=50))

        async def leave() -> None:
            async with lane.stream(requests(20), stage="left", ordered=True):
                await asyncio.sleep(0.5)

        async def stay() -> list[str]:
            await asyncio.sleep(0.2)
            mixed = [request(f"mine {i}", f"r{i}" if i % 2 else f"own {i}") for i in range(30)]
            async with lane.stream(mixed, stage="stays", ordered=True) as results:
                return [r.id async for r in results]

        async with asyncio.TaskGroup() as group:
            group.create_task(leave())
            staying = group.create_task(stay())
        assert staying.result() == [f"mine {i}" for i in range(30)]
        assert scheduler.jobs == {}

    run_virtual(check())


def test_a_failure_of_the_first_holds_nobody_up_for_longer_than_its_retries() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        return AttemptFailure("server", "", TRANSIENT) if text == "r0" else echo(text, attempt)

    async def check() -> None:
        scheduler = Scheduler(InMemoryJournal(), policy=RetryPolicy(max_attempts=3))
        lane = scheduler.chat(ScriptedModel(script, latency_s=uneven))
        async with lane.stream(requests(100), stage="s", ordered=True) as results:
            found = [result async for result in results]
        assert [r.id for r in found] == [f"r{i}" for i in range(100)]
        assert isinstance(found[0].outcome, Failure)

    run_virtual(check())
