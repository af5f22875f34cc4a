"""Lanes to models that answer hours later: what goes on, what is handed over, what adds up."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import AwaitingAnswers, BudgetError, InterruptedRunError, ModelError
from engine.events import Notice, StageProgress
from engine.ports import BatchModel, Price
from engine.scheduler import Budget, Scheduler
from engine.types import (
    NO_RETRY,
    TRANSIENT,
    Answer,
    AttemptFailure,
    ChatOutcome,
    Failure,
    Request,
    Result,
    Usage,
)
from tests.contracts.batch_model import BatchModelContract
from tests.support.batches import Counter, InMemoryBatch
from tests.support.fakes import InMemoryJournal, Listener, MemoryStore, request, requests
from tests.support.virtual_time import run_virtual

GONE = AttemptFailure("refused", "it will not", NO_RETRY)
MAY_PASS = AttemptFailure("http_500", "", TRANSIENT)


class TestInMemoryBatch(BatchModelContract):
    @pytest.fixture(autouse=True)
    def _counter(self) -> None:
        self.counter = Counter()

    def model(self) -> BatchModel:
        return InMemoryBatch(self.counter)

    def deliver(self, replies: Mapping[bytes, ChatOutcome]) -> None:
        self.counter.deliver(replies)

    def handed(self) -> list[list[bytes]]:
        return [job.keys for job in self.counter.jobs]


@dataclass
class Desk:
    """What lasts from one process to the next, and one pass in a process of its own."""

    counter: Counter = field(default_factory=Counter)
    store: MemoryStore = field(default_factory=MemoryStore)
    scheduler: Scheduler = field(init=False)
    heard: Listener = field(default_factory=Listener)
    error: Exception | None = None

    async def ask(
        self,
        asked: Iterable[Request],
        *,
        retry_failed: bool = False,
        run_id: str = "run",
        at: int | None = None,
    ) -> list[Result[Answer]]:
        """The results; what ended the pass is in `error`. With `at`, a stop is requested after so many."""
        self.heard, self.error = Listener(), None
        journal = InMemoryJournal(self.store, run_id, retry_failed=retry_failed)
        self.scheduler = Scheduler(journal, emit=self.heard)
        lane = self.scheduler.batch(InMemoryBatch(self.counter), retry_failed=retry_failed)
        found = []
        try:
            async with lane.stream(asked, stage="s") as results:
                async for result in results:
                    assert journal.knows(next(a for a in asked if a.id == result.id).digest("batch"))
                    found.append(result)
                    if at == len(found):
                        self.scheduler.request_stop()
        except (AwaitingAnswers, InterruptedRunError) as exc:
            self.error = exc
        return found

    def deliver(self, asked: Iterable[Request], reply: ChatOutcome | None = None) -> None:
        self.counter.deliver({one.digest("batch"): reply or Answer(f"to {one.id}", U) for one in asked})

    @property
    def handed(self) -> list[int]:
        return [len(job.keys) for job in self.counter.jobs]


U = Usage(10, 5)


def run(check: object) -> None:
    run_virtual(check())  # type: ignore[operator]


def test_missing_requests_go_out_together_and_come_back() -> None:
    async def check() -> None:
        desk, asked = Desk(), requests(600)
        assert await desk.ask(asked) == []
        assert str(desk.error) == (
            "waiting for answers to 600 requests of s: wait for the jobs, then run the same command again"
        )
        assert isinstance(desk.error, AwaitingAnswers)
        assert desk.error.exit_code == 75
        assert desk.handed == [600]
        # nobody has answered: nothing changes
        assert await desk.ask(asked) == []
        assert desk.handed == [600]
        desk.deliver(asked)
        found = await desk.ask(asked)
        assert desk.error is None
        assert [one.id for one in found] == [one.id for one in asked]
        assert {one.source for one in found} == {"sent"}
        assert [one.outcome.text for one in found if isinstance(one.outcome, Answer)][:2] == [
            "to r0",
            "to r1",
        ]
        found = await desk.ask(asked)
        assert {one.source for one in found} == {"cached"}
        assert desk.handed == [600]

    run(check)


def test_what_is_known_goes_on_and_only_gaps_are_asked_again() -> None:
    async def check() -> None:
        desk, asked = Desk(), requests(10)
        await desk.ask(asked[:4])
        desk.deliver(asked[:3])
        await desk.ask(asked[:3])
        found = await desk.ask(asked)
        assert [(one.id, one.source) for one in found] == [(f"r{n}", "cached") for n in range(3)]
        assert desk.handed == [4, 7]
        assert "7 requests of s, 1 of them asked before in vain: wait" in str(desk.error)
        desk.deliver(asked[3:9])
        assert [one.id for one in await desk.ask(asked)] == [f"r{n}" for n in range(9)]
        assert desk.handed == [4, 7, 1]
        assert "to 1 request of s, all of them asked before in vain: wait" in str(desk.error)

    run(check)


def test_what_it_counts_adds_up() -> None:
    async def check() -> None:
        desk, asked = Desk(), requests(5)
        await desk.ask(asked[:2])
        desk.deliver(asked[:2])
        await desk.ask(asked[:2])
        await desk.ask(asked)
        desk.deliver(asked[3:], None)
        desk.counter.replies[asked[2].digest("batch")] = [GONE]
        await desk.ask(asked)
        totals = desk.scheduler.totals
        assert (totals.sent, totals.cached, totals.failed) == (3, 2, 1)
        assert (totals.input_tokens, totals.output_tokens, totals.cost_usd) == (20, 10, 0.0)
        assert desk.heard.stages == ["started s", "finished s"]
        last = [event for event in desk.heard.events if isinstance(event, StageProgress)][-1]
        assert (last.done, last.sent, last.cached, last.failed, last.lane) == (5, 3, 2, 1, None)

    run(check)


def test_a_pass_that_waits_is_not_finished_but_tells_how_far_it_is() -> None:
    async def check() -> None:
        desk, asked = Desk(), requests(3)
        await desk.ask(asked)
        assert desk.heard.stages == ["started s"]
        assert any(isinstance(event, StageProgress) for event in desk.heard.events)

    run(check)


def test_equal_requests_are_one() -> None:
    async def check() -> None:
        desk = Desk()
        asked = [request(f"r{n}", f"text {n % 3}") for n in range(600)]
        await desk.ask(asked)
        assert desk.handed == [3]
        desk.deliver(asked[:3])
        found = await desk.ask(asked)
        assert [one.id for one in found] == [one.id for one in asked]
        assert Tally(one.source for one in found)["sent"] == 3
        assert desk.scheduler.totals.done == 600
        assert desk.scheduler.totals.sent == 3

    run(check)


def test_a_refusal_is_a_failure_of_the_run_and_is_asked_again_on_demand() -> None:
    async def check() -> None:
        desk, asked = Desk(), requests(2)
        await desk.ask(asked)
        desk.counter.deliver({asked[0].digest("batch"): GONE, asked[1].digest("batch"): Answer("yes")})
        found = await desk.ask(asked)
        assert found[0].outcome == Failure("r0", "refused", "it will not")
        assert found[0].source == "sent"
        assert (await desk.ask(asked))[0].source == "journal"
        # another run judges the same, for itself
        assert (await desk.ask(asked, run_id="other"))[0].source == "sent"
        assert desk.handed == [2]
        await desk.ask(asked, retry_failed=True)
        assert desk.handed == [2, 1]
        assert str(desk.error).endswith("then run the same command again without --retry-failed")
        await desk.ask(asked, retry_failed=True)
        assert desk.handed == [2, 1]
        # until the answer is there, the run goes on without
        assert isinstance((await desk.ask(asked))[0].outcome, Failure)
        desk.deliver(asked[:1])
        assert [one.outcome for one in await desk.ask(asked)] == [Answer("to r0", U), Answer("yes")]
        assert {one.source for one in await desk.ask(asked)} == {"cached"}

    run(check)


def test_a_loop_around_the_command_ends_though_nobody_answers() -> None:
    async def check() -> None:
        desk, asked = Desk(), requests(3)
        for _ in range(3):
            await desk.ask(asked)
            assert isinstance(desk.error, AwaitingAnswers)
            desk.deliver(asked[:1], MAY_PASS)
        found = await desk.ask(asked)
        assert desk.error is None
        assert {one.outcome.reason for one in found if isinstance(one.outcome, Failure)} == {"unanswered"}
        assert desk.handed == [3, 3, 3]

    run(check)


@pytest.mark.parametrize("retry_failed", [False, True])
def test_a_model_that_answers_at_once_is_waited_for(retry_failed: bool) -> None:
    async def check() -> None:
        desk, asked = Desk(), requests(3)
        desk.counter.at_once = {one.digest("batch"): Answer("now") for one in asked[:2]}
        desk.counter.at_once[asked[2].digest("batch")] = GONE
        found = await desk.ask(asked, retry_failed=retry_failed)
        assert desk.error is None
        assert [one.outcome for one in found] == [
            Answer("now"),
            Answer("now"),
            Failure("r2", "refused", "it will not"),
        ]
        assert desk.handed == [3]
        # equal ones too
        twice = [request("a", "new"), request("b", "new")]
        desk.counter.at_once = {twice[0].digest("batch"): Answer("now")}
        assert [one.id for one in await desk.ask(twice)] == ["a", "b"]

    run(check)


def test_a_stop_hands_nothing_over() -> None:
    async def check() -> None:
        desk, asked = Desk(), requests(600)
        await desk.ask(asked[:300])
        desk.deliver(asked[:300])
        found = await desk.ask(asked, at=1)
        assert isinstance(desk.error, InterruptedRunError)
        assert "stopped in s: 256 requests are answered and saved" in str(desk.error)
        assert len(found) == 256
        assert desk.handed == [300]
        # nor one that was asked for before it began
        desk.scheduler.request_stop()
        lane = desk.scheduler.batch(InMemoryBatch(desk.counter))
        with pytest.raises(InterruptedRunError):
            async with lane.stream(asked, stage="s") as results:
                await anext(results)
        assert desk.handed == [300]

    run(check)


def test_the_source_may_be_asynchronous_and_its_errors_pass() -> None:
    async def check() -> None:
        async def source(n: int) -> AsyncIterator[Request]:
            for one in requests(n):
                await asyncio.sleep(0)
                yield one

        def broken() -> Iterator[Request]:
            yield from requests(1)
            raise ValueError("row 2")

        counter = Counter(at_once={one.digest("batch"): Answer("x") for one in requests(300)})
        lane = Scheduler(None).batch(InMemoryBatch(counter))
        async with lane.stream(source(300), stage="s") as results:
            assert len([one async for one in results]) == 300
        with pytest.raises(ValueError, match="row 2"):
            async with lane.stream(broken(), stage="s") as results:
                await anext(results)
        async with lane.stream([], stage="s") as results:
            assert [one async for one in results] == []

    run(check)


def test_remarks_are_told_once() -> None:
    async def check() -> None:
        heard = Listener()
        model = InMemoryBatch(Counter(at_once={}), remarks=["answers-1: 3 lines are left out"])
        lane = Scheduler(None, emit=heard).batch(model)
        for _ in range(2):
            async with lane.stream(requests(2), stage="s") as results:
                assert len([one async for one in results]) == 2
        notices = [event for event in heard.events if isinstance(event, Notice)]
        assert notices == [Notice("answers-1: 3 lines are left out", warning=True)]

    run(check)


def test_a_cap_on_cost_goes_with_free_models_only() -> None:
    scheduler = Scheduler(None, budget=Budget(0.0))
    assert scheduler.batch(InMemoryBatch()).name == "batch"
    with pytest.raises(BudgetError, match=r"batch: the cap of \$0 cannot be kept over batch jobs"):
        scheduler.batch(InMemoryBatch(price=Price(1.0)))
    with pytest.raises(BudgetError, match="the price of batch is unknown"):
        scheduler.batch(InMemoryBatch(price=None))


def test_answers_are_kept_before_they_are_handed_out() -> None:
    async def check() -> None:
        asked = requests(3)
        counter = Counter(at_once={one.digest("batch"): Answer("x") for one in asked})
        journal = InMemoryJournal()
        journal.broken = ModelError("the disk is full")
        lane = Scheduler(journal).batch(InMemoryBatch(counter))
        with pytest.raises(ModelError, match="the disk is full"):
            async with lane.stream(asked, stage="s") as results:
                await anext(results)

    run(check)


REPLIES = st.sampled_from(["answer", "answer", "may pass", "gone", "nothing"])


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.data())
@settings(max_examples=60)
def test_rounds_end_with_one_result_each_and_nothing_asked_twice(
    texts: list[int], data: st.DataObject
) -> None:
    async def check() -> None:
        desk = Desk()
        asked = [request(f"r{n}", f"text {text}") for n, text in enumerate(texts)]
        answered: set[bytes] = set()
        for turn in range(1, 20):
            found = await desk.ask(asked)
            if desk.error is None:
                break
            assert len(desk.counter.jobs) == turn
            job = desk.counter.jobs[-1]
            assert not answered & set(job.keys), "what was answered is not asked again"
            replies: dict[bytes, ChatOutcome] = {}
            for key in job.keys:
                kind = data.draw(REPLIES)
                if kind != "nothing":
                    replies[key] = {"answer": Answer("x"), "may pass": MAY_PASS, "gone": GONE}[kind]
                if kind in ("answer", "gone"):
                    answered.add(key)
            desk.counter.deliver(replies)
        assert [one.id for one in found] == [one.id for one in asked]
        totals = desk.scheduler.totals
        assert totals.sent + totals.cached == len(asked)
        assert totals.failed == sum(isinstance(one.outcome, Failure) for one in found)
        assert len(desk.counter.jobs) <= 3

    run(check)
