"""Who sends what when: no task for a row, nothing lost between dispatcher and worker, nobody starves."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from engine.ports import FREE, Price
from engine.scheduler import Budget, Lane, Limits, RetryPolicy, Scheduler
from engine.scheduler.job import Job
from engine.scheduler.stream import Stream
from engine.types import TRANSIENT, Answer, AttemptFailure, ChatOutcome, Request, Usage
from tests.support.fakes import InMemoryJournal, ScriptedModel, echo, request, requests
from tests.support.virtual_time import run_virtual


def tenth(text: str, attempt: int) -> float:
    return 0.1


# --- no task for a row, no memory for a row ----------------------------------------------------------


@dataclass
class LeanModel:
    """Remembers nothing but what it was told to count; every tenth request fails at first."""

    look_at: int
    asked: int = 0
    most_tasks: int = 0
    alive: int = 0
    name: str = "lean"
    max_batch: int = 1
    max_input_tokens: int = 1000
    price: Price | None = FREE
    failed: set[str] = field(default_factory=set)

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        self.asked += 1
        if self.asked % 50 == 0:
            self.most_tasks = max(self.most_tasks, len(asyncio.all_tasks()))
        if self.asked == self.look_at:
            self.alive = sum(isinstance(o, Request | Job | Answer) for o in gc.get_objects())
        await asyncio.sleep(0.01)
        (asked,) = requests
        if asked.id.endswith("0") and asked.id not in self.failed:
            self.failed.add(asked.id)
            return [AttemptFailure("server", "", TRANSIENT)]
        self.failed.discard(asked.id)
        return [Answer("x", Usage(1, 1))]

    async def aclose(self) -> None:
        pass


@dataclass(frozen=True)
class Footprint:
    tasks_made: int
    most_tasks: int
    alive: int


async def footprint(rows: int, *, ordered: bool, limits: Limits) -> Footprint:
    """What a job of so many rows takes, `alive` measured half way."""
    loop = asyncio.get_running_loop()
    made = 0

    def counting(loop: asyncio.AbstractEventLoop, coroutine: object, **kw: object) -> asyncio.Task[object]:
        nonlocal made
        made += 1
        return asyncio.Task(coroutine, loop=loop, **kw)  # type: ignore[arg-type]

    def source() -> Iterator[Request]:
        return (request(f"r{i}", "equal" if i % 9 == 5 else None) for i in range(rows))

    loop.set_task_factory(counting)  # type: ignore[arg-type]
    model = LeanModel(look_at=rows // 2)
    scheduler = Scheduler(None, policy=RetryPolicy(base_delay_s=0.05))
    n = 0
    async with scheduler.chat(model, limits).stream(source(), stage="s", ordered=ordered) as results:
        async for _ in results:
            n += 1
    assert n == rows
    assert model.alive > 0
    return Footprint(made, model.most_tasks, model.alive)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("limits", [Limits(8), Limits(8, requests_per_minute=60_000)])
def test_neither_tasks_nor_memory_grow_with_the_rows(ordered: bool, limits: Limits) -> None:
    few = run_virtual(footprint(1500, ordered=ordered, limits=limits))
    many = run_virtual(footprint(6000, ordered=ordered, limits=limits))
    assert many.tasks_made == few.tasks_made <= 8 + 10
    assert many.most_tasks == few.most_tasks
    assert many.alive <= few.alive + 300, "a chunk of the source more or less"


# --- nothing is lost between dispatcher and worker ---------------------------------------------------


def stream_of(lane: Lane[Request, Answer]) -> Stream[Request, Answer]:
    """One that nobody runs."""
    return Stream(lane, [], "s", None)


def test_a_worker_cancelled_with_a_batch_in_hand_gives_it_back() -> None:
    async def check() -> None:
        budget = Budget(1.0)
        lane = Scheduler(None, budget=budget).chat(ScriptedModel(price=Price(0.0, 1e4)), Limits(4))
        stream = stream_of(lane)
        dispatcher = stream.dispatcher
        jobs = [Job(bytes([i]), asked, stream, i) for i, asked in enumerate(requests(3))]
        dispatcher.enqueue(jobs)
        worker = asyncio.ensure_future(dispatcher._order())
        await asyncio.sleep(0)
        batch = dispatcher._take()
        assert [job.request.id for job in batch] == ["r0"]
        batch = await dispatcher._admit(batch)
        dispatcher._start(batch)
        dispatcher._hand_over(batch)
        assert (lane.in_flight, lane.open, batch[0].attempts) == (1, 1, 1)
        assert budget.reserved_usd > 0
        worker.cancel()  # the order is done, and the worker has not run since
        await asyncio.wait([worker])
        assert worker.cancelled()
        assert (lane.in_flight, lane.open, batch[0].attempts) == (0, 0, 0)
        assert budget.reserved_usd == budget.spent_usd == 0.0, "it was never sent"
        assert [job.request.id for job in dispatcher._take()] == ["r0"], "and it comes first again"

    run_virtual(check())


def test_a_batch_for_workers_that_are_gone_is_taken_back() -> None:
    async def check() -> None:
        lane = Scheduler(None).chat(ScriptedModel(), Limits(4))
        dispatcher = stream_of(lane).dispatcher
        dispatcher.enqueue([Job(b"k", request("r0"), stream_of(lane), 0)])
        worker = asyncio.ensure_future(dispatcher._order())
        await asyncio.sleep(0)
        batch = dispatcher._take()
        worker.cancel()
        await asyncio.wait([worker])
        dispatcher._start(batch)
        dispatcher._hand_over(batch)
        assert (lane.in_flight, lane.open) == (0, 0)
        assert len(dispatcher._ready) == 1

    run_virtual(check())


@pytest.mark.parametrize("limits", [Limits(3), Limits(3, requests_per_minute=6000)])
def test_leaving_at_any_turn_of_the_loop_leaves_nothing_claimed(limits: Limits) -> None:
    """What the model never saw costs nothing; what it saw and nobody will know counts in full."""

    async def leave_after(turns: int) -> int:
        budget = Budget(1e6)
        model = ScriptedModel(price=Price(0.0, 1e6))
        scheduler = Scheduler(InMemoryJournal(), budget=budget)
        lane = scheduler.chat(model, limits)
        async with lane.stream(requests(40), stage="s"):
            for _ in range(turns):
                await asyncio.sleep(0)
        assert lane.in_flight == lane.open == model.in_flight == 0
        assert scheduler.jobs == {}
        assert budget.reserved_usd == 0
        unknown = len(model.sends) - len(model.billed)
        assert budget.spent_usd == pytest.approx(5 * len(model.billed) + 10 * unknown)
        return len(model.sends)

    seen = {run_virtual(leave_after(turns)) for turns in range(90)}
    assert min(seen) == 0
    assert len(seen) >= 3, "the turns were different moments"


# --- nobody starves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(4), Limits(4, requests_per_minute=1200), Limits(1)])
def test_two_streams_of_one_lane_both_get_on(limits: Limits) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        lane = Scheduler(InMemoryJournal()).chat(ScriptedModel(latency_s=tenth), limits)
        done: dict[str, int] = {"early": 0, "late": 0}

        async def one(name: str, begin_s: float) -> None:
            await asyncio.sleep(begin_s)
            asked = [request(f"{name} {i}") for i in range(2000)]
            async with lane.stream(asked, stage=name) as results:
                async for _ in results:
                    done[name] += 1
                    if loop.time() - began > 25.0:
                        break

        async with asyncio.TaskGroup() as group:
            group.create_task(one("early", 0.0))
            group.create_task(one("late", 5.0))
        both = sum(done.values())
        assert done["late"] >= 0.2 * both, done
        assert done["early"] >= 0.2 * both, done

    run_virtual(check())


def test_a_stream_of_retries_does_not_hold_up_the_other() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        failing = text.startswith("bad") and attempt < 6
        return AttemptFailure("server", "", TRANSIENT) if failing else echo(text, attempt)

    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        lane = Scheduler(InMemoryJournal()).chat(ScriptedModel(script, latency_s=tenth), Limits(4))
        ended: dict[str, float] = {}

        async def one(name: str, n: int) -> None:
            async with lane.stream([request(f"{name} {i}") for i in range(n)], stage=name) as results:
                assert len([r async for r in results]) == n
            ended[name] = loop.time() - began

        async with asyncio.TaskGroup() as group:
            group.create_task(one("bad", 15))
            group.create_task(one("good", 100))
        assert ended["good"] < 10.0

    run_virtual(check())


def test_retries_that_are_due_go_before_new_requests() -> None:
    def script(text: str, attempt: int) -> ChatOutcome:
        failing = text == "r0" and attempt == 1
        return AttemptFailure("server", "", TRANSIENT) if failing else echo(text, attempt)

    async def check() -> None:
        model = ScriptedModel(script, latency_s=tenth)
        scheduler = Scheduler(None, policy=RetryPolicy(base_delay_s=0.05))
        async with scheduler.chat(model, Limits(1)).stream(requests(100), stage="s") as results:
            assert len([r async for r in results]) == 100
        assert [text for _, text in model.sends[:4]].count("r0") == 2

    run_virtual(check())
