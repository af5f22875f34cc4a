"""What every `BatchModel` does. See `engine.ports.BatchModel` for the contract in words."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from engine.ports import BatchModel, Price
from engine.types import NO_RETRY, TRANSIENT, Answer, AttemptFailure, ChatOutcome, Message, Request

MAY_PASS = AttemptFailure("http_500", retry=TRANSIENT)
FINAL = AttemptFailure("refused", retry=NO_RETRY)


class BatchModelContract:
    """Subclass as `TestSomething`; give `model`, `deliver` and `handed`."""

    def model(self) -> BatchModel:
        """A fresh instance over the one place where this test's jobs are."""
        raise NotImplementedError

    def deliver(self, replies: Mapping[bytes, ChatOutcome]) -> None:
        """Whoever answers is done with every job under way: with these replies, and none to the rest of it.

        An `Answer` is usable; a failure comes as one that the model judges with the same verdict.
        """
        raise NotImplementedError

    def handed(self) -> list[list[bytes]]:
        """The keys of each job handed over so far, oldest first."""
        raise NotImplementedError

    def requests(self, n: int = 3) -> list[Request]:
        messages = [(Message("system", "shared"), Message("user", f"text {i}")) for i in range(n)]
        return [Request(f"r{i}", one, 20) for i, one in enumerate(messages)]

    def run(self, check: Coroutine[Any, Any, None]) -> None:
        asyncio.run(check)

    # --- the checks ------------------------------------------------------------------------------

    def test_describes_itself(self) -> None:
        model = self.model()
        assert isinstance(model, BatchModel)
        assert model.name
        assert model.name == model.name.strip() == self.model().name
        assert model.max_input_tokens >= 1
        assert model.price is None or isinstance(model.price, Price)
        assert list(model.remarks) == []

    def test_nothing_is_there_before_anything_was_handed_over(self) -> None:
        async def check() -> None:
            model = self.model()
            assert await model.collect(self.requests()) == {}
            assert await model.collect([]) == {}
            assert await model.poll("no such job") == "failed"
            submitted = await model.submit([])
            assert list(submitted.jobs) == []
            assert self.handed() == []

        self.run(check())

    def test_what_is_handed_over_is_under_way(self) -> None:
        async def check() -> None:
            model, requests = self.model(), self.requests()
            submitted = await model.submit(requests)
            assert submitted.jobs
            assert submitted.asked_before == 0
            assert submitted.to_do
            assert "\n" not in submitted.to_do
            assert {await model.poll(job) for job in submitted.jobs} == {"pending"}
            assert sorted(flat(self.handed())) == sorted(keys(model, requests))
            assert await model.collect(requests) == {}

        self.run(check())

    def test_what_is_under_way_is_not_handed_over_again(self) -> None:
        async def check() -> None:
            requests = self.requests(4)
            first = await self.model().submit(requests[:3])
            again = await self.model().submit(requests[:3])
            assert list(again.jobs) == list(first.jobs)
            assert again.asked_before == 0
            more = await self.model().submit(requests)
            assert set(first.jobs) < set(more.jobs)
            handed = flat(self.handed())
            assert sorted(handed) == sorted(keys(self.model(), requests))

        self.run(check())

    def test_two_at_once_hand_nothing_over_twice(self) -> None:
        async def check() -> None:
            requests = self.requests(40)
            await asyncio.gather(self.model().submit(requests[:30]), self.model().submit(requests[10:]))
            assert sorted(flat(self.handed())) == sorted(keys(self.model(), requests))

        self.run(check())

    def test_answers_are_collected_and_stay(self) -> None:
        async def check() -> None:
            model, requests = self.model(), self.requests()
            jobs = (await model.submit(requests)).jobs
            self.deliver({key: Answer(f"answer {n}") for n, key in enumerate(keys(model, requests))})
            assert {await model.poll(job) for job in jobs} == {"done"}
            for one in (model, model, self.model()):
                found = await one.collect(requests)
                assert texts(one, requests, found) == ["answer 0", "answer 1", "answer 2"]
            alone = await model.collect(requests[1:2])
            assert list(alone) == keys(model, requests[1:2])
            assert await model.collect(self.requests(5)[3:]) == {}

        self.run(check())

    def test_what_is_answered_is_not_handed_over_again(self) -> None:
        async def check() -> None:
            model, requests = self.model(), self.requests()
            await model.submit(requests)
            self.deliver({key: Answer("yes") for key in keys(model, requests)})
            before = self.handed()
            submitted = await self.model().submit(requests)
            assert self.handed() == before
            assert "pending" not in {await model.poll(job) for job in submitted.jobs}

        self.run(check())

    def test_only_what_is_missing_is_handed_over_anew(self) -> None:
        async def check() -> None:
            model, requests = self.model(), self.requests(4)
            whole = keys(model, requests)
            await model.submit(requests)
            self.deliver({whole[0]: Answer("yes"), whole[1]: MAY_PASS})
            found = await model.collect(requests)
            assert isinstance(found[whole[0]], Answer)
            failure = found[whole[1]]
            assert isinstance(failure, AttemptFailure)
            assert failure.retry.kind != "no"
            assert whole[2] not in found
            submitted = await model.submit(requests)
            assert submitted.asked_before == 3
            assert sorted(self.handed()[-1]) == sorted(whole[1:])
            # which is under way now, whatever came before
            again = await self.model().submit(requests[1:])
            assert again.asked_before == 3
            assert len(self.handed()) == 2
            assert "pending" in {await model.poll(job) for job in again.jobs}
            self.deliver({key: Answer("late") for key in whole[1:]})
            found = await model.collect(requests)
            assert texts(model, requests, found) == ["yes", "late", "late", "late"]

        self.run(check())

    def test_a_failure_that_will_not_go_away_says_so(self) -> None:
        async def check() -> None:
            model, requests = self.model(), self.requests(2)
            await model.submit(requests)
            first, second = keys(model, requests)
            self.deliver({first: FINAL, second: Answer("yes")})
            found = await self.model().collect(requests)
            failure = found[first]
            assert isinstance(failure, AttemptFailure)
            assert failure.retry.kind == "no"
            assert "\n" not in failure.detail
            # asked for all the same: --retry-failed
            await model.submit(requests[:1])
            assert self.handed()[-1] == [first]
            self.deliver({first: Answer("after all")})
            assert texts(model, requests, await model.collect(requests)) == ["after all", "yes"]

        self.run(check())

    def test_a_request_that_nobody_answers_is_given_up(self) -> None:
        async def check() -> None:
            model, requests = self.model(), self.requests(2)
            key, other = keys(model, requests)
            rounds = 0
            while not given_up((await model.collect(requests)).get(key)):
                await model.submit(requests)
                self.deliver({other: MAY_PASS})
                rounds += 1
                assert rounds < 10, "a loop around the command has to end"
            assert rounds > 1
            await self.model().submit(requests[:1])
            assert self.handed()[-1] == [key]
            self.deliver({key: Answer("after all")})
            found = await model.collect(requests)
            assert texts(model, requests[:1], found) == ["after all"]

        self.run(check())

    def test_requests_stay_as_they_are(self) -> None:
        async def check() -> None:
            model, requests = self.model(), self.requests()
            before = copy.deepcopy(requests)
            await model.submit(requests)
            await model.collect(requests)
            assert requests == before

        self.run(check())

    def test_closing_twice_is_harmless(self) -> None:
        async def check() -> None:
            model = self.model()
            jobs = (await model.submit(self.requests())).jobs
            await model.aclose()
            await model.aclose()
            assert {await self.model().poll(job) for job in jobs} == {"pending"}

        self.run(check())


def keys(model: BatchModel, requests: Sequence[Request]) -> list[bytes]:
    return [request.digest(model.name) for request in requests]


def flat(jobs: list[list[bytes]]) -> list[bytes]:
    return [key for job in jobs for key in job]


def texts(model: BatchModel, requests: Sequence[Request], found: Mapping[bytes, ChatOutcome]) -> list[str]:
    outcomes = [found[key] for key in keys(model, requests)]
    return [one.text if isinstance(one, Answer) else f"failure: {one.reason}" for one in outcomes]


def given_up(outcome: ChatOutcome | None) -> bool:
    return isinstance(outcome, AttemptFailure) and outcome.retry.kind == "no"
